//! The engine on a Redis, as `helixmq serve` has it: the broker, a route, a Rust function for a handler.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use helixmq::{
    broker::{
        Broker, Declaration, QueueSettings, Storage,
        redis::{Host, Redis, Settings},
    },
    handler::Call,
    hub::Hub,
    message::{Address, Outcome},
    settle::RetryPolicy,
};
use tempfile::TempDir;

use crate::{
    raw::Raw,
    server::Server,
    support::{
        degraded,
        engine::{self, Parts},
        ledger::Ledger,
        proxy::Proxy,
        ready, soon,
    },
};

/// The queue of the tests.
pub(crate) const WORK: &str = "work";
/// Where dead letters go.
pub(crate) const DEAD: &str = "dead";

/// Where an engine can be started, again and again.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) settings: Settings,
    pub(crate) ledger: Arc<Ledger>,
}

/// A broker of ours, and the engine on it.
pub(crate) struct Engine {
    pub(crate) broker: Arc<dyn Broker>,
    hub: Arc<Hub>,
    _directory: TempDir,
}

impl Site {
    /// With keys of its own.
    pub(crate) fn new(server: &Server) -> Self {
        Self { server: server.clone(), settings: settings(server), ledger: Arc::default() }
    }

    /// The same keys for another engine.
    pub(crate) fn elsewhere(&self) -> Self {
        let (server, settings) = (self.server.clone(), self.settings.clone());
        Self { server, settings, ledger: Arc::clone(&self.ledger) }
    }

    /// The same with the proxy in between.
    pub(crate) fn through(mut self, proxy: &Proxy) -> Self {
        self.settings.hosts = vec![host(proxy.address())];
        self
    }

    /// A connection of the engine's kind.
    pub(crate) async fn broker(&self) -> Arc<dyn Broker> {
        let redis = soon("a connection", Redis::connect("redis", self.settings.clone())).await;
        Arc::new(redis.expect("a broker"))
    }

    /// A connection, and the queues of the tests.
    pub(crate) async fn broker_with_queues(&self) -> Arc<dyn Broker> {
        let broker = self.broker().await;
        broker.declare(&[self.queue(WORK), self.queue(DEAD)]).await.expect("declared");
        broker
    }

    /// A queue whose deliveries are another's soon, when their reader is gone.
    pub(crate) fn queue(&self, name: &str) -> Declaration {
        let settings = QueueSettings { storage: Storage::Disk, lease: self.settings.lease, ..QueueSettings::default() };
        Declaration::Queue(name.into(), settings)
    }

    /// An engine whose handler does as `ends` says.
    pub(crate) async fn engine(
        &self,
        attempts_max: u32,
        ends: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
    ) -> Engine {
        self.engine_with(attempts_max, ends, |_| {}).await
    }

    /// The same, changed before it starts.
    pub(crate) async fn engine_with(
        &self,
        attempts_max: u32,
        ends: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
        change: impl FnOnce(&mut Parts),
    ) -> Engine {
        let broker = self.broker().await;
        let ledger = Arc::clone(&self.ledger);
        let mut route = engine::route("work", Address::queue(WORK), "handler");
        route.concurrency = 2;
        route.dead_letter = Address::queue(DEAD);
        let delay = Duration::from_millis(100);
        route.retry = RetryPolicy { attempts_max, delay, factor: 1.0, delay_max: delay, jitter: 0.0 };
        let mut parts = Parts::default().route(route).native("handler", move |call| {
            ledger.begin(call);
            let outcome = ends(call);
            if matches!(outcome, Outcome::Done(_)) {
                ledger.handle(call);
            }
            outcome
        });
        parts.settings.dead_letter = Address::queue(DEAD);
        parts.settings.declarations = vec![self.queue(WORK), self.queue(DEAD)];
        change(&mut parts);
        let (hub, directory) = soon("an engine", parts.start_on(Arc::clone(&broker))).await;
        Engine { broker, hub, _directory: directory }
    }

    /// An engine that handles everything.
    pub(crate) async fn handling(&self) -> Engine {
        self.engine(3, |_| Outcome::Done(Vec::new())).await
    }

    pub(crate) async fn raw(&self) -> Raw {
        Raw::connect(&self.server).await
    }

    /// The ids of what lies in a queue or topic.
    pub(crate) async fn ids(&self, name: &str) -> BTreeSet<String> {
        self.raw().await.ids(&self.settings.key_prefix, name).await
    }

    /// Waits until everything was handled, stops the engine, and checks the sum. Gives the dead letters.
    pub(crate) async fn ends(&self, engine: Engine, sent: &BTreeSet<String>) -> BTreeSet<String> {
        let missing = self.ledger.handles(sent).await;
        if missing.is_empty() {
            engine.ready().await;
        }
        let status = engine.broker.status();
        engine.stop().await;
        let dead = self.accounts(sent, 3).await;
        // None of these is lost, or dead.
        let called: Vec<_> = missing.iter().map(|id| self.ledger.calls().get(id).cloned()).collect();
        assert!(missing.is_empty(), "{} are stuck, called {called:?}; the broker is {status:?}", missing.len());
        dead
    }

    /// Checks the sum, with the engine stopped: nothing is missing, nothing came of itself, and no attempt is above the
    /// limit. Gives the dead letters.
    pub(crate) async fn accounts(&self, sent: &BTreeSet<String>, attempts_max: u32) -> BTreeSet<String> {
        let (pending, dead) = (self.ids(WORK).await, self.ids(DEAD).await);
        let handled = self.ledger.handled();
        let together: BTreeSet<_> = handled.iter().chain(&dead).chain(&pending).cloned().collect();
        let missing: Vec<_> = sent.difference(&together).collect();
        assert!(missing.is_empty(), "{} of {} are lost, among them {:?}", missing.len(), sent.len(), missing.first());
        let strange: Vec<_> = together.difference(sent).collect();
        assert!(strange.is_empty(), "nobody sent these {}: {:?}", strange.len(), strange.first());
        assert!(self.ledger.attempt_max() <= attempts_max, "attempt {}", self.ledger.attempt_max());
        dead
    }
}

impl Engine {
    /// Stops it in good order, its broker with it.
    pub(crate) async fn stop(self) {
        soon("the engine stops", self.hub.stop()).await;
        soon("the broker closes", self.broker.close()).await;
    }

    /// Waits until the broker says what is wrong.
    pub(crate) async fn degraded(&self) -> String {
        degraded(&self.broker).await
    }

    /// Waits until nothing is wrong any more.
    pub(crate) async fn ready(&self) {
        ready(&self.broker).await;
    }
}

/// Connected as everybody may be, with time-outs that keep tests short.
pub(crate) fn settings(server: &Server) -> Settings {
    Settings {
        hosts: vec![host(server.plain())],
        key_prefix: Server::prefix(),
        connect_timeout: Duration::from_secs(3),
        publish_timeout: Duration::from_secs(3),
        reconnect_delay_max: Duration::from_millis(500),
        lease: Duration::from_secs(2),
        ..Settings::default()
    }
}

pub(crate) fn host(address: std::net::SocketAddr) -> Host {
    Host { name: address.ip().to_string(), port: address.port() }
}
