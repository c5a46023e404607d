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
    message::{Secret, now_ms},
};

use crate::system::*;

/// A server.
pub(crate) struct Server {
    /// What the engines were called, in order, and their users: one that starts again has the name of the one before.
    engines: Mutex<Vec<(String, String)>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self { engines: Mutex::default() }
    }

    /// Each process is a user of its own, so that it can be cut off as if it had been killed.
    async fn open(&self, engine: String, auto_create: bool) -> Arc<dyn Broker> {
        let port = std::env::var("REDIS_TEST_PORT");
        let port =
            port.expect("REDIS_TEST_PORT names the server: run `cargo xtask test`, or start one with scripts/brokers");
        let user = fresh_engine();
        ask(redis::cmd("ACL").arg("SETUSER").arg(&user).arg("on").arg(">secret").arg("~*").arg("&*").arg("+@all"));
        self.engines.lock().unwrap().push((engine.clone(), user.clone()));
        let settings = Settings {
            hosts: vec![Host { name: "127.0.0.1".to_owned(), port: port.parse().unwrap() }],
            username: Some(user),
            password: Some(Secret::new("secret")),
            engine: Some(engine),
            prefetch_count: u16::MAX,
            auto_create,
            ..Settings::default()
        };
        Arc::new(Redis::connect("redis", settings).await.unwrap())
    }

    /// The engine that starts again, and its user so far.
    fn last(&self) -> (String, String) {
        self.engines.lock().unwrap().last().unwrap().clone()
    }
}

/// Tells the server something.
fn ask(command: &redis::Cmd) {
    let url = format!("redis://127.0.0.1:{}/", std::env::var("REDIS_TEST_PORT").unwrap());
    command.exec(&mut redis::Client::open(url).unwrap().get_connection().unwrap()).unwrap();
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

    /// Some round trips on a machine that has a lot to do.
    fn short_lease(&self) -> Duration {
        Duration::from_millis(150)
    }

    async fn pass(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    async fn restart(&self, broker: Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        broker.close().await;
        Some(self.open(self.last().0, false).await)
    }

    /// The server ends the connections of the engine, which never comes in again; and the same engine is started anew.
    async fn after_a_kill(&self, _: &Arc<dyn Broker>) -> Option<Arc<dyn Broker>> {
        let (engine, user) = self.last();
        ask(redis::cmd("ACL").arg("DELUSER").arg(user));
        Some(self.open(engine, false).await)
    }

    /// A topic is one sequence; what is fetched ahead counts as delivered; what was out at a kill is handed out alone, so not
    /// side by side either; where messages are kept is the server's affair.
    fn unclaimed(&self) -> &'static [&'static str] {
        &[
            "topics",
            "count only what was handed over",
            "try suspects apart",
            "hand out suspects side by side",
            "choose where it is kept",
        ]
    }
}
