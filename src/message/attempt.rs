//! What went wrong with one attempt, kept with the message until it succeeds or becomes a dead letter.

use serde::{Deserialize, Serialize};

use super::{ReasonCode, UnixMs};

/// One attempt that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// Which attempt it was, counted from 1.
    pub attempt: u32,
    /// When it ended.
    pub at: UnixMs,
    /// Why, as a code to group by.
    pub code: ReasonCode,
    /// Why, in words; at most 1 KiB.
    pub text: String,
}

/// Most failures kept with one message: the first, which tends to name the cause, and the latest.
pub const FAILURES_MAX: usize = 32;

/// Keeps one more failure with a message.
pub fn remember(failures: &mut Vec<FailedAttempt>, failure: FailedAttempt) {
    if failures.len() >= FAILURES_MAX {
        failures.remove(1);
    }
    failures.push(failure);
}
