//! How Redis is reached and used, checked by whoever makes it: nothing here can be a mistake of the operator's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use crate::broker::tls::Tls;
use crate::{
    broker::{QueueSettings, TopicSettings},
    message::Secret,
};

/// How Redis is reached and used.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Servers, tried in turn: one that only copies another is passed over. Never empty.
    pub hosts: Vec<Host>,
    /// The user; `None`: the default one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Number of the database.
    pub database: u16,
    /// With TLS, and how.
    pub tls: Option<Tls>,
    /// How the name of every key begins that is ours.
    pub key_prefix: String,
    /// The name of this engine, the same whenever it starts again and no other's: what was out when it was killed comes
    /// again at once, not only when its lease ends. `None`: made up at each start.
    pub engine: Option<String>,
    /// How long connecting to one host may take, handshakes included.
    pub connect_timeout: Duration,
    /// How long a publish waits for its confirmation.
    pub publish_timeout: Duration,
    /// Longest pause between two tries to connect.
    pub reconnect_delay_max: Duration,
    /// Unsettled deliveries for each worker of a route.
    pub prefetch_count: u16,
    /// How long a delivery may stay unsettled without a sign of life, where its queue or topic is in neither list below.
    pub lease: Duration,
    /// Queues to be made, by name.
    pub queues: BTreeMap<Arc<str>, QueueSettings>,
    /// Topics to be made, by name.
    pub topics: BTreeMap<Arc<str>, TopicSettings>,
    /// Topics that are Pub/Sub channels: who is not there when something is published never gets it.
    pub channels: BTreeSet<Arc<str>>,
    /// Whether queues and topics that are neither there nor configured are made when they are first used.
    pub auto_create: bool,
    /// Whether what differs from the server is reported and left as it is, instead of refusing to start.
    pub accept_differences: bool,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
    /// How long a reader is remembered that has nothing out and does nothing: its engine was killed, most likely.
    pub readers_kept: Duration,
    /// How many replicas have to have a message before it counts as published (`WAIT`). 0: the server alone.
    pub min_replicas: u16,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or address.
    pub name: String,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Settings {
    /// All hosts, for people.
    pub(super) fn endpoint(&self) -> String {
        self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Default for Settings {
    /// Source: SPEC section 3.
    fn default() -> Self {
        Self {
            hosts: vec![Host { name: "localhost".to_owned(), port: 6379 }],
            username: None,
            password: None,
            database: 0,
            tls: None,
            key_prefix: "helixmq:".to_owned(),
            engine: None,
            connect_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(10),
            reconnect_delay_max: Duration::from_secs(5),
            prefetch_count: 256,
            lease: Duration::from_secs(30),
            queues: BTreeMap::new(),
            topics: BTreeMap::new(),
            channels: BTreeSet::new(),
            auto_create: false,
            accept_differences: false,
            message_bytes_max: 8 << 20,
            readers_kept: Duration::from_secs(24 * 60 * 60),
            min_replicas: 0,
        }
    }
}
