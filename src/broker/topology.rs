//! The queues, topics and exchanges that every installation has, as data: one table, from which declarations and
//! deployment files are made. Nothing here talks to a system. Source: SPEC §2.
//!
//! Start at [`QUEUES`] and [`TOPICS`]; [`declarations`] is what the embedded broker makes of them.

use std::time::Duration;

use super::{Declaration, Overflow, QueueSettings, TopicSettings};

/// An exchange of RabbitMQ. The embedded broker needs none: it routes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it chooses queues.
    pub kind: ExchangeKind,
}

/// How an exchange chooses queues. Source: AMQP 0-9-1, section 3.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// By the same routing key.
    Direct,
    /// By a pattern over the routing key.
    Topic,
    /// All of them.
    Fanout,
}

/// A queue and where it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: &'static str,
    /// The exchange that it is bound to, and the routing key of the binding; `None`: reached by its name only.
    pub binding: Option<(&'static str, &'static str)>,
    /// Highest priority kept apart; 0: none.
    pub priority_max: u8,
    /// How long a message may wait.
    pub ttl: Duration,
    /// Most messages.
    pub length_max: Option<u64>,
    /// Whether it delays what is published to it until its time is up and it returns. Only for systems that cannot
    /// delay by themselves: elsewhere nothing would come back from it, so it is not declared.
    pub rung: bool,
}

/// A topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// Into how many parts it is divided.
    pub partitions: u32,
    /// How long its messages are kept.
    pub retention: Duration,
}

/// Where dead letters go that no route sends elsewhere.
pub const DEAD_LETTER_QUEUE: &str = "helixagent.dlq";
/// Where dead letters of topics go that no route sends elsewhere, on systems of topics only.
pub const DEAD_LETTER_TOPIC: &str = "helixagent.dlq.events";
/// Where dead letters of tasks go that no route sends elsewhere, where tasks are on a system of topics only.
pub const DEAD_LETTER_TASKS_TOPIC: &str = "helixagent.dlq.tasks";
/// Where copies of events wait that are to be tried again later, on systems of topics only.
pub const RETRY_TOPIC: &str = "helixagent.retry.events";
/// The group of routes that name none.
pub const GROUP: &str = "helixagent-group";

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// All exchanges.
pub const EXCHANGES: &[Exchange] = &[
    Exchange { name: "helixagent.tasks", kind: ExchangeKind::Direct },
    Exchange { name: "helixagent.events", kind: ExchangeKind::Topic },
    Exchange { name: "helixagent.notifications", kind: ExchangeKind::Fanout },
    Exchange { name: "helixagent.dlx", kind: ExchangeKind::Direct },
];

/// All queues.
pub const QUEUES: &[Queue] = &[
    task("helixagent.tasks.background", "background", 10, DAY),
    task("helixagent.tasks.llm", "llm", 10, 5 * MINUTE),
    task("helixagent.tasks.debate", "debate", 10, 10 * MINUTE),
    task("helixagent.tasks.verification", "verification", 5, 5 * MINUTE),
    task("helixagent.tasks.notifications", "notifications", 5, MINUTE),
    Queue {
        name: DEAD_LETTER_QUEUE,
        binding: Some(("helixagent.dlx", "dlq")),
        priority_max: 0,
        ttl: Duration::from_secs(30 * DAY),
        length_max: Some(100_000),
        rung: false,
    },
    Queue {
        name: "helixagent.retry",
        binding: None,
        priority_max: 0,
        ttl: Duration::from_secs(MINUTE),
        length_max: None,
        rung: true,
    },
];

/// All topics.
pub const TOPICS: &[Topic] = &[
    topic("helixagent.events.llm.responses", 6, 7 * DAY),
    topic("helixagent.events.debate.rounds", 6, 7 * DAY),
    topic("helixagent.events.verification.results", 3, 30 * DAY),
    topic("helixagent.events.provider.health", 3, DAY),
    topic("helixagent.events.audit", 6, 90 * DAY),
    topic("helixagent.events.metrics", 3, DAY),
    topic("helixagent.events.errors", 3, 30 * DAY),
    topic("helixagent.stream.tokens", 12, HOUR),
    topic("helixagent.stream.sse", 6, HOUR),
    topic("helixagent.stream.websocket", 6, HOUR),
    topic(DEAD_LETTER_TASKS_TOPIC, 3, 30 * DAY),
    topic(DEAD_LETTER_TOPIC, 3, 30 * DAY),
    topic(RETRY_TOPIC, 3, 7 * DAY),
    topic("llmsverifier.events.verification", 3, 7 * DAY),
    topic("llmsverifier.events.provider", 3, 7 * DAY),
    topic("llmsverifier.events.model", 3, 7 * DAY),
    topic("llmsverifier.events.team", 3, 7 * DAY),
    topic("llmsverifier.events.system", 3, 7 * DAY),
];

/// Topics behind a prefix that the operator chooses, each with its partitions, on systems of topics.
pub const PREFIXED_TOPICS: &[(&str, u32)] = &[("tasks", 4), ("events", 8), ("completions", 4), ("debates", 2)];

const fn task(name: &'static str, routing_key: &'static str, priority_max: u8, ttl_seconds: u64) -> Queue {
    Queue {
        name,
        binding: Some(("helixagent.tasks", routing_key)),
        priority_max,
        ttl: Duration::from_secs(ttl_seconds),
        length_max: None,
        rung: false,
    }
}

const fn topic(name: &'static str, partitions: u32, retention_seconds: u64) -> Topic {
    Topic { name, partitions, retention: Duration::from_secs(retention_seconds) }
}

/// The queues and topics of a broker that delays by itself; what the tables do not say is taken from the defaults.
#[must_use]
pub fn declarations(queue_defaults: &QueueSettings, topic_defaults: &TopicSettings) -> Vec<Declaration> {
    let queues = QUEUES.iter().filter(|queue| !queue.rung).map(|queue| {
        Declaration::Queue(
            queue.name.into(),
            QueueSettings {
                priority_max: queue.priority_max,
                ttl: Some(queue.ttl),
                length_max: queue.length_max.or(queue_defaults.length_max),
                // A dead letter that does not fit must stay with whoever brings it.
                overflow: if queue.name == DEAD_LETTER_QUEUE {
                    Overflow::RejectPublish
                } else {
                    queue_defaults.overflow
                },
                ..queue_defaults.clone()
            },
        )
    });
    let topics = TOPICS.iter().map(|topic| {
        Declaration::Topic(
            topic.name.into(),
            TopicSettings { partitions: topic.partitions, retention: Some(topic.retention), ..topic_defaults.clone() },
        )
    });
    queues.chain(topics).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Address, Kind};

    #[test]
    fn names_are_unique_and_every_system_accepts_them() {
        for (kind, names) in [
            (Kind::Queue, QUEUES.iter().map(|queue| queue.name).collect::<Vec<_>>()),
            (Kind::Topic, TOPICS.iter().map(|topic| topic.name).collect()),
        ] {
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), names.len());
            for name in names {
                assert_eq!(Address::checked(kind, name), Ok(Address { kind, system: None, name: name.into() }));
            }
        }
    }

    #[test]
    fn bindings_lead_from_exchanges_that_exist() {
        for (exchange, _) in QUEUES.iter().filter_map(|queue| queue.binding) {
            assert!(EXCHANGES.iter().any(|other| other.name == exchange), "{exchange}");
        }
    }

    #[test]
    fn the_embedded_broker_gets_everything_but_the_rung() {
        let all = declarations(&QueueSettings::default(), &TopicSettings::default());
        assert_eq!(all.len(), QUEUES.len() - 1 + TOPICS.len());
        let dlq = all.iter().find_map(|declaration| match declaration {
            Declaration::Queue(name, settings) if &**name == DEAD_LETTER_QUEUE => Some(settings.clone()),
            _ => None,
        });
        let dlq = dlq.expect("a dead letter queue");
        assert_eq!((dlq.length_max, dlq.priority_max, dlq.overflow), (Some(100_000), 0, Overflow::RejectPublish));
        assert_eq!(dlq.ttl, Some(Duration::from_secs(30 * DAY)));
    }
}
