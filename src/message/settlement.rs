//! What the broker is told about a delivery.

use std::time::Duration;

use super::{FailedAttempt, ReasonCode};

/// What becomes of one delivery. Each delivery gets exactly one, or goes back to its broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    /// Handled: the broker forgets it.
    Accept,
    /// Deliver it again after a while, as the next attempt. The broker keeps the message until the copy or the
    /// delay that replaces this delivery is safe.
    Redeliver {
        /// Not sooner than this.
        after: Duration,
        /// What went wrong, kept with the message.
        failure: Box<FailedAttempt>,
    },
    /// It was not tried: deliver it again after a while as the *same* attempt.
    Release {
        /// Not sooner than this; zero: at once.
        after: Duration,
    },
    /// Its dead letter is already confirmed elsewhere: the broker forgets it, and counts it apart.
    DeadLetter {
        /// Why.
        code: ReasonCode,
    },
}
