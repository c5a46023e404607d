//! What is known about one delivery of a batch before it is settled.

use std::time::Duration;

use super::held::Sequence;
use crate::message::{Outcome, ReasonCode};

/// What is known about one delivery of a batch before it is settled.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The handler was called, and this is how it ended.
    Ran(Outcome),
    /// The handler was called and failed, through no fault of the message: it comes again after this as the same attempt.
    Spared(Outcome, Duration),
    /// It must not be handled, whatever the handler would say.
    Dead(ReasonCode, String),
    /// It was not tried, or its results found no room on disk: it goes back as the same attempt after a while.
    NotTried(Duration),
    /// It waits here behind one of its sequence.
    Behind(Sequence),
}

impl Verdict {
    /// How the handler ended, if it was called.
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Ran(outcome) | Self::Spared(outcome, _) => Some(outcome),
            Self::Dead(..) | Self::NotTried(_) | Self::Behind(_) => None,
        }
    }
}
