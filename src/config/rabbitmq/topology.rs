//! Exchanges, queues and topics: the standard ones, and the operator's over and beside them.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{
        embedded::{KEEP_MS, overflow},
        finding::Origin,
        kind::{self, Kind, Wrong},
        section::Section,
        tree::{Scalar, Value},
        words::{join, quoted},
    },
    reach::short_text,
};
use crate::{
    broker::{
        Declaration, QueueSettings, TopicSettings,
        rabbitmq::{
            Settings,
            topology::{
                Argument, Arguments, Binding, DELIVERIES_MAX, Exchange, QueueKind, TTL_MAX, Topology,
                around_the_standard_queues, astray, queue_of,
            },
        },
        topology,
    },
    message::{Address, Kind as AddressKind, PRIORITY_MAX},
};

/// What is known of a queue beside what all systems have in common.
#[derive(Clone, Default)]
struct Own {
    settings: QueueSettings,
    kind: Option<QueueKind>,
    exclusive: bool,
    single_active_consumer: bool,
    delivery_limit: Option<i64>,
    /// `None`: taken away.
    arguments: BTreeMap<String, Option<Argument>>,
}

/// Reads it into `settings`. `topics`: whether topics are on RabbitMQ too. `dead_letter`: where dead letters go.
pub(super) fn read(
    section: &mut Section<'_, '_, '_>,
    settings: &mut Settings,
    topics: bool,
    standard: bool,
    dead_letter: &Address,
) {
    let standard = section.value("standard_topology", &kind::flag(), standard);
    let base = QueueSettings { priority_max: 0, ..QueueSettings::default() };
    let (defaults, kind) = section.section("queue_defaults", |section| {
        let kind = section.optional("type", &queue_kind(), "- (see the queues)").map(|given| given.value);
        (common(section, &base), kind)
    });
    settings.queue_kind = kind.unwrap_or_default();
    let mut all = if standard { around_the_standard_queues() } else { Topology::default() };
    exchanges(section, &mut all);

    let tables = if standard { topology::declarations(&defaults, &TopicSettings::default()) } else { Vec::new() };
    let mut queues: BTreeMap<Arc<str>, Own> = BTreeMap::new();
    let mut streams: BTreeMap<Arc<str>, TopicSettings> = BTreeMap::new();
    for declaration in tables {
        match declaration {
            Declaration::Queue(name, settings) => {
                let kind = Some(kind.unwrap_or(QueueKind::Classic));
                drop(queues.insert(name, Own { settings, kind, ..Own::default() }));
            }
            Declaration::Topic(name, settings) if topics => drop(streams.insert(name, settings)),
            Declaration::Topic(..) => {}
        }
    }
    let user = Own { settings: defaults, kind, ..Own::default() };
    section.named("queues", |name, origin, section| {
        let own = queue(section, queues.get(name).unwrap_or(&user));
        let Some(name) = checked(section, AddressKind::Queue, name, &origin) else { return };
        bindings(section, &name, &mut all);
        made(section, &name, &own, dead_letter, &mut all);
        queues.remove(&name);
    });
    // What the operator says nothing about.
    for (name, own) in queues {
        made(section, &name, &own, dead_letter, &mut all);
    }
    section.named("topics", |name, origin, section| {
        if !topics {
            let fix =
                "set MESSAGING_BACKEND=rabbitmq to have topics on RabbitMQ, or configure it under embedded.topics";
            section.reader.warn(origin.clone(), &section.path.clone(), "topics are on the embedded broker", fix);
        }
        let read = topic(section, streams.get(name).unwrap_or(&TopicSettings::default()));
        let Some(name) = checked(section, AddressKind::Topic, name, &origin) else { return };
        if all.queues.contains_key(&name) {
            let path = section.path.clone();
            section.reader.refuse(origin, &path, "is a queue as well", "give one of them another name");
        }
        streams.insert(name, read);
    });
    for (name, settings) in &streams {
        all.add_topic(name, settings);
    }
    check(section, &all, settings, standard);
    settings.topology = all;
}

/// What can be said only of the whole.
fn check(section: &mut Section<'_, '_, '_>, all: &Topology, settings: &Settings, standard: bool) {
    let add = format!("add it under {}", section.path_of("exchanges"));
    for binding in &all.bindings {
        if !all.exchanges.contains_key(&binding.exchange) && !binding.exchange.starts_with("amq.") {
            let path = join(&section.path_of("queues"), &binding.queue);
            let problem = format!("is bound to the exchange {:?}, which is not configured", binding.exchange);
            let origin = section.origin_of("queues");
            section.reader.refuse(origin, &path, problem, add.as_str());
        }
    }
    for lost in astray(all) {
        let path = join(&section.path_of("queues"), &lost.queue);
        let (problem, fix) = lost.reason.rsplit_once("; ").unwrap_or((&lost.reason, "bind a queue"));
        let origin = section.origin_of("queues");
        let fix = if standard { fix.to_owned() } else { format!("set standard_topology to true, or {fix}") };
        section.reader.refuse(origin, &path, problem, fix);
    }
    if let Some(exchange) = &settings.exchange
        && !all.exchanges.contains_key(exchange.as_str())
        && !exchange.starts_with("amq.")
    {
        let (path, origin) = (section.path_of("exchange"), section.origin_of("exchange"));
        let problem = format!("{} is not configured", quoted(exchange));
        section.reader.refuse(origin, &path, problem, add);
    }
}

fn checked(section: &mut Section<'_, '_, '_>, kind: AddressKind, name: &str, origin: &Origin) -> Option<Arc<str>> {
    let wrong = match Address::checked(kind, name) {
        Ok(address) if name.starts_with("amq.") => {
            let problem = format!("{} begins with amq., as only the server's own do", quoted(&address.name));
            Wrong::new(problem, "choose another name; what the server has itself may be bound without being configured")
        }
        Ok(address) => return Some(address.name),
        Err(error) => kind::address_wrong(&error),
    };
    let path = section.path.clone();
    section.reader.refuse(origin.clone(), &path, wrong.problem, wrong.fix);
    None
}

fn exchanges(section: &mut Section<'_, '_, '_>, all: &mut Topology) {
    section.named("exchanges", |name, origin, section| {
        let base = all.exchanges.get(name).cloned().unwrap_or_else(|| Exchange::durable("direct"));
        let exchange = Exchange {
            kind: section.value("type", &exchange_kind(), base.kind),
            durable: section.value("durable", &kind::flag(), base.durable),
            auto_delete: section.value("auto_delete", &kind::flag(), base.auto_delete),
            internal: section.value("internal", &kind::flag(), base.internal),
            arguments: arguments(section).into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        };
        // The rules for names are the same.
        if let Some(name) = checked(section, AddressKind::Queue, name, &origin) {
            all.exchanges.insert(name, exchange);
        }
    });
}

fn exchange_kind() -> Kind<String> {
    const TAKES: &str = "direct, topic, fanout, headers, or x-… of a plugin";
    let read = |text: &str| match text {
        "direct" | "topic" | "fanout" | "headers" => Ok(text.to_owned()),
        _ if text.starts_with("x-") => Ok(text.to_owned()),
        _ => Err(Wrong::new(format!("{} is not {TAKES}", quoted(text)), format!("write {TAKES}"))),
    };
    kind::parsed(TAKES, read, Clone::clone)
}

fn queue_kind() -> Kind<QueueKind> {
    kind::choice(&[("classic", QueueKind::Classic), ("quorum", QueueKind::Quorum)], |kind| kind.as_str().to_owned())
}

/// What `queue_defaults` and each queue have.
fn common(section: &mut Section<'_, '_, '_>, base: &QueueSettings) -> QueueSettings {
    let ttl_ms = *KEEP_MS.start()..=u64::try_from(TTL_MAX.as_millis()).unwrap_or(u64::MAX);
    QueueSettings {
        priority_max: section.value("priority_max", &kind::integer(0..=PRIORITY_MAX), base.priority_max),
        ttl: section.bound("ttl_ms", &kind::millis(ttl_ms), base.ttl),
        length_max: section.bound("length_max", &kind::integer(1..=u64::MAX), base.length_max),
        bytes_max: section.bound("bytes_max", &kind::bytes(1..=u64::MAX), base.bytes_max),
        overflow: section.value("overflow", &overflow(), base.overflow),
        ..base.clone()
    }
}

fn queue(section: &mut Section<'_, '_, '_>, base: &Own) -> Own {
    const DOCUMENTED: &str = "quorum, with priority_max classic";
    let given = section.optional("type", &queue_kind(), DOCUMENTED);
    let settings = common(section, &base.settings);
    let exclusive = section.value("exclusive", &kind::flag(), base.exclusive);
    let single_active_consumer = section.value("single_active_consumer", &kind::flag(), base.single_active_consumer);
    let delivery_limit =
        section.optional("delivery_limit", &kind::integer(1..=DELIVERIES_MAX.unsigned_abs()), "- (none)");
    let classic = exclusive || section.has("priority_max") && settings.priority_max > 0;
    if let Some(given) = given.as_ref().filter(|given| given.value == QueueKind::Quorum && classic) {
        let key = if exclusive { "exclusive" } else { "priority_max" };
        let problem = format!("is quorum, and quorum queues have no {key}");
        let path = section.path_of("type");
        section.reader.refuse(given.origin.clone(), &path, problem, format!("write type: classic, or remove {key}"));
    }
    let kind = match given {
        Some(given) => given.value,
        None if classic => QueueKind::Classic,
        None => base.kind.unwrap_or_default(),
    };
    if section.has("overflow") && settings.length_max.is_none() && settings.bytes_max.is_none() {
        let (path, origin) = (section.path_of("overflow"), section.origin_of("overflow"));
        section.reader.warn(origin, &path, "has no effect on a queue without limits", "add length_max or bytes_max");
    }
    if let Some(limit) = delivery_limit.as_ref().filter(|_| kind == QueueKind::Classic) {
        let path = section.path_of("delivery_limit");
        section.reader.refuse(limit.origin.clone(), &path, "only quorum queues count deliveries", "write type: quorum");
    }
    Own {
        settings,
        kind: Some(kind),
        exclusive,
        single_active_consumer,
        delivery_limit: delivery_limit.and_then(|limit| i64::try_from(limit.value).ok()),
        arguments: arguments(section),
    }
}

fn made(section: &mut Section<'_, '_, '_>, name: &Arc<str>, own: &Own, dead_letter: &Address, all: &mut Topology) {
    let is_dead_letter = dead_letter.kind == AddressKind::Queue && dead_letter.name == *name;
    let kind = own.kind.unwrap_or_default();
    let mut queue = match queue_of(&own.settings, kind, is_dead_letter) {
        Ok(made) => made.queue,
        Err(problem) => {
            let (path, origin) = (section.path.clone(), section.origin());
            let (problem, fix) = problem.rsplit_once("; ").unwrap_or((&problem, "correct it"));
            section.reader.refuse(origin, &path, problem, fix);
            return;
        }
    };
    queue.exclusive = own.exclusive;
    if own.single_active_consumer {
        queue.arguments.insert("x-single-active-consumer".to_owned(), Argument::Flag(true));
    }
    if let Some(limit) = own.delivery_limit {
        queue.arguments.insert("x-delivery-limit".to_owned(), limit.into());
    }
    for (argument, value) in &own.arguments {
        match value {
            Some(value) => drop(queue.arguments.insert(argument.clone(), value.clone())),
            None => drop(queue.arguments.remove(argument)),
        }
    }
    // They mean nothing alone, and servers refuse them.
    if !queue.arguments.contains_key("x-dead-letter-exchange") {
        queue.arguments.remove("x-dead-letter-routing-key");
        queue.arguments.remove("x-dead-letter-strategy");
    }
    all.queues.insert(Arc::clone(name), queue);
}

/// Keys of a queue that are arguments, which are not written twice.
const KEYS: &[(&str, &str)] = &[
    ("x-queue-type", "type"),
    ("x-max-priority", "priority_max"),
    ("x-message-ttl", "ttl_ms"),
    ("x-max-length", "length_max"),
    ("x-max-length-bytes", "bytes_max"),
    ("x-overflow", "overflow"),
    ("x-single-active-consumer", "single_active_consumer"),
    ("x-delivery-limit", "delivery_limit"),
];

fn arguments(section: &mut Section<'_, '_, '_>) -> BTreeMap<String, Option<Argument>> {
    section.ask("arguments", "a number, true, false or text for each name; null: without it", "- (none)");
    let (path, mut all) = (section.path_of("arguments"), BTreeMap::new());
    for entry in section.map("arguments") {
        let (path, origin) = (join(&path, &entry.key), section.reader.origin(entry.place));
        if let Some((_, key)) = KEYS.iter().find(|(argument, _)| *argument == entry.key) {
            section.reader.refuse(origin, &path, "has a key of its own", format!("write {key}: beside arguments"));
            continue;
        }
        if entry.node.is_null() {
            section.reader.show(&path, "null".to_owned(), origin);
            all.insert(entry.key.clone(), None);
            continue;
        }
        let quoted = matches!(&entry.node.value, Value::Scalar(Scalar { quoted: true, .. }));
        if let Some(given) = section.reader.one(&path, &entry.node, &argument(quoted)) {
            section.reader.show(&path, given.value.to_string(), given.origin);
            all.insert(entry.key.clone(), Some(given.value));
        }
    }
    all
}

fn argument(quoted: bool) -> Kind<Argument> {
    let read = move |text: &str| {
        Ok(match (text, text.parse()) {
            (_, Ok(number)) if !quoted => Argument::Integer(number),
            ("true" | "false", _) if !quoted => Argument::Flag(text == "true"),
            _ => Argument::Text(text.to_owned()),
        })
    };
    kind::parsed("a number, true, false or text", read, ToString::to_string)
}

fn bindings(section: &mut Section<'_, '_, '_>, queue: &Arc<str>, all: &mut Topology) {
    section.list("bindings", |section| {
        let exchange = section.required("exchange", &short_text("the name of an exchange"));
        let key = section.value_or("routing_key", &routing_key(), String::new(), Origin::Default, "- (empty)");
        let Some(exchange) = exchange else { return };
        let arguments: Arguments =
            arguments(section).into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let (exchange, queue) = (exchange.value.into(), Arc::clone(queue));
        let binding = Binding { exchange, queue, routing_key: key, arguments };
        if !all.bindings.contains(&binding) {
            all.bindings.push(binding);
        }
    });
}

fn routing_key() -> Kind<String> {
    let read = |text: &str| match text {
        "" => Ok(String::new()),
        _ => (short_text("a routing key").read)(text),
    };
    kind::parsed("a routing key or pattern", read, Clone::clone)
}

fn topic(section: &mut Section<'_, '_, '_>, base: &TopicSettings) -> TopicSettings {
    // Servers know no shorter time.
    let retention_ms = 1000..=*KEEP_MS.end();
    TopicSettings {
        retention: section.bound("retention_ms", &kind::millis(retention_ms), base.retention),
        retention_bytes: section.bound("retention_bytes_max", &kind::bytes(1..=u64::MAX), base.retention_bytes),
        ..base.clone()
    }
}
