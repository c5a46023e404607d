//! How Kafka is reached and used, checked by whoever makes it: nothing here can be a mistake of the operator's.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use crate::message::Secret;

/// How Kafka is reached and used.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where to begin, as `host:port`; the others are learned from these. Never empty.
    pub brokers: Vec<String>,
    /// Who we are, in the servers' logs and quotas.
    pub client_id: String,
    /// SASL, and who connects.
    pub sasl: Option<Sasl>,
    /// With TLS, and how.
    pub tls: Option<Tls>,
    /// How long reaching a server may take, handshakes included.
    pub connect_timeout: Duration,
    /// Longest pause between two tries to connect.
    pub reconnect_delay_max: Duration,
    /// How what is published is compressed.
    pub compression: Compression,
    /// Which replicas have to have a message before it counts as published.
    pub required_acks: Acks,
    /// Whether a message that is sent again is kept once, and in order. Needs [`Acks::All`].
    pub idempotent: bool,
    /// How long a message waits for others to share its request.
    pub linger: Duration,
    /// Messages that are sent and not confirmed, at most; publishers beyond it wait.
    pub in_flight_max: usize,
    /// How long a publish may take until it is confirmed.
    pub publish_timeout: Duration,
    /// Longest message, in bytes. The topics' own limit may be lower.
    pub message_bytes_max: usize,
    /// How messages are written.
    pub format: Format,
    /// How membership in groups is decided.
    pub group_protocol: GroupProtocol,
    /// How partitions are shared out, where the members decide that ([`GroupProtocol::Classic`]).
    pub assignment: Assignment,
    /// The name of this member across restarts: one that comes back in time gets its partitions back, and nobody else is
    /// disturbed. Unique in the group.
    pub group_instance_id: Option<String>,
    /// How long a member may be silent before its partitions go to others.
    pub session_timeout: Duration,
    /// How often a member says that it is there.
    pub heartbeat_interval: Duration,
    /// How long the engine may not ask for messages before it has to leave the group. It asks all the time, however long
    /// handlers take.
    pub poll_interval_max: Duration,
    /// Where to go on when the place where a group left is gone, or a route does not say where to begin.
    pub offset_reset: OffsetReset,
    /// How often progress is committed, at least.
    pub commit_interval: Duration,
    /// After how many messages it is committed, at most.
    pub commit_messages_max: u64,
    /// How long a partition that goes to another member waits for what is being handled.
    pub revoke_wait: Duration,
    /// Bytes that are fetched ahead, for each route's source.
    pub fetch_bytes_max: usize,
    /// How long a server may wait to fill an answer.
    pub fetch_wait: Duration,
    /// How often the client library asks which topics and partitions there are, and so notices new ones.
    pub metadata_interval: Duration,
    /// Name of the transactional producer, for routes that publish and commit in one transaction; each source adds its
    /// own ending. Unique among engines; `None`: made up at start.
    pub transactional_id: Option<String>,
    /// How long a transaction may be open.
    pub transaction_timeout: Duration,
    /// What is there, or to be made, by name.
    pub topics: BTreeMap<Arc<str>, TopicPlan>,
    /// Copies of what is not in `topics`; `None`: the servers' default.
    pub replication_factor: Option<u16>,
    /// Whether topics that are neither there nor in `topics` are made when they are first used.
    pub auto_create: bool,
    /// Whether what differs from the server is reported and left as it is, instead of refusing to start.
    pub accept_differences: bool,
    /// Where what comes again later waits, for routes that ask for it.
    pub retry_topic: Arc<str>,
    /// How long messages may wait while none comes and nothing is out, before reading begins anew.
    pub stalled_after: Duration,
    /// How many messages a group may be behind before health says that it is lagging; `None`: any number.
    pub lag_max: Option<u64>,
    /// How often the client library gives its figures.
    pub statistics_interval: Duration,
    /// More settings of the client library, as its own documentation names them; they win over everything above.
    pub extra: BTreeMap<String, String>,
}

/// SASL, and who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    /// How.
    pub mechanism: Mechanism,
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// SASL mechanisms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password itself: with TLS only.
    Plain,
    /// A proof of the password, by SHA-256.
    ScramSha256,
    /// A proof of the password, by SHA-512.
    ScramSha512,
}

/// TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities that are trusted, and nobody else; `None`: those of the machine.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate and those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// What the key is encrypted with.
    pub key_password: Option<Secret>,
    /// Whether the server's certificate is not verified. For development only: anybody in between can read everything.
    pub skip_verify: bool,
}

/// How what is published is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// By gzip.
    Gzip,
    /// By Snappy.
    Snappy,
    /// By LZ4.
    #[default]
    Lz4,
    /// By Zstandard.
    Zstd,
}

/// Which replicas have to have a message before it counts as published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Those in sync, of which the topic says how many there have to be.
    #[default]
    All,
    /// The leader only: what it has not passed on is lost with it.
    Leader,
    /// None: what is lost is lost, and nobody is told.
    None,
}

/// How messages are written. All of them are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The payload as value, the rest as headers `x-helix-*`.
    #[default]
    Native,
    /// CloudEvents 1.0, binary content mode: the payload as value, attributes as headers `ce_*`.
    CloudEventsBinary,
    /// CloudEvents 1.0, structured content mode: one JSON document.
    CloudEventsStructured,
}

/// How membership in groups is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupProtocol {
    /// By one of the members.
    #[default]
    Classic,
    /// By the servers (KIP-848), which set session time-out and heartbeats, too. Kafka 4.0 and newer.
    Consumer,
}

/// How members share out partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assignment {
    /// Evenly; who stays keeps what it has, and works on while others come and go.
    #[default]
    CooperativeSticky,
    /// Topic by topic, in ranges; everybody stops meanwhile.
    Range,
    /// In turn over all topics; everybody stops meanwhile.
    RoundRobin,
}

/// Where to go on when a group has no place, or its place is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the oldest message that is kept.
    #[default]
    Earliest,
    /// At what comes from then on.
    Latest,
    /// Nowhere: reading stops until somebody decides.
    None,
}

/// A topic as the operator wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicPlan {
    /// Into how many parts it is divided, at least 1.
    pub partitions: u32,
    /// How many copies; `None`: that of [`Settings::replication_factor`].
    pub replication_factor: Option<u16>,
    /// How long messages are kept; `None`: the servers' default.
    pub retention: Option<Duration>,
    /// How many bytes a partition keeps; `None`: the servers' default.
    pub retention_bytes: Option<u64>,
    /// Copies that have to be there to publish; `None`: the servers' default.
    pub min_insync_replicas: Option<u16>,
    /// More settings of the topic, as Kafka names them.
    pub config: BTreeMap<String, String>,
}

impl Default for Settings {
    /// Source: SPEC section 3.
    fn default() -> Self {
        Self {
            brokers: vec!["localhost:9092".to_owned()],
            client_id: "helixagent".to_owned(),
            sasl: None,
            tls: None,
            connect_timeout: Duration::from_secs(30),
            reconnect_delay_max: Duration::from_millis(500),
            compression: Compression::default(),
            required_acks: Acks::default(),
            idempotent: true,
            linger: Duration::from_millis(1),
            in_flight_max: 10_000,
            publish_timeout: Duration::from_secs(10),
            message_bytes_max: 1_000_000,
            format: Format::default(),
            group_protocol: GroupProtocol::default(),
            assignment: Assignment::default(),
            group_instance_id: None,
            session_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(3),
            poll_interval_max: Duration::from_secs(300),
            offset_reset: OffsetReset::default(),
            commit_interval: Duration::from_secs(1),
            commit_messages_max: 10_000,
            revoke_wait: Duration::from_secs(3),
            fetch_bytes_max: 32 << 20,
            fetch_wait: Duration::from_millis(100),
            metadata_interval: Duration::from_secs(30),
            transactional_id: None,
            transaction_timeout: Duration::from_secs(30),
            topics: BTreeMap::new(),
            replication_factor: None,
            auto_create: false,
            accept_differences: false,
            retry_topic: crate::broker::topology::RETRY_TOPIC.into(),
            stalled_after: Duration::from_secs(15),
            lag_max: None,
            statistics_interval: Duration::from_secs(1),
            extra: BTreeMap::new(),
        }
    }
}
