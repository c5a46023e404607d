//! Which retry queue a message waits in. Pure.
//!
//! A queue delays all of its messages by the same time, as one with another would hold up those behind it. So there is one
//! for each of a few delays, and a message passes through as many as come close to what was asked.

use std::time::Duration;

/// Later than asked by this share of the delay is close enough.
const LATE_SHARE: u32 = 8;
/// And by this much whatever the delay.
const LATE: Duration = Duration::from_millis(100);

/// The delay, of those that there are, for a message that is to come again `after`: the shortest one that is not too
/// short, if it is not much too long; else the longest that is not too long, and then another. `delays` is sorted, and not
/// empty.
pub(super) fn choose(delays: &[Duration], after: Duration) -> Duration {
    let above = delays.iter().find(|delay| **delay >= after).copied();
    let below = delays.iter().rev().find(|delay| **delay <= after).copied();
    match (below, above) {
        (_, Some(above)) if above <= after + after / LATE_SHARE + LATE => above,
        (Some(below), _) => below,
        (None, above) => above.unwrap_or(after),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::topology::RUNG_DELAYS, *};

    /// All the delays that a message gets.
    fn path(after: Duration) -> Vec<Duration> {
        let mut left = after;
        let mut path = Vec::new();
        while !left.is_zero() {
            let delay = choose(&RUNG_DELAYS, left);
            path.push(delay);
            left = left.saturating_sub(delay);
        }
        path
    }

    #[test]
    fn takes_few_steps() {
        let ms = Duration::from_millis;
        for (after, steps) in [
            (1, vec![100]),
            (100, vec![100]),
            (1000, vec![1000]),
            (3000, vec![2000, 1000]),
            (7300, vec![5000, 2000, 250, 100]),
            (45_000, vec![30_000, 10_000, 5000]),
            (60_000, vec![60_000]),
            (24 * 3_600_000, vec![24 * 3_600_000]),
        ] {
            assert_eq!(path(ms(after)), steps.into_iter().map(ms).collect::<Vec<_>>(), "{after} ms");
        }
    }

    proptest! {
        #[test]
        fn is_never_early_and_not_much_too_late(after in 10..86_400_000_u64) {
            let after = Duration::from_millis(after);
            let path = path(after);
            let sum: Duration = path.iter().sum();
            prop_assert!(sum >= after);
            prop_assert!(sum <= after + after / LATE_SHARE + LATE, "{sum:?} for {after:?}");
            prop_assert!(path.len() <= 24);
        }
    }
}
