//! How long to wait before another attempt, and how many there are.

use std::time::Duration;

use serde::Serialize;

/// Shortest delay of a retry. Source: SPEC §14.
pub const DELAY_MIN: Duration = Duration::from_millis(10);
/// Longest delay of a retry. Source: SPEC §14.
pub const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Most attempts a policy or a message may ask for: beyond it, it is not a retry any more but a loop.
pub const ATTEMPTS_MAX: u32 = 1000;

/// Most that each delay may be of the one before it.
pub const FACTOR_MAX: f64 = 100.0;

/// How often and when a message is tried again. Source of the defaults: SPEC §4, "Two ladders".
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; 1 to [`ATTEMPTS_MAX`].
    pub attempts_max: u32,
    /// Delay before the second attempt.
    pub delay: Duration,
    /// By what each further delay grows; 1 to [`FACTOR_MAX`].
    pub factor: f64,
    /// No delay grows beyond this.
    pub delay_max: Duration,
    /// Part of each delay that is random, 0 to 1: 0.2 spreads 1 s over 0.8 s to 1.2 s.
    pub jitter: f64,
}

/// Why numbers do not make a policy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RetryPolicyError {
    /// Choose another number.
    #[error("attempts_max is {0}; it must be 1 to {ATTEMPTS_MAX}")]
    Attempts(u32),
    /// Choose another number.
    #[error("factor is {0}; it must be 1 to {FACTOR_MAX}")]
    Factor(f64),
    /// Choose another number.
    #[error("jitter is {0}; it must be 0 to 1")]
    Jitter(f64),
    /// Exchange them, or raise the longest.
    #[error("delay_ms ({delay:?}) is longer than delay_max_ms ({delay_max:?})")]
    Delays {
        /// The first delay.
        delay: Duration,
        /// The longest.
        delay_max: Duration,
    },
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 4,
            delay: Duration::from_secs(1),
            factor: 2.0,
            delay_max: Duration::from_secs(30),
            jitter: 0.2,
        }
    }
}

impl RetryPolicy {
    /// Checks the bounds that the fields' documentation names.
    ///
    /// # Errors
    /// Each variant names the number to change.
    pub fn checked(self) -> Result<Self, RetryPolicyError> {
        if !(1..=ATTEMPTS_MAX).contains(&self.attempts_max) {
            return Err(RetryPolicyError::Attempts(self.attempts_max));
        }
        if !(1.0..=FACTOR_MAX).contains(&self.factor) {
            return Err(RetryPolicyError::Factor(self.factor));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(RetryPolicyError::Jitter(self.jitter));
        }
        if self.delay > self.delay_max {
            return Err(RetryPolicyError::Delays { delay: self.delay, delay_max: self.delay_max });
        }
        Ok(self)
    }

    /// Attempts for one message: its own wish, where it has one, else the policy's.
    #[must_use]
    pub fn attempts_for(&self, retries_max: Option<u32>) -> u32 {
        retries_max.map_or(self.attempts_max, |retries| retries.saturating_add(1).min(ATTEMPTS_MAX))
    }

    /// The delay after failed attempt number `attempt`, counted from 1. `random` is 0 to 1 and spreads it by
    /// [`Self::jitter`].
    #[must_use]
    pub fn delay_after(&self, attempt: u32, random: f64) -> Duration {
        let steps = f64::from(attempt.saturating_sub(1).min(1024));
        let grown = (self.delay.as_secs_f64() * self.factor.powf(steps)).min(self.delay_max.as_secs_f64());
        let spread = 1.0 + self.jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        clamp(Duration::try_from_secs_f64(grown * spread).unwrap_or(self.delay_max))
    }
}

/// A delay within the bounds that hold for every retry.
#[must_use]
pub(super) fn clamp(delay: Duration) -> Duration {
    delay.clamp(DELAY_MIN, DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_from_one_second_up_to_thirty() {
        let policy = RetryPolicy::default();
        let delays: Vec<_> = (1..8).map(|attempt| policy.delay_after(attempt, 0.5).as_millis()).collect();
        assert_eq!(delays, [1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    }

    proptest! {
        #[test]
        fn delays_stay_within_bounds(
            attempt in 0_u32..u32::MAX, random in -1.0_f64..2.0, delay_ms in 0_u64..100_000_000,
            factor in 1.0_f64..100.0, jitter in 0.0_f64..1.0,
        ) {
            let delay = Duration::from_millis(delay_ms);
            let policy = RetryPolicy { attempts_max: 4, delay, factor, delay_max: delay * 2, jitter };
            let after = policy.delay_after(attempt, random);
            prop_assert!((DELAY_MIN..=DELAY_MAX).contains(&after));
        }
    }
}
