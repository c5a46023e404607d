//! What a queue holds, and every change to it. Pure: readings of the clock come in, wake-ups go out as data.

use std::sync::Arc;

use tokio::sync::Notify;

use super::lane::{Item, Lane};
use crate::{
    broker::{
        AddressStats, BatchMax, BrowseAt, Browsed, Count, Delivery, Overflow, Page, PublishError, QueueSettings, Start,
        Tag,
        embedded::{
            beside::Intake,
            clock::{Now, Tick},
            delayed::Delayed,
            leases::Leases,
            readers::{ReaderId, Readers, Wakes},
            tries::Tries,
        },
        error::BrokerError,
    },
    message::{Address, FailedAttempt, Message, PRIORITY_MAX, Settlement},
};

/// The reader that evicted messages are out to.
pub(super) const EVICTOR: ReaderId = 0;

/// The queue behind its lock.
#[derive(Debug)]
pub(super) struct State {
    address: Address,
    pub(super) settings: QueueSettings,
    pub(super) readers: Readers,
    pub(super) closed: bool,
    /// One a priority.
    lanes: Vec<Lane>,
    /// Bit n: lane n is not empty.
    occupied: u16,
    ready: u64,
    delayed: Delayed<Item>,
    leases: Leases<Item>,
    /// Bytes of what is ready or delayed; `bytes_out` of what is out.
    bytes: u64,
    bytes_out: u64,
    arrivals: u64,
    last_reader: ReaderId,
    dropped: u64,
    dead_lettered: u64,
}

/// Whom a change concerns. Told after the lock is released.
#[derive(Debug, Default)]
pub(super) struct Wake {
    /// Something is ready: one of those who wait.
    pub(super) one: bool,
    /// Something is due earlier than they think: all who wait.
    pub(super) all: bool,
    /// These have room again.
    pub(super) rooms: Wakes,
}

/// What [`State::take`] found.
#[derive(Debug)]
pub(super) enum Taken {
    Some(Vec<Delivery>),
    /// Nothing for now: look again at `until`, or when woken. `full`: not before something is settled.
    Nothing {
        until: Tick,
        full: bool,
    },
    Ended,
}

impl State {
    pub(super) fn new(address: Address, settings: QueueSettings) -> Self {
        let mut readers = Readers::default();
        readers.join_for_ever(EVICTOR);
        Self {
            address,
            readers,
            lanes: (0..=settings.priority_max.min(PRIORITY_MAX)).map(|_| Lane::default()).collect(),
            occupied: 0,
            ready: 0,
            delayed: Delayed::default(),
            leases: Leases::new(settings.lease),
            bytes: 0,
            bytes_out: 0,
            arrivals: 0,
            last_reader: EVICTOR,
            dropped: 0,
            dead_lettered: 0,
            closed: false,
            settings,
        }
    }

    pub(super) fn publish(
        &mut self,
        messages: Vec<Arc<Message>>,
        intake: Intake,
        now: Now,
        wake: &mut Wake,
    ) -> Vec<(usize, PublishError)> {
        let mut failures = Vec::new();
        let expires = self.settings.ttl.map(|ttl| now.unix.saturating_add(super::millis(ttl)));
        for (place, mut message) in messages.into_iter().enumerate() {
            if self.closed {
                failures.push((place, PublishError::Closed));
                continue;
            }
            let size = message.size();
            if let Err(error) = self.admit(size, intake.bytes_max) {
                failures.push((place, error));
                continue;
            }
            if let Some(expires) = expires.filter(|ttl| message.expires_at.is_none_or(|own| *ttl < own)) {
                Arc::make_mut(&mut message).expires_at = Some(expires);
            }
            let due = message.not_before.filter(|_| intake.delays).and_then(|at| now.at_unix(at));
            self.arrivals += 1;
            let bytes = u32::try_from(size).unwrap_or(u32::MAX);
            let item = Item { message, arrival: self.arrivals, tries: Tries::first(), bytes };
            self.bytes += u64::from(bytes);
            match due {
                Some(due) => wake.all |= self.delayed.put(item.arrival, due, item),
                None => {
                    wake.one = true;
                    self.ready += 1;
                    let lane = self.lane_of(&item.message);
                    self.occupied |= 1 << lane;
                    if let Some(lane) = self.lanes.get_mut(lane) {
                        lane.push(item);
                    }
                }
            }
            self.drop_beyond_limits();
        }
        failures
    }

    pub(super) fn join(&mut self, prefetch: usize, room: Arc<Notify>) -> ReaderId {
        self.last_reader = self.last_reader.wrapping_add(1);
        self.readers.join(self.last_reader, prefetch, room);
        self.last_reader
    }

    /// Hands over what is there: highest priority first, then by arrival.
    pub(super) fn take(&mut self, reader: ReaderId, max: BatchMax, now: Now, wake: &mut Wake) -> Taken {
        if self.closed {
            return Taken::Ended;
        }
        self.catch_up(now, wake);
        let room = self.readers.room(reader);
        if self.ready == 0 || room == 0 {
            wake.one |= self.ready > 0;
            let leases = self.leases.check_at(now);
            let until = self.delayed.first_due().map_or(leases, |due| due.min(leases));
            return Taken::Nothing { until, full: room == 0 };
        }
        let count = room.min(max.count.max(1)).min(usize::try_from(self.ready).unwrap_or(usize::MAX));
        let mut items = Vec::with_capacity(count);
        let mut bytes_left = max.bytes;
        while items.len() < count {
            let Some(item) = self.pop(if items.is_empty() { usize::MAX } else { bytes_left }) else { break };
            bytes_left = bytes_left.saturating_sub(item.bytes as usize);
            items.push(self.hand_out(item, reader, now));
        }
        self.readers.took(reader, items.len());
        wake.one |= self.ready > 0;
        Taken::Some(items)
    }

    /// Hands over what nobody should wait for any more, with no regard to who reads.
    pub(super) fn evict(&mut self, max: BatchMax, now: Now, wake: &mut Wake) -> Vec<Delivery> {
        let mut items = Vec::new();
        if self.closed {
            return items;
        }
        self.catch_up(now, wake);
        let mut bytes_left = max.bytes;
        while items.len() < max.count.max(1) && (items.is_empty() || bytes_left > 0) {
            let Some(item) = self.pop_expired(now).or_else(|| self.pop_overflowing()) else { break };
            bytes_left = bytes_left.saturating_sub(item.bytes as usize);
            self.bytes = self.bytes.saturating_sub(u64::from(item.bytes));
            items.push(self.hand_out(item, EVICTOR, now));
        }
        self.readers.took(EVICTOR, items.len());
        wake.one |= self.ready > 0;
        items
    }

    /// Carries out settlements; those that come after their lease ran out find nothing to do.
    pub(super) fn settle(&mut self, reader: ReaderId, settled: Vec<(Tag, Settlement)>, now: Now, wake: &mut Wake) {
        let mut ended = 0;
        for (tag, how) in settled {
            let Some(mut item) = self.take_out(tag) else { continue };
            ended += 1;
            match how {
                Settlement::Accept => {}
                Settlement::DeadLetter { .. } => self.dead_lettered += 1,
                Settlement::Redeliver { after, failure } => {
                    item.tries.failed(*failure);
                    self.come_back(item, now.after(after), now, wake);
                }
                Settlement::Release { after } => self.come_back(item, now.after(after), now, wake),
            }
        }
        wake.rooms.extend(self.readers.ended(reader, ended));
    }

    pub(super) fn count_attempt(&mut self, tag: Tag, failure: FailedAttempt, now: Now) {
        if let Some(item) = self.leases.get_mut(tag, now) {
            item.tries.failed(failure);
        }
    }

    pub(super) fn release(&mut self, reader: ReaderId, tags: Vec<Tag>, now: Now, wake: &mut Wake) {
        let mut ended = 0;
        for tag in tags {
            let Some(item) = self.take_out(tag) else { continue };
            ended += 1;
            self.come_back(item, now.tick, now, wake);
        }
        wake.rooms.extend(self.readers.ended(reader, ended));
    }

    /// Ends it: what is out comes back, nothing goes in or out any more.
    pub(super) fn close(&mut self, now: Now, wake: &mut Wake) {
        self.closed = true;
        for out in self.leases.drain() {
            self.come_back(out.what, now.tick, now, wake);
        }
        self.bytes_out = 0;
        wake.all = true;
        wake.rooms.extend(self.readers.all());
    }

    pub(super) fn browse(&self, at: &BrowseAt, limit: usize) -> Result<Page, BrokerError> {
        let after = match at {
            BrowseAt::Start(Start::Latest) => self.arrivals,
            BrowseAt::Start(_) => 0,
            BrowseAt::Cursor(text) => text
                .parse()
                .map_err(|_| BrokerError::Invalid(format!("{text:?} is not a cursor of {}", self.address)))?,
        };
        let limit = limit.max(1);
        // The next `limit` of each place where messages lie hold the next `limit` of all.
        let mut items: Vec<&Item> = self.leases.iter().filter(|item| item.arrival > after).collect();
        items.extend(self.delayed.beyond(after).take(limit));
        for lane in &self.lanes {
            let (returned, fresh) = lane.beyond(after);
            items.extend(returned.take(limit).chain(fresh.take(limit)));
        }
        items.sort_unstable_by_key(|item| item.arrival);
        items.truncate(limit);
        Ok(Page {
            next: items.last().map_or(after, |item| item.arrival).to_string(),
            items: items.iter().map(|item| Browsed { message: Arc::clone(&item.message), position: None }).collect(),
            total: self.ready + (self.delayed.len() + self.leases.len()) as u64,
        })
    }

    pub(super) fn stats(&self) -> AddressStats {
        AddressStats {
            address: self.address.clone(),
            ready: self.ready,
            delayed: self.delayed.len() as u64,
            unsettled: self.leases.len() as u64,
            bytes: self.bytes + self.bytes_out,
            lag: Vec::new(),
            dropped: self.dropped,
            dead_lettered: self.dead_lettered,
        }
    }

    fn lane_of(&self, message: &Message) -> usize {
        usize::from(message.priority).min(self.lanes.len().saturating_sub(1))
    }

    fn length(&self) -> u64 {
        self.ready + self.delayed.len() as u64
    }

    /// Whether a message of that size may come in now.
    fn admit(&self, size: usize, bytes_max: usize) -> Result<(), PublishError> {
        if size > bytes_max {
            return Err(PublishError::TooLarge { address: self.address.clone(), bytes: size, max: bytes_max });
        }
        let full = |limit: String| Err(PublishError::Full { address: self.address.clone(), limit });
        // How many times a limit may be filled.
        let fills = match self.settings.overflow {
            Overflow::RejectPublish => Some(1),
            Overflow::DeadLetterOldest => Some(2),
            Overflow::DropOldest => None,
        };
        let beyond = |held: u64, max: u64| fills.is_some_and(|fills| held > max.saturating_mul(fills));
        match (self.settings.length_max, self.settings.bytes_max) {
            (Some(max), _) if max == 0 || beyond(self.length() + 1, max) => full(format!("length_max {max}")),
            // Whatever else left would not make room for one that is larger than the queue.
            (_, Some(max)) if size as u64 > max || beyond(self.bytes + size as u64, max) => {
                full(format!("bytes_max {max}"))
            }
            _ => Ok(()),
        }
    }

    fn drop_beyond_limits(&mut self) {
        while self.settings.overflow == Overflow::DropOldest && self.overflows() {
            let Some(item) = self.pop_lowest() else { return };
            self.bytes = self.bytes.saturating_sub(u64::from(item.bytes));
            self.dropped += 1;
        }
    }

    /// Whether it holds more than its limits.
    fn overflows(&self) -> bool {
        self.settings.length_max.is_some_and(|max| self.length() > max)
            || self.settings.bytes_max.is_some_and(|max| self.bytes > max)
    }

    /// What is to leave for the dead letters because there is too much.
    fn pop_overflowing(&mut self) -> Option<Item> {
        let leaves = self.settings.overflow == Overflow::DeadLetterOldest && self.overflows();
        leaves.then(|| self.pop_lowest())?
    }

    /// What has expired at the head of a priority.
    fn pop_expired(&mut self, now: Now) -> Option<Item> {
        let expired = |lane: &Lane| lane.front().is_some_and(|item| item.message.expired(now.unix));
        let lane = self.lanes.iter().position(expired)?;
        self.pop_from(lane)
    }

    /// The oldest of the lowest priority. Only where nothing could be delivered now, something that waits for its time.
    fn pop_lowest(&mut self) -> Option<Item> {
        let lowest = self.occupied.trailing_zeros() as usize;
        self.pop_from(lowest).or_else(|| self.delayed.pop_oldest())
    }

    /// Whoever has had it for too long has it no more, and what waited for its time is there.
    fn catch_up(&mut self, now: Now, wake: &mut Wake) {
        self.lapse(now, wake);
        while let Some((_, item)) = self.delayed.pop_due(now.tick) {
            self.give_back(item);
        }
    }

    fn hand_out(&mut self, item: Item, reader: ReaderId, now: Now) -> Delivery {
        let message = Arc::clone(&item.message);
        let (attempt, failures) = (item.tries.attempt(), item.tries.failures());
        self.bytes_out += u64::from(item.bytes);
        let tag = self.leases.put(item, reader, now);
        Delivery { message, tag, attempt, count: Count::Exact, topic: None, position: None, failures }
    }

    /// Takes what is next, if it has at most that many bytes.
    fn pop(&mut self, bytes_max: usize) -> Option<Item> {
        let highest = self.occupied.checked_ilog2()? as usize;
        if self.lanes.get(highest)?.front()?.bytes as usize > bytes_max {
            return None;
        }
        let item = self.pop_from(highest)?;
        self.bytes = self.bytes.saturating_sub(u64::from(item.bytes));
        Some(item)
    }

    fn pop_from(&mut self, lane: usize) -> Option<Item> {
        let from = self.lanes.get_mut(lane)?;
        let item = from.pop()?;
        if from.is_empty() {
            self.occupied &= !(1 << lane);
        }
        self.ready -= 1;
        Some(item)
    }

    /// Ends one that was out.
    fn take_out(&mut self, tag: Tag) -> Option<Item> {
        let item = self.leases.take(tag)?.what;
        self.bytes_out = self.bytes_out.saturating_sub(u64::from(item.bytes));
        Some(item)
    }

    /// Puts one that was out at its old place, not to be seen before `due`.
    fn come_back(&mut self, item: Item, due: Tick, now: Now, wake: &mut Wake) {
        self.bytes += u64::from(item.bytes);
        if due > now.tick {
            wake.all |= self.delayed.put(item.arrival, due, item);
        } else {
            self.give_back(item);
            wake.one = true;
        }
    }

    fn give_back(&mut self, item: Item) {
        let lane = self.lane_of(&item.message);
        self.occupied |= 1 << lane;
        self.ready += 1;
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.give_back(item);
        }
    }

    /// A lease that ran out is an attempt that failed.
    fn lapse(&mut self, now: Now, wake: &mut Wake) {
        for mut out in self.leases.lapsed(&self.readers, now) {
            let failure = self.leases.failure(out.what.tries.attempt(), now);
            out.what.tries.failed(failure);
            self.bytes_out = self.bytes_out.saturating_sub(u64::from(out.what.bytes));
            wake.rooms.extend(self.readers.ended(out.reader, 1));
            self.come_back(out.what, now.tick, now, wake);
        }
    }
}
