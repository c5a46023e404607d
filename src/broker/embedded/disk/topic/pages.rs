//! What a group that is behind has read from disk of one partition: a little ahead of where it is, so that it never waits
//! for the next page, and no more, so that a backlog takes no memory.

use std::collections::VecDeque;

use super::log::{Entry, Log};

/// What one reading brings at most.
pub(super) const PAGE_MAX: usize = 1000;
pub(super) const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Pages {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Up to here everything was read.
    to: u64,
    /// Where the reading begins that is under way.
    reading: Option<u64>,
}

/// Messages to read: from the one offset, up to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) from: u64,
    pub(super) end: u64,
}

impl Pages {
    /// The first message at or behind `next`, which moves on over offsets that no message has. `None`: there is none, or
    /// it has to be read first.
    pub(super) fn peek<'a>(&'a mut self, next: &mut u64, log: &'a Log) -> Option<&'a Entry> {
        while let Some(passed) = self.entries.pop_front_if(|entry| entry.offset < *next) {
            self.bytes = self.bytes.saturating_sub(passed.bytes as usize);
        }
        if self.entries.is_empty() && *next < self.to {
            *next = self.to;
        }
        let found = match self.entries.front() {
            Some(entry) => Some(entry),
            None => log.newest_from(*next),
        };
        if let Some(entry) = found {
            *next = entry.offset;
        }
        found
    }

    /// What should be read now, if anything; it counts as begun.
    pub(super) fn wanted(&mut self, next: u64, log: &Log) -> Option<Stretch> {
        let stretch = Stretch { from: self.to.max(next), end: log.tail_start() };
        let low = self.entries.len() <= PAGE_MAX / 2 && self.bytes <= PAGE_BYTES_MAX / 2;
        let wanted = low && self.reading.is_none() && stretch.from < stretch.end;
        wanted.then(|| {
            self.reading = Some(stretch.from);
            stretch
        })
    }

    /// Takes what was read; `None` where that failed. Whether it had been asked for.
    pub(super) fn put(&mut self, stretch: Stretch, page: Option<Vec<Entry>>) -> bool {
        if self.reading != Some(stretch.from) {
            return false;
        }
        self.reading = None;
        if let Some(page) = page {
            self.to = page.last().map_or(stretch.end, |last| last.offset + 1);
            self.bytes += page.iter().map(|entry| entry.bytes as usize).sum::<usize>();
            self.entries.extend(page);
        }
        true
    }

    /// Nobody reads here.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::log::tests::{append, entry, log_of},
        *,
    };

    #[test]
    fn reads_ahead_from_disk_and_goes_on_in_memory_without_a_gap() {
        let (mut log, mut pages, mut next) = (log_of(20_000), Pages::default(), 0);
        let (mut read, mut seen) = (0, Vec::new());
        while let Some(found) = pages.peek(&mut next, &log).map(|entry| entry.offset).or_else(|| {
            // Nothing in memory: only a page helps.
            let stretch = pages.wanted(next, &log)?;
            let to = stretch.end.min(stretch.from + PAGE_MAX as u64);
            // A few were refused when they were published.
            let page = (stretch.from..to).filter(|offset| offset % 1000 > 3).map(entry).collect();
            assert!(pages.put(stretch, Some(page)));
            read += 1;
            pages.peek(&mut next, &log).map(|entry| entry.offset)
        }) {
            assert!(pages.entries.len() <= PAGE_MAX + PAGE_MAX / 2);
            seen.push(found);
            next = found + 1;
            if found == 15_500 {
                append(&mut log, 500);
                log.trim();
            }
        }
        let first_in_memory = log.tail_start();
        let expected = (0..20_500).filter(|offset| *offset >= first_in_memory || offset % 1000 > 3);
        assert!(seen.into_iter().eq(expected), "in order, each once");
        assert!(read >= 18, "{read} pages");
    }

    #[test]
    fn reads_no_further_ahead_where_messages_are_large() {
        let (log, mut pages) = (log_of(10_000), Pages::default());
        let large = |offset| Entry { bytes: 1 << 20, ..entry(offset) };
        let stretch = pages.wanted(0, &log).unwrap();
        assert!(pages.put(stretch, Some((0..4).map(large).collect())));
        assert_eq!(pages.wanted(0, &log), None);
        assert_eq!(pages.peek(&mut 2, &log).map(|entry| entry.offset), Some(2));
        assert_eq!(pages.wanted(2, &log).map(|stretch| stretch.from), Some(4));
    }

    #[test]
    fn takes_no_page_that_was_asked_for_before_it_was_cleared() {
        let (log, mut pages) = (log_of(5000), Pages::default());
        let stretch = pages.wanted(0, &log).unwrap();
        assert_eq!(pages.wanted(0, &log), None);
        pages.clear();
        assert!(!pages.put(stretch, Some(vec![entry(0)])));
        assert!(pages.peek(&mut 0, &log).is_none());
        let stretch = pages.wanted(100, &log).unwrap();
        assert_eq!(stretch, Stretch { from: 100, end: log.tail_start() });
        assert!(pages.put(stretch, None), "one that failed is tried again");
        assert_eq!(pages.wanted(100, &log), Some(stretch));
    }
}
