//! Exchanges, queues and bindings of RabbitMQ as data. Nothing here talks to a server.

use std::{collections::BTreeMap, sync::Arc};

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
