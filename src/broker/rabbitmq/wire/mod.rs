//! A message as AMQP 0-9-1 carries it, and back: [`incoming`] and [`outgoing`]. Nothing here talks to a server.
//!
//! What a [`Message`] has a place for is a property of AMQP's own, or a header that begins with `x-helix-` (`names.rs`).
//! What AMQP has and a message has no place for, as other programs send it, is kept beside it in one header of the message
//! (`beside.rs`), so that a copy that we publish says the same again. What is different in it all the same:
//!
//! - `message-id` is there, where there was none: made of all that the message says, the same on every delivery.
//! - `expiration` says what is left, and `x-helix-expires-at` when that is over.
//! - `user-id` is not sent, as the server takes it from nobody but that user; it stays beside.
//! - `CC` and `BCC` are not sent under their names, as the server would send every copy to those, too.
//! - `x-first-death-*`, `x-last-death-*` and the server's counters are its own to write.
//! - Headers come sorted by name and each name once: the client library's table is so. Ours keep both.
//! - What was no UTF-8 in a short string is text, and the client library cannot send it as anything else; tables deeper
//!   than 16 levels are bytes, and headers that do not fit into a frame at all are gone ([`super::transport`]).
//! - An `expiration` that is no number is gone: the server would refuse it.
//!
//! A malformed header or property is as good as none: a message that arrived is a message.

mod beside;
mod cloud_events;
mod death;
mod id;
mod incoming;
mod names;
mod order;
mod outgoing;
#[cfg(test)]
mod tests;
mod value;

pub(super) use incoming::incoming;
pub(super) use outgoing::{header_bytes, outgoing};

use crate::message::FailedAttempt;

/// What a delivery says beside its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Which attempt this is, from 1, as far as copies of ours have counted.
    pub(super) attempt: u32,
    /// Why the earlier ones failed.
    pub(super) failures: Vec<FailedAttempt>,
    /// How often the server had it back, on queues that count.
    pub(super) delivery_count: Option<u64>,
    /// How often the server gave it out, where it says so (RabbitMQ 4.3).
    pub(super) acquired_count: Option<u64>,
    /// Its place in a stream.
    pub(super) stream_offset: Option<u64>,
}

/// What a copy says that waits for its next attempt. It has no `expiration`: the queue where it waits would take it for
/// the time to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy<'a> {
    /// Which attempt it will be.
    pub(super) attempt: u32,
    /// Why the earlier ones failed; many are cut to the first and the last.
    pub(super) failures: &'a [FailedAttempt],
}
