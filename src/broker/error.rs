//! What can go wrong at the seam, cut by what the caller does next.

use std::{sync::Arc, time::Duration};

use crate::message::{Address, ReasonCode};

/// The cause that a library gave.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Nothing answered in time: back off and try again.
    #[error("no answer from {endpoint} within {timeout:?}")]
    Unreachable {
        /// Who was asked.
        endpoint: String,
        /// How long.
        timeout: Duration,
        /// What the library said.
        #[source]
        cause: BoxError,
    },
    /// What the deliveries came over is gone: they come again by themselves, and the attempt count says so.
    #[error("{0}")]
    Lost(String),
    /// The system will not have us until somebody changes something, here or there: it makes no sense to go on trying.
    #[error("{reason}")]
    Refused {
        /// Who, what is wrong and what to do.
        reason: String,
        /// To group by.
        code: ReasonCode,
    },
    /// There is no such queue or topic: declare it.
    #[error("there is no {0}; declare it in the configuration, or let the engine make it")]
    NotFound(Address),
    /// It is there, and not as declared: change the one or the other.
    #[error("{address} differs from what is configured: {}", .differences.join(", "))]
    Mismatch {
        /// Which.
        address: Address,
        /// Each setting with both values.
        differences: Vec<String>,
    },
    /// This system cannot do that: see its capabilities.
    #[error("the {broker} broker cannot {what}")]
    Unsupported {
        /// Which system.
        broker: &'static str,
        /// What was asked.
        what: &'static str,
    },
    /// What keeps the messages cannot be used, or not any more: do what its text says, then open the broker anew.
    #[error(transparent)]
    Storage(Arc<dyn std::error::Error + Send + Sync>),
    /// The broker has been closed: stop.
    #[error("the broker has been closed")]
    Closed,
    /// The request makes no sense: correct it.
    #[error("{0}")]
    Invalid(String),
}

impl BrokerError {
    /// The code to show for it.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Unreachable { .. } | Self::Storage(_) => ReasonCode::BrokerUnavailable,
            Self::Refused { code, .. } => *code,
            Self::Lost(_) => ReasonCode::ConnectionClosed,
            Self::NotFound(address) => match address.kind {
                crate::message::Kind::Queue => ReasonCode::QueueNotFound,
                crate::message::Kind::Topic => ReasonCode::TopicNotFound,
            },
            Self::Mismatch { .. } => ReasonCode::TopologyMismatch,
            Self::Unsupported { .. } | Self::Invalid(_) => ReasonCode::InvalidConfig,
            Self::Closed => ReasonCode::OperationCanceled,
        }
    }
}

/// Some messages of a batch were not published; all others were.
#[derive(Debug, thiserror::Error)]
#[error("{} of the messages were not published: {}", .0.len(), .0.first().map(|(_, error)| error.to_string()).unwrap_or_default())]
pub struct PublishFailures(
    /// Place in the batch, and why. Never empty, and in order.
    pub Vec<(usize, PublishError)>,
);

/// Why one message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The queue or topic is not there: declare it.
    #[error("there is no {0}")]
    NotFound(Address),
    /// The queue is full: wait until it is shorter, or make it longer.
    #[error("{address} is full ({limit})")]
    Full {
        /// Which.
        address: Address,
        /// Which limit, with its value.
        limit: String,
    },
    /// There is too little room on disk: try again later, and give it more.
    #[error("{address} is on a disk without room: {reason}")]
    NoSpace {
        /// Which queue or topic.
        address: Address,
        /// Which limit, with its numbers and what to do.
        reason: String,
    },
    /// Larger than the system takes: send less.
    #[error("the message takes {bytes} bytes, {address} takes at most {max}")]
    TooLarge {
        /// Where to.
        address: Address,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The system will not have it as it is, however often it is sent: publish it otherwise, or change what is there.
    #[error("{address} does not take it: {reason}")]
    Rejected {
        /// Which.
        address: Address,
        /// Why, in the system's words.
        reason: String,
    },
    /// No queue takes it: bind one to where it is published.
    #[error("nothing takes what is published to {0}: no queue is bound to it under that key")]
    Unroutable(Address),
    /// The system is away, or takes no messages for now, and was not even sent it. Try again.
    #[error("not sent: {0}")]
    Unavailable(String),
    /// The system is away or did not confirm in time; it may have it all the same. Try again.
    #[error("not confirmed: {0}")]
    Unconfirmed(String),
    /// The broker has been closed: stop.
    #[error("the broker has been closed")]
    Closed,
}

impl PublishError {
    /// The code to show for it.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::NotFound(address) => match address.kind {
                crate::message::Kind::Queue => ReasonCode::QueueNotFound,
                crate::message::Kind::Topic => ReasonCode::TopicNotFound,
            },
            Self::Full { .. } | Self::NoSpace { .. } | Self::Rejected { .. } => ReasonCode::PublishRejected,
            Self::TooLarge { .. } => ReasonCode::MessageTooLarge,
            Self::Unroutable(_) => ReasonCode::Unroutable,
            Self::Unavailable(_) => ReasonCode::BrokerUnavailable,
            Self::Unconfirmed(_) => ReasonCode::ConfirmTimeout,
            Self::Closed => ReasonCode::OperationCanceled,
        }
    }

    /// Whether the same message may be accepted later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoSpace { .. } | Self::Unavailable(_) | Self::Unconfirmed(_))
    }
}

/// A transaction was not committed: nothing of it holds.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// These messages cannot be published as they are: do without them.
    #[error("{} of the messages cannot be published: {}", .0.len(), .0.first().map(|(.., error)| error.to_string()).unwrap_or_default())]
    Publish(
        /// Place of the address, place of the message under it, and why. Never empty, and in order.
        Vec<(usize, usize, PublishError)>,
    ),
    /// It failed as a whole: try it again later.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}
