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
    /// Makes a queue, or takes over the one that is there from an earlier run, wherever that kept it. Its one reader only
    /// passes on what is in it: being handed over is no attempt, and what was out when a process ended comes again as it
    /// did before, in its order and with the others.
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
        self.declare(&[Declaration::Queue(name, QueueSettings { storage, ..settings })]).await?;
        if let Some(place) = self.read().all.get(&of) {
            place.passes_on();
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::{
        broker::{
            Aside, BatchMax, Deliveries, Start, Subscribe, Subscription,
            embedded::{DiskSettings, Settings},
        },
        message::Settlement,
    };

    /// The files as they are, which is what a process finds that was killed.
    fn copied(directory: &TempDir) -> TempDir {
        let copy = TempDir::new().unwrap();
        for file in std::fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        copy
    }

    async fn opened(directory: &Path, queue: &Address) -> (Embedded, Box<dyn Subscription>) {
        let disk = DiskSettings { free_min: 1 << 20, ..DiskSettings::new(directory) };
        let embedded = Embedded::new("embedded", Settings { disk: Some(disk), ..Settings::default() }).unwrap();
        let settings = QueueSettings { storage: Storage::Disk, priority_max: 0, ..QueueSettings::default() };
        embedded.keep_queue(Arc::clone(&queue.name), settings).await.unwrap();
        let request = Subscribe {
            from: queue.clone(),
            group: "".into(),
            start: Start::Earliest,
            prefetch: 1000,
            workers: 1,
            aside: Aside::Local,
        };
        let reader = embedded.subscribe(request).await.unwrap();
        (embedded, reader)
    }

    async fn next(reader: &mut Box<dyn Subscription>, count: usize) -> Deliveries {
        let batch = reader.next(BatchMax { count, bytes: 1 << 20 }).await.unwrap().unwrap();
        assert!(batch.as_slice().iter().all(|delivery| delivery.attempt == 1), "being out is no attempt: {batch:?}");
        batch
    }

    fn numbers(batch: &Deliveries) -> Vec<u32> {
        let number = |message: &Message| std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        batch.as_slice().iter().map(|delivery| number(&delivery.message)).collect()
    }

    #[tokio::test]
    async fn what_was_out_at_a_kill_comes_again_in_its_order_and_with_the_others() {
        let (queue, mut directory) = (Address::queue("kept"), TempDir::new().unwrap());
        let (mut embedded, mut reader) = opened(directory.path(), &queue).await;
        let message = |number: u32| Arc::new(Message::new("test", number.to_string(), 1));
        assert_eq!(embedded.keep(&queue, (0..500).map(message).collect()).await, []);
        // More often than a message may be out at an end without being tried alone.
        for kill in 0..4_u32 {
            let mut batch = next(&mut reader, 100).await;
            assert_eq!(numbers(&batch), (kill * 40..kill * 40 + 100).collect::<Vec<_>>(), "after {kill} kills");
            // A part of it has left, the next is out as well, and of a third one some came back.
            let confirmed = batch.take_front(40);
            let accepted = vec![Settlement::Accept; confirmed.len()];
            confirmed.settle(accepted).await.unwrap();
            let behind = next(&mut reader, 100).await;
            drop(next(&mut reader, 10).await);
            embedded.keep(&queue, (500 + kill * 10..510 + kill * 10).map(message).collect()).await;
            embedded.flush().await.unwrap();
            let left = copied(&directory);
            drop((batch, behind, reader, embedded));
            directory = left;
            (embedded, reader) = opened(directory.path(), &queue).await;
        }
        let mut all = Vec::new();
        while all.len() < 380 {
            let batch = next(&mut reader, 1000).await;
            all.extend(numbers(&batch));
            let accepted = vec![Settlement::Accept; batch.len()];
            batch.settle(accepted).await.unwrap();
        }
        assert_eq!(all, (160..540).collect::<Vec<_>>());
    }
}
