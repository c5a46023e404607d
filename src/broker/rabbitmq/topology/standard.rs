//! The topology that every installation has, and the rungs on which messages wait.

use std::{sync::Arc, time::Duration};

use super::{
    Argument, Arguments, Binding, Exchange, Queue, QueueKind, Topology,
    queues::{millis, queue_of, stream},
};
use crate::broker::{
    Declaration, QueueSettings, TopicSettings,
    topology::{DEAD_LETTER_QUEUE, EXCHANGES, ExchangeKind, QUEUES, declarations},
};

/// The delays that there are rungs for. A delay in between takes the next longer one, so that nothing returns early.
pub const RUNG_DELAYS: [Duration; 14] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    MINUTE,
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(4 * 3600),
    Duration::from_secs(24 * 3600),
];

/// Where topics are published to, with their name as routing key.
pub const TOPIC_EXCHANGE: &str = "helixagent.events";

const MINUTE: Duration = Duration::from_secs(60);
/// Names of rungs begin with it; alone it is the one of a minute.
const RUNG: &str = "helixagent.retry";

/// Where a message waits before it returns to the queue that its routing key names.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// Of the exchange and the queue.
    pub name: Arc<str>,
    /// Takes any routing key.
    pub exchange: Exchange,
    /// Holds each message for the delay, then sends it to the default exchange.
    pub queue: Queue,
    /// From the one to the other.
    pub binding: Binding,
}

/// The rung of a delay, in whole milliseconds.
///
/// One queue for each delay, because a server looks only at the head of a queue for what has expired: a short delay
/// behind a long one would wait for it. The routing key is the queue to return to: the fanout exchange does not look at
/// it, and the queue keeps it when it sends the message on through the default exchange.
#[must_use]
pub fn rung(delay: Duration) -> Rung {
    let name: Arc<str> = if delay == MINUTE { RUNG.into() } else { format!("{RUNG}.{}", delay.as_millis()).into() };
    let arguments = [
        ("x-message-ttl", Argument::Integer(millis(delay))),
        ("x-dead-letter-exchange", "".into()),
        // A server that moves a message on confirms to itself before it forgets the message here; it does so only on
        // quorum queues, and only where what is too much is refused and not dropped.
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
    ];
    Rung {
        exchange: Exchange::durable("fanout"),
        queue: Queue::durable(QueueKind::Quorum, named(arguments)),
        binding: Binding {
            exchange: Arc::clone(&name),
            queue: Arc::clone(&name),
            routing_key: String::new(),
            arguments: Arguments::new(),
        },
        name,
    }
}

impl Topology {
    /// Adds a topic: a stream of its name that is bound to the exchange of all topics.
    pub fn add_topic(&mut self, name: &Arc<str>, settings: &TopicSettings) {
        self.queues.insert(Arc::clone(name), stream(settings));
        self.bindings.push(Binding {
            exchange: TOPIC_EXCHANGE.into(),
            queue: Arc::clone(name),
            routing_key: name.to_string(),
            arguments: Arguments::new(),
        });
    }

    /// Adds a rung.
    pub fn add_rung(&mut self, rung: Rung) {
        self.exchanges.insert(Arc::clone(&rung.name), rung.exchange);
        self.queues.insert(rung.name, rung.queue);
        self.bindings.push(rung.binding);
    }
}

/// The exchanges of SPEC section 2, and the bindings and the rung that go with its queues, but not those queues.
#[must_use]
pub fn around_the_standard_queues() -> Topology {
    let mut all = Topology::default();
    for exchange in EXCHANGES {
        let kind = match exchange.kind {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Fanout => "fanout",
        };
        all.exchanges.insert(exchange.name.into(), Exchange::durable(kind));
    }
    for queue in QUEUES {
        all.bindings.extend(queue.binding.map(|(exchange, routing_key)| Binding {
            exchange: exchange.into(),
            queue: queue.name.into(),
            routing_key: routing_key.to_owned(),
            arguments: Arguments::new(),
        }));
        if queue.rung {
            all.add_rung(rung(queue.ttl));
        }
    }
    all
}

/// The exchanges, queues and bindings of SPEC section 2, with the rung of a minute, which other systems know by name.
///
/// With [`QueueKind::Classic`] queues have the priorities of the table. Quorum queues have none; what they have instead
/// differs with the server's version.
///
/// There is nowhere to go from the dead letter queue: what has expired there is gone. Its time limit is long, and the
/// engine looks after what lies there before that.
#[must_use]
pub fn standard(kind: QueueKind) -> Topology {
    let mut all = around_the_standard_queues();
    for declaration in declarations(&QueueSettings::default(), &TopicSettings::default()) {
        let Declaration::Queue(name, settings) = declaration else { continue };
        let is_dead_letter = &*name == DEAD_LETTER_QUEUE;
        // What the table says is possible: a test makes each of them.
        if let Ok(made) = queue_of(&settings, kind, is_dead_letter) {
            all.queues.insert(name, made.queue);
        }
    }
    all
}

fn named<const N: usize>(arguments: [(&str, Argument); N]) -> Arguments {
    arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Address, Kind};

    #[test]
    fn queues_have_what_the_table_says() {
        let all = standard(QueueKind::Classic);
        let llm = &all.queues["helixagent.tasks.llm"];
        let wanted = named([
            ("x-max-priority", 10.into()),
            ("x-message-ttl", 300_000.into()),
            ("x-dead-letter-exchange", "helixagent.dlx".into()),
            ("x-dead-letter-routing-key", "dlq".into()),
        ]);
        assert_eq!((llm.kind, llm.durable, &llm.arguments), (QueueKind::Classic, true, &wanted));
        let wanted = named([
            ("x-message-ttl", 2_592_000_000.into()),
            ("x-max-length", 100_000.into()),
            ("x-overflow", "reject-publish".into()),
        ]);
        assert_eq!(all.queues[DEAD_LETTER_QUEUE].arguments, wanted);
        assert_eq!(all.queues.len(), QUEUES.len());
        assert_eq!(all.exchanges.len(), EXCHANGES.len() + 1);
        assert_eq!(all.bindings.len(), QUEUES.len());
    }

    #[test]
    fn quorum_queues_have_no_priorities_and_lose_nothing_on_the_way_to_the_dead_letters() {
        let all = standard(QueueKind::Quorum);
        for (name, queue) in &all.queues {
            assert_eq!(queue.kind, QueueKind::Quorum, "{name}");
            assert!(!queue.arguments.contains_key("x-max-priority"), "{name}");
        }
        assert_eq!(all.queues["helixagent.tasks.llm"].text("x-dead-letter-strategy"), Some("at-least-once"));
    }

    #[test]
    fn rungs_are_ordered_named_by_their_delay_and_return_what_waits_under_its_own_routing_key() {
        assert!(RUNG_DELAYS.is_sorted());
        let names: Vec<_> = RUNG_DELAYS.iter().map(|delay| rung(*delay).name).collect();
        assert_eq!(names.iter().filter(|name| &***name == "helixagent.retry").count(), 1);
        assert_eq!((&*names[0], &*names[13]), ("helixagent.retry.100", "helixagent.retry.86400000"));
        for delay in RUNG_DELAYS {
            let rung = rung(delay);
            assert!(Address::checked(Kind::Queue, &rung.name).is_ok());
            assert_eq!(rung.queue.text("x-dead-letter-exchange"), Some(""));
            assert!(!rung.queue.arguments.contains_key("x-dead-letter-routing-key"));
            assert_eq!((&rung.binding.exchange, &rung.binding.queue), (&rung.name, &rung.name));
        }
    }

    #[test]
    fn dead_letters_arrive() {
        for kind in [QueueKind::Classic, QueueKind::Quorum] {
            let mut all = standard(kind);
            assert_eq!(all.queues.len(), QUEUES.len());
            all.add_topic(&"audit".into(), &TopicSettings::default());
            RUNG_DELAYS.iter().for_each(|delay| all.add_rung(rung(*delay)));
            assert_eq!(super::super::astray(&all), []);
        }
    }
}
