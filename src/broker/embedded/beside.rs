//! Queues that the engine has for itself, beside those that routes and publishers know: what is in them is meant for
//! another system, and stays exactly as it is.

use std::sync::Arc;

use super::{Embedded, storage};
use crate::{
    broker::{Broker, BrokerError, Declaration, PublishError, QueueSettings, Storage},
    message::{Address, Message},
};

/// How messages are taken in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intake {
    /// Longest payload with headers and key, in bytes.
    pub(super) bytes_max: usize,
    /// Whether a message whose time has not come waits for it here.
    pub(super) delays: bool,
}

/// What is in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker) struct Held {
    /// Messages that are safe, those that are out among them.
    pub(in crate::broker) messages: u64,
    /// Bytes of all, those that arrive among them.
    pub(in crate::broker) bytes: u64,
    /// Messages that are on their way to the disk: they may still be refused.
    pub(in crate::broker) arriving: u64,
}

impl Embedded {
    /// Makes a queue, or takes over the one that is there from an earlier run, wherever that kept it.
    ///
    /// # Errors
    /// As [`Broker::declare`].
    pub(in crate::broker) async fn keep_queue(
        &self,
        name: Arc<str>,
        settings: QueueSettings,
    ) -> Result<(), BrokerError> {
        let of = Address::queue(Arc::clone(&name));
        let is_on_disk = self.read().all.get(&of).is_some_and(|place| place.storage() == Storage::Disk);
        let storage = if is_on_disk { Storage::Disk } else { settings.storage };
        self.declare(&[Declaration::Queue(name, QueueSettings { storage, ..settings })]).await
    }

    /// Publishes to a queue whatever the size, to be there at once whatever the time. Gives what was not published, by
    /// place.
    ///
    /// # Cancel safety
    /// Dropped half-way, all of the messages are there or none; [`Embedded::held`] counts them.
    pub(in crate::broker) async fn keep(
        &self,
        to: &Address,
        messages: Vec<Arc<Message>>,
    ) -> Vec<(usize, PublishError)> {
        let place = self.read().all.get(to).cloned();
        match place {
            Some(place) => place.publish(messages, Intake { bytes_max: usize::MAX, delays: false }).await,
            None => (0..messages.len()).map(|place| (place, PublishError::NotFound(to.clone()))).collect(),
        }
    }

    /// What is in a queue.
    pub(in crate::broker) fn held(&self, of: &Address) -> Held {
        self.read().all.get(of).map(super::Place::held).unwrap_or_default()
    }

    /// Returns when everything that was settled is so on disk, too.
    ///
    /// # Errors
    /// [`BrokerError::Storage`]: some of it may come again after a crash.
    pub(in crate::broker) async fn flush(&self) -> Result<(), BrokerError> {
        match self.store() {
            Some(store) => store.flush().await.map_err(storage),
            None => Ok(()),
        }
    }
}
