//! How far a partition has been handled. Pure. A group is committed up to the first message that is not done (the gap); those
//! done above it are committed beside it ([`done`](super::done)).

use std::collections::VecDeque;

use super::done::{self, Ranges};

/// How far a partition has been handled.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Fetched, from the gap on, in the order of their offsets.
    entries: VecDeque<Entry>,
    /// Behind the last that was fetched, or where reading begins; `None`: the server decides that, and nothing has come yet.
    next: Option<u64>,
    /// Done before this reader came, and not fetched yet.
    before: Ranges,
    /// Not done.
    open: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: u64,
    done: bool,
}

/// What is to be committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) offset: u64,
    pub(super) metadata: String,
}

impl Progress {
    /// Begins at an offset, with what the group has committed beside it. Without one, at the first message that comes.
    pub(super) fn begin(at: Option<u64>, metadata: &str) -> Self {
        let before = at.map(|at| done::decode(at, metadata)).unwrap_or_default();
        Self { next: at, before, ..Self::default() }
    }

    /// A message has come. False: it is done already, or was fetched before.
    pub(super) fn fetched(&mut self, offset: u64) -> bool {
        if self.next.is_some_and(|next| offset < next) {
            return false;
        }
        self.next = Some(offset + 1);
        let mut done = false;
        while let Some((begin, end)) = self.before.first().copied() {
            if offset >= end {
                self.before.remove(0);
                continue;
            }
            done = offset >= begin;
            break;
        }
        if done && self.entries.is_empty() {
            return false;
        }
        self.entries.push_back(Entry { offset, done });
        self.open += usize::from(!done);
        !done
    }

    /// A message is done. Said again, or of one that was never fetched, it changes nothing.
    pub(super) fn done(&mut self, offset: u64) {
        let Some(place) = self.find(offset) else { return };
        if let Some(entry) = self.entries.get_mut(place)
            && !std::mem::replace(&mut entry.done, true)
        {
            self.open -= 1;
        }
        while self.entries.front().is_some_and(|entry| entry.done) {
            self.entries.pop_front();
        }
    }

    fn find(&self, offset: u64) -> Option<usize> {
        let first = self.entries.front()?.offset;
        // Offsets are mostly without holes.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.entries.get(guess).is_some_and(|entry| entry.offset == offset) {
            return Some(guess);
        }
        self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()
    }

    /// The first offset that is not done; `None`: not known yet.
    pub(super) fn gap(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.offset).or(self.next)
    }

    /// Behind the last that was fetched, or where it begins.
    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    /// How many have been fetched and are not done.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// How many are done that have not come yet.
    pub(super) fn done_ahead(&self) -> u64 {
        let next = self.next.unwrap_or_default();
        self.before.iter().map(|(begin, end)| end.saturating_sub((*begin).max(next))).sum()
    }

    /// What is to be committed now.
    pub(super) fn commit(&self) -> Option<Commit> {
        let offset = self.gap()?;
        Some(Commit { offset, metadata: done::encode(offset, self.above()) })
    }

    /// The same, as if some more were done.
    pub(super) fn commit_with(&self, more: &[u64]) -> Option<Commit> {
        let mut then =
            Self { entries: self.entries.clone(), next: self.next, before: self.before.clone(), open: self.open };
        more.iter().for_each(|offset| then.done(*offset));
        then.commit()
    }

    /// What is done above the gap, in order.
    fn above(&self) -> Ranges {
        let mut ranges = Ranges::new();
        let mut begun = None;
        for entry in &self.entries {
            match (entry.done, begun) {
                (true, None) => begun = Some(entry.offset),
                (false, Some(begin)) => {
                    ranges.push((begin, entry.offset));
                    begun = None;
                }
                _ => {}
            }
        }
        let next = self.next.unwrap_or_default();
        ranges.extend(begun.map(|begin| (begin, next)));
        // With nothing open, what comes next is itself the gap, even where it is done.
        for (begin, end) in &self.before {
            let begin = (*begin).max(next);
            match ranges.last_mut() {
                Some(last) if last.1 == begin => last.1 = *end,
                _ if begin < *end => ranges.push((begin, *end)),
                _ => {}
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commits_up_to_the_first_gap_and_says_what_is_done_above_it() {
        let mut progress = Progress::begin(Some(10), "");
        assert!((10..20).all(|offset| progress.fetched(offset)));
        for offset in [12, 13, 15] {
            progress.done(offset);
        }
        assert_eq!((progress.gap(), progress.open()), (Some(10), 7));
        progress.done(10);
        let commit = progress.commit().unwrap();
        assert_eq!(commit.offset, 11);
        assert_eq!(done::decode(11, &commit.metadata), [(12, 14), (15, 16)]);
        // The next reader.
        let mut progress = Progress::begin(Some(commit.offset), &commit.metadata);
        let again: Vec<u64> = (11..22).filter(|offset| progress.fetched(*offset)).collect();
        assert_eq!(again, [11, 14, 16, 17, 18, 19, 20, 21]);
    }

    #[test]
    fn begins_where_the_server_says_when_nobody_knows() {
        let mut progress = Progress::begin(None, "");
        assert_eq!((progress.gap(), progress.commit()), (None, None));
        assert!(progress.fetched(1000));
        assert_eq!(progress.gap(), Some(1000));
        progress.done(1000);
        assert_eq!(progress.commit().unwrap(), Commit { offset: 1001, metadata: String::new() });
    }

    proptest! {
        /// Whatever is fetched, done, committed and read again, in any order, with holes: nothing that is not done is below
        /// what is committed or said to be done, and what is said to be done is not read again.
        #[test]
        fn never_skips_what_is_not_done(
            holes in prop::collection::btree_set(0..200_u64, 0..50),
            rounds in prop::collection::vec((1..60_u64, prop::collection::vec(0..200_u64, 0..60)), 1..6),
        ) {
            let log: Vec<u64> = (0..200).filter(|offset| !holes.contains(offset)).collect();
            let mut finished: BTreeSet<u64> = BTreeSet::new();
            let mut commit = Commit { offset: 0, metadata: String::new() };
            for (fetch, ends) in rounds {
                let mut progress = Progress::begin(Some(commit.offset), &commit.metadata);
                let mut out = BTreeSet::new();
                for offset in log.iter().filter(|offset| **offset >= commit.offset).take(fetch as usize) {
                    if progress.fetched(*offset) {
                        prop_assert!(!finished.contains(offset), "{offset} again");
                        out.insert(*offset);
                    } else {
                        prop_assert!(finished.contains(offset), "{offset} was skipped");
                    }
                }
                for offset in ends.into_iter().filter(|offset| out.contains(offset)) {
                    progress.done(offset);
                    finished.insert(offset);
                }
                commit = progress.commit().unwrap();
                prop_assert!(log.iter().filter(|offset| **offset < commit.offset).all(|offset| finished.contains(offset)));
            }
        }
    }
}
