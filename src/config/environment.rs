//! What environment variables say. They win over the file.

use super::{Backend, finding::Origin, section::Reader};
use crate::broker::topology;

/// What configures RabbitMQ, and where it stands in the file.
const RABBITMQ: &[(&str, &str)] = &[
    ("RABBITMQ_URL", "rabbitmq.url"),
    ("RABBITMQ_HOST", "rabbitmq.host"),
    ("RABBITMQ_PORT", "rabbitmq.port"),
    ("RABBITMQ_USER", "rabbitmq.username"),
    ("RABBITMQ_PASSWORD", "rabbitmq.password"),
    ("RABBITMQ_VHOST", "rabbitmq.vhost"),
    ("RABBITMQ_EXCHANGE", "rabbitmq.exchange"),
    ("RABBITMQ_PREFETCH_COUNT", "rabbitmq.prefetch_count"),
    ("RABBITMQ_PUBLISHER_CONFIRM", "rabbitmq.publisher_confirm"),
];
/// Those that are enough to use it.
#[cfg(feature = "rabbitmq")]
const RABBITMQ_NAMED_BY: [&str; 2] = ["rabbitmq.url", "rabbitmq.host"];

/// Systems that this build cannot talk to, with the variables that configure them.
const ABSENT: &[(&str, &[&str])] = &[
    (
        "Kafka",
        &[
            "KAFKA_BROKERS",
            "KAFKA_BROKER",
            "KAFKA_CLIENT_ID",
            "KAFKA_TOPIC_PREFIX",
            "KAFKA_SASL_ENABLED",
            "KAFKA_SASL_MECHANISM",
            "KAFKA_SASL_USERNAME",
            "KAFKA_SASL_PASSWORD",
            "KAFKA_SESSION_TIMEOUT_MS",
            "KAFKA_HEARTBEAT_INTERVAL_MS",
        ],
    ),
    ("Redis", &["REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"]),
];

/// Sections of those systems.
#[cfg(feature = "rabbitmq")]
pub(super) const ABSENT_SECTIONS: &[(&str, &str)] = &[("kafka", "Kafka"), ("redis", "Redis")];
/// Sections of those systems.
#[cfg(not(feature = "rabbitmq"))]
pub(super) const ABSENT_SECTIONS: &[(&str, &str)] = &[("rabbitmq", "RabbitMQ"), ("kafka", "Kafka"), ("redis", "Redis")];

/// Why a system's settings are refused.
pub(super) fn absence(system: &str) -> (String, &'static str) {
    if cfg!(feature = "rabbitmq") {
        let problem = format!("this build has no broker for {system}, only the embedded one and RabbitMQ");
        (problem, "remove it, and configure `embedded:` or `rabbitmq:`")
    } else {
        (
            format!("this build has no broker for {system}, only the embedded one"),
            "remove it, and configure `embedded:`",
        )
    }
}

/// What stands in place of values of the file; returns the backend that is named.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<Backend> {
    if cfg!(feature = "rabbitmq") {
        for (variable, path) in RABBITMQ {
            if let Some(text) = reader.variable(variable).filter(|text| !is_kubernetes(text)) {
                reader.overrides.insert(path, (text, variable));
            }
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
    if flag(reader, "MESSAGING_FALLBACK_ENABLED", &["MESSAGING_FALLBACK_INMEMORY"]) == Some(true) {
        reader.refuse(
            Origin::Environment("MESSAGING_FALLBACK_ENABLED"),
            "",
            "the embedded broker runs inside the engine and is never away: there is nothing to fall back from",
            "unset it, or set it to false",
        );
    }
    backend(reader)
}

fn backend(reader: &mut Reader<'_>) -> Option<Backend> {
    const FIX: &str = if cfg!(feature = "rabbitmq") {
        "unset it, or set it to inmemory or rabbitmq"
    } else {
        "unset it, or set it to inmemory"
    };
    let (text, variable) = named(reader, "MESSAGING_BACKEND", &[])?;
    let problem = match text.as_str() {
        "inmemory" => return Some(Backend::Inmemory),
        "rabbitmq" if cfg!(feature = "rabbitmq") => return Some(Backend::Rabbitmq),
        "rabbitmq" => absence("RabbitMQ").0,
        "kafka" => absence("Kafka").0,
        "redis" => absence("Redis").0,
        _ => format!("{} is not a backend", super::words::quoted(&text)),
    };
    reader.refuse(Origin::Environment(variable), "", problem, FIX);
    None
}

/// Whether variables alone say that RabbitMQ is to be used.
#[cfg(feature = "rabbitmq")]
pub(super) fn names_rabbitmq(reader: &Reader<'_>) -> bool {
    RABBITMQ_NAMED_BY.iter().any(|path| reader.overrides.contains_key(path))
}

/// What Kubernetes sets for a service of that name.
fn is_kubernetes(text: &str) -> bool {
    text.starts_with("tcp://")
}

/// The group of routes that name none, and who says so.
pub(super) fn group(reader: &mut Reader<'_>) -> (String, Origin) {
    let Some((text, variable)) = named(reader, "KAFKA_GROUP_ID", &["KAFKA_CONSUMER_GROUP"]) else {
        return (topology::GROUP.to_owned(), Origin::Default);
    };
    if super::kind::is_name(&text) {
        return (text, Origin::Environment(variable));
    }
    let wrong = super::kind::bad_name(&text);
    reader.refuse(Origin::Environment(variable), "", wrong.problem, wrong.fix);
    (topology::GROUP.to_owned(), Origin::Default)
}

/// Refuses what configures systems that are not there, unless a value of a file names it. `rabbitmq`: whether that is
/// configured.
pub(super) fn refuse_absent(reader: &mut Reader<'_>, rabbitmq: bool) {
    for (variable, _) in RABBITMQ {
        if !cfg!(feature = "rabbitmq") {
            refuse_variable(reader, variable, absence("RabbitMQ").0);
            continue;
        }
        let known = kubernetes(reader, variable) || rabbitmq || reader.used.contains(*variable);
        if !known && reader.variable(variable).is_some() {
            // It may be there for another file.
            let fix = "add `rabbitmq:` to the file, or set RABBITMQ_URL or RABBITMQ_HOST, to use RabbitMQ";
            reader.warn(Origin::Environment(variable), "", "has no effect: RabbitMQ is not configured", fix);
        }
    }
    for (system, variables) in ABSENT {
        for variable in *variables {
            refuse_variable(reader, variable, absence(system).0);
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
