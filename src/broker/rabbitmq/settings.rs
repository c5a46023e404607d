//! How RabbitMQ is reached and used, checked by whoever makes it: nothing here can be a mistake of the operator's.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::topology::{QueueKind, Topology};
pub use crate::broker::tls::Tls;
use crate::{broker::topology::DEAD_LETTER_QUEUE, message::Secret};

/// How RabbitMQ is reached and used.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Nodes, tried in turn. Never empty.
    pub hosts: Vec<Host>,
    /// The virtual host.
    pub vhost: String,
    /// Who connects.
    pub credentials: Credentials,
    /// With TLS, and how.
    pub tls: Option<Tls>,
    /// How long connecting to one host may take, handshakes included.
    pub connect_timeout: Duration,
    /// Interval of heartbeats, in whole seconds; a connection that is silent for two of them is given up. Zero: none.
    pub heartbeat: Duration,
    /// How often connecting is tried again before the broker has failed for good; `None`: for ever.
    pub reconnect_attempts_max: Option<u32>,
    /// Longest pause between two tries.
    pub reconnect_delay_max: Duration,
    /// Whether a publish waits for the confirmation of the server. Without, a message may be lost and nobody is told.
    pub publisher_confirm: bool,
    /// How long a publish waits for its confirmation.
    pub publish_timeout: Duration,
    /// Unsettled deliveries for each worker of a route.
    pub prefetch_count: u16,
    /// Whether the prefetch is shared by all consumers of a channel. It makes no difference to the engine, which has one
    /// consumer a channel, but some servers have a default for the other kind.
    pub prefetch_global: bool,
    /// Whether what was out before comes one at a time at first, as each may be what ended the process before this one:
    /// the others pay with one attempt at most. Queues with a single active consumer in the topology are left out, as
    /// they would change hands.
    pub suspects_apart: bool,
    /// How long messages may wait while none comes and nothing is out, before reading begins anew.
    pub stalled_after: Duration,
    /// What is there, or to be made.
    pub topology: Topology,
    /// Where what has no binding of its own is published to; `None`: the default exchange, which knows every queue by its
    /// name.
    pub exchange: Option<String>,
    /// Kind of queues that are made without being in the topology.
    pub queue_kind: QueueKind,
    /// Whether queues and topics that are neither there nor in the topology are made when they are first used.
    pub auto_create: bool,
    /// Whether what differs from the server is reported and left as it is, instead of refusing to start.
    pub accept_differences: bool,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
    /// Queues of dead letters, which may be looked at although their servers count that as a delivery.
    pub dead_letters: BTreeSet<Arc<str>>,
    /// The management API, for what AMQP does not tell: `http://host:15672`.
    pub management_url: Option<String>,
}

/// A node.
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

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// SASL PLAIN.
    Plain {
        /// User.
        user: String,
        /// Password.
        password: Secret,
    },
    /// SASL EXTERNAL: the server takes the user from the client's certificate.
    External,
}

impl Default for Settings {
    /// Source: SPEC section 3.
    fn default() -> Self {
        Self {
            hosts: vec![Host { name: "localhost".to_owned(), port: 5672 }],
            vhost: "/".to_owned(),
            credentials: Credentials::External,
            tls: None,
            connect_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            reconnect_attempts_max: None,
            reconnect_delay_max: Duration::from_secs(5),
            publisher_confirm: true,
            publish_timeout: Duration::from_secs(10),
            prefetch_count: 10,
            prefetch_global: false,
            suspects_apart: true,
            stalled_after: Duration::from_secs(15),
            topology: Topology::default(),
            exchange: None,
            queue_kind: QueueKind::Quorum,
            auto_create: false,
            accept_differences: false,
            message_bytes_max: 8 << 20,
            dead_letters: [DEAD_LETTER_QUEUE.into()].into(),
            management_url: None,
        }
    }
}
