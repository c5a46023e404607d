//! Whether Redis is there, will have us, and keeps what it is given.

use super::Finding;
use crate::{broker::redis::durability, config::Config};

const NAME: &str = "redis";

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let Some(settings) = config.redis_in_use() else { return Vec::new() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Finding::fail(NAME, format_args!("no runtime: {error}"), "raise the limit on threads")];
        }
    };
    let hosts: Vec<String> = settings.hosts.iter().map(ToString::to_string).collect();
    match runtime.block_on(durability::ask(settings)) {
        Ok(said) => {
            let version = if said.version.is_empty() { "of a version that it does not tell" } else { &said.version };
            let found = format!("{} answers, {version}, and lets us in; it has {}", hosts.join(", "), said.kept);
            let worries = said.worries.iter().map(|(found, fix)| Finding::warn(NAME, found, fix));
            std::iter::once(Finding::ok(NAME, found)).chain(worries).collect()
        }
        Err(reason) => vec![Finding::fail(NAME, reason, "see docs/redis.md")],
    }
}
