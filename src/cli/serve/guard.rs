//! What stands in front of every system outside of the engine: publishing to it ends at once while it is away, or waits here.

use std::sync::Arc;

use crate::{
    broker::{Broker, Guarded, embedded::Embedded},
    config::Config,
};

/// Guards a system as the configuration says; what waits for it is kept by the embedded broker.
pub(super) fn guarded(
    config: &Config,
    name: &str,
    broker: Arc<dyn Broker>,
    embedded: &Arc<Embedded>,
) -> Arc<dyn Broker> {
    Arc::new(Guarded::new(broker, Arc::clone(embedded), config.guard_of(name)))
}
