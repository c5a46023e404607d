//! From the configuration to what hub and broker run by.

use std::path::PathBuf;
#[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
use std::sync::Arc;

#[cfg(any(feature = "rabbitmq", feature = "kafka"))]
use crate::broker::QueueSettings;
#[cfg(feature = "kafka")]
use crate::broker::{TopicSettings, topology};
use crate::{
    broker::{BrokerError, Declaration, embedded, guarded::Fallback},
    config::{Backend, Config, Connection},
    hub,
    message::Kind,
    route::RouteTable,
    store::{self, StoreError},
};

/// In the data directory: compiled plugins.
const CACHE_DIRECTORY: &str = "compiled";
/// In the store's directory: what makes it one.
const DATABASE: &str = "store.db";

/// What the hub runs by.
pub(super) fn hub(config: &Config) -> hub::Settings {
    hub::Settings {
        plugins_directory: config.plugins.directory.clone(),
        plugins: config.plugins.settings.clone(),
        loading: config.plugins.loading.clone(),
        cache_directory: cache_directory(config),
        declarations: declarations(config),
        routes: if config.enabled { config.routes.clone() } else { RouteTable::default() },
        dead_letter: config.dead_letters.tasks.clone(),
        grace: config.shutdown_grace,
        memory_budget: config.memory_budget,
        watchdog: config.watchdog,
    }
}

/// Keeps of the running configuration which systems have what names none: that only the next start changes.
pub(super) fn keep_fixed(config: &mut Config, running: &Config) {
    if usual(config) == usual(running) {
        return;
    }
    config.backend = running.backend;
    #[cfg(feature = "rabbitmq")]
    config.rabbitmq.clone_from(&running.rabbitmq);
    #[cfg(feature = "kafka")]
    config.kafka.clone_from(&running.kafka);
    #[cfg(feature = "redis")]
    config.redis.clone_from(&running.redis);
}

/// Which systems have what names none: queues, then topics; and whether there are others.
fn usual(config: &Config) -> (Backend, Backend, bool) {
    (config.system_of(Kind::Queue), config.system_of(Kind::Topic), config.backend.is_some())
}

/// What is made on a system that has a name of its own.
pub(super) fn declared_on(connection: &Connection) -> Vec<Declaration> {
    match connection {
        #[cfg(feature = "rabbitmq")]
        Connection::Rabbitmq(settings) => on_rabbitmq(settings).collect(),
        #[cfg(feature = "kafka")]
        Connection::Kafka(settings) => settings.topics.iter().map(|(name, plan)| on_kafka(name, plan)).collect(),
        #[cfg(feature = "redis")]
        Connection::Redis(settings) => on_redis(settings).collect(),
        #[allow(unreachable_patterns, reason = "a build may have none of them")]
        _ => Vec::new(),
    }
}

/// What is made at the start, on whichever system it is.
fn declarations(config: &Config) -> Vec<Declaration> {
    let all: Vec<_> =
        config.embedded.declarations.iter().filter(|declaration| declared(config, declaration)).cloned().collect();
    #[cfg(feature = "rabbitmq")]
    let all = match config.rabbitmq_in_use() {
        Some(settings) => on_rabbitmq(settings).chain(all).collect(),
        None => all,
    };
    #[cfg(feature = "kafka")]
    let all = match config.kafka_in_use() {
        Some(settings) => {
            let is_queue =
                |name: &str| config.queues_on_kafka() && topology::QUEUES.iter().any(|queue| queue.name == name);
            let on_kafka = |(name, plan): (&Arc<str>, &_)| match is_queue(name) {
                true => Declaration::Queue(Arc::clone(name), QueueSettings::default()),
                false => on_kafka(name, plan),
            };
            settings.topics.iter().map(on_kafka).chain(all).collect()
        }
        None => all,
    };
    #[cfg(feature = "redis")]
    let all = match config.redis_in_use() {
        Some(settings) => {
            let is_there = |one: &Declaration| config.system_of(one.address().kind) == Backend::Redis;
            on_redis(settings).filter(is_there).chain(all).collect()
        }
        None => all,
    };
    all
}

#[cfg(feature = "redis")]
fn on_redis(settings: &crate::broker::redis::Settings) -> impl Iterator<Item = Declaration> {
    let queues = settings.queues.iter().map(|(name, queue)| Declaration::Queue(Arc::clone(name), queue.clone()));
    let topics = settings.topics.iter().map(|(name, topic)| Declaration::Topic(Arc::clone(name), topic.clone()));
    queues.chain(topics)
}

/// RabbitMQ has settings of its own for each: the name says which.
#[cfg(feature = "rabbitmq")]
fn on_rabbitmq(settings: &crate::broker::rabbitmq::Settings) -> impl Iterator<Item = Declaration> {
    settings.topology.queues.keys().map(|name| Declaration::Queue(Arc::clone(name), QueueSettings::default()))
}

/// Whether what is declared for the embedded broker is made: elsewhere queues, and on Kafka topics too, have sections of
/// their own.
fn declared(config: &Config, declaration: &Declaration) -> bool {
    let kind = declaration.address().kind;
    match config.system_of(kind) {
        Backend::Inmemory => true,
        Backend::Rabbitmq => kind == Kind::Topic,
        Backend::Kafka | Backend::Redis => false,
    }
}

#[cfg(feature = "kafka")]
fn on_kafka(name: &Arc<str>, plan: &crate::broker::kafka::settings::TopicPlan) -> Declaration {
    let settings = TopicSettings {
        partitions: plan.partitions,
        retention: plan.retention,
        retention_bytes: plan.retention_bytes,
        ..TopicSettings::default()
    };
    Declaration::Topic(Arc::clone(name), settings)
}

/// Where compiled plugins are kept.
pub(super) fn cache_directory(config: &Config) -> PathBuf {
    config.data_directory.join(CACHE_DIRECTORY)
}

/// The broker inside the engine, with its store opened. Blocking.
pub(super) fn broker(config: &Config) -> Result<embedded::Embedded, BrokerError> {
    embedded::Embedded::new(super::brokers::EMBEDDED, embedded(config, disk(config)))
}

/// Whether there could be such a broker; its store is left alone.
pub(super) fn check(config: &Config) -> Result<(), BrokerError> {
    embedded::Embedded::new("embedded", embedded(config, None)).map(drop)
}

/// Whether the store that is there is one that could be opened. It may be in use, and nothing is made or changed.
pub(super) fn check_store(config: &Config) -> Result<(), StoreError> {
    let directory = &config.embedded.disk.directory;
    if directory.join(DATABASE).exists() { store::stats(directory).map(drop) } else { Ok(()) }
}

fn embedded(config: &Config, disk: Option<embedded::DiskSettings>) -> embedded::Settings {
    embedded::Settings {
        auto_create: config.embedded.auto_create,
        queue: config.embedded.queue_defaults.clone(),
        topic: config.embedded.topic_defaults.clone(),
        message_bytes_max: config.embedded.message_bytes_max,
        disk,
    }
}

/// The store, where anything is kept on disk, or was: what is left in it is not to be passed over in silence.
fn disk(config: &Config) -> Option<embedded::DiskSettings> {
    let embedded = &config.embedded;
    // With a system that does not count every attempt, the ledger is there; and what waits for one that is away.
    let connections = config.connections_in_use();
    let spools = connections.keys().any(|name| config.guard_of(name).fallback == Fallback::Spool);
    let is_there = || embedded.disk.directory.join(DATABASE).exists();
    let wanted = embedded.any_on_disk() || config.counts_attempts() || spools || is_there();
    wanted.then(|| embedded.disk.clone())
}

/// What changed that only the next start takes over, by its path in the configuration.
pub(super) fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let embedded = |config: &Config| {
        let embedded = config.embedded.clone();
        (embedded.auto_create, embedded.queue_defaults, embedded.topic_defaults, embedded.message_bytes_max)
    };
    [
        ("engine.data_directory", before.data_directory != after.data_directory),
        ("http.listen", before.http.listen != after.http.listen),
        ("http.token", before.http.token != after.http.token),
        ("http.tokens", before.http.tokens != after.http.tokens),
        ("http.open", before.http.open != after.http.open),
        ("http.body_bytes_max", before.http.body_bytes_max != after.http.body_bytes_max),
        ("embedded", embedded(before) != embedded(after)),
        ("embedded.disk", disk(before) != disk(after)),
        ("which systems have queues and topics", usual(before) != usual(after)),
        ("telemetry.format", before.telemetry.format != after.telemetry.format),
    ]
    .into_iter()
    .filter_map(|(path, changed)| changed.then_some(path))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disabled_engine_runs_no_route() {
        let load = |text: &str| crate::config::load_text("x.yaml".as_ref(), text, &|_| None).unwrap().config;
        let routes = "routes: [{name: a, queue: a, handler: a}]";
        assert_eq!(hub(&load(routes)).routes.iter().count(), 1);
        assert_eq!(hub(&load(&format!("messaging: {{enabled: false}}\n{routes}"))).routes.iter().count(), 0);
    }

    #[test]
    fn says_what_only_a_restart_changes() {
        let before = Config::default();
        let mut after = before.clone();
        after.http.listen.set_port(1);
        after.routes = RouteTable::default();
        assert_eq!(needs_restart(&before, &after), ["http.listen"]);
    }

    #[cfg(all(feature = "rabbitmq", feature = "kafka"))]
    #[test]
    fn which_systems_have_queues_and_topics_stays_until_the_next_start() {
        let load = |text: &str| crate::config::load_text("x.yaml".as_ref(), text, &|_| None).unwrap().config;
        let rabbitmq = "rabbitmq: {host: a, username: u, password: p}";
        let before = load(rabbitmq);
        assert_eq!(needs_restart(&before, &load("rabbitmq: {host: b, username: u, password: p}")), [""; 0]);
        let mut after = load(&format!("{rabbitmq}\nkafka: {{brokers: ['a:1']}}"));
        assert_eq!(needs_restart(&before, &after), ["which systems have queues and topics"]);
        keep_fixed(&mut after, &before);
        assert_eq!((after.kafka.is_some(), after.system_of(Kind::Topic)), (false, Backend::Inmemory));
    }

    #[test]
    fn a_store_that_nothing_is_in_is_not_opened_and_needs_no_restart() {
        let before = Config::default();
        assert_eq!(disk(&before), None);
        let mut after = before.clone();
        let elsewhere = tempfile::tempdir().unwrap();
        after.embedded.disk.directory = elsewhere.path().to_owned();
        assert_eq!(needs_restart(&before, &after), [""; 0]);
        after.embedded.topic_defaults.storage = crate::broker::Storage::Disk;
        assert_eq!(needs_restart(&before, &after), ["embedded", "embedded.disk"]);
        assert_eq!(disk(&after), Some(after.embedded.disk.clone()));
        after.embedded.topic_defaults.storage = crate::broker::Storage::Memory;
        std::fs::write(elsewhere.path().join("store.db"), "what is left").unwrap();
        assert_eq!(disk(&after), Some(after.embedded.disk.clone()));
    }
}
