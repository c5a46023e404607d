//! What routes may ask for only where Kafka has what they read: patterns of topics, where retries wait, transactions.

use std::{collections::BTreeMap, sync::Arc};

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
    /// By the names of the systems that are Kafka.
    systems: BTreeMap<Arc<str>, OneKafka>,
    /// Which system has what names none: queues, then topics.
    usual: [Arc<str>; 2],
}

/// One Kafka.
#[derive(Clone, Debug)]
struct OneKafka {
    /// Where copies of what is tried again later wait.
    retry_topic: Arc<str>,
    /// Why nothing can be published in a transaction, and what to do.
    no_transactions: Option<(&'static str, &'static str)>,
}

impl OnKafka {
    /// What is there by a configuration.
    pub(in crate::config) fn of(config: &Config) -> Self {
        #[cfg(not(feature = "kafka"))]
        let systems = BTreeMap::new();
        #[cfg(feature = "kafka")]
        let mut systems = BTreeMap::new();
        #[cfg(feature = "kafka")]
        for (name, connection) in config.connections_in_use() {
            let Some(settings) = connection.as_kafka() else { continue };
            let retry_topic = Arc::clone(&settings.retry_topic);
            let no_transactions = crate::config::kafka::no_transactions(settings);
            systems.insert(name, OneKafka { retry_topic, no_transactions });
        }
        Self { systems, usual: [AddressKind::Queue, AddressKind::Topic].map(|kind| config.system_of(kind).name()) }
    }

    /// The system that has this queue or topic, and what is known of it where it is Kafka.
    fn at(&self, address: &Address) -> Option<(&Arc<str>, &OneKafka)> {
        let [queues, topics] = &self.usual;
        let usual = if address.kind == AddressKind::Queue { queues } else { topics };
        self.systems.get_key_value(address.system.as_ref().unwrap_or(usual))
    }

    /// Whether it has this queue or topic.
    pub(super) fn has(&self, address: &Address) -> bool {
        self.at(address).is_some()
    }

    /// Whether topics that name no system are there, or any other may be.
    pub(super) fn has_topics(&self) -> bool {
        !self.systems.is_empty()
    }

    /// Whether one Kafka has both.
    fn joins(&self, one: &Address, other: &Address) -> bool {
        matches!((self.at(one), self.at(other)), (Some((one, _)), Some((other, _))) if one == other)
    }

    /// Whether a source, whose name may be a pattern, brings what is published to an address.
    pub(super) fn reads(&self, source: &Address, address: &Address) -> bool {
        source == address || self.joins(source, address) && overlap(&source.name, &address.name)
    }

    /// What can be said only of the whole route.
    pub(super) fn check(&self, section: &mut Section<'_, '_, '_>, route: &Route) {
        let source = &route.source.address;
        let kafka = self.at(source).map(|(_, kafka)| kafka);
        if let Some(kafka) = kafka.filter(|kafka| overlap(&source.name, &kafka.retry_topic)) {
            let key = if source.kind == AddressKind::Queue { "queue" } else { "topic" };
            let problem =
                format!("reads {}, where the engine keeps copies of what is tried again later", kafka.retry_topic);
            let fix = "write a pattern without it, or let kafka.retry_topic name another topic";
            refuse(section, key, problem, fix);
        }
        if route.delivery == Delivery::Transactional {
            self.check_transactional(section, route);
        }
    }

    fn check_transactional(&self, section: &mut Section<'_, '_, '_>, route: &Route) {
        let source = &route.source.address;
        let outside = |address: &Address| !self.joins(source, address);
        let Some((_, kafka)) = self.at(source) else {
            let problem =
                format!("is transactional, and {source} is not on Kafka: it cannot be settled in a transaction");
            // The rest would say the same again.
            return refuse(section, "delivery", problem, "write at_least_once, or read a topic on Kafka");
        };
        if let Some((why, fix)) = kafka.no_transactions {
            refuse(section, "delivery", format!("is transactional, and {why}"), fix);
        }
        if let Some(address) = route.terms.destinations.values().find(|address| outside(address)) {
            let problem = format!("is transactional, and {address} in `destinations` is not on the same Kafka");
            refuse(section, "delivery", problem, "write at_least_once, or publish to topics on Kafka only");
        }
        if outside(&route.dead_letter) {
            let problem = format!(
                "is transactional, and dead letters go to {}, which is not on the same Kafka",
                route.dead_letter
            );
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
    const TAKES: &str = "the name of a topic, or SYSTEM:NAME; on Kafka also a pattern for several";
    const EXAMPLE: &str = "topic";
    let name = kind::place_name(AddressKind::Topic);
    let read = move |text: &str| {
        if !text.contains(['*', '#']) {
            return (name.read)(text);
        }
        let example = "write words between dots, where '*' is one word and '#' any number: \"helixagent.events.*\"";
        if !on_kafka {
            let problem = format!("{} is a pattern, and only Kafka has many topics for one reader", quoted(text));
            return Err(Wrong::new(problem, "write a route for each topic, or add `kafka:` to have topics there"));
        }
        let (system, text) = text.split_once(':').map_or((None, text), |(system, text)| (Some(system), text));
        text.parse::<Pattern>().map_err(|error| Wrong::new(error.to_string(), example))?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*' | '#');
        if text.len() > NAME_BYTES_MAX || !text.chars().all(allowed) {
            return Err(Wrong::new(format!("{} is not a pattern for names of topics", quoted(text)), example));
        }
        // What is no pattern has the same system.
        let system = system.map(|system| (name.read)(&format!("{system}:{EXAMPLE}"))).transpose()?;
        Ok(Address { system: system.and_then(|address| address.system), ..Address::topic(text) })
    };
    kind::parsed(TAKES, read, Address::place)
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
                && kafka.joins(&earlier.source.address, &source.address)
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
