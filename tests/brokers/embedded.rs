//! The embedded broker, in memory and on disk.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use helixmq::broker::{
    Broker, QueueSettings, Storage, TopicSettings,
    embedded::{DiskSettings, Embedded, Settings},
};
use tempfile::TempDir;

use crate::system::{System, copied};

pub(crate) struct Memory;

#[async_trait]
impl System for Memory {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(Embedded::new("embedded", Settings::default()).unwrap())
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        let settings = Settings { auto_create: true, ..Settings::default() };
        Some(Arc::new(Embedded::new("embedded", settings).unwrap()))
    }

    fn unclaimed(&self) -> &'static [&'static str] {
        &["durable"]
    }
}

/// One test's brokers, each in a directory of its own.
#[derive(Default)]
pub(crate) struct Disk {
    directories: Mutex<Vec<TempDir>>,
}

impl Disk {
    fn open(directory: &Path, auto_create: bool) -> Arc<dyn Broker> {
        let settings = Settings {
            auto_create,
            queue: QueueSettings { storage: Storage::Disk, ..QueueSettings::default() },
            topic: TopicSettings { storage: Storage::Disk, ..TopicSettings::default() },
            disk: Some(DiskSettings { free_min: 1 << 20, ..DiskSettings::new(directory) }),
            ..Settings::default()
        };
        Arc::new(Embedded::new("embedded", settings).unwrap())
    }

    fn open_new(&self, auto_create: bool) -> Arc<dyn Broker> {
        let directory = TempDir::new().unwrap();
        let broker = Self::open(directory.path(), auto_create);
        self.directories.lock().unwrap().push(directory);
        broker
    }
}

#[async_trait]
impl System for Disk {
    async fn connect(&self) -> Arc<dyn Broker> {
        self.open_new(false)
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        Some(self.open_new(true))
    }

    fn storage(&self) -> Storage {
        Storage::Disk
    }

    fn span(&self, time: Duration) -> Duration {
        time / 20
    }

    async fn pass(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    async fn restart(&self, broker: Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        broker.close().await;
        drop(broker);
        let directories = self.directories.lock().unwrap();
        Some(Self::open(directories.last().unwrap().path(), false))
    }

    /// The files as they are, which is what a process finds that was killed: what it wrote, the system keeps.
    async fn after_a_kill(&self, _: &Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        let mut directories = self.directories.lock().unwrap();
        let copy = copied(directories.last().unwrap().path());
        let broker = Self::open(copy.path(), false);
        directories.push(copy);
        Some(broker)
    }

    fn unclaimed(&self) -> &'static [&'static str] {
        &[]
    }
}
