//! One partition as the broker knows it: where it begins and ends, and its newest messages. All of them are on disk.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    message::{Message, UnixMs},
    store::{PartitionId, StoredPartition, StoredRecord},
};

/// Most messages kept in memory for readers that keep up, and most bytes of them.
const TAIL_MAX: usize = 2048;
const TAIL_BYTES_MAX: usize = 2 * 1024 * 1024;

/// One message in a partition.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) message: Arc<Message>,
    pub(super) bytes: u32,
    /// Retention counts from here: a replayed message has an old timestamp and stays as long as any other.
    pub(super) appended: UnixMs,
    /// It names a time before which it is not delivered. Kept here so that reading does not touch the message.
    pub(super) waits: bool,
}

impl From<StoredRecord> for Entry {
    fn from(record: StoredRecord) -> Self {
        let StoredRecord { offset, message, bytes, appended } = record;
        let waits = message.not_before.is_some();
        Self { offset, message, bytes, appended, waits }
    }
}

/// A publish that was refused leaves a gap where later ones were already under way: offsets that no message has.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: PartitionId,
    start: u64,
    end: u64,
    /// The offset that the next one gets.
    reserved: u64,
    /// Batches that are neither safe nor refused yet.
    undecided: usize,
    bytes: u64,
    /// Everything from `tail_start` on, in order.
    tail: VecDeque<Entry>,
    tail_start: u64,
    tail_bytes: usize,
    /// Before `start`, and still on disk: how many groups have to settle each.
    kept: BTreeMap<u64, u32>,
}

impl Log {
    pub(super) fn new(stored: &StoredPartition) -> Self {
        let StoredPartition { id, start, end, bytes, .. } = *stored;
        Self {
            id,
            start,
            end,
            reserved: end,
            undecided: 0,
            bytes,
            tail: VecDeque::new(),
            tail_start: end,
            tail_bytes: 0,
            kept: BTreeMap::new(),
        }
    }

    /// Offset of the oldest that is kept; `end` if none is.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the newest that is safe.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Of all that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From here on, all messages are in memory.
    pub(super) fn tail_start(&self) -> u64 {
        self.tail_start
    }

    /// A batch is about to be written.
    pub(super) fn begin(&mut self) {
        self.undecided += 1;
    }

    /// The offset for one more message of it.
    pub(super) fn reserve(&mut self) -> u64 {
        let offset = self.reserved;
        self.reserved += 1;
        offset
    }

    /// A batch is safe, and its messages are appended; or it was refused.
    pub(super) fn decided(&mut self) {
        self.undecided = self.undecided.saturating_sub(1);
        if self.undecided == 0 {
            // What was refused, and nothing came behind.
            self.reserved = self.end;
        }
    }

    /// A message that is safe becomes visible.
    pub(super) fn append(&mut self, entry: Entry) {
        self.end = entry.offset + 1;
        self.bytes += u64::from(entry.bytes);
        self.tail_bytes += entry.bytes as usize;
        self.tail.push_back(entry);
    }

    /// Keeps the tail within its bounds.
    pub(super) fn trim(&mut self) {
        while self.tail.len() > TAIL_MAX || (self.tail_bytes > TAIL_BYTES_MAX && self.tail.len() > 1) {
            let Some(entry) = self.pop_tail() else { return };
            self.tail_start = entry.offset + 1;
        }
    }

    /// The first at or behind that offset, if all from there on are in memory.
    pub(super) fn newest_from(&self, offset: u64) -> Option<&Entry> {
        if offset < self.tail_start {
            return None;
        }
        // Where there are no gaps, its place is known.
        let place = usize::try_from(offset.saturating_sub(self.tail.front()?.offset)).ok()?;
        match self.tail.get(place) {
            Some(entry) if entry.offset == offset => Some(entry),
            _ => self.tail.get(self.tail.partition_point(|entry| entry.offset < offset)),
        }
    }

    /// The message at that offset, if it is in memory.
    pub(super) fn newest_at(&self, offset: u64) -> Option<&Entry> {
        self.newest_from(offset).filter(|entry| entry.offset == offset)
    }

    /// The first in memory, at or behind that offset, whose timestamp is not before `at`.
    pub(super) fn newest_since(&self, offset: u64, at: UnixMs) -> Option<u64> {
        let found = self.tail.iter().find(|entry| entry.offset >= offset && entry.message.timestamp >= at);
        found.map(|entry| entry.offset)
    }

    /// The oldest, if it is in memory.
    pub(super) fn oldest(&self) -> Option<&Entry> {
        self.tail.front().filter(|_| self.start >= self.tail_start)
    }

    /// Retention takes the oldest, which is in memory. Gives its bytes.
    pub(super) fn pop(&mut self) -> u64 {
        let Some(entry) = self.pop_tail() else { return 0 };
        self.tail_start = entry.offset + 1;
        self.forget_to(entry.offset + 1, u64::from(entry.bytes));
        u64::from(entry.bytes)
    }

    /// Retention takes those before `start`, which are not in memory.
    pub(super) fn forget_to(&mut self, start: u64, bytes: u64) {
        self.start = self.start.max(start).min(self.end);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// A group has to settle this one, which retention takes.
    pub(super) fn keep(&mut self, offset: u64) {
        *self.kept.entry(offset).or_insert(0) += 1;
    }

    /// A group has settled one. Whether nobody needs it any more that retention has taken.
    pub(super) fn unkeep(&mut self, offset: u64) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        let Some(groups) = self.kept.get_mut(&offset) else { return false };
        *groups -= 1;
        let last = *groups == 0;
        if last {
            self.kept.remove(&offset);
        }
        last
    }

    fn pop_tail(&mut self) -> Option<Entry> {
        let entry = self.tail.pop_front()?;
        self.tail_bytes = self.tail_bytes.saturating_sub(entry.bytes as usize);
        Some(entry)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A log of so many, of which the newest are in memory.
    pub(in super::super) fn log_of(count: u64) -> Log {
        let id = PartitionId(1);
        let mut log = Log::new(&StoredPartition { id, start: 0, end: 0, bytes: 0, appended_last: 0 });
        append(&mut log, count);
        log.trim();
        log
    }

    pub(in super::super) fn append(log: &mut Log, count: u64) {
        log.begin();
        for _ in 0..count {
            let entry = entry(log.reserve());
            log.append(entry);
        }
        log.decided();
    }

    pub(in super::super) fn entry(offset: u64) -> Entry {
        let message = Arc::new(Message { timestamp: offset, ..Message::default() });
        Entry { offset, message, bytes: 1, appended: offset, waits: false }
    }

    #[test]
    fn keeps_the_newest_in_memory_whatever_there_is() {
        let log = log_of(10_000);
        let first = 10_000 - TAIL_MAX as u64;
        assert_eq!((log.tail_start(), log.bytes(), log.tail.len()), (first, 10_000, TAIL_MAX));
        assert!(log.newest_at(first - 1).is_none() && log.newest_at(10_000).is_none());
        assert!((first..10_000).all(|offset| log.newest_at(offset).is_some_and(|entry| entry.appended == offset)));
    }

    #[test]
    fn passes_over_what_was_refused_and_takes_its_offsets_back_where_nothing_came_behind() {
        let mut log = log_of(3);
        log.begin();
        assert_eq!((log.reserve(), log.reserve()), (3, 4));
        log.begin();
        let behind = log.reserve();
        log.decided();
        log.append(entry(behind));
        log.decided();
        assert_eq!((log.end(), log.newest_from(3).map(|entry| entry.offset)), (6, Some(5)));
        assert!(log.newest_at(4).is_none() && log.newest_at(5).is_some());
        log.begin();
        assert_eq!(log.reserve(), 6);
        log.decided();
        log.begin();
        assert_eq!(log.reserve(), 6);
    }

    #[test]
    fn needs_what_is_kept_until_the_last_group_has_settled_it() {
        let mut log = log_of(3);
        log.keep(1);
        log.keep(1);
        assert!(!log.unkeep(2) && !log.unkeep(1) && log.unkeep(1) && !log.unkeep(1));
    }
}
