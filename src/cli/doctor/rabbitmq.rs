//! Whether RabbitMQ is there, and will have us.

use super::Finding;
use crate::{broker::rabbitmq::RabbitMq, config::Config};

const NAME: &str = "rabbitmq";

pub(super) fn examine(config: &Config) -> Option<Finding> {
    let settings = config.rabbitmq_in_use()?;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Some(Finding::fail(NAME, format_args!("no runtime: {error}"), "raise the limit on threads"));
        }
    };
    let hosts: Vec<String> = settings.hosts.iter().map(ToString::to_string).collect();
    Some(match runtime.block_on(RabbitMq::probe(settings)) {
        Ok(()) => Finding::ok(NAME, format_args!("{} answers, and lets us in", hosts.join(", "))),
        Err(reason) => Finding::fail(NAME, reason, "see docs/rabbitmq.md"),
    })
}
