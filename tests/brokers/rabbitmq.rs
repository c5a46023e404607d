//! RabbitMQ, a real one, with the ledger in front of it, as the engine uses it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        Broker, Counted,
        rabbitmq::{
            Credentials, Host, RabbitMq, Settings,
            topology::{QueueKind, standard},
        },
    },
    message::Secret,
    store::{self, Store},
};
use tempfile::TempDir;

use crate::system::*;

/// A server, with queues of one kind.
pub(crate) struct Server {
    kind: QueueKind,
    directories: Mutex<Vec<TempDir>>,
}

impl Server {
    pub(crate) fn classic() -> Self {
        Self { kind: QueueKind::Classic, directories: Mutex::default() }
    }

    pub(crate) fn quorum() -> Self {
        Self { kind: QueueKind::Quorum, directories: Mutex::default() }
    }

    async fn open(&self, auto_create: bool) -> Arc<dyn Broker> {
        self.open_with(TempDir::new().unwrap(), auto_create).await
    }

    /// With a ledger that may be there already.
    async fn open_with(&self, directory: TempDir, auto_create: bool) -> Arc<dyn Broker> {
        let store = Store::open(store::Settings::new(directory.path())).unwrap();
        self.directories.lock().unwrap().push(directory);
        Arc::new(Counted::new(Arc::new(self.connected(auto_create).await), store))
    }

    /// The ledger as a process finds it whose predecessor was killed.
    fn ledger(&self) -> TempDir {
        copied(self.directories.lock().unwrap().last().unwrap().path())
    }

    async fn connected(&self, auto_create: bool) -> RabbitMq {
        let port = std::env::var("RABBITMQ_TEST_PORT");
        let port = port
            .expect("RABBITMQ_TEST_PORT names the server: run `cargo xtask test`, or start one with scripts/brokers");
        let settings = Settings {
            hosts: vec![Host { name: "127.0.0.1".to_owned(), port: port.parse().unwrap() }],
            credentials: Credentials::Plain { user: "guest".to_owned(), password: Secret::new("guest") },
            topology: standard(QueueKind::Classic),
            prefetch_count: u16::MAX,
            // The suite takes many at once that were out before.
            suspects_apart: false,
            queue_kind: self.kind,
            auto_create,
            ..Settings::default()
        };
        RabbitMq::connect("rabbitmq", settings).await.unwrap()
    }
}

#[async_trait]
impl System for Server {
    async fn connect(&self) -> Arc<dyn Broker> {
        self.open(false).await
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        Some(self.open(true).await)
    }

    fn span(&self, time: Duration) -> Duration {
        time / 20
    }

    async fn pass(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    async fn restart(&self, broker: Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        broker.close().await;
        Some(self.open_with(self.ledger(), false).await)
    }

    /// The server sees a connection that ends with deliveries out, and has no way to tell why it does.
    async fn after_a_kill(&self, broker: &Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        let ledger = self.ledger();
        broker.close().await;
        Some(self.open_with(ledger, false).await)
    }

    /// A server delivers ahead (prefetch) and counts that; it keeps what is to come later in other queues; a length is a
    /// target for quorum queues, and covers only what waits; what leaves a full queue is the oldest.
    fn unclaimed(&self) -> &'static [&'static str] {
        match self.kind {
            QueueKind::Quorum => &[
                "topics",
                "leases",
                "expiry",
                "browse",
                "priority",
                "exact limits",
                "choose what leaves",
                "bound what waits elsewhere",
                "count only what was handed over",
                "try suspects apart",
            ],
            _ => &[
                "topics",
                "leases",
                "expiry",
                "browse",
                "bytes of what is out",
                "choose what leaves",
                "bound what waits elsewhere",
                "count only what was handed over",
                "try suspects apart",
            ],
        }
    }
}
