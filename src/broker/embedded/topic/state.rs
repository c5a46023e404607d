//! What a topic holds, and every change to it. Pure: readings of the clock come in, wake-ups go out as data.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    group::{Group, Taken},
    log::{Entry, Log},
    partition,
};
use crate::{
    broker::{
        AddressStats, BatchMax, PublishError, Start, Tag, TopicSettings,
        embedded::{
            clock::{Now, nanos},
            readers::{ReaderId, Wakes},
        },
    },
    message::{Address, FailedAttempt, Message, Settlement},
};

/// Messages without a key that follow each other into one partition before the next one's turn.
const STICKY: usize = 256;
/// Most messages that one change takes away for their age, beyond as many as it adds: none takes long.
const AGED_MAX: usize = 512;

/// The topic behind its lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) address: Address,
    pub(super) settings: TopicSettings,
    pub(super) logs: Vec<Log>,
    pub(super) closed: bool,
    groups: Vec<(GroupId, Group)>,
    last_group: GroupId,
    last_reader: ReaderId,
    /// Where messages without a key go now, and how many have gone there.
    sticky: (u32, usize),
    /// Losses of groups that are gone.
    dropped: u64,
    dead_lettered: u64,
}

/// Names a group; never used twice.
pub(super) type GroupId = u32;

impl State {
    pub(super) fn new(address: Address, settings: TopicSettings) -> Self {
        Self {
            address,
            logs: (0..settings.partitions).map(|_| Log::default()).collect(),
            settings,
            closed: false,
            groups: Vec::new(),
            last_group: 0,
            last_reader: 0,
            sticky: (0, 0),
            dropped: 0,
            dead_lettered: 0,
        }
    }

    /// Gives what was not published, and puts what retention took into `old`, to be freed outside the lock.
    pub(super) fn publish(
        &mut self,
        messages: Vec<Arc<Message>>,
        bytes_max: usize,
        now: Now,
        wakes: &mut Wakes,
        old: &mut Vec<Entry>,
    ) -> Vec<(usize, PublishError)> {
        let mut failures = Vec::new();
        let mut touched = vec![false; self.logs.len()];
        let aged_max = AGED_MAX + messages.len();
        for (place, message) in messages.into_iter().enumerate() {
            if self.closed {
                failures.push((place, PublishError::Closed));
                continue;
            }
            let size = message.size();
            if size > bytes_max {
                let error = PublishError::TooLarge { address: self.address.clone(), bytes: size, max: bytes_max };
                failures.push((place, error));
                continue;
            }
            let partition = match &message.key {
                Some(key) => partition::of_key(key, self.settings.partitions),
                None => self.sticky_partition(),
            } as usize;
            let (Some(log), Some(touched)) = (self.logs.get_mut(partition), touched.get_mut(partition)) else {
                continue;
            };
            *touched = true;
            let waits = message.not_before.is_some();
            log.append(Entry { message, appended: now.tick, bytes: u32::try_from(size).unwrap_or(u32::MAX), waits });
        }
        // The next batch goes elsewhere.
        if self.sticky.1 > 0 {
            self.sticky = (self.sticky.0.wrapping_add(1), 0);
        }
        self.retain(aged_max, now, old);
        for (_, group) in &self.groups {
            group.wake_for(&touched, wakes);
        }
        failures
    }

    /// Applies retention: bytes at once, age a bounded number at a time.
    pub(super) fn retain(&mut self, aged_max: usize, now: Now, old: &mut Vec<Entry>) {
        let bytes_max = self.settings.retention_bytes.unwrap_or(u64::MAX);
        let oldest = self.settings.retention.and_then(|retention| now.tick.checked_sub(nanos(retention)));
        for (partition, log) in self.logs.iter_mut().enumerate() {
            let mut aged = 0;
            loop {
                let is_aged = aged < aged_max
                    && oldest.is_some_and(|oldest| log.get(log.start()).is_some_and(|entry| entry.appended <= oldest));
                if log.bytes() <= bytes_max && !is_aged {
                    break;
                }
                aged += 1;
                let Some((offset, entry)) = log.pop() else { break };
                for (_, group) in &mut self.groups {
                    group.keep(partition, offset, &entry.message);
                }
                old.push(entry);
            }
        }
    }

    pub(super) fn join(
        &mut self,
        name: &Arc<str>,
        start: Start,
        prefetch: usize,
        wake: Arc<Notify>,
        wakes: &mut Wakes,
    ) -> (GroupId, ReaderId) {
        let known = self.groups.iter().position(|(_, group)| !name.is_empty() && group.name == *name);
        let place = known.unwrap_or_else(|| {
            let starts = self.logs.iter().map(|log| offset_of(log, start));
            let group = Group::new(Arc::clone(name), starts, self.settings.lease);
            self.last_group = self.last_group.wrapping_add(1);
            self.groups.push((self.last_group, group));
            self.groups.len() - 1
        });
        self.last_reader = self.last_reader.wrapping_add(1);
        let Some((id, group)) = self.groups.get_mut(place) else { return (0, 0) };
        group.readers.join(self.last_reader, prefetch, wake);
        group.share_out(wakes);
        (*id, self.last_reader)
    }

    pub(super) fn leave(&mut self, group: GroupId, reader: ReaderId, wakes: &mut Wakes) {
        let Some(left) = self.group_mut(group) else { return };
        left.readers.leave(reader);
        left.share_out(wakes);
        if left.name.is_empty() {
            self.dropped += left.lost;
            self.groups.retain(|(id, _)| *id != group);
        }
    }

    pub(super) fn take(
        &mut self,
        group: GroupId,
        reader: ReaderId,
        max: BatchMax,
        now: Now,
        wakes: &mut Wakes,
    ) -> Taken {
        let found = self.groups.iter_mut().find(|(id, _)| *id == group);
        match found {
            Some((_, group)) if !self.closed => group.take(reader, &self.logs, max, now, wakes),
            _ => Taken::Ended,
        }
    }

    pub(super) fn settle(
        &mut self,
        group: GroupId,
        reader: ReaderId,
        settled: impl IntoIterator<Item = (Tag, Settlement)>,
        now: Now,
        wakes: &mut Wakes,
    ) {
        if let Some(group) = self.group_mut(group) {
            self.dead_lettered += group.settle(reader, settled, now, wakes);
        }
    }

    pub(super) fn count_attempt(&mut self, group: GroupId, tag: Tag, failure: FailedAttempt, now: Now) {
        if let Some(group) = self.group_mut(group) {
            group.count_attempt(tag, failure, now);
        }
    }

    pub(super) fn renew(&mut self, group: GroupId, reader: ReaderId, now: Now) {
        if let Some(group) = self.group_mut(group) {
            group.readers.renew(reader, now);
        }
    }

    /// Ends it: what is out comes back, nothing goes in or out any more.
    pub(super) fn close(&mut self, now: Now, wakes: &mut Wakes) {
        self.closed = true;
        for (_, group) in &mut self.groups {
            group.recall(now, wakes);
            wakes.extend(group.readers.all());
        }
    }

    pub(super) fn stats(&mut self, now: Now) -> AddressStats {
        for (_, group) in &mut self.groups {
            group.refresh(&self.logs, now);
        }
        let groups = || self.groups.iter().map(|(_, group)| group);
        AddressStats {
            address: self.address.clone(),
            ready: self.kept(),
            delayed: groups().map(Group::delayed).sum(),
            unsettled: groups().map(Group::out).sum(),
            bytes: self.logs.iter().map(Log::bytes).sum(),
            lag: groups().map(|group| (Arc::clone(&group.name), group.lag(&self.logs))).collect(),
            dropped: self.dropped + groups().map(|group| group.lost).sum::<u64>(),
            dead_lettered: self.dead_lettered,
        }
    }

    /// How many messages there are.
    pub(super) fn kept(&self) -> u64 {
        self.logs.iter().map(|log| log.end() - log.start()).sum()
    }

    fn group_mut(&mut self, group: GroupId) -> Option<&mut Group> {
        self.groups.iter_mut().find(|(id, _)| *id == group).map(|(_, group)| group)
    }

    fn sticky_partition(&mut self) -> u32 {
        let (turn, count) = self.sticky;
        self.sticky = if count + 1 >= STICKY { (turn.wrapping_add(1), 0) } else { (turn, count + 1) };
        turn % self.settings.partitions.max(1)
    }
}

/// Where a reader begins in a partition.
pub(super) fn offset_of(log: &Log, start: Start) -> u64 {
    match start {
        Start::Earliest => log.start(),
        Start::Latest => log.end(),
        Start::Time(at) => log.since(at),
        Start::Offset(offset) => offset.clamp(log.start(), log.end()),
    }
}
