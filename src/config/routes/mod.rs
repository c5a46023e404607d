//! Routes: one section each, then what they must agree on with each other and with the rest (`join`), and what they may ask
//! of Kafka (`on_kafka`).

mod join;
mod on_kafka;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
    time::Duration,
};

use super::{
    DeadLetters, brakes,
    finding::Origin,
    kind::{self, Kind, Wrong},
    limits::Base,
    section::Section,
    tree::{Node, Value},
    words::join,
};
use crate::{
    broker::{Aside, Start, topology},
    handler::{Isolation, Terms},
    message::{Address, Kind as AddressKind, Text, UnixMs},
    route::{Delivery, Match, Order, Pattern, Route, Source},
    settle::{ATTEMPTS_MAX, DELAY_MAX, DELAY_MIN, FACTOR_MAX, RetryPolicy},
};

pub(super) use join::{join_all, look_for_handlers, require_declared, require_systems};
pub(super) use on_kafka::OnKafka;

/// Most lanes of one route: each is a thread.
pub(super) const CONCURRENCY_MAX: usize = 256;
/// How the documentation says where dead letters go.
const DEAD_LETTER_DOCUMENTED: &str = "embedded.dead_letter; on Kafka kafka.dead_letter_events or _tasks";
/// Most routes: each is compared with those before it.
const ROUTES_MAX: usize = 1000;

/// What routes take from elsewhere.
pub(super) struct Surroundings {
    /// The group of routes that name none, and who says so.
    pub(super) group: (String, Origin),
    /// Where dead letters go that no route sends elsewhere, and who says so.
    pub(super) dead_letters: DeadLetters<(Address, Origin)>,
    /// What is on Kafka.
    pub(super) kafka: OnKafka,
    /// The outage brake of routes that do not say.
    pub(super) outage: brakes::Outage,
    /// Limits by plugin.
    pub(super) plugins: BTreeMap<String, Base>,
}

/// What a key says, and where, if it is there.
type Said<T> = Option<(T, Origin)>;

/// A route that was read.
pub(super) struct Draft {
    route: Route,
    path: String,
    origin: Origin,
    /// Where the topic is begun, where this route says so.
    start: Said<Start>,
    /// Where its retries wait, where it says so.
    wait: Said<Aside>,
    /// Whether what it matches could be read; if not, conflicts with others are not known.
    sound: bool,
}

impl Draft {
    /// The route, not yet joined with others.
    pub(super) fn into_route(self) -> Route {
        self.route
    }

    /// Every queue and topic that it names.
    fn addresses(&self) -> BTreeSet<&Address> {
        let ends = [&self.route.source.address, &self.route.dead_letter];
        ends.into_iter().chain(self.route.terms.destinations.values()).collect()
    }

    /// Names every queue and topic in one way.
    pub(super) fn name_alike(&mut self, plain: impl Fn(&Address) -> Address) {
        let route = &mut self.route;
        for address in [&mut route.source.address, &mut route.dead_letter] {
            *address = plain(address);
        }
        let terms = Arc::make_mut(&mut route.terms);
        terms.destinations.values_mut().for_each(|address| *address = plain(address));
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(CONCURRENCY_MAX)
}

/// Reads one route; `plugin`: from that plugin's own file, which implies the handler. `None` where it has no name,
/// source or handler, which has been said.
pub(super) fn read(section: &mut Section<'_, '_, '_>, around: &Surroundings, plugin: Option<&str>) -> Option<Draft> {
    let mistakes = section.reader.findings.len();
    let name = match plugin {
        // The one route of a plugin's own file needs no other name.
        Some(plugin) => Some(section.value("name", &kind::name(), plugin.to_owned())),
        None => section.required("name", &kind::name()).map(|given| given.value),
    };
    let address = source(section, &around.kafka);
    let on_queue = address.as_ref().map(|address| address.kind == AddressKind::Queue);
    let on_kafka = address.as_ref().is_some_and(|address| around.kafka.has(address));
    let (group, start) = progress(section, around, on_queue);
    let sound_until = section.reader.findings.len();
    let matches = section.section("match", conditions);
    let sound = section.reader.findings.len() == sound_until;
    let handler = match plugin {
        Some(plugin) => {
            section.forbid("handler", "the handler is the plugin that this file stands beside", "remove it");
            Some(plugin.to_owned())
        }
        None => section.required("handler", &kind::name()).map(|given| given.value),
    };
    let order = section.value("order", &order(), Order::default());
    let concurrency = concurrency(section, order, on_queue);
    let isolation = section.value("isolation", &isolation(), Isolation::default());
    let base = handler.as_ref().and_then(|handler| around.plugins.get(handler)).cloned().unwrap_or_default();
    let limits = base.read_timeout(section);
    let limits = section.section("limits", |section| limits.read(section, false)).limits;
    let (retry, wait) = section.section("retry", |section| (retry(section), on_kafka::wait(section, on_kafka, order)));
    let kind = address.as_ref().map_or(AddressKind::Queue, |address| address.kind);
    let (dead_letter, said_by) = around.dead_letters.of(kind);
    let dead_letter = section.value_or(
        "dead_letter",
        &kind::dead_letter(),
        dead_letter.clone(),
        said_by.clone(),
        DEAD_LETTER_DOCUMENTED,
    );
    let destinations = destinations(section);
    let may_reply = section.value("reply", &kind::flag(), false);
    let crash_budget = section.section("crash_budget", brakes::crash_budget);
    let outage = section.section("outage", |section| around.outage.read(section));
    let delivery = section.value("delivery", &on_kafka::delivery(), Delivery::default());

    if address.as_ref().is_some_and(|address| around.kafka.reads(address, &dead_letter)) {
        let (path, origin) = (section.path_of("dead_letter"), section.origin_of("dead_letter"));
        section.reader.refuse(
            origin,
            &path,
            format!("the route reads {dead_letter} and sends its dead letters back there: they would never rest"),
            "let `dead_letter` name another queue",
        );
    }
    let (Some(name), Some(address), Some(handler)) = (name, address, handler) else {
        debug_assert!(
            section.reader.findings.len() + section.reader.more > mistakes,
            "a route is dropped only with a reason"
        );
        return None;
    };
    let name: Arc<str> = name.into();
    let terms = Terms { route: Arc::clone(&name), isolation, limits, destinations, may_reply };
    let source = Source {
        address,
        group: group.into(),
        start: start.as_ref().map_or_else(Start::default, |(start, _)| *start),
        aside: Aside::default(),
    };
    let route = Route {
        name,
        source,
        matches,
        handler: handler.into(),
        order,
        delivery,
        concurrency,
        terms: Arc::new(terms),
        retry,
        dead_letter,
        crash_budget,
        outage,
    };
    around.kafka.check(section, &route);
    Some(Draft { route, path: section.path.clone(), origin: section.origin(), start, wait, sound })
}

fn source(section: &mut Section<'_, '_, '_>, kafka: &OnKafka) -> Option<Address> {
    let (has_queue, has_topic) = (section.has("queue"), section.has("topic"));
    let queue = section.optional("queue", &kind::place_name(AddressKind::Queue), "-");
    let topic = section.optional("topic", &on_kafka::topic(kafka.has_topics()), "-");
    match (has_queue, has_topic) {
        (true, true) => {
            let (path, origin) = (section.path_of("topic"), section.origin_of("topic"));
            section.reader.refuse(
                origin,
                &path,
                "a route reads one source, and this one names a queue too",
                "keep `queue` or `topic`; write another route for the other",
            );
            None
        }
        (false, false) => {
            let (path, origin) = (section.path.clone(), section.origin());
            section.reader.refuse(
                origin,
                &path,
                "does not say where its messages are read",
                "add `queue: NAME` or `topic: NAME`",
            );
            None
        }
        _ => queue.or(topic).map(|given| given.value),
    }
}

/// Group and start, which only topics have.
fn progress(section: &mut Section<'_, '_, '_>, around: &Surroundings, on_queue: Option<bool>) -> (String, Said<Start>) {
    let (group, said_by) = around.group.clone();
    if on_queue == Some(true) {
        section.forbid(
            "group",
            "queues have no groups: their messages are shared by all who read",
            "remove it, or read a topic",
        );
        section.forbid("start", "a queue is always read from its oldest message", "remove it, or read a topic");
        return (group, None);
    }
    let group = section.value_or("group", &kind::name(), group, said_by, topology::GROUP);
    let start = section.optional("start", &start(), "earliest").map(|given| (given.value, given.origin));
    (group, start)
}

fn start() -> Kind<Start> {
    const TAKES: &str = "earliest, latest, a time such as 2026-01-31T12:00:00Z, or offset:N";
    let read = |text: &str| match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        text => {
            let wrong = || Wrong::new(format!("{} is not {TAKES}", super::words::quoted(text)), "write one of these");
            if let Some(offset) = text.strip_prefix("offset:") {
                return offset.parse().map(Start::Offset).map_err(|_| wrong());
            }
            let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
            UnixMs::try_from(time.as_millisecond()).map(Start::Time).map_err(|_| wrong())
        }
    };
    kind::parsed(TAKES, read, |start| match start {
        Start::Earliest => "earliest".to_owned(),
        Start::Latest => "latest".to_owned(),
        Start::Offset(offset) => format!("offset:{offset}"),
        Start::Time(ms) => i64::try_from(*ms)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            .map_or_else(|| ms.to_string(), |time| time.to_string()),
    })
}

fn pattern() -> Kind<Pattern> {
    let read = |text: &str| {
        text.parse::<Pattern>().map_err(|error| {
            Wrong::new(
                error.to_string(),
                "write words between dots, where '*' is one word and '#' any number: order.*.created",
            )
        })
    };
    kind::parsed("a pattern", read, ToString::to_string)
}

fn conditions(section: &mut Section<'_, '_, '_>) -> Match {
    let mut matches = Match::default();
    let kind = pattern();
    if let Some(node) = section.ask("type", "a pattern, or a list of them", "- (any)") {
        let path = section.path_of("type");
        for (path, node) in one_or_many(&path, node) {
            matches.types.extend(section.reader.one(&path, node, &kind).map(|given| given.value));
        }
        let shown: Vec<_> = matches.types.iter().map(ToString::to_string).collect();
        let origin = section.origin_of("type");
        section.reader.show(&path, shown.join(", "), origin);
        if matches.types.is_empty() && matches!(&node.value, Value::List(items) if items.is_empty()) {
            let origin = section.origin_of("type");
            section.reader.refuse(
                origin,
                &path,
                "an empty list would match nothing",
                "name a pattern, or remove the key to match any type",
            );
        }
    }
    section.ask("headers", "a pattern for each header's name", "- (any)");
    let headers = section.path_of("headers");
    for entry in section.map("headers") {
        let path = join(&headers, &entry.key);
        if let Some(given) = section.reader.one(&path, &entry.node, &kind) {
            section.reader.show(&path, given.value.to_string(), given.origin);
            matches.headers.insert(entry.key.clone(), given.value);
        }
    }
    matches
}

/// The items of a list, or the one value in place of a list.
fn one_or_many<'n>(path: &str, node: &'n Node) -> Vec<(String, &'n Node)> {
    match &node.value {
        Value::List(items) => {
            items.iter().enumerate().map(|(place, item)| (format!("{path}[{place}]"), item)).collect()
        }
        _ => vec![(path.to_owned(), node)],
    }
}

pub(super) fn order() -> Kind<Order> {
    kind::choice(&[("none", Order::None), ("key", Order::Key), ("partition", Order::Partition)], |order| {
        match order {
            Order::None => "none",
            Order::Key => "key",
            Order::Partition => "partition",
        }
        .to_owned()
    })
}

fn isolation() -> Kind<Isolation> {
    let words = &[("message", Isolation::Message), ("batch", Isolation::Batch), ("instance", Isolation::Instance)];
    kind::choice(words, |isolation| {
        match isolation {
            Isolation::Message => "message",
            Isolation::Batch => "batch",
            Isolation::Instance => "instance",
        }
        .to_owned()
    })
}

fn concurrency(section: &mut Section<'_, '_, '_>, order: Order, on_queue: Option<bool>) -> usize {
    let alone = order == Order::Partition && on_queue == Some(true);
    let default = if alone { 1 } else { cores() };
    let asked =
        section.value_or("concurrency", &kind::integer(1..=CONCURRENCY_MAX), default, Origin::Default, "one a core");
    if alone && asked > 1 {
        let (path, origin) = (section.path_of("concurrency"), section.origin_of("concurrency"));
        section.reader.warn(
            origin,
            &path,
            format!("{asked} is asked for and 1 is used: a whole queue is kept in order only by one call at a time"),
            "write 1, or use `order: key`",
        );
        return 1;
    }
    asked
}

fn retry(section: &mut Section<'_, '_, '_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let delays = || kind::millis(ms(DELAY_MIN)..=ms(DELAY_MAX));
    let policy = RetryPolicy {
        attempts_max: section.value("attempts_max", &kind::integer(1..=ATTEMPTS_MAX), default.attempts_max),
        delay: section.value("delay_ms", &delays(), default.delay),
        factor: section.value("factor", &kind::number(1.0..=FACTOR_MAX), default.factor),
        delay_max: section.value("delay_max_ms", &delays(), default.delay_max),
        jitter: section.value("jitter", &kind::number(0.0..=1.0), default.jitter),
    };
    match policy.checked() {
        Ok(policy) => policy,
        // All else was checked key by key.
        Err(error) => {
            let (path, origin) = (section.path_of("delay_ms"), section.origin_of("delay_ms"));
            section.reader.refuse(origin, &path, error.to_string(), "exchange them, or raise delay_max_ms");
            default
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A list grants each under its bare name; names with an address under each grant it under that name.
fn destinations(section: &mut Section<'_, '_, '_>) -> BTreeMap<Text, Address> {
    const TAKES: &str = "a list of addresses, or an address for each name that the handler uses";
    let mut granted = BTreeMap::new();
    let kind = kind::address();
    let Some(node) = section.ask("destinations", TAKES, "- (none)") else { return granted };
    let path = section.path_of("destinations");
    let named: Vec<_> = match &node.value {
        Value::List(items) => {
            items.iter().enumerate().map(|(place, item)| (format!("{path}[{place}]"), item, None)).collect()
        }
        Value::Map(_) => {
            let entries = section.map("destinations");
            entries.iter().map(|entry| (join(&path, &entry.key), &entry.node, Some(entry.key.as_str()))).collect()
        }
        Value::Scalar(_) if node.is_null() => Vec::new(),
        Value::Scalar(_) => vec![(path.clone(), node, None)],
    };
    for (path, node, name) in named {
        let Some(given) = section.reader.one(&path, node, &kind) else { continue };
        section.reader.show(&path, given.value.to_string(), given.origin.clone());
        let name = name.unwrap_or(&given.value.name);
        match granted.entry(Text::from(name)) {
            btree_map::Entry::Vacant(vacant) => drop(vacant.insert(given.value)),
            btree_map::Entry::Occupied(other) => {
                let problem = format!("{} and {} would both be called {name:?}", other.get(), given.value);
                section.reader.refuse(given.origin, &path, problem, "give each a name of its own: `name: address`");
            }
        }
    }
    granted
}
