//! What environment variables say. They win over the file.

use super::{finding::Origin, section::Reader};
use crate::broker::topology;

/// Systems that this build cannot talk to, with the variables that configure them.
const ABSENT: &[(&str, &[&str])] = &[
    (
        "RabbitMQ",
        &[
            "RABBITMQ_URL",
            "RABBITMQ_HOST",
            "RABBITMQ_PORT",
            "RABBITMQ_USER",
            "RABBITMQ_PASSWORD",
            "RABBITMQ_VHOST",
            "RABBITMQ_EXCHANGE",
            "RABBITMQ_PREFETCH_COUNT",
            "RABBITMQ_PUBLISHER_CONFIRM",
        ],
    ),
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
pub(super) const ABSENT_SECTIONS: &[(&str, &str)] = &[("rabbitmq", "RabbitMQ"), ("kafka", "Kafka"), ("redis", "Redis")];

/// Why a system's settings are refused.
pub(super) fn absence(system: &str) -> (String, &'static str) {
    (format!("this build has no broker for {system}, only the embedded one"), "remove it, and configure `embedded:`")
}

/// What stands in place of values of the file.
pub(super) fn read(reader: &mut Reader<'_>) {
    if let Some((text, variable)) = named(reader, "MESSAGING_ENABLED", &[]) {
        reader.overrides.insert("messaging.enabled", (text, variable));
    }
    if let Some((text, variable)) = named(reader, "LOG_LEVEL", &[]) {
        reader.overrides.insert("telemetry.filter", (text, variable));
    }
    if flag(reader, "MESSAGING_DEBUG", &[]) == Some(true) {
        reader.overrides.insert("telemetry.filter", ("debug".to_owned(), "MESSAGING_DEBUG"));
    }
    if let Some((text, variable)) = named(reader, "MESSAGING_BACKEND", &[]) {
        let system = match text.as_str() {
            "inmemory" => None,
            "rabbitmq" => Some("RabbitMQ"),
            "kafka" => Some("Kafka"),
            "redis" => Some("Redis"),
            _ => {
                let problem = format!("{} is not a backend", super::words::quoted(&text));
                reader.refuse(Origin::Environment(variable), "", problem, "unset it, or set it to inmemory");
                None
            }
        };
        if let Some(system) = system {
            let (problem, _) = absence(system);
            reader.refuse(Origin::Environment(variable), "", problem, "unset it, or set it to inmemory");
        }
    }
    if flag(reader, "MESSAGING_FALLBACK_ENABLED", &["MESSAGING_FALLBACK_INMEMORY"]) == Some(true) {
        reader.refuse(
            Origin::Environment("MESSAGING_FALLBACK_ENABLED"),
            "",
            "the embedded broker runs inside the engine and is never away: there is nothing to fall back from",
            "unset it, or set it to false",
        );
    }
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

/// Refuses what configures systems that are not there, unless a value of a file names it.
pub(super) fn refuse_absent(reader: &mut Reader<'_>) {
    for (system, variables) in ABSENT {
        for variable in *variables {
            let Some(text) = reader.variable(variable) else { continue };
            if reader.used.contains(*variable) {
                continue;
            }
            let (problem, _) = absence(system);
            if text.starts_with("tcp://") {
                let problem = "looks like what Kubernetes sets for a service of that name; it is not read";
                reader.warn(
                    Origin::Environment(variable),
                    "",
                    problem,
                    "set enableServiceLinks: false to be rid of it",
                );
            } else {
                reader.refuse(Origin::Environment(variable), "", problem, "unset it");
            }
        }
    }
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
