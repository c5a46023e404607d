//! Reason codes: one word for each cause, the same in dead letters, errors, metrics and the API.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// Why something did not happen. Source: SPEC §4, "Reason codes".
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ReasonCode {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)+
        }

        impl ReasonCode {
            /// Every code, for tables and bounded metric labels.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code as it is written everywhere.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl FromStr for ReasonCode {
            type Err = UnknownReasonCode;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err(UnknownReasonCode) }
            }
        }
    };
}

/// Not a reason code of ours.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not a reason code; they are listed in docs/reason-codes.md")]
pub struct UnknownReasonCode;

reason_codes! {
    /// The broker's connection was lost or never made.
    ConnectionFailed = "CONNECTION_FAILED",
    /// The connection was closed by the other side.
    ConnectionClosed = "CONNECTION_CLOSED",
    /// The connection was not made in time.
    ConnectionTimeout = "CONNECTION_TIMEOUT",
    /// The broker refused the credentials.
    AuthenticationFailed = "AUTHENTICATION_FAILED",
    /// A message was not published.
    PublishFailed = "PUBLISH_FAILED",
    /// The broker said no to a message.
    PublishRejected = "PUBLISH_REJECTED",
    /// Nothing is bound where the message was sent.
    Unroutable = "UNROUTABLE",
    /// The broker did not confirm in time.
    ConfirmTimeout = "CONFIRM_TIMEOUT",
    /// A subscription could not be made.
    SubscribeFailed = "SUBSCRIBE_FAILED",
    /// Reading from a subscription failed.
    ConsumeFailed = "CONSUME_FAILED",
    /// The broker ended a subscription.
    ConsumerCanceled = "CONSUMER_CANCELED",
    /// A settlement did not reach the broker.
    AckFailed = "ACK_FAILED",
    /// Something took too long.
    Timeout = "TIMEOUT",
    /// There is no such queue.
    QueueNotFound = "QUEUE_NOT_FOUND",
    /// There is no such topic.
    TopicNotFound = "TOPIC_NOT_FOUND",
    /// The broker's queue or topic is not as configured.
    TopologyMismatch = "TOPOLOGY_MISMATCH",
    /// The message is larger than allowed.
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    /// The message was due before it could be handled.
    MessageExpired = "MESSAGE_EXPIRED",
    /// The message was the oldest in a queue that held more than its limits.
    QueueOverflow = "QUEUE_OVERFLOW",
    /// The message is not what its format says.
    MessageInvalid = "MESSAGE_INVALID",
    /// The configuration cannot be used.
    InvalidConfig = "INVALID_CONFIG",
    /// A value could not be written or read in its format.
    SerializationError = "SERIALIZATION_ERROR",
    /// The broker is away.
    BrokerUnavailable = "BROKER_UNAVAILABLE",
    /// Somebody stopped it.
    OperationCanceled = "OPERATION_CANCELED",
    /// No route matches the message.
    NoRoute = "NO_ROUTE",
    /// The handler asked for a retry once more than allowed.
    HandlerRetryExhausted = "HANDLER_RETRY_EXHAUSTED",
    /// The handler said that the message can never be handled.
    HandlerRejected = "HANDLER_REJECTED",
    /// The handler trapped on every attempt.
    HandlerTrapped = "HANDLER_TRAPPED",
    /// The handler took too long on every attempt.
    HandlerTimeout = "HANDLER_TIMEOUT",
    /// The handler ran out of memory on every attempt.
    HandlerOutOfMemory = "HANDLER_OUT_OF_MEMORY",
    /// The handler answered what the contract does not allow.
    HandlerContract = "HANDLER_CONTRACT",
    /// No instance of the handler could be made.
    HandlerUnavailable = "HANDLER_UNAVAILABLE",
    /// The handler reached for what it was not granted.
    CapabilityDenied = "CAPABILITY_DENIED",
    /// Handlers' results went round in a circle.
    LoopDetected = "LOOP_DETECTED",
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
