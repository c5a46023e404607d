//! The JSON form of tasks and events, both ways. In: one JSON object. Out: a [`Message`](crate::message::Message), and
//! back. Source: SPEC §1; CloudEvents 1.0, "JSON Event Format", is read as an event.
//!
//! The payload is kept byte for byte: a JSON value stays the text that was given, and a payload that is no JSON is
//! written as `payload_text` or `payload_base64` (`data_text`, `data_base64`). Fields that have no place in a message
//! survive the way through; their numbers as far as 64 bits carry them.
//!
//! Start at [`read()`] and [`write()`].

mod fields;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Read, read};
pub use write::{View, write, write_line};

use crate::message::{HeadersError, ReasonCode};

/// Longest `type`, `content_type`, `correlation_id` and `reply_to`, in bytes. Source: AMQP 0-9-1 short strings.
pub const SHORT_BYTES_MAX: usize = 255;
/// Longest of the other texts that are not payload, in bytes.
pub const TEXT_BYTES_MAX: usize = 2048;
/// Most fields an object may have.
pub const FIELDS_MAX: usize = 256;

/// How long the JSON form may be of a message that may take `message_bytes_max`: base64 makes four bytes of three, and
/// the fields around the payload need room.
#[must_use]
pub fn document_bytes_max(message_bytes_max: usize) -> usize {
    (message_bytes_max / 3).saturating_mul(4).saturating_add(1 << 20)
}

/// Why text is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Send UTF-8, or the bytes in base64.
    #[error("byte {at} is not UTF-8; send text as UTF-8, and other bytes as payload_base64 or data_base64")]
    NotUtf8 {
        /// The first wrong byte, counted from 0.
        at: usize,
    },
    /// Correct the syntax.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// Send an object.
    #[error("a message is a JSON object such as {{\"type\":\"order.created\",\"payload\":{{}}}}, this is {0}")]
    NotAnObject(&'static str),
    /// Send fewer fields.
    #[error("more than {FIELDS_MAX} fields; put them into the payload")]
    TooManyFields,
    /// Correct the field.
    #[error("{field:?} {problem}; {fix}")]
    Field {
        /// Which one.
        field: String,
        /// What it is.
        problem: String,
        /// What would be right.
        fix: String,
    },
    /// Send fewer or smaller headers.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// Send less.
    #[error("the message takes {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Payload, headers, key and unknown fields.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

impl JsonError {
    /// The code to show for it.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Headers(_) | Self::TooLarge { .. } => ReasonCode::MessageTooLarge,
            _ => ReasonCode::MessageInvalid,
        }
    }

    fn field(field: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into(), fix: fix.into() }
    }
}
