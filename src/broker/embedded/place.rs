//! A queue or topic, wherever it keeps its messages.

use std::sync::Arc;

use super::{
    beside::{Held, Intake},
    declare::Settings as _,
    disk::{DiskQueue, DiskTopic},
    queue::Queue,
    topic::Topic,
};
use crate::{
    broker::{
        AddressStats, BatchMax, BrokerError, Browse, Declaration, Deliveries, Page, PublishError, Storage, Subscribe,
        Subscription,
    },
    message::Message,
};

#[derive(Clone, Debug)]
pub(super) enum Place {
    Queue(Arc<Queue>),
    Topic(Arc<Topic>),
    DiskQueue(Arc<DiskQueue>),
    DiskTopic(Arc<DiskTopic>),
}

impl Place {
    /// Gives what was not published, by place in the batch.
    pub(super) async fn publish(&self, messages: Vec<Arc<Message>>, intake: Intake) -> Vec<(usize, PublishError)> {
        match self {
            Self::Queue(queue) => queue.publish(messages, intake),
            Self::Topic(topic) => topic.publish(messages, intake.bytes_max),
            Self::DiskQueue(queue) => queue.publish(messages, intake).await,
            Self::DiskTopic(topic) => topic.publish(messages, intake.bytes_max).await,
        }
    }

    /// What a queue holds; nothing, if it is none.
    pub(super) fn held(&self) -> Held {
        match self {
            Self::Queue(queue) => queue.held(),
            Self::DiskQueue(queue) => queue.held(),
            Self::Topic(_) | Self::DiskTopic(_) => Held::default(),
        }
    }

    /// Being handed over is no attempt from now on. In memory nothing comes of one that is none.
    pub(super) fn passes_on(&self) {
        if let Self::DiskQueue(queue) = self {
            queue.passes_on();
        }
    }

    pub(super) async fn subscribe(&self, request: &Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        Ok(match self {
            Self::Queue(queue) => Box::new(queue.subscribe(request.prefetch)),
            Self::Topic(topic) => Box::new(topic.subscribe(request)),
            Self::DiskQueue(queue) => Box::new(queue.subscribe(request.prefetch)),
            Self::DiskTopic(topic) => Box::new(topic.subscribe(request).await?),
        })
    }

    pub(super) async fn evict(&self, max: BatchMax) -> Result<Deliveries, BrokerError> {
        match self {
            Self::Queue(queue) => Ok(queue.evict(max)),
            Self::DiskQueue(queue) => queue.evict(max).await,
            Self::Topic(_) | Self::DiskTopic(_) => Ok(Deliveries::none()),
        }
    }

    pub(super) async fn browse(&self, request: &Browse) -> Result<Page, BrokerError> {
        match self {
            Self::Queue(queue) => queue.browse(request),
            Self::Topic(topic) => topic.browse(request),
            Self::DiskQueue(queue) => queue.browse(request).await,
            Self::DiskTopic(topic) => topic.browse(request).await,
        }
    }

    pub(super) fn stats(&self) -> AddressStats {
        match self {
            Self::Queue(queue) => queue.stats(),
            Self::Topic(topic) => topic.stats(),
            Self::DiskQueue(queue) => queue.stats(),
            Self::DiskTopic(topic) => topic.stats(),
        }
    }

    /// Where it is kept.
    pub(super) fn storage(&self) -> Storage {
        match self {
            Self::Queue(_) | Self::Topic(_) => Storage::Memory,
            Self::DiskQueue(_) | Self::DiskTopic(_) => Storage::Disk,
        }
    }

    pub(super) fn close(&self) {
        match self {
            Self::Queue(queue) => queue.close(),
            Self::Topic(topic) => topic.close(),
            Self::DiskQueue(queue) => queue.close(),
            Self::DiskTopic(topic) => topic.close(),
        }
    }

    /// Each setting in which it differs from what is wanted.
    pub(super) fn differences(&self, wanted: &Declaration) -> Vec<String> {
        match (self, wanted) {
            (Self::Queue(queue), Declaration::Queue(_, wanted)) => queue.settings().differences(wanted),
            (Self::DiskQueue(queue), Declaration::Queue(_, wanted)) => queue.settings().differences(wanted),
            (Self::Topic(topic), Declaration::Topic(_, wanted)) => topic.settings().differences(wanted),
            (Self::DiskTopic(topic), Declaration::Topic(_, wanted)) => topic.settings().differences(wanted),
            // Addresses say which kind it is.
            _ => Vec::new(),
        }
    }

    /// What keeps it, as it was found on disk, from being what is wanted: other settings than these are taken over.
    pub(super) fn hindrances(&self, wanted: &Declaration) -> Vec<String> {
        let mut found = Vec::new();
        let (storage, partitions) = match wanted {
            Declaration::Queue(_, wanted) => (wanted.storage, None),
            Declaration::Topic(_, wanted) => (wanted.storage, Some(wanted.partitions)),
        };
        let stats = self.stats();
        let kept = stats.ready + stats.delayed + stats.unsettled;
        if storage == Storage::Memory && kept > 0 {
            found.push(format!(
                "storage is disk, with {kept} messages in it, wanted is memory: let them be handled first, or configure storage: disk"
            ));
        }
        if let Self::DiskTopic(topic) = self
            && let Some(wanted) = partitions.filter(|wanted| *wanted != topic.settings().partitions)
        {
            found.push(format!(
                "partitions is {}, wanted is {wanted}: keys would change places; use another topic",
                topic.settings().partitions
            ));
        }
        found
    }

    /// Takes over what the configuration says of it.
    pub(super) fn adopt(&self, wanted: &Declaration) {
        match (self, wanted) {
            (Self::DiskQueue(queue), Declaration::Queue(_, wanted)) => queue.adopt(wanted.clone()),
            (Self::DiskTopic(topic), Declaration::Topic(_, wanted)) => topic.adopt(wanted.clone()),
            // In memory nothing is found that was not declared.
            _ => {}
        }
    }
}
