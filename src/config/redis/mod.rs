//! Redis' section: how it is reached (`reach`, `url`), how it is used, and what is made there (`places`).

mod places;
mod reach;
mod url;

use std::collections::BTreeSet;

use super::{
    Backend,
    kind::{self, Kind, Wrong},
    limits::{MESSAGE_BYTES, WAIT_MS},
    section::Section,
    words::quoted,
};
use crate::{broker::redis::Settings, message::Address};

/// Longest beginning of keys, in bytes.
const PREFIX_BYTES_MAX: usize = 100;
/// Most replicas that a publish may wait for.
const REPLICAS_MAX: u16 = 100;

/// Reads it. `standard`: whether the standard topology is there unless it is said. `dead_letter` is where dead letters go that
/// no route sends elsewhere.
pub(super) fn read(
    section: &mut Section<'_, '_, '_>,
    backend: Option<Backend>,
    standard: bool,
    dead_letter: &Address,
) -> Settings {
    let mut settings = Settings::default();
    if let Some(other @ (Backend::Inmemory | Backend::Rabbitmq | Backend::Kafka)) = backend {
        let (path, origin) = (section.path.clone(), section.origin());
        let problem = format!("is not used: messaging.backend is {}, so everything is there", other.as_str());
        section.reader.warn(origin, &path, problem, "unset messaging.backend to use it");
    }
    reach::read(section, &mut settings);
    let time = || kind::time(WAIT_MS);
    settings.key_prefix = section.value("key_prefix", &prefix(), settings.key_prefix);
    settings.engine = section.optional("engine", &kind::name(), "- (made up at each start)").map(|given| given.value);
    settings.connect_timeout = section.value("connect_timeout", &time(), settings.connect_timeout);
    settings.reconnect_delay_max = section.value("reconnect_delay", &time(), settings.reconnect_delay_max);
    settings.publish_timeout = section.value("publish_timeout", &time(), settings.publish_timeout);
    settings.prefetch_count = section.value("prefetch_count", &kind::integer(1..=u16::MAX), settings.prefetch_count);
    settings.message_bytes_max =
        section.value("message_bytes_max", &kind::bytes(MESSAGE_BYTES), settings.message_bytes_max);
    settings.min_replicas = section.value("min_replicas", &kind::integer(0..=REPLICAS_MAX), settings.min_replicas);
    settings.lease = section.value("lease_ms", &kind::millis(places::LEASE_MS), settings.lease);
    settings.auto_create = section.value("auto_create", &kind::flag(), settings.auto_create);
    settings.accept_differences = section.value("accept_differences", &kind::flag(), settings.accept_differences);
    places::read(section, &mut settings, standard, dead_letter);
    settings
}

/// Redis as it is without any configuration: the standard queues and topics.
#[must_use]
pub fn standard() -> Settings {
    let mut settings = Settings::default();
    places::add_standard(&mut settings);
    settings
}

/// Everything that is declared.
pub(super) fn declared(settings: &Settings) -> BTreeSet<Address> {
    let queues = settings.queues.keys().map(|name| Address::queue(std::sync::Arc::clone(name)));
    let topics = settings.topics.keys().chain(&settings.channels);
    queues.chain(topics.map(|name| Address::topic(std::sync::Arc::clone(name)))).collect()
}

/// What keys begin with. A brace would decide on which node of a cluster they are.
fn prefix() -> Kind<String> {
    const TAKES: &str = "text that keys begin with";
    let read = |text: &str| {
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '{' | '}' | '*' | '?' | '[' | ']' | '\\');
        if text.is_empty() || text.len() > PREFIX_BYTES_MAX || !text.chars().all(allowed) {
            let fix = format!(
                "write 1 to {PREFIX_BYTES_MAX} printable characters without spaces, braces, brackets, '*', '?' and '\\'"
            );
            return Err(Wrong::new(format!("{} is not {TAKES}", quoted(text)), fix));
        }
        Ok(text.to_owned())
    };
    kind::parsed(TAKES, read, Clone::clone)
}
