//! What the engine declares, as the server's own: from the seam's words to exchanges and queues, and from what the server
//! says about them to the seam's errors.

use std::sync::Arc;

use lapin::Connection;

use super::{
    settings::Settings,
    targets::EVENTS,
    topology::{
        self, Arguments, Binding, DeclareError, Exchange, How, Options, Queue, QueueKind, Rung, State, Topology, What,
    },
};
use crate::{
    broker::{BrokerError, QueueSettings, TopicSettings, topology::DEAD_LETTER_QUEUE},
    message::{Address, Kind, ReasonCode},
};

/// Makes what is missing, and compares what is there.
///
/// # Errors
/// As [`Broker::declare`](crate::broker::Broker::declare).
pub(super) async fn declare(
    connection: &Connection,
    wanted: &Topology,
    settings: &Settings,
) -> Result<(), BrokerError> {
    let how = if settings.accept_differences { How::Make } else { How::MakeUnlessDifferent };
    let options = Options { how, timeout: settings.connect_timeout };
    let entities = topology::declare(connection, wanted, options).await.map_err(|error| seam(settings, error))?;
    let mut mismatch: Option<(Address, Vec<String>)> = None;
    for entity in entities {
        if entity.state == State::Unknown {
            tracing::info!("{} {} is taken as it is: the user may not declare it", entity.what.as_str(), entity.name);
        }
        let State::Differs(differences) = entity.state else { continue };
        let texts = differences.iter().map(ToString::to_string);
        if settings.accept_differences {
            let all = texts.collect::<Vec<_>>().join(", ");
            tracing::warn!("{} {} is not as configured: {all}", entity.what.as_str(), entity.name);
            continue;
        }
        match &mut mismatch {
            None => {
                let name: Arc<str> = entity.name.as_str().into();
                let kind = if entity.what == What::Queue { Kind::Queue } else { Kind::Topic };
                mismatch = Some((Address { kind, system: None, name }, texts.collect()));
            }
            Some((_, all)) => {
                let of = format!("{} {}", entity.what.as_str(), entity.name);
                all.extend(texts.map(|text| format!("{of}: {text}")));
            }
        }
    }
    match mismatch {
        Some((address, differences)) => Err(BrokerError::Mismatch { address, differences }),
        None => Ok(()),
    }
}

fn seam(settings: &Settings, error: DeclareError) -> BrokerError {
    match error {
        DeclareError::Unreachable { what, cause } => {
            let endpoint = settings.endpoint();
            let cause = match cause {
                Some(cause) => format!("{what}: {cause}"),
                None => what,
            };
            BrokerError::Unreachable { endpoint, timeout: settings.connect_timeout, cause: cause.into() }
        }
        DeclareError::NotAllowed { .. } | DeclareError::Locked { .. } => {
            BrokerError::Refused { reason: error.to_string(), code: ReasonCode::AuthenticationFailed }
        }
        DeclareError::Refused { .. } => BrokerError::Invalid(error.to_string()),
    }
}

/// A queue of ours.
pub(super) fn queue(name: &str, queue: &QueueSettings, kind: QueueKind) -> Result<Queue, String> {
    if queue.exclusive {
        let exclusive = Queue::durable(QueueKind::Classic, Arguments::new());
        return Ok(Queue { durable: false, exclusive: true, ..exclusive });
    }
    if queue.priority_max > crate::message::PRIORITY_MAX {
        let max = crate::message::PRIORITY_MAX;
        return Err(format!("priority_max is {}, at most {max} is possible", queue.priority_max));
    }
    let made = topology::queue_of(queue, kind, name == DEAD_LETTER_QUEUE)?;
    for text in made.left_out {
        tracing::debug!(queue = name, "{text}");
    }
    Ok(made.queue)
}

/// A topic: a stream that keeps its messages, bound to the exchange of events under its name.
pub(super) fn topic(name: &Arc<str>, topic: &TopicSettings, settings: &Settings) -> Result<Topology, String> {
    if topic.partitions == 0 {
        return Err("partitions is 0, at least 1 is needed".to_owned());
    }
    let mut made = Topology::default();
    made.queues.insert(Arc::clone(name), topology::stream(topic));
    bind(&mut made, name, name, settings);
    Ok(made)
}

/// The queue of a group that reads a topic, with its binding, and its name.
pub(super) fn group(topic: &Arc<str>, group: &str, settings: &Settings) -> (Arc<str>, Topology) {
    let (name, queue) = topology::group_queue(topic, group);
    let mut made = Topology::default();
    made.queues.insert(Arc::clone(&name), queue);
    bind(&mut made, topic, &name, settings);
    (name, made)
}

/// Binds a queue to what is published to a topic.
fn bind(made: &mut Topology, topic: &Arc<str>, queue: &Arc<str>, settings: &Settings) {
    let own = settings.topology.exchanges.get(topic);
    let (exchange, routing_key) = match own {
        // All of it, whatever its key.
        Some(exchange) => (Arc::clone(topic), if exchange.kind == "topic" { "#" } else { "" }),
        None => (EVENTS.into(), &**topic),
    };
    let kind = own.cloned().or_else(|| settings.topology.exchanges.get(EVENTS).cloned());
    made.exchanges.insert(Arc::clone(&exchange), kind.unwrap_or_else(|| Exchange::durable("topic")));
    made.bindings.push(Binding {
        exchange,
        queue: Arc::clone(queue),
        routing_key: routing_key.to_owned(),
        arguments: Arguments::new(),
    });
}

impl Topology {
    /// Adds what is not there yet.
    pub(super) fn merge(&mut self, other: Topology) {
        for (name, exchange) in other.exchanges {
            self.exchanges.entry(name).or_insert(exchange);
        }
        for (name, queue) in other.queues {
            self.queues.entry(name).or_insert(queue);
        }
        for binding in other.bindings {
            if !self.bindings.contains(&binding) {
                self.bindings.push(binding);
            }
        }
    }

    /// Adds a retry queue, unless it is there.
    pub(super) fn add_missing(&mut self, rung: Rung) {
        if !self.queues.contains_key(&rung.name) {
            self.add_rung(rung);
        }
    }

    /// One queue, with what is bound to it.
    pub(super) fn only(&self, queue: &Arc<str>) -> Option<Topology> {
        let bindings: Vec<Binding> = self.bindings.iter().filter(|binding| binding.queue == *queue).cloned().collect();
        let of_a_binding = |name: &Arc<str>| bindings.iter().any(|binding| binding.exchange == *name);
        let exchanges = self.exchanges.iter().filter(|(name, _)| of_a_binding(name));
        Some(Topology {
            exchanges: exchanges.map(|(name, exchange)| (Arc::clone(name), exchange.clone())).collect(),
            queues: [(Arc::clone(queue), self.queues.get(queue)?.clone())].into(),
            bindings,
        })
    }
}
