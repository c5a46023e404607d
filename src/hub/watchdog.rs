//! Notices a subscription that has stalled: messages wait, none comes, and no lane has anything to do. Pure: what is seen
//! each second comes in, what to do comes out. Beginning anew is the [feed](super::feed)'s.

use std::time::{Duration, Instant};

use crate::{message::UnixMs, route::Watchdog as Rule};

/// Restarts that bring nothing come at growing intervals, at most so many times the first.
const BACKOFF_MAX: u32 = 16;

/// What is seen of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Messages that wait for it, as far as is known.
    pub(super) waiting: u64,
    /// Deliveries it has had in all.
    pub(super) delivered: u64,
    /// Whether it does nothing but wait: no handler runs, nothing is held back, its system is well.
    pub(super) only_waits: bool,
}

/// Watches one source.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    last: Option<Seen>,
    /// Since when it seems to have stalled.
    since: Option<Instant>,
    /// Restarts since the last delivery.
    in_vain: u32,
    restarts: Restarts,
}

/// Restarts of a subscription, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Restarts {
    pub(super) count: u64,
    pub(super) last: Option<UnixMs>,
    /// Why the engine is not ready, if it is because of this.
    pub(super) unfit: Option<String>,
}

/// The subscription is to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stalled {
    pub(super) waiting: u64,
    /// For how long nothing has come.
    pub(super) after: Duration,
    /// How many restarts this makes without a delivery.
    pub(super) in_vain: u32,
}

impl Watchdog {
    /// Looks, about once a second.
    pub(super) fn look(&mut self, rule: Rule, seen: Seen, now: Instant, unix: UnixMs) -> Option<Stalled> {
        let before = self.last.replace(seen);
        // What waited has come, or is gone.
        if seen.waiting == 0 || before.is_some_and(|before| before.delivered != seen.delivered) {
            self.in_vain = 0;
            self.restarts.unfit = None;
        }
        let is_stalled = |before: Seen| {
            seen.only_waits && seen.waiting > 0 && seen.waiting >= before.waiting && seen.delivered == before.delivered
        };
        if rule.stalled.is_zero() || !before.is_some_and(is_stalled) {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let after = now.saturating_duration_since(since);
        let more = self.in_vain.saturating_sub(rule.restarts_max);
        if after < rule.stalled * 2_u32.saturating_pow(more).min(BACKOFF_MAX) {
            return None;
        }
        self.since = None;
        self.in_vain += 1;
        self.restarts.count += 1;
        self.restarts.last = Some(unix);
        if self.in_vain >= rule.restarts_max {
            self.restarts.unfit = Some(format!(
                "{} messages wait and none has come, though its subscription was begun anew {} times; look at what the \
                 messaging system says of it",
                seen.waiting, self.in_vain
            ));
        }
        Some(Stalled { waiting: seen.waiting, after, in_vain: self.in_vain })
    }

    pub(super) fn restarts(&self) -> &Restarts {
        &self.restarts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule { stalled: Duration::from_secs(5), restarts_max: 2 };
    const STALLED: Seen = Seen { waiting: 7, delivered: 3, only_waits: true };

    /// Seconds at which a restart comes, when this is seen each second.
    fn restarts(rule: Rule, seen: impl IntoIterator<Item = Seen>) -> (Watchdog, Vec<usize>) {
        let (mut dog, begin) = (Watchdog::default(), Instant::now());
        let mut at = Vec::new();
        for (second, seen) in seen.into_iter().enumerate() {
            let now = begin + Duration::from_secs(second as u64);
            at.extend(dog.look(rule, seen, now, second as UnixMs).map(|_| second));
        }
        (dog, at)
    }

    #[test]
    fn what_brings_nothing_begins_anew_and_less_often_when_that_does_not_help() {
        let (dog, at) = restarts(RULE, [STALLED; 40]);
        assert_eq!(at, [6, 12, 18, 29]);
        assert_eq!((dog.restarts().count, dog.restarts().last), (4, Some(29)));
        let unfit = dog.restarts().unfit.as_ref().unwrap();
        assert!(unfit.contains("7 messages wait") && unfit.contains("4 times"), "{unfit}");
    }

    #[test]
    fn a_delivery_makes_it_fit_again() {
        let came = Seen { delivered: 4, ..STALLED };
        let (dog, at) = restarts(RULE, [STALLED; 14].into_iter().chain([came; 8]));
        assert_eq!(at, [6, 12, 20]);
        assert_eq!((dog.restarts().count, &dog.restarts().unfit), (3, &None));
    }

    #[test]
    fn what_has_nothing_to_bring_or_to_do_without_is_left_alone() {
        for seen in [Seen { waiting: 0, ..STALLED }, Seen { only_waits: false, ..STALLED }] {
            assert!(restarts(RULE, [seen; 100]).1.is_empty());
        }
        assert!(restarts(Rule { stalled: Duration::ZERO, ..RULE }, [STALLED; 100]).1.is_empty());
        let falls = (0..100).map(|second| Seen { waiting: 200 - second, ..STALLED });
        assert!(restarts(RULE, falls).1.is_empty(), "somebody else takes them");
    }

    proptest! {
        #[test]
        fn it_never_begins_anew_within_the_time_after_a_sign_of_life(
            seen in prop::collection::vec((0_u64..3, 0_u64..2, prop::bool::weighted(0.9)), 0..200),
        ) {
            let mut delivered = 0;
            let seen: Vec<_> = seen.into_iter().map(|(waiting, more, only_waits)| {
                delivered += more * u64::from(waiting == 0);
                Seen { waiting, delivered, only_waits }
            }).collect();
            let (_, at) = restarts(RULE, seen.iter().copied());
            for second in at {
                let last: Vec<_> = seen[second - 5..=second].to_vec();
                prop_assert!(last.iter().all(|seen| seen.only_waits && seen.waiting > 0), "{last:?}");
                prop_assert!(last.is_sorted_by(|a, b| a.waiting <= b.waiting && a.delivered == b.delivered), "{last:?}");
            }
        }
    }
}
