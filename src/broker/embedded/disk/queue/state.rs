//! What a queue on disk holds, and every change to it. Pure: readings of the clock and rows come in; changes to write,
//! pages to read and wake-ups go out as data.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    effects::{Effects, Load, Popped, Taken},
    item::Item,
    lane::{Lane, Memory},
    later::{Entry, Later},
};
use crate::{
    broker::{
        AddressStats, BatchMax, Count, Delivery, PublishError, QueueSettings, Tag,
        embedded::{
            beside::{Held, Intake},
            clock::{Now, Tick},
            disk::suspects,
            leases::Leases,
            readers::{ReaderId, Readers},
            tries::Tries,
        },
    },
    message::{Address, FailedAttempt, Message, PRIORITY_MAX, Settlement, UnixMs},
    store::{Change, LANE_LATER, LaneId, Page, PlaceId, QueueKey, StoredQueue},
};

/// The reader that evicted messages are out to.
pub(super) const EVICTOR: ReaderId = 0;
/// Messages whose time has come that are read at a time.
const DUE_MAX: usize = 500;

/// The queue behind its lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) id: PlaceId,
    pub(super) address: Address,
    pub(super) settings: QueueSettings,
    pub(super) readers: Readers,
    pub(super) closed: bool,
    /// Whether being handed over is an attempt, which is remembered before.
    pub(super) counts: bool,
    /// One a priority.
    pub(super) lanes: Vec<Lane>,
    pub(super) later: Later,
    pub(super) leases: Leases<Item>,
    /// The one that is out of those that may be out only one at a time.
    pub(super) sole_out: Option<QueueKey>,
    /// The last number that was given away.
    pub(super) sequence: u64,
    /// Committed, wherever they are, or about to be.
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// Of these, published and not yet committed; and out, whose bytes do not count towards limits.
    pub(super) arriving: u64,
    pub(super) bytes_out: u64,
    pub(super) last_reader: ReaderId,
    pub(super) dropped: u64,
    pub(super) dead_lettered: u64,
}

impl State {
    /// As it was found on disk.
    pub(super) fn new(address: Address, stored: &StoredQueue, settings: QueueSettings, memory: &Arc<Memory>) -> Self {
        let lanes = (0..=PRIORITY_MAX).map(|priority| {
            let id = LaneId::new(stored.id, priority);
            let found = stored.lanes.iter().find(|lane| lane.lane == id);
            let (cold, handed) = found.map_or((0, 0), |lane| (lane.count.saturating_sub(lane.waiting), lane.handed));
            Lane::new(id, cold, handed, Arc::clone(memory))
        });
        let mut readers = Readers::default();
        readers.join_for_ever(EVICTOR);
        Self {
            id: stored.id,
            address,
            lanes: lanes.collect(),
            later: Later::new(stored.lanes.iter().map(|lane| lane.waiting).sum()),
            leases: Leases::new(settings.lease),
            sole_out: None,
            readers,
            sequence: stored.sequence_next.saturating_sub(1),
            count: stored.lanes.iter().map(|lane| lane.count).sum(),
            bytes: stored.lanes.iter().map(|lane| lane.bytes).sum(),
            arriving: 0,
            bytes_out: 0,
            last_reader: EVICTOR,
            dropped: 0,
            dead_lettered: 0,
            closed: false,
            counts: true,
            settings,
        }
    }

    /// Other settings hold from now on; leases that run keep their length.
    pub(super) fn adopt(&mut self, settings: QueueSettings) {
        self.leases.set_length(settings.lease);
        self.settings = settings;
    }

    /// Takes a place in the queue for each message that may come in, and gives those; they are there once
    /// [`State::arrived`] says so. `rests` are what [`crate::store::record::encode`] made of the messages.
    pub(super) fn reserve(
        &mut self,
        messages: Vec<Arc<Message>>,
        rests: Vec<Vec<u8>>,
        intake: Intake,
        now: Now,
        changes: &mut Vec<Change>,
    ) -> (Vec<Item>, Vec<(usize, PublishError)>) {
        let mut failures = Vec::new();
        let mut items = Vec::with_capacity(messages.len());
        changes.reserve(messages.len());
        for (place, (message, rest)) in messages.into_iter().zip(rests).enumerate() {
            let size = message.size();
            if let Err(error) = self.admit(size, intake.bytes_max) {
                failures.push((place, error));
                continue;
            }
            let due = message.not_before.filter(|at| intake.delays && *at > now.unix);
            let lane = if due.is_some() { LANE_LATER } else { self.priority_of(&message) };
            self.sequence += 1;
            let key = LaneId::new(self.id, lane).key(self.sequence);
            let bytes = u32::try_from(size).unwrap_or(u32::MAX);
            self.count += 1;
            self.arriving += 1;
            self.bytes += u64::from(bytes);
            if due.is_some() {
                self.later.expect(key);
            }
            changes.push(Change::Put { key, message: Arc::clone(&message), rest, bytes, due });
            let tries = Tries::first();
            items.push(Item { message, key, bytes, tries, crashes: 0, due, has_note: due.is_some() });
        }
        (items, failures)
    }

    /// They are on disk, or were refused.
    pub(super) fn arrived(&mut self, items: Vec<Item>, are_safe: bool, out: &mut Effects) {
        let is_read = self.is_read();
        for item in items {
            self.arriving -= 1;
            if !are_safe {
                self.count -= 1;
                self.bytes = self.bytes.saturating_sub(u64::from(item.bytes));
                self.later.forget(item.key);
                continue;
            }
            match item.due {
                Some(due) => {
                    self.later.begin();
                    out.wake_all |= self.later.put((due, item.key));
                }
                None => {
                    out.wake_one = true;
                    if let Some(lane) = self.lanes.get_mut(usize::from(item.key.lane().lane())) {
                        lane.arrived(item, is_read);
                    }
                }
            }
        }
        self.drop_beyond_limits(out);
    }

    pub(super) fn join(&mut self, prefetch: usize, room: Arc<Notify>) -> ReaderId {
        self.last_reader = self.last_reader.wrapping_add(1);
        self.readers.join(self.last_reader, prefetch, room);
        self.last_reader
    }

    /// Hands over what is there: highest priority first, then by arrival. They may be worked on once the changes are on
    /// disk. `ahead`: the reader has not asked for them yet; nothing that may have ended the process is handed over so.
    pub(super) fn take(&mut self, reader: ReaderId, ahead: bool, max: BatchMax, now: Now, out: &mut Effects) -> Taken {
        if self.closed {
            return Taken::Ended;
        }
        self.lapse(now, out);
        self.bring_due(now, out);
        let room = self.readers.room(reader);
        let mut items = Vec::new();
        let mut bytes_left = max.bytes;
        'lanes: for priority in (0..self.lanes.len()).rev() {
            while items.len() < room.min(max.count.max(1)) {
                let item = match self.pop(priority, items.is_empty() && !ahead, items.is_empty(), bytes_left, out) {
                    Popped::Item(item) => *item,
                    Popped::Nothing => continue 'lanes,
                    Popped::NotNow => break 'lanes,
                };
                bytes_left = bytes_left.saturating_sub(item.bytes as usize);
                let alone = suspects::is_alone(item.crashes);
                items.push(self.hand_over(item, priority, reader, now, out));
                if alone {
                    break 'lanes;
                }
            }
        }
        self.mark_handed(&items, out);
        self.readers.took(reader, items.len());
        out.wake_one |= self.lanes.iter().any(|lane| lane.front().is_some()) && (room == 0 || !items.is_empty());
        if items.is_empty() {
            return Taken::Nothing { until: self.look_again(now), full: room == 0 };
        }
        Taken::Some(items.into_iter().map(|(delivery, _)| delivery).collect())
    }

    /// Carries out settlements; those that come after their lease ran out find nothing to do.
    pub(super) fn settle(&mut self, reader: ReaderId, settled: Vec<(Tag, Settlement)>, now: Now, out: &mut Effects) {
        let mut ended = 0;
        out.changes.reserve(settled.len());
        for (tag, how) in settled {
            let Some(mut item) = self.take_out(tag, out) else { continue };
            ended += 1;
            match how {
                Settlement::Accept => self.remove(&item, out),
                Settlement::DeadLetter { .. } => {
                    self.dead_lettered += 1;
                    self.remove(&item, out);
                }
                Settlement::Redeliver { after, failure } => {
                    item.tries.failed(*failure);
                    // It was tried, and the process lives.
                    item.crashes = 0;
                    self.come_back(item, now.steady_after(after), out);
                }
                Settlement::Release { after } => self.come_back(item, now.steady_after(after), out),
            }
        }
        out.rooms.extend(self.readers.ended(reader, ended));
    }

    pub(super) fn count_attempt(&mut self, tag: Tag, failure: FailedAttempt, now: Now, out: &mut Effects) {
        if let Some(item) = self.leases.get_mut(tag, now) {
            item.tries.failed(failure);
            out.changes.push(item.note(true));
        }
    }

    pub(super) fn release(&mut self, reader: ReaderId, tags: Vec<Tag>, out: &mut Effects) {
        let mut ended = 0;
        for tag in tags {
            let Some(item) = self.take_out(tag, out) else { continue };
            ended += 1;
            self.come_back(item, None, out);
        }
        out.rooms.extend(self.readers.ended(reader, ended));
    }

    /// Ends it: what is out comes back, nothing goes in or out any more.
    pub(super) fn close(&mut self, out: &mut Effects) {
        self.closed = true;
        for item in self.leases.drain().map(|lease| lease.what).collect::<Vec<_>>() {
            self.come_back(item, None, out);
        }
        self.bytes_out = 0;
        out.wake_all = true;
        out.rooms.extend(self.readers.all());
    }

    /// The next of a lane have been read.
    pub(super) fn page_loaded(&mut self, place: usize, page: Option<Page>, now: Now, out: &mut Effects) {
        let Some(lane) = self.lanes.get_mut(place) else { return };
        let Some(page) = page else { return lane.not_loaded() };
        let handed = lane.handed_before;
        let items = page.messages.into_iter().map(|stored| Item::restored(stored, handed, now.unix));
        lane.loaded(items, &page.unreadable);
        // The next is read while these are worked on.
        self.load(place, out);
        out.wake_one = true;
        self.drop_beyond_limits(out);
    }

    /// Messages whose time has come have been read.
    pub(super) fn due_loaded(&mut self, page: Option<Page>, now: Now, out: &mut Effects) {
        let Some(page) = page else { return self.later.not_read() };
        self.later.read();
        for stored in page.messages {
            let item = Item::restored(stored, 0, now.unix);
            match item.due.filter(|due| *due > now.steady) {
                None => self.give_back(item),
                Some(_) if self.drops() => self.drop_one(&item, out),
                Some(due) => {
                    // It was read to be dropped, and need not be.
                    self.later.begin();
                    self.later.put((due, item.key));
                }
            }
        }
        out.wake_one = true;
        self.drop_beyond_limits(out);
    }

    /// The next that wait have been read.
    pub(super) fn later_loaded(&mut self, page: Option<Vec<Entry>>, out: &mut Effects) {
        match page {
            Some(page) => self.later.loaded(page),
            None => self.later.not_loaded(),
        }
        out.wake_all = true;
    }

    /// Those that were given back for later are on disk now.
    pub(super) fn put_later(&mut self, entries: Vec<Entry>, out: &mut Effects) {
        for entry in entries {
            out.wake_all |= self.later.put(entry);
        }
    }

    pub(super) fn last_sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn total(&self) -> u64 {
        self.count - self.arriving
    }

    pub(super) fn held(&self) -> Held {
        Held { messages: self.total(), bytes: self.bytes, arriving: self.arriving }
    }

    pub(super) fn stats(&self) -> AddressStats {
        AddressStats {
            address: self.address.clone(),
            ready: self.lanes.iter().map(Lane::len).sum(),
            delayed: self.later.len(),
            unsettled: self.leases.len() as u64,
            bytes: self.bytes,
            lag: Vec::new(),
            dropped: self.dropped,
            dead_lettered: self.dead_lettered,
        }
    }

    fn priority_of(&self, message: &Message) -> u8 {
        message.priority.min(self.settings.priority_max).min(PRIORITY_MAX)
    }

    /// Takes the next of a lane. `may_be_alone`: it may be one that shares no batch.
    fn pop(
        &mut self,
        priority: usize,
        may_be_alone: bool,
        is_first: bool,
        bytes_max: usize,
        out: &mut Effects,
    ) -> Popped {
        self.load(priority, out);
        let sole_out = self.sole_out.is_some();
        let Some(lane) = self.lanes.get_mut(priority) else { return Popped::Nothing };
        let Some(front) = lane.front() else {
            return if lane.len() > 0 { Popped::NotNow } else { Popped::Nothing };
        };
        if suspects::is_sole(front.crashes) && sole_out {
            // What is behind it waits with it: a route may keep order.
            return Popped::Nothing;
        }
        let too_large = !is_first && front.bytes as usize > bytes_max;
        if too_large || suspects::is_alone(front.crashes) && !may_be_alone {
            return Popped::NotNow;
        }
        let Some(item) = lane.pop() else { return Popped::Nothing };
        if suspects::is_sole(item.crashes) {
            self.sole_out = Some(item.key);
        }
        Popped::Item(Box::new(item))
    }

    fn hand_over(
        &mut self,
        mut item: Item,
        priority: usize,
        reader: ReaderId,
        now: Now,
        out: &mut Effects,
    ) -> (Delivery, Option<(usize, QueueKey)>) {
        let fresh = (self.counts && item.is_fresh()).then_some((priority, item.key));
        if self.counts && fresh.is_none() {
            out.changes.push(item.note(true));
        }
        let (message, attempt, failures) = (Arc::clone(&item.message), item.tries.attempt(), item.tries.failures());
        self.bytes_out += u64::from(item.bytes);
        let tag = self.leases.put(item, reader, now);
        (Delivery { message, tag, attempt, count: Count::Exact, topic: None, position: None, failures }, fresh)
    }

    /// Moves the marks of the lanes on to the last that is handed over for the first time.
    fn mark_handed(&mut self, items: &[(Delivery, Option<(usize, QueueKey)>)], out: &mut Effects) {
        for (priority, lane) in self.lanes.iter_mut().enumerate() {
            let of_lane = items.iter().rev().filter_map(|(_, fresh)| *fresh).find(|(of, _)| *of == priority);
            if let Some((_, key)) = of_lane.filter(|(_, key)| key.sequence() > lane.handed) {
                lane.handed = key.sequence();
                out.changes.push(Change::Handed(key));
            }
        }
    }

    pub(super) fn load(&mut self, priority: usize, out: &mut Effects) {
        let is_read = self.is_read();
        if let Some(lane) = self.lanes.get_mut(priority)
            && let Some((behind, count)) = lane.page_wanted(is_read)
        {
            out.loads.push(Load::Page { place: priority, lane: lane.id, behind, count });
        }
    }

    pub(super) fn bring_due(&mut self, now: Now, out: &mut Effects) {
        out.loads.extend(self.later.page_wanted().map(Load::Later));
        out.loads.extend(self.later.due(now.steady, DUE_MAX).map(Load::Due));
    }

    fn look_again(&self, now: Now) -> Tick {
        let leases = self.leases.check_at(now);
        self.later.first_due().map_or(leases, |due| now.at_steady(due).min(leases))
    }

    /// Ends one that was out.
    fn take_out(&mut self, tag: Tag, out: &mut Effects) -> Option<Item> {
        let item = self.leases.take(tag)?.what;
        self.ended(&item, out);
        Some(item)
    }

    fn ended(&mut self, item: &Item, out: &mut Effects) {
        self.bytes_out = self.bytes_out.saturating_sub(u64::from(item.bytes));
        if self.sole_out == Some(item.key) {
            self.sole_out = None;
            out.wake_one = true;
        }
    }

    /// Whether anybody reads it.
    fn is_read(&self) -> bool {
        self.readers.present().any(|reader| reader != EVICTOR)
    }

    pub(super) fn remove(&mut self, item: &Item, out: &mut Effects) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(u64::from(item.bytes));
        out.changes.push(item.remove());
    }

    /// Puts one that was out at its old place, not to be seen before `due`.
    fn come_back(&mut self, mut item: Item, due: Option<UnixMs>, out: &mut Effects) {
        match due {
            Some(due) => {
                out.changes.push(item.wait(due));
                out.later.push((due, item.key));
                self.later.expect(item.key);
                self.later.begin();
            }
            None => {
                if self.counts {
                    out.changes.push(item.note(false));
                }
                self.give_back(item);
                out.wake_one = true;
            }
        }
    }

    fn give_back(&mut self, item: Item) {
        let priority = usize::from(self.priority_of(&item.message));
        if let Some(lane) = self.lanes.get_mut(priority) {
            lane.give_back(item);
        }
    }

    /// A lease that ran out is an attempt that failed.
    pub(super) fn lapse(&mut self, now: Now, out: &mut Effects) {
        for mut lapsed in self.leases.lapsed(&self.readers, now) {
            let failure = self.leases.failure(lapsed.what.tries.attempt(), now);
            lapsed.what.tries.failed(failure);
            self.ended(&lapsed.what, out);
            out.rooms.extend(self.readers.ended(lapsed.reader, 1));
            self.come_back(lapsed.what, None, out);
        }
    }
}
