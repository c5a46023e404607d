//! Kafka, a real one, with the ledger in front of it, as the engine uses it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        Broker, Counted,
        kafka::{Kafka, Settings, settings::GroupProtocol},
    },
    store::{self, Store},
};
use tempfile::TempDir;

use crate::system::*;

/// A server, and how membership is decided there.
pub(crate) struct Server {
    protocol: GroupProtocol,
    directories: Mutex<Vec<TempDir>>,
}

impl Server {
    pub(crate) fn classic() -> Self {
        Self { protocol: GroupProtocol::Classic, directories: Mutex::default() }
    }

    pub(crate) fn consumer() -> Self {
        Self { protocol: GroupProtocol::Consumer, directories: Mutex::default() }
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

    async fn connected(&self, auto_create: bool) -> Kafka {
        let port = std::env::var("KAFKA_TEST_PORT");
        let port =
            port.expect("KAFKA_TEST_PORT names the server: run `cargo xtask test`, or start one with scripts/brokers");
        let settings = Settings {
            brokers: vec![format!("127.0.0.1:{port}")],
            group_protocol: self.protocol,
            session_timeout: Duration::from_secs(6),
            heartbeat_interval: Duration::from_millis(300),
            revoke_wait: Duration::from_secs(3),
            auto_create,
            extra: BTreeMap::new(),
            ..Settings::default()
        };
        Kafka::connect("kafka", settings).await.unwrap()
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

    async fn after_a_kill(&self, broker: &Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        let ledger = self.ledger();
        broker.close().await;
        Some(self.open_with(ledger, false).await)
    }

    /// It forgets whole files of messages, when it gets to it; a partition is one member's or another's, whatever is out of
    /// it; what is fetched ahead is noted as begun together.
    fn unclaimed(&self) -> &'static [&'static str] {
        &[
            "queues",
            "leases",
            "expiry",
            "priority",
            "forget message by message",
            "divide a partition",
            "let readers come and go many times a second",
            "count only what was handed over",
            "try suspects apart",
            "hand out suspects side by side",
        ]
    }
}
