//! How one call of a handler ended.

use std::time::Duration;

use serde::Serialize;

use super::{Message, ReasonCode, Text};

/// How a handler ended: three answers of its own, and one for when it gave none.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Handled. What it returned is to be published before the message is acknowledged.
    Done(Vec<Outbound>),
    /// It asks for another attempt.
    Retry {
        /// Its words, bounded where they entered.
        reason: String,
        /// When; `None` leaves it to the route.
        delay: Option<Duration>,
    },
    /// It says that no attempt will ever succeed.
    Reject {
        /// Its words, bounded where they entered.
        reason: String,
        /// Its own code, to group by.
        code: Option<Text>,
    },
    /// It gave no answer, or one that cannot be accepted.
    Failed(Box<Failure>),
}

/// Which version of a handler it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HandlerIdentity {
    /// Name of the plugin or native handler.
    pub name: String,
    /// Its own version, where it says one.
    pub version: Option<String>,
    /// SHA-256 of the plugin's file, in hex; empty for native handlers.
    pub digest: String,
}

/// A message that a handler wants published.
#[derive(Debug, Clone, PartialEq)]
pub struct Outbound {
    /// Name of a destination of the route.
    pub destination: Text,
    /// What to publish there.
    pub message: Message,
}

/// Why there is no acceptable answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure; decides whether it spends the crash budget.
    pub kind: FailureKind,
    /// In words; bounded and free of control characters.
    pub text: String,
    /// The guest's stack where there is one, a frame a line; at most 8 KiB.
    pub backtrace: Option<String>,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The guest trapped, or a native handler panicked.
    Trapped,
    /// It took longer than its route allows.
    Timeout,
    /// It wanted more memory than its route allows and died of it.
    OutOfMemory,
    /// It answered what the contract does not allow.
    Contract,
    /// It returned a message that is larger than its route allows.
    TooLarge,
    /// It published to a destination that its route does not name.
    Denied,
    /// No instance could be made, or no version is loaded.
    Unavailable,
    /// A result could not be published.
    PublishFailed,
}

impl FailureKind {
    /// The code a dead letter carries for it.
    #[must_use]
    pub fn code(self) -> ReasonCode {
        match self {
            Self::Trapped => ReasonCode::HandlerTrapped,
            Self::Timeout => ReasonCode::HandlerTimeout,
            Self::OutOfMemory => ReasonCode::HandlerOutOfMemory,
            Self::Contract => ReasonCode::HandlerContract,
            Self::TooLarge => ReasonCode::MessageTooLarge,
            Self::Denied => ReasonCode::CapabilityDenied,
            Self::Unavailable => ReasonCode::HandlerUnavailable,
            Self::PublishFailed => ReasonCode::PublishFailed,
        }
    }

    /// Whether it counts against the handler's crash budget: traps, timeouts and memory. Source: SPEC §14.
    #[must_use]
    pub fn is_crash(self) -> bool {
        matches!(self, Self::Trapped | Self::Timeout | Self::OutOfMemory)
    }
}

impl Outcome {
    /// A failure without a backtrace.
    #[must_use]
    pub fn failed(kind: FailureKind, text: impl Into<String>) -> Self {
        Self::Failed(Box::new(Failure { kind, text: text.into(), backtrace: None }))
    }
}
