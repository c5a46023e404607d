//! The systems that messages come from and go to, opened as the configuration says, and exchanged where it changes.

#![cfg_attr(
    not(any(feature = "rabbitmq", feature = "kafka", feature = "redis")),
    allow(unreachable_code, unused_variables, reason = "without any of them there is no connection")
)]

use std::sync::Arc;

use futures_util::future::join_all;

use super::{guard::guarded, settings};
use crate::{
    broker::{
        Broker, BrokerError, BrokerStatus, ConnectionState, Joined, JoinedSystem, embedded::Embedded, guarded::Fallback,
    },
    cli::{Exit, Failure},
    config::{Config, Connection},
    hub::{Exchange, ExchangedSystem, Opening},
    message::Kind,
};

/// What the broker inside the engine is called.
pub(super) const EMBEDDED: &str = "embedded";

/// Which system could not be used, and why.
pub(super) type NotOpened = (String, BrokerError);

/// All systems of an engine.
#[derive(Clone, Debug)]
pub(super) struct Systems {
    joined: Arc<Joined>,
    embedded: Arc<Embedded>,
}

impl Systems {
    /// Opens what the engine runs on. Reads and writes files, and connects; a server that is away is no reason to fail.
    pub(super) async fn open(config: &Config) -> Result<Self, NotOpened> {
        let embedded = Arc::new(settings::broker(config).map_err(|error| (EMBEDDED.to_owned(), error))?);
        // All at once: one that does not answer takes as long as its connection may, and the others must not wait for it.
        let opening = config.connections_in_use().into_iter().map(|(name, connection)| {
            let opening = open(config.clone(), Arc::clone(&name), connection, Arc::clone(&embedded));
            async move { (name, opening.await) }
        });
        let (mut systems, mut not_opened) = (Vec::new(), None);
        for (name, opened) in join_all(opening).await {
            match opened {
                Ok(broker) => systems.push(JoinedSystem { name, broker }),
                Err(error) => not_opened = not_opened.or(Some((name.to_string(), error))),
            }
        }
        if let Some(not_opened) = not_opened {
            join_all(systems.iter().map(|system| system.broker.close())).await;
            return Err(not_opened);
        }
        // The others note attempts, and what waits for them, in its store: it is closed last.
        systems.push(JoinedSystem { name: EMBEDDED.into(), broker: Arc::clone(&embedded) as _ });
        let [queues, topics] = [Kind::Queue, Kind::Topic].map(|kind| config.system_of(kind).name());
        let joined = Joined::new(queues, topics, systems).with_room(config.memory_budget / 4);
        let joined = if config.backend.is_some() { joined.as_one() } else { joined };
        Ok(Self { joined: Arc::new(joined), embedded })
    }

    /// All of them, as the hub sees them.
    pub(super) fn broker(&self) -> Arc<dyn Broker> {
        Arc::clone(&self.joined) as _
    }

    /// Why an engine must not start that cannot do without these: one of them is away.
    pub(super) fn absent(&self, required: &[Arc<str>]) -> Option<Failure> {
        let systems = self.joined.systems();
        let absent = systems.iter().find(|system| {
            let is_there = matches!(system.state, ConnectionState::Ready | ConnectionState::Blocked);
            !is_there && required.iter().any(|name| **name == *system.name)
        })?;
        let why = match &absent.status {
            BrokerStatus::Ready => String::new(),
            BrokerStatus::Degraded { reason } | BrokerStatus::Failed { reason } => format!(": {reason}"),
        };
        let (name, state) = (&absent.name, absent.state.as_str());
        Some(Failure::new(
            Exit::Unreachable,
            "REQUIRED_SYSTEM_AWAY",
            format!("the engine cannot start without {name}, which is {state}{why}"),
            "start it, or remove it from messaging.require to start without it",
        ))
    }

    /// Why a configuration cannot come into force while this engine runs.
    pub(super) fn hindrance(&self, after: &Config) -> Option<String> {
        let connections = after.connections_in_use();
        let spooled = connections.keys().find(|name| after.guard_of(name).fallback == Fallback::Spool)?;
        self.embedded.store().is_none().then(|| {
            format!("{spooled} is to have a spool on disk, and this engine was started without a store: restart it, or leave fallback as it was")
        })
    }

    /// What has to be exchanged where the configuration changes; `None`: nothing.
    pub(super) fn exchange(&self, before: &Config, after: &Config) -> Option<Exchange> {
        let (olds, news) = (before.connections_in_use(), after.connections_in_use());
        let mut systems = Vec::new();
        for name in olds.keys().chain(news.keys().filter(|name| !olds.contains_key(*name))) {
            let (old, new) = (olds.get(name), news.get(name));
            let [was, is] = [old, new].map(|connection| connection.map(|connection| bare(name, connection)));
            let is_kept = was == is && before.guard_of(name) == after.guard_of(name);
            // One that could not be had at the last reload is tried again.
            if is_kept && !self.joined.has_lost(name) {
                continue;
            }
            let after = new.map(|connection| self.opening(after, name, connection));
            let before = old.map(|connection| self.opening(before, name, connection));
            systems.push(ExchangedSystem::new(Arc::clone(name), after, before));
        }
        (!systems.is_empty()).then(|| Exchange { joined: Arc::clone(&self.joined), systems })
    }

    fn opening(&self, config: &Config, name: &Arc<str>, connection: &Connection) -> Opening {
        Box::pin(open(config.clone(), Arc::clone(name), connection.clone(), Arc::clone(&self.embedded)))
    }
}

/// A system without what is made, and compared, with everything that is declared: it may stay as it is where that changes.
fn bare(name: &str, connection: &Connection) -> Connection {
    let _ = name;
    match connection {
        #[cfg(feature = "kafka")]
        Connection::Kafka(settings) if name == "kafka" => {
            let topics = Default::default();
            Connection::Kafka(Arc::new(crate::broker::kafka::Settings { topics, ..settings.as_ref().clone() }))
        }
        #[cfg(feature = "redis")]
        Connection::Redis(settings) if name == "redis" => {
            let (queues, topics) = Default::default();
            Connection::Redis(Arc::new(crate::broker::redis::Settings { queues, topics, ..settings.as_ref().clone() }))
        }
        connection => connection.clone(),
    }
}

/// Connects one system, and puts in front of it what it lacks.
async fn open(
    config: Config,
    name: Arc<str>,
    connection: Connection,
    embedded: Arc<Embedded>,
) -> Result<Arc<dyn Broker>, BrokerError> {
    // What has a section of its own is declared with all else.
    let own = config.connections.contains_key(&name).then(|| settings::declared_on(&connection));
    let broker = connect(&config, &name, connection, &embedded).await?;
    let broker = guarded(&config, &name, broker, &embedded);
    if let Some(declarations) = own {
        broker.declare(&declarations).await?;
    }
    Ok(broker)
}

async fn connect(
    config: &Config,
    name: &Arc<str>,
    connection: Connection,
    embedded: &Arc<Embedded>,
) -> Result<Arc<dyn Broker>, BrokerError> {
    let _ = (config, embedded);
    match connection {
        #[cfg(feature = "rabbitmq")]
        Connection::Rabbitmq(settings) => {
            let mut settings = Arc::unwrap_or_clone(settings);
            let is_there = |address: &crate::message::Address| {
                address.kind == Kind::Queue && config.system_name_of(address) == *name
            };
            let dead_letters = config.all_dead_letters().into_iter().filter(is_there);
            settings.dead_letters = dead_letters.map(|address| address.name).collect();
            let connected = crate::broker::rabbitmq::RabbitMq::connect(name, settings).await?;
            Ok(counted(Arc::new(connected), embedded))
        }
        #[cfg(feature = "kafka")]
        Connection::Kafka(settings) => {
            let mut settings = Arc::unwrap_or_clone(settings);
            settings.fetch_bytes_max = fetched_ahead(config, name, settings.fetch_bytes_max);
            let connected = crate::broker::kafka::Kafka::connect(name, settings).await?;
            let counted = counted(Arc::new(connected), embedded);
            Ok(Arc::new(crate::broker::Queueless::new(counted, Arc::clone(&config.group))))
        }
        // It counts attempts itself.
        #[cfg(feature = "redis")]
        Connection::Redis(settings) => {
            let settings = Arc::unwrap_or_clone(settings);
            Ok(Arc::new(crate::broker::redis::Redis::connect(name, settings).await?))
        }
    }
}

/// Bytes that each reader of Kafka may fetch ahead: a quarter of the budget, shared by all that read there.
#[cfg(feature = "kafka")]
fn fetched_ahead(config: &Config, name: &str, wanted: usize) -> usize {
    let readers =
        config.routes.sources().filter(|(source, _)| *config.system_name_of(&source.address) == *name).count();
    match config.memory_budget / 4 / readers.max(1) {
        0 => wanted,
        // With less, no message of usual size fits.
        share => wanted.min(share.max(64 << 10)),
    }
}

/// Attempts that a server does not count are noted in our own store.
#[cfg(any(feature = "rabbitmq", feature = "kafka"))]
fn counted(broker: Arc<dyn Broker>, embedded: &Arc<Embedded>) -> Arc<dyn Broker> {
    match embedded.store() {
        Some(store) => Arc::new(crate::broker::Counted::new(broker, Arc::clone(store))),
        None => broker,
    }
}
