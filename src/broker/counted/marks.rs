//! Which messages of one partition may be out, as ranges of offsets. A note for each delivery would cost a row a message;
//! a mark is a row a partition. Pure: what is to be on disk is asked for, and written by others.

use std::collections::BTreeMap;

use crate::store::Mark;

/// Ranges of offsets that do not touch: the first of each, with its last.
#[derive(Debug, Default)]
pub(super) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    fn insert(&mut self, run: Mark) {
        let Mark { mut low, mut high } = run;
        // Whatever it touches becomes part of it.
        while let Some((&first, &last)) = self.0.range(..=high.saturating_add(1)).next_back() {
            if last.saturating_add(1) < low {
                break;
            }
            self.0.remove(&first);
            (low, high) = (low.min(first), high.max(last));
        }
        self.0.insert(low, high);
    }

    /// Takes out what of a range is in there.
    fn remove(&mut self, run: Mark) -> Vec<Mark> {
        let mut taken = Vec::new();
        while let Some((&first, &last)) = self.0.range(..=run.high).next_back() {
            if last < run.low {
                break;
            }
            self.0.remove(&first);
            let cut = Mark { low: first.max(run.low), high: last.min(run.high) };
            if first < cut.low {
                self.0.insert(first, cut.low - 1);
            }
            if last > cut.high {
                self.0.insert(cut.high + 1, last);
            }
            taken.push(cut);
        }
        taken
    }

    fn contains(&self, offset: u64) -> bool {
        self.0.range(..=offset).next_back().is_some_and(|(_, last)| *last >= offset)
    }

    fn hull(&self) -> Option<Mark> {
        let (low, _) = self.0.first_key_value()?;
        let (_, high) = self.0.last_key_value()?;
        Some(Mark { low: *low, high: *high })
    }
}

/// What is known of a message of which nothing is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was not handed over before, or was settled since.
    First,
    /// It is handed over, and comes again.
    Again,
    /// It was, or may have been, handed over by a process that ended with it.
    Inherited,
}

/// The messages of one partition of which nothing is noted.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// What may have been out when the process before this one ended, as far as it has not come again.
    inherited: Option<Mark>,
    /// About to be handed over: the mark on disk has it, or is being written.
    queued: Spans,
    /// Handed over.
    handed: Spans,
    /// What is on disk, or on its way there.
    written: Option<Mark>,
}

impl Marked {
    /// As the process before left it.
    pub(super) fn inherited(mark: Mark) -> Self {
        Self { inherited: Some(mark), written: Some(mark), ..Self::default() }
    }

    /// Whether something of the process before may still come.
    pub(super) fn is_inherited(&self) -> bool {
        self.inherited.is_some()
    }

    pub(super) fn standing(&self, offset: u64) -> Standing {
        if self.inherited.is_some_and(|mark| (mark.low..=mark.high).contains(&offset)) {
            Standing::Inherited
        } else if self.handed.contains(offset) {
            Standing::Again
        } else {
            Standing::First
        }
    }

    /// These are to be handed over. A partition comes in order: what is inherited before them has come, or was settled.
    pub(super) fn queue(&mut self, run: Mark) {
        self.pass(run.high);
        self.queued.insert(run);
    }

    /// Those of them that are queued are handed over.
    pub(super) fn hand_over(&mut self, run: Mark) {
        for run in self.queued.remove(run) {
            self.handed.insert(run);
        }
    }

    /// They have ended, or something is noted of them, which says more.
    pub(super) fn leave(&mut self, run: Mark) {
        self.queued.remove(run);
        self.handed.remove(run);
    }

    /// The same for one that may be inherited.
    pub(super) fn noted(&mut self, offset: u64) {
        self.pass(offset);
        self.leave(Mark { low: offset, high: offset });
    }

    /// They were handed over, and come back untried. Gives those that the mark goes on to include: of these it has to be
    /// noted that they are not out.
    pub(super) fn give_back(&mut self, run: Mark) -> Vec<Mark> {
        let back = self.handed.remove(run);
        self.still_within(back)
    }

    /// What was queued is not handed over after all.
    pub(super) fn take_back(&mut self, run: Mark) {
        self.queued.remove(run);
    }

    /// What of these the mark includes all the same.
    pub(super) fn still_within(&self, back: Vec<Mark>) -> Vec<Mark> {
        let Some(hull) = self.hull() else { return Vec::new() };
        let within = |run: Mark| Mark { low: run.low.max(hull.low), high: run.high.min(hull.high) };
        back.into_iter().map(within).filter(|run| run.low <= run.high).collect()
    }

    /// What is to be written, if it is not; inside: `None` where nothing can be out any more.
    pub(super) fn unwritten(&mut self) -> Option<Option<Mark>> {
        let hull = self.hull();
        (std::mem::replace(&mut self.written, hull) != hull).then_some(hull)
    }

    fn pass(&mut self, offset: u64) {
        let left = |mark: &Mark| mark.high > offset;
        self.inherited =
            self.inherited.filter(left).map(|mark| Mark { low: mark.low.max(offset.saturating_add(1)), ..mark });
    }

    fn hull(&self) -> Option<Mark> {
        let all = [self.inherited, self.queued.hull(), self.handed.hull()];
        all.into_iter()
            .flatten()
            .reduce(|one, other| Mark { low: one.low.min(other.low), high: one.high.max(other.high) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_the_set_of_their_offsets(steps in vec((any::<bool>(), 0_u64..40, 0_u64..9), 1..60)) {
            let (mut spans, mut set) = (Spans::default(), BTreeSet::new());
            for (adds, low, length) in steps {
                let run = Mark { low, high: low + length };
                let offsets: BTreeSet<u64> = (run.low..=run.high).collect();
                if adds {
                    spans.insert(run);
                    set.extend(offsets);
                } else {
                    let taken: BTreeSet<u64> = spans.remove(run).into_iter().flat_map(|run| run.low..=run.high).collect();
                    prop_assert_eq!(&taken, &set.intersection(&offsets).copied().collect());
                    set.retain(|offset| !offsets.contains(offset));
                }
                prop_assert!((0..60).all(|offset| spans.contains(offset) == set.contains(&offset)));
                let hull = set.first().zip(set.last()).map(|(low, high)| Mark { low: *low, high: *high });
                prop_assert_eq!(spans.hull(), hull);
                let touching = spans.0.values().zip(spans.0.keys().skip(1)).any(|(last, next)| last + 1 >= *next);
                prop_assert!(!touching);
            }
        }
    }

    #[test]
    fn what_comes_back_behind_all_others_needs_no_note() {
        let mut marked = Marked::default();
        let run = |low, high| Mark { low, high };
        marked.queue(run(10, 29));
        marked.hand_over(run(10, 29));
        assert_eq!(marked.unwritten(), Some(Some(run(10, 29))));
        assert_eq!(marked.give_back(run(20, 29)), []);
        assert_eq!(marked.unwritten(), Some(Some(run(10, 19))));
        assert_eq!(marked.give_back(run(12, 13)), [run(12, 13)]);
        assert_eq!(marked.unwritten(), None);
        marked.leave(run(10, 19));
        assert_eq!((marked.unwritten(), marked.unwritten()), (Some(None), None));
    }
}
