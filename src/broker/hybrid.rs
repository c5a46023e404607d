//! Two systems as one broker: queues on the one, topics on the other. Nothing is copied between them, and what one of them
//! cannot do does not hold up the other.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Declaration, Deliveries, Page,
    PublishFailures, Subscribe, Subscription, System,
};
use crate::message::{Address, Kind, Message};

/// Queues on one system, topics on another.
#[derive(Debug)]
pub struct Hybrid {
    queues: Arc<dyn Broker>,
    topics: Arc<dyn Broker>,
    /// Which of them is closed first.
    first: Kind,
}

impl Hybrid {
    /// Joins them.
    #[must_use]
    pub fn new(queues: Arc<dyn Broker>, topics: Arc<dyn Broker>) -> Self {
        Self { queues, topics, first: Kind::Queue }
    }

    /// Closes that of `kind` before the other, which has the store where attempts of the first are noted.
    #[must_use]
    pub fn closing_first(self, kind: Kind) -> Self {
        Self { first: kind, ..self }
    }

    fn of(&self, address: &Address) -> &dyn Broker {
        match address.kind {
            Kind::Queue => &*self.queues,
            Kind::Topic => &*self.topics,
        }
    }
}

#[async_trait]
impl Broker for Hybrid {
    fn name(&self) -> &str {
        self.queues.name()
    }

    fn name_of(&self, address: &Address) -> &str {
        self.of(address).name_of(address)
    }

    fn capabilities(&self) -> Capabilities {
        let (queues, topics) = (self.queues.capabilities(), self.topics.capabilities());
        Capabilities {
            durable: queues.durable && topics.durable,
            log: topics.log,
            replay: topics.replay,
            transactions: topics.transactions,
            delivery_count: queues.delivery_count && topics.delivery_count,
            browse: queues.browse && topics.browse,
            message_bytes_max: queues.message_bytes_max.min(topics.message_bytes_max),
            ..queues
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.of(to).publish(to, messages).await
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        let (queues, topics): (Vec<_>, Vec<_>) =
            what.iter().cloned().partition(|declaration| declaration.address().kind == Kind::Queue);
        self.queues.declare(&queues).await?;
        self.topics.declare(&topics).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        self.of(&request.from).subscribe(request).await
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        self.of(from).evict(from, max).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.of(&request.from).browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        let mut stats = self.queues.stats();
        stats.retain(|stats| stats.address.kind == Kind::Queue);
        stats.extend(self.topics.stats().into_iter().filter(|stats| stats.address.kind == Kind::Topic));
        stats
    }

    fn status(&self) -> BrokerStatus {
        let name = |broker: &dyn Broker, reason: String| format!("{}: {reason}", broker.name());
        match (self.queues.status(), self.topics.status()) {
            (BrokerStatus::Failed { reason }, _) => BrokerStatus::Failed { reason: name(&*self.queues, reason) },
            (_, BrokerStatus::Failed { reason }) => BrokerStatus::Failed { reason: name(&*self.topics, reason) },
            (BrokerStatus::Degraded { reason }, _) => BrokerStatus::Degraded { reason: name(&*self.queues, reason) },
            (_, BrokerStatus::Degraded { reason }) => BrokerStatus::Degraded { reason: name(&*self.topics, reason) },
            (BrokerStatus::Ready, BrokerStatus::Ready) => BrokerStatus::Ready,
        }
    }

    fn systems(&self) -> Vec<System> {
        [self.queues.systems(), self.topics.systems()].concat()
    }

    async fn close(&self) {
        let (first, second) = match self.first {
            Kind::Queue => (&self.queues, &self.topics),
            Kind::Topic => (&self.topics, &self.queues),
        };
        first.close().await;
        second.close().await;
    }
}
