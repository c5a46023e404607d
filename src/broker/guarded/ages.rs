//! How long the oldest of a backlog has waited, without a time for each message.

use std::collections::VecDeque;

use crate::message::UnixMs;

/// Most times that are remembered; beyond, neighbours count as equally old.
const TIMES_MAX: usize = 1024;
/// Messages that came so close together are equally old.
const APART_MS: u64 = 1000;

/// When the messages of a backlog came: how many had come at most at which time.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// Messages that ever came up to and with this step, and when its first did.
    steps: VecDeque<(u64, UnixMs)>,
    came: u64,
    left: u64,
}

impl Ages {
    pub(super) fn came(&mut self, messages: u64, at: UnixMs) {
        if messages == 0 {
            return;
        }
        self.came += messages;
        if self.came <= self.left {
            // They were drained before it was told that they came.
            return;
        }
        match self.steps.back_mut() {
            Some((came, first)) if at.saturating_sub(*first) < APART_MS => *came = self.came,
            _ => self.steps.push_back((self.came, at)),
        }
        if self.steps.len() > TIMES_MAX {
            self.thin_out();
        }
    }

    pub(super) fn left(&mut self, messages: u64) {
        self.left += messages;
        while self.steps.front().is_some_and(|(came, _)| *came <= self.left) {
            self.steps.pop_front();
        }
    }

    /// So many are there, whatever was counted.
    pub(super) fn are(&mut self, messages: u64, now: UnixMs) {
        let counted = self.came.saturating_sub(self.left);
        if messages > counted {
            self.came(messages - counted, now);
        } else {
            self.left(counted - messages);
        }
    }

    /// The oldest are as old as this: they came before this process did.
    pub(super) fn since(&mut self, at: UnixMs) {
        if let Some((_, first)) = self.steps.front_mut() {
            *first = at.min(*first);
        }
    }

    /// When the oldest came.
    pub(super) fn oldest(&self) -> Option<UnixMs> {
        self.steps.front().map(|(_, at)| *at)
    }

    /// Two steps become one, as old as the older.
    fn thin_out(&mut self) {
        let mut thinner = VecDeque::with_capacity(TIMES_MAX);
        let mut steps = std::mem::take(&mut self.steps).into_iter();
        while let Some((came, at)) = steps.next() {
            thinner.push_back((steps.next().map_or(came, |(later, _)| later), at));
        }
        self.steps = thinner;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn the_oldest_is_never_younger_than_it_is(steps in vec((any::<bool>(), 1_u64..50, 0_u64..3000), 1..3000)) {
            let (mut ages, mut now, mut truth) = (Ages::default(), 1_000_000_u64, VecDeque::new());
            for (comes, messages, later) in steps {
                now += later;
                if comes {
                    ages.came(messages, now);
                    truth.extend((0..messages).map(|_| now));
                } else {
                    let gone = messages.min(truth.len() as u64);
                    ages.left(gone);
                    truth.drain(..gone as usize);
                }
                prop_assert_eq!(ages.oldest().is_some(), !truth.is_empty());
                prop_assert!(ages.oldest() <= truth.front().copied());
                prop_assert!(ages.steps.len() <= TIMES_MAX + 1);
            }
        }
    }

    #[test]
    fn is_as_exact_as_a_second_where_few_times_are_remembered() {
        let mut ages = Ages::default();
        for second in 0..100 {
            ages.came(10, second * 1000);
            ages.came(10, second * 1000 + 400);
        }
        ages.left(20 * 50 + 10);
        assert_eq!(ages.oldest(), Some(50_000));
        ages.are(20, 200_000);
        assert_eq!(ages.oldest(), Some(99_000));
        ages.are(0, 200_000);
        assert_eq!(ages.oldest(), None);
    }
}
