//! The engine on a RabbitMQ, as `helixmq serve` has it: the broker behind the ledger of attempts, a route, a Rust function
//! for a handler.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use helixmq::{
    broker::{
        Broker, Counted, Declaration, QueueSettings, Storage,
        rabbitmq::{Credentials, Host, RabbitMq, Settings, topology::QueueKind},
    },
    handler::Call,
    hub::Hub,
    message::{Address, Outcome, Secret},
    settle::{DeadLetter, RetryPolicy},
    store::{self, Store},
};
use lapin::message::Delivery;
use tempfile::TempDir;

use crate::{
    raw::Raw,
    server::{Server, Vhost},
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
pub(crate) const DEAD: &str = "dlq";

/// Where an engine can be started, again and again.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) vhost: Vhost,
    pub(crate) settings: Settings,
    pub(crate) ledger: Arc<Ledger>,
    store: Arc<Store>,
    _directory: TempDir,
}

/// A broker of ours, and the engine on it.
pub(crate) struct Engine {
    pub(crate) broker: Arc<dyn Broker>,
    hub: Arc<Hub>,
    _directory: TempDir,
}

impl Site {
    /// In a virtual host of its own, with queues of one kind.
    pub(crate) async fn new(server: &Server, kind: QueueKind) -> Self {
        let vhost = server.vhost().await;
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(store::Settings::new(directory.path())).expect("a store");
        let settings = settings(&vhost, kind);
        Self { vhost, settings, ledger: Arc::default(), store, _directory: directory }
    }

    /// The same with the proxy in between.
    pub(crate) fn through(mut self, proxy: &Proxy) -> Self {
        let address = proxy.address();
        self.settings.hosts = vec![Host { name: address.ip().to_string(), port: address.port() }];
        self
    }

    /// A connection of the engine's kind.
    pub(crate) async fn broker(&self) -> Arc<dyn Broker> {
        let rabbit = soon("a connection", RabbitMq::connect("rabbitmq", self.settings.clone())).await;
        Arc::new(Counted::new(Arc::new(rabbit.expect("a broker")), Arc::clone(&self.store)))
    }

    /// A connection, and the queues of the tests.
    pub(crate) async fn broker_with_queues(&self) -> Arc<dyn Broker> {
        let broker = self.broker().await;
        broker.declare(&[queue(WORK), queue(DEAD)]).await.expect("declared");
        broker
    }

    /// An engine whose handler does as `ends` says.
    pub(crate) async fn engine(
        &self,
        attempts_max: u32,
        ends: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
    ) -> Engine {
        self.engine_on(self.broker().await, attempts_max, ends).await
    }

    pub(crate) async fn engine_on(
        &self,
        broker: Arc<dyn Broker>,
        attempts_max: u32,
        ends: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
    ) -> Engine {
        let ledger = Arc::clone(&self.ledger);
        let mut route = engine::route("work", Address::queue(WORK), "handler");
        route.concurrency = 2;
        let delay = Duration::from_millis(100);
        route.retry = RetryPolicy { attempts_max, delay, factor: 1.0, delay_max: delay, jitter: 0.0 };
        let mut parts = Parts::default().declare(queue(WORK)).route(route).native("handler", move |call| {
            ledger.begin(call);
            let outcome = ends(call);
            if matches!(outcome, Outcome::Done(_)) {
                ledger.handle(call);
            }
            outcome
        });
        parts.settings.declarations[0] = queue(DEAD);
        let (hub, directory) = soon("an engine", parts.start_on(Arc::clone(&broker))).await;
        Engine { broker, hub, _directory: directory }
    }

    /// An engine that handles everything.
    pub(crate) async fn handling(&self) -> Engine {
        self.engine(3, |_| Outcome::Done(Vec::new())).await
    }

    pub(crate) async fn raw(&self) -> Raw {
        Raw::connect(&self.vhost).await
    }

    /// Waits until everything was handled, stops the engine, and checks the sum. Gives the dead letters.
    pub(crate) async fn ends(&self, engine: Engine, sent: &BTreeSet<String>) -> Vec<Delivery> {
        let missing = self.ledger.handles(sent).await;
        if missing.is_empty() {
            engine.ready().await;
        }
        let status = engine.broker.status();
        engine.stop().await;
        let letters = self.accounts(sent, 3).await;
        // None of these is lost, or dead.
        let called: Vec<_> = missing.iter().map(|id| self.ledger.calls().get(id).cloned()).collect();
        assert!(missing.is_empty(), "{} are stuck, called {called:?}; the broker is {status:?}", missing.len());
        letters
    }

    /// Checks the sum, with the engine stopped: nothing is missing, nothing came of itself, and no attempt is above the
    /// limit. Gives the dead letters.
    pub(crate) async fn accounts(&self, sent: &BTreeSet<String>, attempts_max: u32) -> Vec<Delivery> {
        let raw = self.raw().await;
        let pending = ids(&raw.drain(WORK).await);
        let letters = raw.drain(DEAD).await;
        let dead = ids(&letters);
        let handled = self.ledger.handled();
        let together: BTreeSet<_> = handled.iter().chain(&dead).chain(&pending).cloned().collect();
        let missing: Vec<_> = sent.difference(&together).collect();
        assert!(missing.is_empty(), "{} of {} are lost, among them {:?}", missing.len(), sent.len(), missing.first());
        let strange: Vec<_> = together.difference(sent).collect();
        assert!(strange.is_empty(), "nobody sent these {}: {:?}", strange.len(), strange.first());
        assert!(self.ledger.attempt_max() <= attempts_max, "attempt {}", self.ledger.attempt_max());
        letters
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

/// Connected to a virtual host as everybody may be, with time-outs that keep tests short.
pub(crate) fn settings(vhost: &Vhost, kind: QueueKind) -> Settings {
    let address = vhost.server().amqp();
    Settings {
        hosts: vec![Host { name: address.ip().to_string(), port: address.port() }],
        vhost: vhost.name().to_owned(),
        credentials: Credentials::Plain { user: "guest".into(), password: Secret::new("guest") },
        heartbeat: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(3),
        publish_timeout: Duration::from_secs(3),
        reconnect_delay_max: Duration::from_secs(1),
        queue_kind: kind,
        ..Settings::default()
    }
}

/// A queue without priorities, which quorum queues do not have either.
pub(crate) fn queue(name: &str) -> Declaration {
    let settings = QueueSettings { priority_max: 0, storage: Storage::Disk, ..QueueSettings::default() };
    Declaration::Queue(name.into(), settings)
}

/// The ids of messages as they lie in a queue.
pub(crate) fn ids(messages: &[Delivery]) -> BTreeSet<String> {
    let id = |one: &Delivery| one.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    messages.iter().map(id).collect()
}

/// The record of a dead letter, and its message.
pub(crate) async fn letters(site: &Site, count: usize) -> Vec<(DeadLetter, Arc<helixmq::message::Message>)> {
    let broker = site.broker().await;
    let read = crate::reader::take(&broker, DEAD, count).await;
    soon("the broker closes", broker.close()).await;
    read.into_iter().map(|message| (DeadLetter::read(&message).expect("a dead letter"), message)).collect()
}
