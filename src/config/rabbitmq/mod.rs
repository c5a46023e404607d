//! RabbitMQ's section: how it is reached (`reach`, `url`), how it is used, and what is declared there (`topology`).

mod reach;
mod topology;
mod url;

use std::collections::BTreeSet;

use super::{
    Backend,
    kind::{self, Kind, Wrong},
    limits::{MESSAGE_BYTES, WAIT_MS},
    section::Section,
    words::quoted,
};
use crate::{
    broker::rabbitmq::{Settings, topology::QueueKind},
    message::Address,
};

/// Reads it. `standard`: whether it has the standard topology where it does not say so. `dead_letter` is where dead letters
/// go that no route sends elsewhere.
pub(super) fn read(
    section: &mut Section<'_, '_, '_>,
    backend: Option<Backend>,
    standard: bool,
    dead_letter: &Address,
) -> Settings {
    let mut settings = Settings::default();
    if let Some(other @ (Backend::Inmemory | Backend::Kafka | Backend::Redis)) = backend {
        let (path, origin) = (section.path.clone(), section.origin());
        let problem = format!("is not used: messaging.backend is {}, so everything is there", other.as_str());
        section.reader.warn(origin, &path, problem, "unset messaging.backend to use it");
    }
    reach::read(section, &mut settings);
    let time = || kind::time(WAIT_MS);
    settings.connect_timeout = section.value("connect_timeout", &time(), settings.connect_timeout);
    settings.heartbeat = section.value("heartbeat", &reach::heartbeat(), settings.heartbeat);
    settings.reconnect_attempts_max =
        section.bound("max_reconnect_attempts", &kind::integer(1..=u32::MAX), settings.reconnect_attempts_max);
    settings.reconnect_delay_max = section.value("reconnect_delay", &time(), settings.reconnect_delay_max);
    settings.publisher_confirm = section.value("publisher_confirm", &kind::flag(), settings.publisher_confirm);
    settings.publish_timeout = section.value("publish_timeout", &time(), settings.publish_timeout);
    settings.prefetch_count = section.value("prefetch_count", &kind::integer(1..=u16::MAX), settings.prefetch_count);
    settings.prefetch_global = section.value("prefetch_global", &kind::flag(), settings.prefetch_global);
    settings.message_bytes_max =
        section.value("message_bytes_max", &kind::bytes(MESSAGE_BYTES), settings.message_bytes_max);
    settings.exchange = section
        .optional("exchange", &reach::short_text("the name of an exchange"), "- (the server's default)")
        .map(|given| given.value);
    settings.management_url = section.optional("management_url", &management_url(), "-").map(|given| given.value);
    settings.auto_create = section.value("auto_create", &kind::flag(), settings.auto_create);
    settings.accept_differences = section.value("accept_differences", &kind::flag(), settings.accept_differences);
    if !settings.publisher_confirm {
        let (path, origin) = (section.path_of("publisher_confirm"), section.origin_of("publisher_confirm"));
        let problem = "a message that is lost on its way is lost for good, and nobody is told";
        section.reader.warn(origin, &path, problem, "set it to true");
    }
    topology::read(section, &mut settings, backend == Some(Backend::Rabbitmq), standard, dead_letter);
    settings
}

/// Everything that is declared.
pub(super) fn declared(settings: &Settings) -> BTreeSet<Address> {
    let queues = settings.topology.queues.iter().map(|(name, queue)| match queue.kind {
        QueueKind::Stream => Address::topic(std::sync::Arc::clone(name)),
        QueueKind::Classic | QueueKind::Quorum => Address::queue(std::sync::Arc::clone(name)),
    });
    let exchanges = settings.topology.exchanges.keys().map(|name| Address::topic(std::sync::Arc::clone(name)));
    queues.chain(exchanges).collect()
}

fn management_url() -> Kind<String> {
    let read = |text: &str| {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match rest {
            Some(host) if host.contains('@') => {
                Err(Wrong::new("has a user in front of an \"@\"", "remove it: the user of the connection is used"))
            }
            Some(host) if !host.is_empty() => Ok(text.trim_end_matches('/').to_owned()),
            _ => Err(Wrong::new(format!("{} is not an HTTP URL", quoted(text)), "write http://HOST:15672")),
        }
    };
    kind::parsed("an HTTP URL such as http://localhost:15672", read, Clone::clone)
}
