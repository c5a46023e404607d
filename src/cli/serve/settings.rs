//! From the configuration to what hub and broker run by.

use std::path::PathBuf;
#[cfg(any(feature = "rabbitmq", feature = "kafka"))]
use std::sync::Arc;

#[cfg(any(feature = "rabbitmq", feature = "kafka"))]
use crate::broker::QueueSettings;
#[cfg(feature = "kafka")]
use crate::broker::TopicSettings;
use crate::{
    broker::{BrokerError, Declaration, embedded},
    config::{Backend, Config},
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
        watchdog: config.watchdog,
    }
}

/// The same for an engine that runs: how a queue of RabbitMQ is made is in a section that the next start takes over, so
/// that new ones are made then, as configured.
pub(super) fn hub_of_running(running: &Config, config: &Config) -> hub::Settings {
    let settings = hub(config);
    #[cfg(feature = "rabbitmq")]
    let mut settings = settings;
    #[cfg(feature = "rabbitmq")]
    if let (Some(before), Some(after)) = (running.rabbitmq_in_use(), config.rabbitmq_in_use()) {
        settings.declarations.retain(|declaration| {
            let address = declaration.address();
            let is_new = address.kind == Kind::Queue
                && after.topology.queues.contains_key(&address.name)
                && !before.topology.queues.contains_key(&address.name);
            !is_new
        });
    }
    #[cfg(not(feature = "rabbitmq"))]
    let _ = running;
    settings
}

/// Keeps of the running configuration what a reload does not change.
pub(super) fn keep_servers(config: &mut Config, running: &mut Config) {
    #[cfg(feature = "rabbitmq")]
    {
        config.rabbitmq = running.rabbitmq.take();
    }
    #[cfg(not(feature = "rabbitmq"))]
    let _ = (config, running);
}

/// What is made at the start, on whichever system it is.
fn declarations(config: &Config) -> Vec<Declaration> {
    let all: Vec<_> =
        config.embedded.declarations.iter().filter(|declaration| declared(config, declaration)).cloned().collect();
    #[cfg(feature = "rabbitmq")]
    let all = match config.rabbitmq_in_use() {
        // RabbitMQ has settings of its own for each: the name says which.
        Some(settings) => {
            let queue = |name: &Arc<str>| Declaration::Queue(Arc::clone(name), QueueSettings::default());
            settings.topology.queues.keys().map(queue).chain(all).collect()
        }
        None => all,
    };
    #[cfg(feature = "kafka")]
    let all = match config.kafka_in_use() {
        Some(settings) => settings.topics.iter().map(|(name, plan)| on_kafka(config, name, plan)).chain(all).collect(),
        None => all,
    };
    all
}

/// Whether what is declared for the embedded broker is made: elsewhere queues, and on Kafka topics too, have sections of
/// their own.
fn declared(config: &Config, declaration: &Declaration) -> bool {
    let kind = declaration.address().kind;
    match config.system_of(kind) {
        Backend::Inmemory => true,
        Backend::Rabbitmq => kind == Kind::Topic,
        Backend::Kafka => false,
    }
}

#[cfg(feature = "kafka")]
fn on_kafka(config: &Config, name: &Arc<str>, plan: &crate::broker::kafka::settings::TopicPlan) -> Declaration {
    let is_queue = crate::broker::topology::QUEUES.iter().any(|queue| *queue.name == **name);
    if is_queue && config.queues_on_kafka() {
        return Declaration::Queue(Arc::clone(name), QueueSettings::default());
    }
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
    // With a system that does not count every attempt, the ledger is there.
    let wanted = embedded.any_on_disk() || config.counts_attempts() || embedded.disk.directory.join(DATABASE).exists();
    wanted.then(|| embedded.disk.clone())
}

/// Kafka's settings but its topics: new ones are made at once. Without passwords, which a restart takes over, too.
fn kafka(config: &Config) -> String {
    #[cfg(feature = "kafka")]
    if let Some(settings) = config.kafka_in_use() {
        let topics = std::collections::BTreeMap::new();
        return format!("{:?}", crate::broker::kafka::Settings { topics, ..settings.clone() });
    }
    let _ = config;
    String::new()
}

/// RabbitMQ's settings, with what is declared there: how it is declared is its own. Without passwords.
fn rabbitmq(config: &Config) -> String {
    #[cfg(feature = "rabbitmq")]
    if let Some(settings) = config.rabbitmq_in_use() {
        return format!("{settings:?}");
    }
    let _ = config;
    String::new()
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
        ("http.open", before.http.open != after.http.open),
        ("http.body_bytes_max", before.http.body_bytes_max != after.http.body_bytes_max),
        ("embedded", embedded(before) != embedded(after)),
        ("embedded.disk", disk(before) != disk(after)),
        ("rabbitmq", rabbitmq(before) != rabbitmq(after)),
        ("kafka", kafka(before) != kafka(after)),
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
    fn servers_are_changed_by_a_restart_and_topics_are_made_at_once() {
        let load = |text: &str| crate::config::load_text("x.yaml".as_ref(), text, &|_| None).unwrap().config;
        let both = |rabbitmq: &str, kafka: &str| {
            load(&format!(
                "rabbitmq: {{host: a, username: u, password: p{rabbitmq}}}\nkafka: {{brokers: ['a:1']{kafka}}}"
            ))
        };
        let before = both("", "");
        assert_eq!(needs_restart(&before, &both("", ", topics: {new: {partitions: 2}}")), [""; 0]);
        assert_eq!(needs_restart(&before, &both("", ", linger: 9ms")), ["kafka"]);
        assert_eq!(needs_restart(&before, &both(", prefetch_count: 7", "")), ["rabbitmq"]);
        let after = both(", queues: {new: {}}", ", topics: {new: {}}");
        assert_eq!(needs_restart(&before, &after), ["rabbitmq"]);
        let count = |settings: hub::Settings| {
            let new = settings.declarations.iter().filter(|one| &*one.address().name == "new");
            new.map(|one| one.address().kind).collect::<Vec<_>>()
        };
        assert_eq!(count(hub(&after)), [Kind::Topic, Kind::Queue]);
        assert_eq!(count(hub_of_running(&before, &after)), [Kind::Topic]);
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
