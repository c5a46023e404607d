//! What environment variables say. They win over the file.

use super::{
    Backend, Config,
    finding::Origin,
    section::{Reader, Section},
};

/// A system outside of the engine, and what of the environment configures it.
struct System {
    name: &'static str,
    /// Its section.
    section: &'static str,
    /// Whether this build can talk to it.
    present: bool,
    /// Variables, where each stands in the file, and older names for it.
    variables: &'static [(&'static str, &'static str, &'static [&'static str])],
    /// Those that are enough to use it, for people.
    named_by: &'static str,
}

const RABBITMQ: System = System {
    name: "RabbitMQ",
    section: "rabbitmq",
    present: cfg!(feature = "rabbitmq"),
    variables: &[
        ("RABBITMQ_URL", "rabbitmq.url", &[]),
        ("RABBITMQ_HOST", "rabbitmq.host", &[]),
        ("RABBITMQ_PORT", "rabbitmq.port", &[]),
        ("RABBITMQ_USER", "rabbitmq.username", &[]),
        ("RABBITMQ_PASSWORD", "rabbitmq.password", &[]),
        ("RABBITMQ_VHOST", "rabbitmq.vhost", &[]),
        ("RABBITMQ_EXCHANGE", "rabbitmq.exchange", &[]),
        ("RABBITMQ_PREFETCH_COUNT", "rabbitmq.prefetch_count", &[]),
        ("RABBITMQ_PUBLISHER_CONFIRM", "rabbitmq.publisher_confirm", &[]),
    ],
    named_by: "RABBITMQ_URL or RABBITMQ_HOST",
};
const KAFKA: System = System {
    name: "Kafka",
    section: "kafka",
    present: cfg!(feature = "kafka"),
    variables: &[
        ("KAFKA_BROKERS", "kafka.brokers", &["KAFKA_BROKER"]),
        ("KAFKA_CLIENT_ID", "kafka.client_id", &[]),
        ("KAFKA_TOPIC_PREFIX", "kafka.topic_prefix", &[]),
        ("KAFKA_SASL_ENABLED", "kafka.sasl.enabled", &[]),
        ("KAFKA_SASL_MECHANISM", "kafka.sasl.mechanism", &[]),
        ("KAFKA_SASL_USERNAME", "kafka.sasl.username", &[]),
        ("KAFKA_SASL_PASSWORD", "kafka.sasl.password", &[]),
        ("KAFKA_SESSION_TIMEOUT_MS", "kafka.session_timeout", &[]),
        ("KAFKA_HEARTBEAT_INTERVAL_MS", "kafka.heartbeat_interval", &[]),
        ("KAFKA_REPLICATION_FACTOR", "kafka.replication_factor", &[]),
        ("KAFKA_MIN_INSYNC_REPLICAS", "kafka.min_insync_replicas", &[]),
    ],
    named_by: "KAFKA_BROKERS",
};
const REDIS: System = System {
    name: "Redis",
    section: "redis",
    present: cfg!(feature = "redis"),
    variables: &[
        ("REDIS_URL", "redis.url", &[]),
        ("REDIS_HOST", "redis.host", &[]),
        ("REDIS_PORT", "redis.port", &[]),
        ("REDIS_USERNAME", "redis.username", &[]),
        ("REDIS_PASSWORD", "redis.password", &[]),
        ("REDIS_DB", "redis.database", &[]),
    ],
    named_by: "REDIS_URL or REDIS_HOST",
};
const SYSTEMS: [System; 3] = [RABBITMQ, KAFKA, REDIS];

/// Refuses the sections of systems that this build cannot talk to.
pub(super) fn forbid_absent(section: &mut Section<'_, '_, '_>) {
    for system in SYSTEMS.iter().filter(|system| !system.present) {
        let (problem, fix) = absence(system);
        section.forbid(system.section, problem, fix);
    }
}

/// Why a system's settings are refused.
fn absence(system: &System) -> (String, String) {
    let (mut brokers, mut sections) = (vec!["the embedded one"], vec!["`embedded:`".to_owned()]);
    for present in SYSTEMS.iter().filter(|system| system.present) {
        brokers.push(present.name);
        sections.push(format!("`{}:`", present.section));
    }
    let only = super::words::listed(&brokers, "and");
    let problem = format!("this build has no broker for {}, only {only}", system.name);
    (problem, format!("remove it, and configure {}", super::words::listed(&sections, "or")))
}

/// What stands in place of values of the file; returns the backend that is named.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<Backend> {
    for (variable, path, others) in SYSTEMS.iter().filter(|system| system.present).flat_map(|system| system.variables) {
        if let Some((text, variable)) = named(reader, variable, others).filter(|(text, _)| !is_kubernetes(text)) {
            reader.overrides.insert(path, (text, variable));
        }
    }
    if let Some((text, variable)) = named(reader, "MESSAGING_ENABLED", &[]) {
        reader.overrides.insert("messaging.enabled", (text, variable));
    }
    if let Some((text, variable)) = named(reader, "LOG_LEVEL", &[]) {
        reader.overrides.insert("telemetry.filter", (text, variable));
    }
    if flag(reader, "MESSAGING_DEBUG", &[]) == Some(true) {
        reader.overrides.insert("telemetry.filter", ("debug".to_owned(), "MESSAGING_DEBUG"));
    }
    backend(reader)
}

/// Whether messages for a system that is away are to be kept, and which variable says so.
pub(super) fn fallback(reader: &mut Reader<'_>) -> Option<(bool, &'static str)> {
    const NAME: &str = "MESSAGING_FALLBACK_ENABLED";
    flag(reader, NAME, &["MESSAGING_FALLBACK_INMEMORY"]).map(|is_wanted| (is_wanted, NAME))
}

fn backend(reader: &mut Reader<'_>) -> Option<Backend> {
    let (text, variable) = named(reader, "MESSAGING_BACKEND", &[])?;
    let known = [(RABBITMQ, Some(Backend::Rabbitmq)), (KAFKA, Some(Backend::Kafka)), (REDIS, Some(Backend::Redis))];
    let system = known.iter().find(|(system, _)| system.section == text);
    let problem = match system {
        None if text == "inmemory" => {
            reader.overrides.insert("messaging.backend", (text, variable));
            return Some(Backend::Inmemory);
        }
        Some((system, backend)) if system.present => {
            reader.overrides.insert("messaging.backend", (text, variable));
            return *backend;
        }
        Some((system, _)) => absence(system).0,
        None => format!("{} is not a backend", super::words::quoted(&text)),
    };
    let present = known.iter().filter(|(system, _)| system.present).map(|(system, _)| system.section);
    let words: Vec<_> = std::iter::once("inmemory").chain(present).collect();
    let fix = format!("unset it, or set it to {}", super::words::listed(&words, "or"));
    reader.refuse(Origin::Environment(variable), "", problem, fix);
    None
}

/// Whether variables alone say that RabbitMQ is to be used.
#[cfg(feature = "rabbitmq")]
pub(super) fn names_rabbitmq(reader: &Reader<'_>) -> bool {
    ["rabbitmq.url", "rabbitmq.host"].iter().any(|path| reader.overrides.contains_key(path))
}

/// Whether variables alone say that Kafka is to be used.
#[cfg(feature = "kafka")]
pub(super) fn names_kafka(reader: &Reader<'_>) -> bool {
    reader.overrides.contains_key("kafka.brokers")
}

/// Whether variables alone say that Redis is to be used.
#[cfg(feature = "redis")]
pub(super) fn names_redis(reader: &Reader<'_>) -> bool {
    ["redis.url", "redis.host"].iter().any(|path| reader.overrides.contains_key(path))
}

/// What Kubernetes sets for a service of that name.
fn is_kubernetes(text: &str) -> bool {
    text.starts_with("tcp://")
}

/// The group of routes that name none, and who says so.
pub(super) fn group(reader: &mut Reader<'_>, otherwise: &str) -> (String, Origin) {
    let Some((text, variable)) = named(reader, "KAFKA_GROUP_ID", &["KAFKA_CONSUMER_GROUP"]) else {
        return (otherwise.to_owned(), Origin::Default);
    };
    if super::kind::is_name(&text) {
        return (text, Origin::Environment(variable));
    }
    let wrong = super::kind::bad_name(&text);
    reader.refuse(Origin::Environment(variable), "", wrong.problem, wrong.fix);
    (otherwise.to_owned(), Origin::Default)
}

/// Refuses what configures systems that are not there, unless a value of a file names it.
pub(super) fn refuse_absent(reader: &mut Reader<'_>, config: &Config) {
    let configured = |system: &System| match system.section {
        #[cfg(feature = "rabbitmq")]
        "rabbitmq" => config.rabbitmq.is_some(),
        #[cfg(feature = "kafka")]
        "kafka" => config.kafka.is_some(),
        #[cfg(feature = "redis")]
        "redis" => config.redis.is_some(),
        _ => {
            let _ = config;
            false
        }
    };
    for system in &SYSTEMS {
        let names = system.variables.iter().flat_map(|(variable, _, others)| std::iter::once(variable).chain(*others));
        for variable in names {
            if !system.present {
                refuse_variable(reader, variable, absence(system).0);
                continue;
            }
            let known = kubernetes(reader, variable) || configured(system) || reader.used.contains(*variable);
            if !known && reader.variable(variable).is_some() {
                // It may be there for another file.
                let System { name, section, named_by, .. } = system;
                let fix = format!("add `{section}:` to the file, or set {named_by}, to use {name}");
                let problem = format!("has no effect: {name} is not configured");
                reader.warn(Origin::Environment(variable), "", problem, fix);
            }
        }
    }
}

fn refuse_variable(reader: &mut Reader<'_>, variable: &'static str, problem: String) {
    let known = reader.used.contains(variable) || kubernetes(reader, variable);
    if !known && reader.variable(variable).is_some() {
        reader.refuse(Origin::Environment(variable), "", problem, "unset it");
    }
}

/// Whether it is what Kubernetes sets for a service of that name, which is said.
fn kubernetes(reader: &mut Reader<'_>, variable: &'static str) -> bool {
    let is_it = reader.variable(variable).is_some_and(|text| is_kubernetes(&text));
    if is_it {
        let problem = "looks like what Kubernetes sets for a service of that name; it is not read";
        let fix = "set enableServiceLinks: false to be rid of it";
        reader.warn(Origin::Environment(variable), "", problem, fix);
    }
    is_it
}

/// The value of a variable, or of another name for it, and which one it was.
fn named(reader: &mut Reader<'_>, name: &'static str, others: &[&'static str]) -> Option<(String, &'static str)> {
    let mut found = reader.variable(name).map(|text| (text, name));
    for other in others {
        let Some(text) = reader.variable(other) else { continue };
        reader.warn(
            Origin::Environment(other),
            "",
            format!("is an old name for {name}"),
            format!("set {name} instead"),
        );
        match &found {
            None => found = Some((text, other)),
            Some((earlier, variable)) if *earlier != text => {
                let problem = format!("differs from {variable}, which means the same");
                reader.refuse(Origin::Environment(other), "", problem, format!("unset {other}"));
            }
            Some(_) => {}
        }
    }
    found
}

fn flag(reader: &mut Reader<'_>, name: &'static str, others: &[&'static str]) -> Option<bool> {
    let (text, variable) = named(reader, name, others)?;
    match (super::kind::flag().read)(&text) {
        Ok(flag) => Some(flag),
        Err(wrong) => {
            reader.refuse(Origin::Environment(variable), "", wrong.problem, wrong.fix);
            None
        }
    }
}
