//! Looks after the broker: says once when it begins to do less, and ends the engine when it has failed.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Broker, BrokerStatus},
    telemetry::metrics,
};

/// What was last seen of a broker.
#[derive(Debug)]
pub(super) struct Condition {
    last: BrokerStatus,
    /// The system that it was about.
    ill: Option<String>,
    failure: watch::Sender<Option<String>>,
    stop: CancellationToken,
}

impl Condition {
    /// `failure` is told why it failed, `stop` is cancelled then.
    pub(super) fn new(failure: watch::Sender<Option<String>>, stop: CancellationToken) -> Self {
        Self { last: BrokerStatus::Ready, ill: None, failure, stop }
    }

    /// Looks, and acts on what has changed.
    pub(super) fn look(&mut self, broker: &dyn Broker) {
        let status = broker.status();
        let systems = broker.systems();
        for system in &systems {
            metrics().broker_state.with_label_values(&[system.name.as_str()]).set(match &system.status {
                BrokerStatus::Ready => 0,
                BrokerStatus::Degraded { .. } => 1,
                BrokerStatus::Failed { .. } => 2,
            });
        }
        if status == self.last {
            return;
        }
        // The one that it is about, or was.
        let ill = systems.iter().find(|system| system.status != BrokerStatus::Ready).map(|system| &*system.name);
        let broker = ill.or(self.ill.as_deref()).unwrap_or(broker.name()).to_owned();
        self.ill = ill.map(str::to_owned);
        let broker = &*broker;
        match (&status, &self.last) {
            (BrokerStatus::Failed { reason }, _) => {
                // What it confirmed is safe; what it would confirm from here on might not be.
                self.stop.cancel();
                self.failure.send_replace(Some(reason.clone()));
            }
            (BrokerStatus::Degraded { reason }, BrokerStatus::Degraded { .. }) => tracing::debug!(broker, "{reason}"),
            (BrokerStatus::Degraded { reason }, _) => tracing::warn!(broker, "{reason}"),
            (BrokerStatus::Ready, _) => tracing::info!(broker, "the broker does all of its work again"),
        }
        self.last = status;
    }
}
