//! The messages of one partition in the order of their offsets.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    broker::embedded::clock::Tick,
    message::{Message, UnixMs},
};

/// Offsets a segment: a log grows and shrinks by whole ones, and never moves.
const SEGMENT: u64 = 1024;

/// One message in a partition.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    /// Retention counts from here: a replayed message has an old timestamp and stays as long as any other.
    pub(super) appended: Tick,
    pub(super) bytes: u32,
    /// It names a time before which it is not delivered. Kept here so that reading does not touch the message.
    pub(super) waits: bool,
}

#[derive(Debug)]
struct Segment {
    /// Offset of the first entry that is still there.
    first: u64,
    entries: VecDeque<Entry>,
    /// Latest timestamp of any that was here.
    timestamp_max: UnixMs,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    segments: VecDeque<Segment>,
    start: u64,
    end: u64,
    bytes: u64,
}

impl Log {
    /// Offset of the oldest that is kept; `end` if none is.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Offset that the next one gets.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Of all that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn append(&mut self, entry: Entry) {
        let (offset, timestamp) = (self.end, entry.message.timestamp);
        self.end += 1;
        self.bytes += u64::from(entry.bytes);
        match self.segments.back_mut().filter(|_| offset % SEGMENT != 0) {
            Some(segment) => {
                segment.timestamp_max = segment.timestamp_max.max(timestamp);
                segment.entries.push_back(entry);
            }
            None => {
                let entries = VecDeque::from([entry]);
                self.segments.push_back(Segment { first: offset, entries, timestamp_max: timestamp });
            }
        }
    }

    pub(super) fn get(&self, offset: u64) -> Option<&Entry> {
        let segment = (offset / SEGMENT).checked_sub(self.start / SEGMENT)?;
        let segment = self.segments.get(usize::try_from(segment).ok()?)?;
        segment.entries.get(usize::try_from(offset.checked_sub(segment.first)?).ok()?)
    }

    /// Takes the oldest away.
    pub(super) fn pop(&mut self) -> Option<(u64, Entry)> {
        let segment = self.segments.front_mut()?;
        let entry = segment.entries.pop_front()?;
        segment.first += 1;
        if segment.entries.is_empty() {
            self.segments.pop_front();
        }
        let offset = self.start;
        self.start += 1;
        self.bytes = self.bytes.saturating_sub(u64::from(entry.bytes));
        Some((offset, entry))
    }

    /// Offset of the first whose timestamp is not before `at`; `end` if there is none. Timestamps are the publishers'
    /// and need not ascend: segments whose latest is earlier are passed over whole.
    pub(super) fn since(&self, at: UnixMs) -> u64 {
        self.segments
            .iter()
            .filter(|segment| segment.timestamp_max >= at)
            .find_map(|segment| {
                let place = segment.entries.iter().position(|entry| entry.message.timestamp >= at)?;
                Some(segment.first + place as u64)
            })
            .unwrap_or(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(timestamp: UnixMs) -> Entry {
        let message = Arc::new(Message { timestamp, ..Message::default() });
        Entry { message, appended: timestamp, bytes: 1, waits: false }
    }

    #[test]
    fn finds_every_offset_between_start_and_end_and_no_other() {
        let mut log = Log::default();
        (0..5000).for_each(|n| log.append(entry(n)));
        for kept in [5000, 4999, 3000, 1024, 1023, 1, 0] {
            while log.end() - log.start() > kept {
                log.pop();
            }
            assert_eq!(log.bytes(), kept);
            for offset in 0..=5000 {
                let found = log.get(offset).map(|entry| entry.appended);
                assert_eq!(found, (offset >= log.start() && offset < log.end()).then_some(offset));
            }
        }
        assert!(log.segments.is_empty());
        (5000..7000).for_each(|n| log.append(entry(n)));
        assert!((5000..7000).all(|n| log.get(n).is_some_and(|entry| entry.appended == n)));
    }

    #[test]
    fn finds_a_time_though_timestamps_do_not_ascend() {
        let mut log = Log::default();
        (0..3000).for_each(|n| log.append(entry(n ^ 1)));
        assert_eq!((log.since(0), log.since(2001), log.since(5000)), (0, 2000, 3000));
    }
}
