//! Whether Kafka is there, and will have us.

use super::Finding;
use crate::{broker::kafka::Kafka, config::Config};

const NAME: &str = "kafka";

pub(super) fn examine(config: &Config) -> Option<Finding> {
    let settings = config.kafka_in_use()?;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Some(Finding::fail(NAME, format_args!("no runtime: {error}"), "raise the limit on threads"));
        }
    };
    Some(match runtime.block_on(Kafka::probe(settings)) {
        Ok(()) => Finding::ok(NAME, format_args!("{} answers, and lets us in", settings.brokers.join(", "))),
        Err(reason) => Finding::fail(NAME, reason, "see docs/kafka.md"),
    })
}
