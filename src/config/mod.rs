//! Files and environment in, one checked [`Config`] out: every mistake reported together, each with its place and
//! what would be right. Nothing is started here.
//!
//! Start at [`load`]; [`Config`] is what the rest of the engine sees. A text becomes a tree (`yaml`, `plugin_toml`),
//! the tree is walked key by key (`section`), and what each part may hold stands in the file of its name.

mod brakes;
mod connections;
mod embedded;
mod environment;
mod fallback;
mod finding;
mod http;
mod interpolate;
#[cfg(feature = "kafka")]
mod kafka;
mod kind;
mod limits;
mod load;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
mod nodes;
mod plugin_toml;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod require;
mod routes;
mod section;
mod shown;
mod source;
#[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
mod tls;
mod tree;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
mod url;
mod words;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

pub use crate::{
    handler::{Loading, PluginSettings},
    message::Secret,
};
pub use connections::Connection;
pub use finding::{ConfigErrors, Finding, Origin, Warning};
#[cfg(feature = "kafka")]
pub use kafka::standard as standard_kafka;
pub use load::{DEFAULT_FILE, Loaded, PluginToml, find, keys, load, load_text, read_plugin_toml};
#[cfg(feature = "redis")]
pub use redis::standard as standard_redis;
pub use shown::{Key, Shown};
pub use source::FILE_BYTES_MAX;

use crate::{
    broker::{Declaration, GuardSettings, QueueSettings, Storage, TopicSettings, embedded::DiskSettings, topology},
    handler::Limits,
    message::{Address, Kind as AddressKind},
    route::{OutageBrake, RouteTable, Watchdog},
};

/// Everything the operator decided, checked. Later code cannot hold a wrong value.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from; `None`: the built-in development configuration.
    pub file: Option<PathBuf>,
    /// Whether messages are handled. `false`: the engine answers, takes what is published, and runs no route.
    pub enabled: bool,
    /// Systems without which the engine does not start.
    pub require: Vec<Arc<str>>,
    /// Where the engine keeps what it makes: compiled components, the generated token.
    pub data_directory: PathBuf,
    /// How long a drain waits for calls that are running.
    pub shutdown_grace: Duration,
    /// Bytes that messages may take while they pass through; 0: no limit.
    pub memory_budget: usize,
    /// When a subscription that brings nothing is begun anew.
    pub watchdog: Watchdog,
    /// When routes that do not say slow to a probe.
    pub outage: OutageBrake,
    /// How the engine is reached.
    pub http: Http,
    /// The plugins and what they may.
    pub plugins: Plugins,
    /// Which system has queues and topics; `None`: queues are on RabbitMQ where it is configured, topics on Kafka where it
    /// is, the rest on Redis where that is, and else on the embedded broker.
    pub backend: Option<Backend>,
    /// The embedded broker.
    pub embedded: Embedded,
    /// RabbitMQ, where it is configured.
    #[cfg(feature = "rabbitmq")]
    pub rabbitmq: Option<Arc<crate::broker::rabbitmq::Settings>>,
    /// Kafka, where it is configured.
    #[cfg(feature = "kafka")]
    pub kafka: Option<Arc<crate::broker::kafka::Settings>>,
    /// Redis, where it is configured.
    #[cfg(feature = "redis")]
    pub redis: Option<Arc<crate::broker::redis::Settings>>,
    /// Further systems outside of the engine, by the names that addresses have for them.
    pub connections: BTreeMap<Arc<str>, Connection>,
    /// How the systems outside of the engine are guarded, by their names.
    pub guards: BTreeMap<Arc<str>, GuardSettings>,
    /// The group of routes that name none.
    pub group: Arc<str>,
    /// Where dead letters go that no route sends elsewhere.
    pub dead_letters: DeadLetters<Address>,
    /// The routes, joined and free of conflicts.
    pub routes: RouteTable,
    /// Logs.
    pub telemetry: Telemetry,
}

/// A system that has queues or topics, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The embedded broker.
    Inmemory,
    /// RabbitMQ.
    Rabbitmq,
    /// Kafka, where a queue is a topic that one group reads.
    Kafka,
    /// Redis, which has both.
    Redis,
}

impl Backend {
    /// All that this build has.
    pub const ALL: &[Self] = &[
        Self::Inmemory,
        #[cfg(feature = "rabbitmq")]
        Self::Rabbitmq,
        #[cfg(feature = "kafka")]
        Self::Kafka,
        #[cfg(feature = "redis")]
        Self::Redis,
    ];

    /// As addresses name the system.
    #[must_use]
    pub fn name(self) -> Arc<str> {
        match self {
            Self::Inmemory => "embedded",
            Self::Rabbitmq => "rabbitmq",
            Self::Kafka => "kafka",
            Self::Redis => "redis",
        }
        .into()
    }

    /// As the environment names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inmemory => "inmemory",
            Self::Rabbitmq => "rabbitmq",
            Self::Kafka => "kafka",
            Self::Redis => "redis",
        }
    }
}

/// What the token of `http.token` is called where it is said who did something.
pub const MAIN_TOKEN: &str = "main";

/// A token with a name of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiToken {
    /// Who has it: what the audit log says.
    pub name: Arc<str>,
    /// What callers bring.
    pub token: Secret,
    /// What they may do.
    pub role: ApiRole,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiRole {
    /// Looking at everything, payloads included.
    Read,
    /// Publishing and changing, too.
    Operate,
}

impl ApiRole {
    /// As the configuration has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

/// How the engine is reached.
#[derive(Clone, Debug)]
pub struct Http {
    /// Address and port; loopback unless the operator says otherwise. Port 0: any free one.
    pub listen: SocketAddr,
    /// What callers must bring. `None` with `open` false: the engine makes one and keeps it in the data directory.
    pub token: Option<Secret>,
    /// Further tokens.
    pub tokens: Vec<ApiToken>,
    /// Whether callers may do everything without a token.
    pub open: bool,
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
}

/// Where plugins are and what loading one may cost.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Watched for `*.wasm`.
    pub directory: PathBuf,
    /// By plugin name: from messaging.yaml, and from `<name>.toml` beside the plugin, which wins.
    pub settings: BTreeMap<String, PluginSettings>,
    /// What loading may cost.
    pub loading: Loading,
}

/// The embedded broker.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Whether a queue or topic that is not declared is made with the defaults when it is first used.
    pub auto_create: bool,
    /// What is declared at start: those of SPEC §2 unless the operator leaves them out, and the operator's own.
    pub declarations: Vec<Declaration>,
    /// Settings of queues that do not set their own.
    pub queue_defaults: QueueSettings,
    /// Settings of topics that do not set their own.
    pub topic_defaults: TopicSettings,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
    /// Where dead letters go that no route sends elsewhere.
    pub dead_letter: Address,
    /// Where queues and topics are that are kept on disk.
    pub disk: DiskSettings,
}

/// Logs.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// As `RUST_LOG`: `info,helixmq=debug`.
    pub filter: Arc<str>,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Something of dead letters, by what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetters<T> {
    /// Of queues, and of what no route has.
    pub tasks: T,
    /// Of topics.
    pub events: T,
}

impl<T: Clone> DeadLetters<T> {
    fn both(one: &T) -> Self {
        Self { tasks: one.clone(), events: one.clone() }
    }

    fn of(&self, kind: AddressKind) -> &T {
        match kind {
            AddressKind::Queue => &self.tasks,
            AddressKind::Topic => &self.events,
        }
    }
}

impl Config {
    /// Everywhere that dead letters go.
    #[must_use]
    pub fn all_dead_letters(&self) -> BTreeSet<Address> {
        self.routes.iter().map(|route| route.dead_letter.clone()).chain([self.dead_letters.tasks.clone()]).collect()
    }

    /// Which system has the queues, or the topics.
    #[must_use]
    pub fn system_of(&self, kind: AddressKind) -> Backend {
        #[cfg(feature = "rabbitmq")]
        let rabbitmq = self.rabbitmq.is_some();
        #[cfg(not(feature = "rabbitmq"))]
        let rabbitmq = false;
        #[cfg(feature = "kafka")]
        let kafka = self.kafka.is_some();
        #[cfg(not(feature = "kafka"))]
        let kafka = false;
        #[cfg(feature = "redis")]
        let redis = self.redis.is_some();
        #[cfg(not(feature = "redis"))]
        let redis = false;
        match (self.backend, kind) {
            (Some(backend), _) => backend,
            (None, AddressKind::Queue) if rabbitmq => Backend::Rabbitmq,
            (None, AddressKind::Topic) if kafka => Backend::Kafka,
            (None, _) if redis => Backend::Redis,
            (None, _) => Backend::Inmemory,
        }
    }

    /// Whether attempts are counted here for a system that does not.
    #[must_use]
    pub fn counts_attempts(&self) -> bool {
        self.connections_in_use().values().any(|connection| !connection.counts_attempts())
    }

    /// How a system outside of the engine is guarded.
    #[must_use]
    pub fn guard_of(&self, name: &str) -> GuardSettings {
        self.guards.get(name).cloned().unwrap_or_default()
    }

    /// Whether queues are on RabbitMQ.
    #[must_use]
    pub fn queues_on_rabbitmq(&self) -> bool {
        self.system_of(AddressKind::Queue) == Backend::Rabbitmq
    }

    /// Whether topics are there too.
    #[must_use]
    pub fn topics_on_rabbitmq(&self) -> bool {
        self.system_of(AddressKind::Topic) == Backend::Rabbitmq
    }

    /// Whether topics are on Kafka.
    #[must_use]
    pub fn topics_on_kafka(&self) -> bool {
        self.system_of(AddressKind::Topic) == Backend::Kafka
    }

    /// Whether queues are there too.
    #[must_use]
    pub fn queues_on_kafka(&self) -> bool {
        self.system_of(AddressKind::Queue) == Backend::Kafka
    }

    /// RabbitMQ's settings, where it is used.
    #[cfg(feature = "rabbitmq")]
    #[must_use]
    pub fn rabbitmq_in_use(&self) -> Option<&Arc<crate::broker::rabbitmq::Settings>> {
        self.rabbitmq.as_ref().filter(|_| self.backend.is_none_or(|backend| backend == Backend::Rabbitmq))
    }

    /// Redis' settings, where it is used.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis_in_use(&self) -> Option<&Arc<crate::broker::redis::Settings>> {
        self.redis.as_ref().filter(|_| self.backend.is_none_or(|backend| backend == Backend::Redis))
    }

    /// Kafka's settings, where it is used.
    #[cfg(feature = "kafka")]
    #[must_use]
    pub fn kafka_in_use(&self) -> Option<&Arc<crate::broker::kafka::Settings>> {
        self.kafka.as_ref().filter(|_| self.backend.is_none_or(|backend| backend == Backend::Kafka))
    }
}

impl Default for Config {
    /// The built-in development configuration: the embedded broker in memory with the standard topology,
    /// `plugins-enabled/`, loopback, no routes.
    fn default() -> Self {
        Self {
            file: None,
            enabled: true,
            require: Vec::new(),
            data_directory: ".helixmq".into(),
            shutdown_grace: Duration::from_secs(30),
            memory_budget: 1 << 30,
            watchdog: Watchdog::default(),
            outage: OutageBrake::default(),
            http: Http::default(),
            plugins: Plugins::default(),
            backend: None,
            embedded: Embedded::default(),
            #[cfg(feature = "rabbitmq")]
            rabbitmq: None,
            #[cfg(feature = "kafka")]
            kafka: None,
            #[cfg(feature = "redis")]
            redis: None,
            connections: BTreeMap::new(),
            guards: BTreeMap::new(),
            group: topology::GROUP.into(),
            dead_letters: DeadLetters::both(&Embedded::default().dead_letter),
            routes: RouteTable::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 7061).into(),
            token: None,
            tokens: Vec::new(),
            open: false,
            body_bytes_max: 64 << 20,
        }
    }
}

impl Default for Plugins {
    fn default() -> Self {
        Self { directory: "plugins-enabled".into(), settings: BTreeMap::new(), loading: Loading::default() }
    }
}

impl Default for Embedded {
    fn default() -> Self {
        let (queue_defaults, topic_defaults) = (QueueSettings::default(), TopicSettings::default());
        Self {
            auto_create: true,
            declarations: topology::declarations(&queue_defaults, &topic_defaults),
            queue_defaults,
            topic_defaults,
            message_bytes_max: Limits::default().message_bytes_max,
            dead_letter: Address::queue(topology::DEAD_LETTER_QUEUE),
            disk: DiskSettings::new("data/store"),
        }
    }
}

impl Embedded {
    /// Whether a queue or topic is, or when it is first used would be, kept on disk.
    #[must_use]
    pub fn any_on_disk(&self) -> bool {
        let declared = self.declarations.iter().map(|declaration| match declaration {
            Declaration::Queue(_, settings) => settings.storage,
            Declaration::Topic(_, settings) => settings.storage,
        });
        let made = [self.queue_defaults.storage, self.topic_defaults.storage].into_iter().filter(|_| self.auto_create);
        declared.chain(made).any(|storage| storage == Storage::Disk)
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::default() }
    }
}
