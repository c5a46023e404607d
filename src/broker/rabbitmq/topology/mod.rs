//! Exchanges, queues and bindings of RabbitMQ as data, and what a server has of them.
//!
//! Start at [`Topology`] and [`standard()`]. [`declare()`] is the only part that talks to a server: it compares field by
//! field and makes what is missing, it never changes or deletes. [`export`] writes the same as a file that servers read.

mod at_server;
mod dead_letters;
mod declare;
mod definitions;
mod queues;
mod refusal;
mod standard;

use std::{collections::BTreeMap, fmt, sync::Arc};

pub use at_server::{AtServerError, at_server};
pub use dead_letters::{Astray, astray};
pub use declare::{DeclareError, Difference, Entity, How, Options, State, What, declare};
pub use definitions::export;
pub use queues::{DELIVERIES_MAX, FromSettings, TTL_MAX, group_queue, queue_of, stream};
pub use standard::{RUNG_DELAYS, Rung, TOPIC_EXCHANGE, around_the_standard_queues, rung, standard};

/// What is on a server, or to be made there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// By name.
    pub exchanges: BTreeMap<Arc<str>, Exchange>,
    /// By name.
    pub queues: BTreeMap<Arc<str>, Queue>,
    /// Each once.
    pub bindings: Vec<Binding>,
}

/// An exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// `direct`, `topic`, `fanout`, `headers`, or that of a plugin.
    pub kind: String,
    /// Whether it survives a restart of the server.
    pub durable: bool,
    /// Whether it goes with its last binding.
    pub auto_delete: bool,
    /// Whether only exchanges may publish to it.
    pub internal: bool,
    /// Further arguments.
    pub arguments: Arguments,
}

/// A queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// How the server keeps it.
    pub kind: QueueKind,
    /// Whether it survives a restart of the server.
    pub durable: bool,
    /// Whether it belongs to one connection, and goes with it.
    pub exclusive: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
    /// Arguments, `x-queue-type` not among them.
    pub arguments: Arguments,
}

impl Exchange {
    /// One that survives a restart and has no arguments.
    #[must_use]
    pub fn durable(kind: &str) -> Self {
        Self { kind: kind.to_owned(), durable: true, auto_delete: false, internal: false, arguments: Arguments::new() }
    }
}

impl Queue {
    /// One that survives a restart.
    #[must_use]
    pub fn durable(kind: QueueKind, arguments: Arguments) -> Self {
        Self { kind, durable: true, exclusive: false, auto_delete: false, arguments }
    }

    /// Whether one consumer is fed at a time, however many there are.
    #[must_use]
    pub fn has_single_consumer(&self) -> bool {
        self.arguments.get("x-single-active-consumer") == Some(&Argument::Flag(true))
    }

    /// The text of an argument.
    #[must_use]
    pub fn text(&self, argument: &str) -> Option<&str> {
        match self.arguments.get(argument) {
            Some(Argument::Text(text)) => Some(text),
            _ => None,
        }
    }
}

impl QueueKind {
    /// As `x-queue-type` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
            Self::Stream => "stream",
        }
    }
}

/// How a server keeps a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// On one node; has priorities.
    Classic,
    /// On several nodes, by consensus; counts deliveries.
    #[default]
    Quorum,
    /// A log that is read and kept.
    Stream,
}

/// A binding.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// From this exchange.
    pub exchange: Arc<str>,
    /// To this queue.
    pub queue: Arc<str>,
    /// Key or pattern.
    pub routing_key: String,
    /// Further arguments.
    pub arguments: Arguments,
}

impl Binding {
    /// For people: from where to where, by which key and arguments. Two that differ have different ones.
    #[must_use]
    pub fn name(&self) -> String {
        let arguments: String = self.arguments.iter().map(|(name, value)| format!(", {name}: {value}")).collect();
        format!("{} -> {} ({:?}{arguments})", self.exchange, self.queue, self.routing_key)
    }
}

/// Arguments, by name.
pub type Arguments = BTreeMap<String, Argument>;

/// An argument of a declaration.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// `x-single-active-consumer` and the like.
    Flag(bool),
    /// Limits and times.
    Integer(i64),
    /// Names and modes.
    Text(String),
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}
