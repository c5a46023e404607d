//! One pure function: how the handler ended, which attempt it was and the route's policy give one settlement.

use std::time::Duration;

use super::{RetryPolicy, backoff};
use crate::message::{FailedAttempt, Outcome, ReasonCode, Settlement, UnixMs};

/// What to do with one delivery.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What the broker is to be told, once the effects are confirmed.
    pub settlement: Settlement,
    /// Text of the cause, where there is one: for the dead letter.
    pub cause: Option<String>,
}

/// Decides one delivery. `attempts_max` counts the first attempt; `random` is 0 to 1 and spreads delays.
///
/// Done is accepted. A rejection, and a result for a destination that was not granted, is dead-lettered at once: no
/// further attempt can end better. Everything else is tried again until the attempts are used up, then dead-lettered
/// under the code of the last failure.
#[must_use]
pub fn decide(
    outcome: &Outcome,
    attempt: u32,
    attempts_max: u32,
    policy: &RetryPolicy,
    now: UnixMs,
    random: f64,
) -> Decision {
    let (code, text, wish) = match outcome {
        Outcome::Done(_) => return Decision { settlement: Settlement::Accept, cause: None },
        Outcome::Reject { reason, .. } => {
            return dead_letter(ReasonCode::HandlerRejected, reason.clone());
        }
        Outcome::Retry { reason, delay } => (ReasonCode::HandlerRetryExhausted, reason, *delay),
        Outcome::Failed(failure) => (failure.kind.code(), &failure.text, None),
    };
    if attempt >= attempts_max || code == ReasonCode::CapabilityDenied {
        return dead_letter(code, text.clone());
    }
    let after = wish.map_or_else(|| policy.delay_after(attempt, random), backoff::clamp);
    let failure = Box::new(FailedAttempt { attempt, at: now, code, text: text.clone() });
    Decision { settlement: Settlement::Redeliver { after, failure }, cause: Some(text.clone()) }
}

fn dead_letter(code: ReasonCode, cause: String) -> Decision {
    Decision { settlement: Settlement::DeadLetter { code }, cause: Some(cause) }
}

impl Decision {
    /// Time until the next attempt, where there is one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.settlement {
            Settlement::Redeliver { after, .. } => Some(*after),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::FailureKind;

    fn check(outcome: &Outcome, attempt: u32) -> Settlement {
        decide(outcome, attempt, 3, &RetryPolicy::default(), 7, 0.5).settlement
    }

    #[test]
    fn done_is_accepted_on_any_attempt() {
        assert_eq!(check(&Outcome::Done(Vec::new()), 9), Settlement::Accept);
    }

    #[test]
    fn n_attempts_means_n() {
        let outcome = Outcome::failed(FailureKind::Trapped, "unreachable");
        let seconds = |attempt| match check(&outcome, attempt) {
            Settlement::Redeliver { after, .. } => Some(after.as_secs()),
            _ => None,
        };
        assert_eq!((seconds(1), seconds(2)), (Some(1), Some(2)));
        assert_eq!(check(&outcome, 3), Settlement::DeadLetter { code: ReasonCode::HandlerTrapped });
        assert_eq!(check(&outcome, 4), Settlement::DeadLetter { code: ReasonCode::HandlerTrapped });
    }

    #[test]
    fn a_rejection_is_final_at_once() {
        let outcome = Outcome::Reject { reason: "quarry blast".into(), code: None };
        assert_eq!(check(&outcome, 1), Settlement::DeadLetter { code: ReasonCode::HandlerRejected });
    }

    #[test]
    fn a_denied_destination_is_final_at_once() {
        let outcome = Outcome::failed(FailureKind::Denied, "elsewhere");
        assert_eq!(check(&outcome, 1), Settlement::DeadLetter { code: ReasonCode::CapabilityDenied });
    }

    #[test]
    fn the_handlers_own_delay_wins_and_is_clamped() {
        let outcome = Outcome::Retry { reason: "busy".into(), delay: Some(Duration::ZERO) };
        let Settlement::Redeliver { after, failure } = check(&outcome, 1) else { panic!("not retried") };
        assert_eq!(after, backoff::DELAY_MIN);
        assert_eq!((failure.attempt, failure.at, failure.text.as_str()), (1, 7, "busy"));
    }
}
