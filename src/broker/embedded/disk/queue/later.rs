//! What waits for its time: on disk, found by when it is due. In memory are only the keys of what is due first.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashSet;

use crate::{message::UnixMs, store::QueueKey};

/// Most keys in memory, and how many are read at a time.
const WINDOW: usize = 8192;
pub(super) const PAGE: usize = 2048;

/// When, and what.
pub(super) type Entry = (UnixMs, QueueKey);

#[derive(Debug)]
pub(super) struct Later {
    /// How many there are, in memory or not.
    count: u64,
    /// Everything that is due up to `reach`; everything there is if that is `None`.
    first: BTreeSet<Entry>,
    /// Submitted, and not known to be on disk: a page that has them all the same leaves them to [`Later::put`], so that
    /// each is here once.
    expected: FxHashSet<QueueKey>,
    reach: Option<Option<Entry>>,
    /// While a page is read: what came that it may have missed.
    missed: Option<Vec<Entry>>,
    /// Their time has come; their messages are to be read.
    due: VecDeque<QueueKey>,
    reading: bool,
}

impl Later {
    /// As it was found on disk.
    pub(super) fn new(count: u64) -> Self {
        let reach = (count > 0).then_some(None);
        Self {
            count,
            first: BTreeSet::new(),
            expected: FxHashSet::default(),
            reach,
            missed: None,
            due: VecDeque::new(),
            reading: false,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.count
    }

    /// One may come to wait: it has been submitted.
    pub(super) fn expect(&mut self, key: QueueKey) {
        self.expected.insert(key);
    }

    /// It was refused.
    pub(super) fn forget(&mut self, key: QueueKey) {
        self.expected.remove(&key);
    }

    /// One more waits.
    pub(super) fn begin(&mut self) {
        self.count += 1;
    }

    /// It is on disk. Gives whether it is due before everything else, so that whoever waits for that must wait less.
    pub(super) fn put(&mut self, entry: Entry) -> bool {
        self.expected.remove(&entry.1);
        if let Some(missed) = &mut self.missed {
            missed.push(entry);
            return false;
        }
        if !self.reaches(entry) {
            return false;
        }
        let earliest = self.first.first().is_none_or(|first| entry < *first);
        self.first.insert(entry);
        if self.first.len() > WINDOW {
            self.first.pop_last();
            self.reach = Some(self.first.last().copied());
        }
        earliest
    }

    /// Whether a page should be read now, and behind what; it counts as begun.
    pub(super) fn page_wanted(&mut self) -> Option<Option<Entry>> {
        let behind = self.reach.filter(|_| self.missed.is_none() && self.first.len() < PAGE)?;
        self.missed = Some(Vec::new());
        Some(behind)
    }

    /// Takes a page: what follows what is here, all of it if it is not full.
    pub(super) fn loaded(&mut self, page: Vec<Entry>) {
        let last = page.last().copied();
        self.reach = if page.len() < PAGE { None } else { Some(last) };
        self.first.extend(page.into_iter().filter(|(_, key)| !self.expected.contains(key)));
        for entry in self.missed.take().unwrap_or_default() {
            self.put(entry);
        }
    }

    /// A page could not be read.
    pub(super) fn not_loaded(&mut self) {
        for entry in self.missed.take().unwrap_or_default() {
            self.put(entry);
        }
    }

    /// When the first is due.
    pub(super) fn first_due(&self) -> Option<UnixMs> {
        self.first.first().map(|(due, _)| *due)
    }

    /// Messages to read because their time has come, at most `limit`; they count as being read.
    pub(super) fn due(&mut self, now: UnixMs, limit: usize) -> Option<Vec<QueueKey>> {
        if self.reading {
            return None;
        }
        while self.due.len() < limit
            && let Some(first) = self.first.first().copied().filter(|(due, _)| *due <= now)
        {
            self.first.remove(&first);
            self.due.push_back(first.1);
        }
        self.reading = !self.due.is_empty();
        self.reading.then(|| self.due.iter().copied().collect())
    }

    /// They have been read: they wait no more.
    pub(super) fn read(&mut self) {
        self.reading = false;
        self.count = self.count.saturating_sub(self.due.len() as u64);
        self.due.clear();
    }

    /// They could not be read, and are still due.
    pub(super) fn not_read(&mut self) {
        self.reading = false;
    }

    fn reaches(&self, entry: Entry) -> bool {
        match self.reach {
            None => true,
            Some(reach) => reach.is_some_and(|reach| entry <= reach),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LaneId, PlaceId};

    fn entry(due: UnixMs, number: u64) -> Entry {
        (due, LaneId::new(PlaceId(1), 5).key(number))
    }

    /// Everything in the order of its time, whatever lies on disk only.
    #[test]
    fn finds_everything_by_its_time_though_memory_holds_only_the_first() {
        let mut disk: BTreeSet<Entry> = (0..30_000).map(|n| entry(n * 7919 % 30_000, n)).collect();
        let mut later = Later::new(disk.len() as u64);
        let mut found: Vec<QueueKey> = Vec::new();
        let mut now = 0;
        let mut number = 30_000;
        while later.len() > 0 {
            if let Some(behind) = later.page_wanted() {
                let from = |entry: &&Entry| behind.is_none_or(|behind| **entry > behind);
                let page = disk.iter().filter(from).take(PAGE).copied().collect();
                // One comes while the page is read, some before and some behind its end.
                if now % 3000 == 0 && number < 30_200 {
                    let late = entry(now + number % 200 * 100, number);
                    number += 1;
                    later.begin();
                    disk.insert(late);
                    later.put(late);
                }
                later.loaded(page);
            }
            if let Some(keys) = later.due(now, 1000) {
                found.extend(&keys);
                disk.retain(|(_, key)| !keys.contains(key));
                later.read();
                continue;
            }
            assert!(later.first.len() <= WINDOW);
            now += 100;
        }
        assert!(disk.is_empty() && found.len() as u64 == number);
    }

    #[test]
    fn has_each_once_though_a_page_brings_it_before_its_commit_is_told() {
        let mut later = Later::new(1);
        let (old, new) = (entry(5, 1), entry(6, 2));
        later.expect(new.1);
        assert_eq!(later.page_wanted(), Some(None));
        later.loaded(vec![old, new]);
        // The old one is due, read and gone before the new one is told of.
        assert_eq!(later.due(10, 9), Some(vec![old.1]));
        later.read();
        later.begin();
        later.put(new);
        assert_eq!((later.len(), later.due(10, 9)), (1, Some(vec![new.1])));
        later.read();
        assert_eq!((later.len(), later.due(10, 9)), (0, None));
    }
}
