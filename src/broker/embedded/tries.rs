//! How often a message was delivered, and what went wrong each time.

use crate::message::{FailedAttempt, remember};

/// The attempt that the next delivery is, and the failures before it.
#[derive(Debug)]
pub(super) struct Tries {
    attempt: u32,
    // Boxed: almost no message has any.
    failures: Option<Box<Failures>>,
}

#[derive(Debug, Default)]
struct Failures(Vec<FailedAttempt>);

impl Tries {
    /// Not delivered yet.
    pub(super) fn first() -> Self {
        Self { attempt: 1, failures: None }
    }

    /// As it was kept: the attempt that comes next, and what went wrong before.
    pub(super) fn resumed(attempt: u32, failures: Vec<FailedAttempt>) -> Self {
        let failures = (!failures.is_empty()).then(|| Box::new(Failures(failures)));
        Self { attempt: attempt.max(1), failures }
    }

    /// Counted from 1.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A copy for a delivery; allocates only where something failed.
    pub(super) fn failures(&self) -> Vec<FailedAttempt> {
        self.failures.as_ref().map_or_else(Vec::new, |failures| failures.0.clone())
    }

    /// The attempt did not succeed: the next one begins.
    pub(super) fn failed(&mut self, failure: FailedAttempt) {
        remember(&mut self.failures.get_or_insert_default().0, failure);
        self.attempt = self.attempt.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{FAILURES_MAX, ReasonCode};

    #[test]
    fn keeps_the_first_and_the_latest_failures_and_counts_all() {
        let mut tries = Tries::first();
        for attempt in 1..=100 {
            tries.failed(FailedAttempt { attempt, at: 0, code: ReasonCode::Timeout, text: String::new() });
        }
        let kept: Vec<_> = tries.failures().iter().map(|failure| failure.attempt).collect();
        assert_eq!((tries.attempt(), kept.len()), (101, FAILURES_MAX));
        assert_eq!((kept.first(), kept.last()), (Some(&1), Some(&100)));
    }
}
