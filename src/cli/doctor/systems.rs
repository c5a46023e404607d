//! Whether each system outside of the engine is there, will have us, and keeps what it is given.

#![cfg_attr(
    not(any(feature = "rabbitmq", feature = "kafka", feature = "redis")),
    allow(unused_variables, reason = "without any of them there is nothing to ask")
)]

use super::Finding;
use crate::config::{Config, Connection};

/// Asks all that are used, one after the other.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let systems = config.connections_in_use();
    if systems.is_empty() {
        return Vec::new();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let found = format!("no runtime: {error}");
            return vec![Finding::fail("systems", found, "raise the limit on threads")];
        }
    };
    let all = async {
        let mut findings = Vec::new();
        for (name, connection) in &systems {
            findings.extend(one(name, connection).await);
        }
        findings
    };
    runtime.block_on(all)
}

async fn one(name: &str, connection: &Connection) -> Vec<Finding> {
    let ok = |found: String| vec![Finding::ok(name.to_owned(), found)];
    let fail = |reason: String, page: &str| vec![Finding::fail(name.to_owned(), reason, format_args!("see {page}"))];
    match connection {
        #[cfg(feature = "rabbitmq")]
        Connection::Rabbitmq(settings) => match crate::broker::rabbitmq::RabbitMq::probe(settings).await {
            Ok(()) => ok(format!("{} answers, and lets us in", listed(&settings.hosts))),
            Err(reason) => fail(reason, "docs/rabbitmq.md"),
        },
        #[cfg(feature = "kafka")]
        Connection::Kafka(settings) => match crate::broker::kafka::Kafka::probe(settings).await {
            Ok(()) => ok(format!("{} answers, and lets us in", listed(&settings.brokers))),
            Err(reason) => fail(reason, "docs/kafka.md"),
        },
        #[cfg(feature = "redis")]
        Connection::Redis(settings) => match crate::broker::redis::durability::ask(settings).await {
            Ok(said) => {
                let version =
                    if said.version.is_empty() { "of a version that it does not tell" } else { &said.version };
                let hosts = listed(&settings.hosts);
                let worries = said.worries.iter().map(|(found, fix)| Finding::warn(name.to_owned(), found, fix));
                let found = format!("{hosts} answers, {version}, and lets us in; it has {}", said.kept);
                ok(found).into_iter().chain(worries).collect()
            }
            Err(reason) => fail(reason, "docs/redis.md"),
        },
        #[allow(unreachable_patterns, reason = "a build may have none of them")]
        _ => Vec::new(),
    }
}

#[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
fn listed(hosts: &[impl ToString]) -> String {
    hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
