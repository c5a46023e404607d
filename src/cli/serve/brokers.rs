//! The systems that messages come from and go to, opened as the configuration says.

use std::sync::Arc;

use super::settings;
use crate::{
    broker::{Broker, BrokerError},
    config::Config,
};

/// What the broker inside the engine is called.
pub(super) const EMBEDDED: &str = "embedded";

/// Which system could not be used, and why.
pub(super) type NotOpened = (&'static str, BrokerError);

/// What the engine runs on. Reads and writes files, and connects; a server that is away is no reason to fail.
pub(super) async fn open(config: &Config) -> Result<Arc<dyn Broker>, NotOpened> {
    let embedded = Arc::new(settings::broker(config).map_err(|error| (EMBEDDED, error))?);
    #[cfg(feature = "rabbitmq")]
    if let Some(settings) = config.rabbitmq_in_use() {
        use crate::{
            broker::{Counted, Hybrid, rabbitmq::RabbitMq},
            message::{Address, Kind},
        };
        let queue = |address: Address| (address.kind == Kind::Queue).then_some(address.name);
        let store = embedded.store().cloned();
        let mut settings = settings.clone();
        settings.dead_letters = config.all_dead_letters().into_iter().filter_map(queue).collect();
        let connected = RabbitMq::connect("rabbitmq", settings).await;
        let rabbitmq: Arc<dyn Broker> = Arc::new(connected.map_err(|error| ("rabbitmq", error))?);
        // What a server does not count is noted in our own store.
        let counted: Arc<dyn Broker> = match store {
            Some(store) => Arc::new(Counted::new(rabbitmq, store)),
            None => rabbitmq,
        };
        if config.topics_on_rabbitmq() {
            return Ok(counted);
        }
        return Ok(Arc::new(Hybrid::new(counted, embedded)));
    }
    Ok(embedded)
}
