//! Systems outside of the engine: each kind has a section of its name, and further ones of a kind are under `connections`,
//! by names of their own.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Backend, Config,
    finding::Origin,
    kind,
    section::{Given, Section},
    words::{listed, nearest, quoted},
};
use crate::message::{Address, Kind as AddressKind, SYSTEM_BYTES_MAX};

/// What a system can be; the first is the engine itself.
const KINDS: &[(&str, Backend)] = &[
    ("inmemory", Backend::Inmemory),
    #[cfg(feature = "rabbitmq")]
    ("rabbitmq", Backend::Rabbitmq),
    #[cfg(feature = "kafka")]
    ("kafka", Backend::Kafka),
    #[cfg(feature = "redis")]
    ("redis", Backend::Redis),
];

/// The one system that has everything.
pub(super) fn backend() -> kind::Kind<Backend> {
    kind::choice(KINDS, |backend| backend.as_str().to_owned())
}

/// How a system outside of the engine is reached and used.
#[derive(Clone, Debug, PartialEq)]
pub enum Connection {
    /// RabbitMQ.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(Arc<crate::broker::rabbitmq::Settings>),
    /// Kafka.
    #[cfg(feature = "kafka")]
    Kafka(Arc<crate::broker::kafka::Settings>),
    /// Redis.
    #[cfg(feature = "redis")]
    Redis(Arc<crate::broker::redis::Settings>),
}

impl Connection {
    /// How it is reached where it is RabbitMQ.
    #[cfg(feature = "rabbitmq")]
    #[must_use]
    pub fn as_rabbitmq(&self) -> Option<&crate::broker::rabbitmq::Settings> {
        match self {
            Self::Rabbitmq(settings) => Some(settings),
            #[allow(unreachable_patterns, reason = "a build may have no other")]
            _ => None,
        }
    }

    /// How it is reached where it is Redis.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn as_redis(&self) -> Option<&crate::broker::redis::Settings> {
        match self {
            Self::Redis(settings) => Some(settings),
            #[allow(unreachable_patterns, reason = "a build may have no other")]
            _ => None,
        }
    }

    /// How it is reached where it is Kafka.
    #[cfg(feature = "kafka")]
    #[must_use]
    pub fn as_kafka(&self) -> Option<&crate::broker::kafka::Settings> {
        match self {
            Self::Kafka(settings) => Some(settings),
            #[allow(unreachable_patterns, reason = "a build may have no other")]
            _ => None,
        }
    }

    /// Whether the system counts attempts itself, so that nothing is noted here.
    pub(super) fn counts_attempts(&self) -> bool {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(_) => true,
            #[allow(unreachable_patterns, reason = "a build may have no other")]
            _ => false,
        }
    }
}

impl Config {
    /// Whether messages of that source come once at most, and never where nobody listens.
    #[must_use]
    pub fn is_at_most_once(&self, source: &Address) -> bool {
        let system = source.system.clone().unwrap_or_else(|| self.system_of(source.kind).name());
        match self.connections_in_use().get(&system) {
            #[cfg(feature = "redis")]
            Some(Connection::Redis(settings)) => {
                source.kind == AddressKind::Topic && settings.channels.contains(&source.name)
            }
            _ => false,
        }
    }

    /// The systems outside of the engine that are used, by name. With a [backend](Config::backend) there is no other.
    #[must_use]
    pub fn connections_in_use(&self) -> BTreeMap<Arc<str>, Connection> {
        #[allow(unused_mut, reason = "a build may have none of them")]
        let mut all = if self.backend.is_none() { self.connections.clone() } else { BTreeMap::new() };
        #[cfg(feature = "rabbitmq")]
        if let Some(settings) = self.rabbitmq_in_use() {
            all.insert(Backend::Rabbitmq.name(), Connection::Rabbitmq(Arc::clone(settings)));
        }
        #[cfg(feature = "kafka")]
        if let Some(settings) = self.kafka_in_use() {
            all.insert(Backend::Kafka.name(), Connection::Kafka(Arc::clone(settings)));
        }
        #[cfg(feature = "redis")]
        if let Some(settings) = self.redis_in_use() {
            all.insert(Backend::Redis.name(), Connection::Redis(Arc::clone(settings)));
        }
        all
    }

    /// The name of the system that has a queue or topic.
    #[must_use]
    pub fn system_name_of(&self, address: &Address) -> Arc<str> {
        address.system.clone().unwrap_or_else(|| self.system_of(address.kind).name())
    }

    /// The same address, as routes have it: without its system, where that is the usual one.
    #[must_use]
    pub fn plain(&self, address: &Address) -> Address {
        let is_usual = |system: &Arc<str>| self.backend.is_some() || *system == self.system_of(address.kind).name();
        if address.system.as_ref().is_some_and(is_usual) { address.local() } else { address.clone() }
    }

    /// Why there is no such queue or topic, and what to do; `None`: there may be. With a [backend](Config::backend) an
    /// address may name what is configured besides, as it is there all the same.
    #[must_use]
    pub fn objection(&self, address: &Address) -> Option<(String, String)> {
        let system = address.system.as_deref()?;
        let names = self.systems();
        if names.iter().any(|name| **name == *system) {
            return None;
        }
        let kinds = Backend::ALL.iter().map(|kind| kind.name());
        let near: Vec<Arc<str>> = names.iter().cloned().chain(kinds).collect();
        let fix = match nearest(system, near.iter().map(|name| &**name)) {
            // One that could be there, and is not configured.
            Some(name) if name == system => format!("configure `{system}:`"),
            Some(name) if names.iter().any(|known| **known == *name) => format!("did you mean {name}?"),
            Some(name) => format!("did you mean {name}, which needs a section `{name}:`?"),
            None => "add it under `connections:`".to_owned(),
        };
        let are = if names.len() == 1 { "is" } else { "are" };
        let problem = format!("{address}: no messaging system is called {}", quoted(system));
        Some((problem, format!("there {are} {}; {fix}", listed(&names, "and"))))
    }

    /// Every system that addresses may name, the engine's own first.
    fn systems(&self) -> Vec<Arc<str>> {
        let mut names = vec![Backend::Inmemory.name()];
        #[cfg(feature = "rabbitmq")]
        names.extend(self.rabbitmq.as_ref().map(|_| Backend::Rabbitmq.name()));
        #[cfg(feature = "kafka")]
        names.extend(self.kafka.as_ref().map(|_| Backend::Kafka.name()));
        #[cfg(feature = "redis")]
        names.extend(self.redis.as_ref().map(|_| Backend::Redis.name()));
        names.extend(self.connections.keys().cloned());
        names
    }
}

/// Reads the systems that have names of their own.
pub(super) fn read(
    section: &mut Section<'_, '_, '_>,
    backend: Option<Backend>,
    dead_letter: &Address,
    group: &(String, Origin),
    guard: &mut dyn FnMut(Arc<str>, &mut Section<'_, '_, '_>),
) -> BTreeMap<Arc<str>, Connection> {
    let mut all = BTreeMap::new();
    section.named("connections", |name, origin, section| {
        let path = section.path.clone();
        if let Some(backend) = backend {
            let problem = format!("is not used: everything is on {}", backend.as_str());
            section.reader.warn(section.origin(), &path, problem, "unset messaging.backend to use it");
        }
        let is_taken = Backend::ALL.iter().any(|backend| *backend.name() == *name) || AddressKind::of(name).is_some();
        if is_taken {
            let problem = format!("{} has a meaning of its own", quoted(name));
            section.reader.refuse(origin, &path, problem, "choose another name, as in billing");
        } else if !kind::is_name(name) || name.len() > SYSTEM_BYTES_MAX {
            let wrong = kind::bad_name(name);
            section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
        }
        guard(name.into(), section);
        match one(section, dead_letter, group) {
            Some(connection) => {
                all.insert(Arc::from(name), connection);
            }
            None => {
                section.reader.unread.insert(name.to_owned());
            }
        }
    });
    all
}

/// Reads one; where it has no kind, that has been said, and of its other keys nothing is known.
fn one(section: &mut Section<'_, '_, '_>, dead_letter: &Address, group: &(String, Origin)) -> Option<Connection> {
    let kinds = kind::choice(KINDS.get(1..).unwrap_or_default(), |backend| backend.as_str().to_owned());
    let Some(Given { value: of, .. }) = section.required("kind", &kinds) else {
        section.leave();
        return None;
    };
    let _ = (dead_letter, group);
    match of {
        #[cfg(feature = "rabbitmq")]
        Backend::Rabbitmq => {
            Some(Connection::Rabbitmq(Arc::new(super::rabbitmq::read(section, None, false, dead_letter))))
        }
        #[cfg(feature = "kafka")]
        Backend::Kafka => {
            Some(Connection::Kafka(Arc::new(super::kafka::read(section, None, false, group.clone()).settings)))
        }
        #[cfg(feature = "redis")]
        Backend::Redis => Some(Connection::Redis(Arc::new(super::redis::read(section, None, false, dead_letter)))),
        _ => None,
    }
}
