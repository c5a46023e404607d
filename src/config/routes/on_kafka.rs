//! What routes may ask for only where Kafka has what they read: patterns of topics, where retries wait, transactions.

use std::sync::Arc;

use crate::{
    broker::Aside,
    config::{
        Config,
        finding::Origin,
        kind::{self, Kind, Wrong},
        section::{Reader, Section},
        words::{join, quoted},
    },
    message::{Address, Kind as AddressKind, NAME_BYTES_MAX},
    route::{Delivery, Order, Pattern, Route},
};

use super::{Draft, Said};

/// What is on Kafka, as far as routes ask.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct OnKafka {
    pub(in crate::config) topics: bool,
    /// Queues too, each as a topic.
    pub(in crate::config) queues: bool,
    /// Where copies of what is tried again later wait.
    pub(in crate::config) retry_topic: Arc<str>,
    /// Why nothing can be published in a transaction, and what to do.
    pub(in crate::config) no_transactions: Option<(&'static str, &'static str)>,
}

impl OnKafka {
    /// What is there by a configuration.
    pub(in crate::config) fn of(config: &Config) -> Self {
        #[cfg(feature = "kafka")]
        if let Some(settings) = config.kafka_in_use() {
            return Self {
                topics: config.topics_on_kafka(),
                queues: config.queues_on_kafka(),
                retry_topic: Arc::clone(&settings.retry_topic),
                no_transactions: crate::config::kafka::no_transactions(settings),
            };
        }
        let _ = config;
        Self::default()
    }

    /// Whether it has this queue or topic.
    pub(super) fn has(&self, address: &Address) -> bool {
        match address.kind {
            AddressKind::Queue => self.queues,
            AddressKind::Topic => self.topics,
        }
    }

    /// Whether a source, whose name may be a pattern, brings what is published to an address.
    pub(super) fn reads(&self, source: &Address, address: &Address) -> bool {
        let both_there = self.has(source) && self.has(address);
        source == address || both_there && overlap(&source.name, &address.name)
    }

    /// What can be said only of the whole route.
    pub(super) fn check(&self, section: &mut Section<'_, '_, '_>, route: &Route) {
        if self.topics && self.reads(&route.source.address, &Address::topic(Arc::clone(&self.retry_topic))) {
            let key = if route.source.address.kind == AddressKind::Queue { "queue" } else { "topic" };
            let problem =
                format!("reads {}, where the engine keeps copies of what is tried again later", self.retry_topic);
            let fix = "write a pattern without it, or let kafka.retry_topic name another topic";
            refuse(section, key, problem, fix);
        }
        if route.delivery == Delivery::Transactional {
            self.check_transactional(section, route);
        }
    }

    fn check_transactional(&self, section: &mut Section<'_, '_, '_>, route: &Route) {
        let outside = |address: &Address| !self.has(address);
        let source = &route.source.address;
        if outside(source) {
            let problem =
                format!("is transactional, and {source} is not on Kafka: it cannot be settled in a transaction");
            // The rest would say the same again.
            return refuse(section, "delivery", problem, "write at_least_once, or read a topic on Kafka");
        }
        if let Some((why, fix)) = self.no_transactions {
            refuse(section, "delivery", format!("is transactional, and {why}"), fix);
        }
        if let Some(address) = route.terms.destinations.values().find(|address| outside(address)) {
            let problem = format!("is transactional, and {address} in `destinations` is not on Kafka");
            refuse(section, "delivery", problem, "write at_least_once, or publish to topics on Kafka only");
        }
        if outside(&route.dead_letter) {
            let problem =
                format!("is transactional, and dead letters go to {}, which is not on Kafka", route.dead_letter);
            refuse(section, "delivery", problem, "let `dead_letter` name a topic on Kafka");
        }
        if route.terms.may_reply {
            let problem = "is true, and answers go where each message says, which no transaction covers";
            refuse(section, "reply", problem, "set it to false, or write delivery: at_least_once");
        }
    }
}

fn refuse(section: &mut Section<'_, '_, '_>, key: &str, problem: impl Into<String>, fix: &str) {
    let (path, origin) = (section.path_of(key), section.origin_of(key));
    section.reader.refuse(origin, &path, problem, fix);
}

/// A topic, or on Kafka a pattern for several.
pub(super) fn topic(on_kafka: bool) -> Kind<Address> {
    const TAKES: &str = "the name of a topic, or on Kafka a pattern for several";
    let name = kind::address_name(AddressKind::Topic);
    let read = move |text: &str| {
        if !text.contains(['*', '#']) {
            return (name.read)(text);
        }
        let example = "write words between dots, where '*' is one word and '#' any number: \"helixagent.events.*\"";
        if !on_kafka {
            let problem = format!("{} is a pattern, and only Kafka has many topics for one reader", quoted(text));
            return Err(Wrong::new(problem, "write a route for each topic, or add `kafka:` to have topics there"));
        }
        text.parse::<Pattern>().map_err(|error| Wrong::new(error.to_string(), example))?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*' | '#');
        if text.len() > NAME_BYTES_MAX || !text.chars().all(allowed) {
            return Err(Wrong::new(format!("{} is not a pattern for names of topics", quoted(text)), example));
        }
        Ok(Address::topic(text))
    };
    kind::parsed(TAKES, read, |address| address.name.to_string())
}

/// What is shown of a route that does not say where its retries wait.
const WAIT_UNSAID: &str = "local, unless another route of this topic says topic";

/// Where what is tried again later waits.
pub(super) fn wait(section: &mut Section<'_, '_, '_>, on_kafka: bool, order: Order) -> Said<Aside> {
    if !on_kafka {
        let problem = "only what is read from Kafka waits aside; other systems delay by themselves";
        section.forbid("wait", problem, "remove it");
        return None;
    }
    let words = &[("local", Aside::Local), ("topic", Aside::Topic)];
    let kind = kind::choice(words, |aside| {
        match aside {
            Aside::Local => "local",
            Aside::Topic => "topic",
        }
        .to_owned()
    });
    let Some(given) = section.optional("wait", &kind, "local") else {
        let path = section.path_of("wait");
        section.reader.show(&path, WAIT_UNSAID.to_owned(), Origin::Default);
        return None;
    };
    if given.value == Aside::Topic && order != Order::None {
        let problem = "is topic, and this route keeps order: what is tried again holds those behind it, in its lane";
        refuse(section, "wait", problem, "remove it, or write order: none");
    }
    Some((given.value, given.origin))
}

/// What a crash can repeat.
pub(super) fn delivery() -> Kind<Delivery> {
    let words = &[("at_least_once", Delivery::AtLeastOnce), ("transactional", Delivery::Transactional)];
    kind::choice(words, |delivery| {
        match delivery {
            Delivery::AtLeastOnce => "at_least_once",
            Delivery::Transactional => "transactional",
        }
        .to_owned()
    })
}

/// Refuses what two readers of one group would have between them: Kafka gives each partition to one of them, so that each
/// of the two routes would see a part of the messages.
pub(super) fn refuse_shared(reader: &mut Reader<'_>, drafts: &[Draft], kafka: &OnKafka) {
    let on_kafka: Vec<_> = drafts.iter().filter(|draft| kafka.has(&draft.route.source.address)).collect();
    for (place, later) in on_kafka.iter().enumerate() {
        let source = &later.route.source;
        let earlier = on_kafka.iter().take(place).map(|draft| &draft.route).find(|earlier| {
            earlier.source.group == source.group
                && earlier.source.address != source.address
                && overlap(&earlier.source.address.name, &source.address.name)
        });
        if let Some(earlier) = earlier {
            let problem = format!(
                "{} and {} of route {:?} have a topic in common, which group {:?} would share out between them",
                source.address, earlier.source.address, &*earlier.name, &*source.group
            );
            let key = if source.address.kind == AddressKind::Queue { "queue" } else { "topic" };
            let fix = "give one of them another `group`, or read both by one route";
            reader.refuse(later.origin.clone(), &join(&later.path, key), problem, fix);
        }
    }
}

/// Whether a topic may have both as its name, or be named by both.
fn overlap(a: &str, b: &str) -> bool {
    match (a.parse::<Pattern>(), b.parse::<Pattern>()) {
        (Ok(a), Ok(b)) => a.overlaps(&b),
        _ => a == b,
    }
}
