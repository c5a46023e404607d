//! A message as a Kafka record carries it, and back: [`incoming`] and [`outgoing`]. Nothing here talks to a server.
//!
//! The payload is the value, the key is the key, headers are headers, and the time of publication is the record's. What a
//! [`Message`] has a place for beside that is a header that begins with `x-helix-` (`names.rs`). What is different in a
//! record of another program all the same:
//!
//! - It has an id: made of its topic and its place, so the same on every delivery.
//! - Headers that are no text are base64, and headers without a value are empty; one more header of the message says which
//!   they are (`beside.rs`), so that a copy that we publish has the same again.
//! - A record without a value says so in the header [`names::TOMBSTONE`]; a message with it is published without a value.
//! - The header [`names::PARTITION`] chooses the partition of what is published, and is not sent.
//!
//! CloudEvents are read in both content modes, and written in the one that is configured (`cloud_events.rs`). Attributes of
//! binary mode stay headers of the message and stand in for what is missing.
//!
//! A malformed header of ours is as good as none. What cannot be a message at all is said in [`Incoming::poison`].

mod beside;
mod cloud_events;
mod incoming;
mod names;
mod outgoing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::message::OwnedHeaders;

pub(super) use incoming::incoming;
pub(super) use outgoing::outgoing;

use crate::message::{FailedAttempt, Message, UnixMs};

/// What is published.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// What orders and partitions. `None` and empty differ.
    pub(super) key: Option<Bytes>,
    /// The body; `None`: the key is gone, as far as compaction goes.
    pub(super) value: Option<Bytes>,
    /// Headers.
    pub(super) headers: OwnedHeaders,
    /// In milliseconds; 0: that of its publication.
    pub(super) timestamp: i64,
    /// Where to, if not where its key leads.
    pub(super) partition: Option<i32>,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The message.
    pub(super) message: Message,
    /// What it is a copy of, in the retry topic.
    pub(super) copy: Option<Copy>,
    /// Why it cannot be read as a message; what could be read is in the message all the same.
    pub(super) poison: Option<String>,
}

/// What a copy says that waits for its next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Where it came from first.
    pub(super) topic: Arc<str>,
    /// Where in that.
    pub(super) partition: u32,
    /// Where in that.
    pub(super) offset: u64,
    /// Whose it is.
    pub(super) group: Arc<str>,
    /// Which attempt it will be.
    pub(super) attempt: u32,
    /// When.
    pub(super) due: UnixMs,
    /// Why the earlier ones failed; many are cut to the first and the last.
    pub(super) failures: Vec<FailedAttempt>,
}
