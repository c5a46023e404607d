//! Redis, a real one. It counts attempts itself: nothing stands in front of it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        Broker,
        redis::{Host, Redis, Settings},
    },
    message::now_ms,
};

use crate::system::*;

/// A server.
pub(crate) struct Server {
    /// What the engines were called, in order: one that starts again has the name of the one before.
    engines: Mutex<Vec<String>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self { engines: Mutex::default() }
    }

    async fn open(&self, engine: String, auto_create: bool) -> Arc<dyn Broker> {
        let port = std::env::var("REDIS_TEST_PORT");
        let port =
            port.expect("REDIS_TEST_PORT names the server: run `cargo xtask test`, or start one with scripts/brokers");
        self.engines.lock().unwrap().push(engine.clone());
        let settings = Settings {
            hosts: vec![Host { name: "127.0.0.1".to_owned(), port: port.parse().unwrap() }],
            engine: Some(engine),
            prefetch_count: u16::MAX,
            auto_create,
            ..Settings::default()
        };
        Arc::new(Redis::connect("redis", settings).await.unwrap())
    }

    /// The engine that starts again.
    fn again(&self) -> String {
        self.engines.lock().unwrap().last().unwrap().clone()
    }
}

/// An engine that nobody else is.
fn fresh_engine() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("engine-{}-{}-{}", std::process::id(), now_ms(), COUNT.fetch_add(1, Relaxed))
}

#[async_trait]
impl System for Server {
    async fn connect(&self) -> Arc<dyn Broker> {
        self.open(fresh_engine(), false).await
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        Some(self.open(fresh_engine(), true).await)
    }

    fn span(&self, time: Duration) -> Duration {
        time / 20
    }

    async fn pass(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    async fn restart(&self, broker: Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        broker.close().await;
        Some(self.open(self.again(), false).await)
    }

    /// The server goes on, and sees the engine come back that had all of it out.
    async fn after_a_kill(&self, _: &Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        // What was given back has been fetched again by then.
        tokio::time::sleep(QUIET).await;
        Some(self.open(self.again(), false).await)
    }

    /// A topic is one sequence; what is fetched ahead counts as delivered; where messages are kept is the server's affair.
    fn unclaimed(&self) -> &'static [&'static str] {
        &["topics", "count only what was handed over", "try suspects apart", "choose where it is kept"]
    }
}
