//! What a queue on disk holds, and every change to it. Pure: readings of the clock and rows come in; changes to write,
//! pages to read and wake-ups go out as data.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::Notify;

use super::{
    effects::{Effects, Load, Taken},
    item::Item,
    lane::Lane,
    later::{Entry, Later},
};
use crate::{
    broker::{
        AddressStats, BatchMax, Delivery, PublishError, QueueSettings, Tag,
        embedded::{
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
    /// One a priority.
    pub(super) lanes: Vec<Lane>,
    pub(super) later: Later,
    pub(super) leases: Leases<Item>,
    /// Those that may be out only one at a time, while one is.
    pub(super) sole_waiting: VecDeque<Item>,
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
    pub(super) fn new(address: Address, stored: &StoredQueue, settings: QueueSettings) -> Self {
        let lanes = (0..=PRIORITY_MAX).map(|priority| {
            let id = LaneId::new(stored.id, priority);
            let found = stored.lanes.iter().find(|lane| lane.lane == id);
            let (cold, handed) = found.map_or((0, 0), |lane| (lane.count.saturating_sub(lane.waiting), lane.handed));
            Lane::new(id, cold, handed)
        });
        let mut readers = Readers::default();
        readers.join_for_ever(EVICTOR);
        Self {
            id: stored.id,
            address,
            lanes: lanes.collect(),
            later: Later::new(stored.lanes.iter().map(|lane| lane.waiting).sum()),
            leases: Leases::new(settings.lease),
            sole_waiting: VecDeque::new(),
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
        bytes_max: usize,
        now: Now,
        changes: &mut Vec<Change>,
    ) -> (Vec<Item>, Vec<(usize, PublishError)>) {
        let mut failures = Vec::new();
        let mut items = Vec::with_capacity(messages.len());
        changes.reserve(messages.len());
        for (place, (message, rest)) in messages.into_iter().zip(rests).enumerate() {
            let size = message.size();
            if let Err(error) = self.admit(size, bytes_max) {
                failures.push((place, error));
                continue;
            }
            let due = message.not_before.filter(|at| *at > now.unix);
            let lane = if due.is_some() { LANE_LATER } else { self.priority_of(&message) };
            self.sequence += 1;
            let key = LaneId::new(self.id, lane).key(self.sequence);
            let bytes = u32::try_from(size).unwrap_or(u32::MAX);
            self.count += 1;
            self.arriving += 1;
            self.bytes += u64::from(bytes);
            changes.push(Change::Put { key, message: Arc::clone(&message), rest, bytes, due });
            let tries = Tries::first();
            items.push(Item { message, key, bytes, tries, crashes: 0, due, has_note: due.is_some() });
        }
        (items, failures)
    }

    /// They are on disk, or were refused.
    pub(super) fn arrived(&mut self, items: Vec<Item>, are_safe: bool, out: &mut Effects) {
        for item in items {
            self.arriving -= 1;
            if !are_safe {
                self.count -= 1;
                self.bytes = self.bytes.saturating_sub(u64::from(item.bytes));
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
                        lane.arrived(item);
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
        while items.len() < room.min(max.count.max(1)) {
            let Some(priority) = self.lanes.iter().rposition(|lane| lane.len() > 0) else { break };
            let Some(item) = self.pop(priority, items.is_empty(), ahead, bytes_left, out) else {
                if self.lanes.get(priority).is_some_and(|lane| lane.front().is_none() && lane.len() == 0) {
                    // What was there waits for another of its kind to end.
                    continue;
                }
                break;
            };
            bytes_left = bytes_left.saturating_sub(item.bytes as usize);
            let alone = suspects::is_alone(item.crashes);
            items.push(self.hand_over(item, priority, reader, now, out));
            if alone {
                break;
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
            let Some(mut item) = self.take_out(tag) else { continue };
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
        self.free_sole(out);
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
            let Some(item) = self.take_out(tag) else { continue };
            ended += 1;
            self.come_back(item, None, out);
        }
        out.rooms.extend(self.readers.ended(reader, ended));
        self.free_sole(out);
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
    pub(super) fn page_loaded(&mut self, lane: usize, page: Option<Page>, now: UnixMs, out: &mut Effects) {
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let Some(page) = page else { return lane.not_loaded() };
        let handed = lane.handed_before;
        let items = page.messages.into_iter().map(|stored| Item::restored(stored, handed, now));
        lane.loaded(items, &page.unreadable);
        out.wake_one = true;
        self.drop_beyond_limits(out);
    }

    /// Messages whose time has come have been read.
    pub(super) fn due_loaded(&mut self, page: Option<Page>, now: UnixMs, out: &mut Effects) {
        let Some(page) = page else { return self.later.not_read() };
        self.later.read();
        for stored in page.messages {
            self.give_back(Item::restored(stored, 0, now));
        }
        out.wake_one = true;
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

    pub(super) fn stats(&self) -> AddressStats {
        AddressStats {
            address: self.address.clone(),
            ready: self.lanes.iter().map(Lane::len).sum::<u64>() + self.sole_waiting.len() as u64,
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

    /// Takes the next of a lane, if it is in memory and fits.
    fn pop(
        &mut self,
        priority: usize,
        is_first: bool,
        ahead: bool,
        bytes_max: usize,
        out: &mut Effects,
    ) -> Option<Item> {
        self.load(priority, out);
        let sole_out = self.sole_out.is_some();
        let lane = self.lanes.get_mut(priority)?;
        loop {
            let front = lane.front()?;
            let too_large = !is_first && front.bytes as usize > bytes_max;
            if too_large || suspects::is_alone(front.crashes) && (ahead || !is_first) {
                return None;
            }
            let item = lane.pop()?;
            if suspects::is_sole(item.crashes) {
                if sole_out {
                    self.sole_waiting.push_back(item);
                    continue;
                }
                self.sole_out = Some(item.key);
            }
            return Some(item);
        }
    }

    fn hand_over(
        &mut self,
        mut item: Item,
        priority: usize,
        reader: ReaderId,
        now: Now,
        out: &mut Effects,
    ) -> (Delivery, Option<(usize, QueueKey)>) {
        let fresh = item.is_fresh().then_some((priority, item.key));
        if fresh.is_none() {
            out.changes.push(item.note(true));
        }
        let (message, attempt, failures) = (Arc::clone(&item.message), item.tries.attempt(), item.tries.failures());
        self.bytes_out += u64::from(item.bytes);
        let tag = self.leases.put(item, reader, now);
        (Delivery { message, tag, attempt, position: None, failures }, fresh)
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
        if let Some(lane) = self.lanes.get_mut(priority)
            && let Some(behind) = lane.page_wanted()
        {
            out.loads.push(Load::Page(priority, lane.id, behind));
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
    fn take_out(&mut self, tag: Tag) -> Option<Item> {
        let item = self.leases.take(tag)?.what;
        self.ended(&item);
        Some(item)
    }

    fn ended(&mut self, item: &Item) {
        self.bytes_out = self.bytes_out.saturating_sub(u64::from(item.bytes));
        if self.sole_out == Some(item.key) {
            self.sole_out = None;
        }
    }

    /// The next that must be out alone may.
    fn free_sole(&mut self, out: &mut Effects) {
        if self.sole_out.is_none()
            && let Some(item) = self.sole_waiting.pop_front()
        {
            self.give_back(item);
            out.wake_one = true;
        }
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
                self.later.begin();
            }
            None => {
                out.changes.push(item.note(false));
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
            self.ended(&lapsed.what);
            out.rooms.extend(self.readers.ended(lapsed.reader, 1));
            self.come_back(lapsed.what, None, out);
        }
        self.free_sole(out);
    }
}
