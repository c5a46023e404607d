//! Messages that were out when the process ended. One of them may be what ended it, so each has used up its attempt, and
//! is tried apart from the others: after one such end in a batch of its own, after more of them while no other of that
//! kind is out. So a message that kills the engine ends in the dead letters after its attempts, and takes no other with
//! it.

use crate::{
    broker::embedded::tries::Tries,
    message::{FailedAttempt, ReasonCode, UnixMs},
    store::Note,
};

/// What is known of a message after a restart: its tries, and how often the process ended while it was out.
pub(super) fn restored(note: Note, now: UnixMs) -> (Tries, u32) {
    let mut tries = Tries::resumed(note.attempt, note.failures);
    if !note.out {
        return (tries, note.crashes);
    }
    tries.failed(FailedAttempt {
        attempt: note.attempt,
        at: now,
        code: ReasonCode::OperationCanceled,
        text: "the engine ended while it was out".to_owned(),
    });
    (tries, note.crashes.saturating_add(1))
}

/// Whether it may not share a batch.
pub(super) fn is_alone(crashes: u32) -> bool {
    crashes >= 1
}

/// Whether no other of its kind may be out.
pub(super) fn is_sole(crashes: u32) -> bool {
    crashes >= 2
}
