//! The systems that messages come from and go to, opened as the configuration says.

use std::sync::Arc;

use super::settings;
use crate::{
    broker::{Broker, BrokerError, BrokerStatus, ConnectionState, Hybrid},
    cli::{Exit, Failure},
    config::{Backend, Config},
    message::Kind,
    store::Store,
};

/// What the broker inside the engine is called.
pub(super) const EMBEDDED: &str = "embedded";

/// Which system could not be used, and why.
pub(super) type NotOpened = (&'static str, BrokerError);

/// What the engine runs on. Reads and writes files, and connects; a server that is away is no reason to fail.
pub(super) async fn open(config: &Config) -> Result<Arc<dyn Broker>, NotOpened> {
    let embedded = Arc::new(settings::broker(config).map_err(|error| (EMBEDDED, error))?);
    let store = embedded.store().cloned();
    let rabbitmq = rabbitmq(config, store.as_ref()).await?;
    let kafka = match kafka(config, store.as_ref()).await {
        Ok(kafka) => kafka,
        Err(error) => {
            if let Some(rabbitmq) = rabbitmq {
                rabbitmq.close().await;
            }
            return Err(error);
        }
    };
    let embedded: Arc<dyn Broker> = embedded;
    // What is configured and used has been opened; the embedded broker is there in any case, for its store.
    let of = |kind| match config.system_of(kind) {
        Backend::Inmemory => Arc::clone(&embedded),
        Backend::Rabbitmq => rabbitmq.as_ref().map_or_else(|| Arc::clone(&embedded), Arc::clone),
        Backend::Kafka => kafka.as_ref().map_or_else(|| Arc::clone(&embedded), Arc::clone),
    };
    let (queues, topics) = (of(Kind::Queue), of(Kind::Topic));
    // Attempts are noted in the store of the embedded broker, which closes it.
    let first = if Arc::ptr_eq(&queues, &embedded) { Kind::Topic } else { Kind::Queue };
    Ok(if Arc::ptr_eq(&queues, &topics) { queues } else { Arc::new(Hybrid::new(queues, topics).closing_first(first)) })
}

/// Why an engine must not start that cannot do without these systems: one of them is away.
pub(super) fn absent(broker: &dyn Broker, required: &[Arc<str>]) -> Option<Failure> {
    let systems = broker.systems();
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

/// Attempts that a server does not count are noted in our own store.
#[cfg(any(feature = "rabbitmq", feature = "kafka"))]
fn counted(broker: Arc<dyn Broker>, store: Option<&Arc<Store>>) -> Arc<dyn Broker> {
    match store {
        Some(store) => Arc::new(crate::broker::Counted::new(broker, Arc::clone(store))),
        None => broker,
    }
}

#[cfg(feature = "rabbitmq")]
async fn rabbitmq(config: &Config, store: Option<&Arc<Store>>) -> Result<Option<Arc<dyn Broker>>, NotOpened> {
    use crate::{broker::rabbitmq::RabbitMq, message::Address};
    let Some(settings) = config.rabbitmq_in_use() else { return Ok(None) };
    let queue = |address: Address| (address.kind == Kind::Queue).then_some(address.name);
    let mut settings = settings.clone();
    settings.dead_letters = config.all_dead_letters().into_iter().filter_map(queue).collect();
    let connected = RabbitMq::connect("rabbitmq", settings).await.map_err(|error| ("rabbitmq", error))?;
    Ok(Some(counted(Arc::new(connected), store)))
}

#[cfg(not(feature = "rabbitmq"))]
async fn rabbitmq(_: &Config, _: Option<&Arc<Store>>) -> Result<Option<Arc<dyn Broker>>, NotOpened> {
    Ok(None)
}

#[cfg(feature = "kafka")]
async fn kafka(config: &Config, store: Option<&Arc<Store>>) -> Result<Option<Arc<dyn Broker>>, NotOpened> {
    use crate::broker::{Queueless, kafka::Kafka};
    let Some(settings) = config.kafka_in_use() else { return Ok(None) };
    let connected = Kafka::connect("kafka", settings.clone()).await.map_err(|error| ("kafka", error))?;
    let counted = counted(Arc::new(connected), store);
    // With topics alone, what is asked about queues stays an error of the broker.
    Ok(Some(if config.queues_on_kafka() {
        Arc::new(Queueless::new(counted, Arc::clone(&config.group)))
    } else {
        counted
    }))
}

#[cfg(not(feature = "kafka"))]
async fn kafka(_: &Config, _: Option<&Arc<Store>>) -> Result<Option<Arc<dyn Broker>>, NotOpened> {
    Ok(None)
}
