//! The engine on a Kafka, as `helixmq serve` has it: the broker with its marks of attempts in front, a route, a Rust
//! function for a handler.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use helixmq::{
    broker::{
        Broker, Counted, Declaration, Joined, Storage, TopicSettings,
        embedded::{self, Embedded},
        kafka::{Kafka, Settings},
    },
    handler::Call,
    hub::Hub,
    message::{Address, Outcome},
    settle::RetryPolicy,
    store::{self, Store},
};
use tempfile::TempDir;

use crate::{
    raw::Raw,
    server::{Listener, Server},
    support::{
        degraded,
        engine::{self, Parts},
        ledger::Ledger,
        ready, soon,
    },
};

/// Into how many parts the topic of the tests is divided.
pub(crate) const PARTITIONS: u32 = 3;

/// Where an engine can be started, again and again.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) settings: Settings,
    pub(crate) ledger: Arc<Ledger>,
    /// What is handled, and where dead letters go.
    pub(crate) work: Address,
    pub(crate) dead: Address,
    pub(crate) group: String,
    store: Arc<Store>,
    _directory: TempDir,
}

/// A broker of ours, and the engine on it.
pub(crate) struct Engine {
    pub(crate) broker: Arc<dyn Broker>,
    hub: Arc<Hub>,
    _directory: TempDir,
}

/// What became of messages, besides being handled.
#[derive(Debug)]
pub(crate) struct Account {
    /// Dead letters, by id.
    pub(crate) dead: BTreeSet<String>,
    /// Records in the topic beyond one for each message: published twice, as nobody could say whether they were.
    pub(crate) published_twice: usize,
    /// Calls beyond one for each record.
    pub(crate) called_again: usize,
}

impl Site {
    /// With topics and a group of its own.
    pub(crate) async fn new(server: &Server) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(store::Settings::new(directory.path())).expect("a store");
        Self {
            server: server.clone(),
            settings: settings(server, Listener::Plaintext),
            ledger: Arc::default(),
            work: Address::topic(server.name("work")),
            dead: Address::topic(server.name("dead")),
            group: server.name("group"),
            store,
            _directory: directory,
        }
    }

    /// The same topics and group for another engine, which has a store of its own.
    pub(crate) async fn elsewhere(&self) -> Self {
        let other = Self::new(&self.server).await;
        Self {
            settings: self.settings.clone(),
            ledger: Arc::clone(&self.ledger),
            work: self.work.clone(),
            dead: self.dead.clone(),
            group: self.group.clone(),
            ..other
        }
    }

    /// The same through the proxy of the server.
    pub(crate) fn through_the_proxy(mut self) -> Self {
        self.settings.brokers = vec![self.server.address(Listener::Proxy).to_string()];
        self
    }

    /// A connection of the engine's kind: topics on Kafka, queues in memory.
    pub(crate) async fn broker(&self) -> Arc<dyn Broker> {
        let kafka = soon("a connection", Kafka::connect("kafka", self.settings.clone())).await;
        let counted = Counted::new(Arc::new(kafka.expect("a broker")), Arc::clone(&self.store));
        let queues = Embedded::new("embedded", embedded::Settings::default()).expect("a broker in memory");
        Arc::new(Joined::pair(Arc::new(queues), Arc::new(counted)))
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
        let mut route = engine::route("work", self.work.clone(), "handler");
        route.source.group = self.group.as_str().into();
        route.dead_letter = self.dead.clone();
        route.concurrency = 2;
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
        parts.settings.dead_letter = self.dead.clone();
        parts.settings.declarations = vec![topic(&self.work, PARTITIONS), topic(&self.dead, 1)];
        change(&mut parts);
        let (hub, directory) = soon("an engine", parts.start_on(Arc::clone(&broker))).await;
        Engine { broker, hub, _directory: directory }
    }

    /// An engine that handles everything.
    pub(crate) async fn handling(&self) -> Engine {
        self.engine(3, |_| Outcome::Done(Vec::new())).await
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::new(&self.server)
    }

    /// Waits until everything was handled, stops the engine, and checks the sum.
    pub(crate) async fn ends(&self, engine: Engine, sent: &BTreeSet<String>) -> Account {
        let missing = self.ledger.handles(sent).await;
        if missing.is_empty() {
            engine.ready().await;
        }
        let status = engine.broker.status();
        engine.stop().await;
        let account = self.accounts(sent, 3).await;
        // None of these is lost, or dead.
        let called: Vec<_> = missing.iter().map(|id| self.ledger.calls().get(id).cloned()).collect();
        assert!(missing.is_empty(), "{} are stuck, called {called:?}; the broker is {status:?}", missing.len());
        account
    }

    /// Checks the sum, with the engine stopped: nothing is missing, nothing came of itself, nothing is settled that was
    /// neither handled nor is dead, and no attempt is above the limit.
    pub(crate) async fn accounts(&self, sent: &BTreeSet<String>, attempts_max: u32) -> Account {
        let raw = self.raw();
        let records = raw.read(&self.work.name).await;
        let committed = raw.committed(&self.group, &self.work.name).await;
        let (dead, _) = raw.ids(&self.dead.name).await;
        let handled = self.ledger.handled();
        let mut there = BTreeSet::new();
        let mut skipped = Vec::new();
        for record in &records {
            let id = record.id().expect("a message of the engine's");
            let is_settled = committed.get(&record.partition).is_some_and(|(offset, _)| record.offset < *offset);
            if is_settled && !handled.contains(&id) && !dead.contains(&id) {
                skipped.push((record.partition, record.offset, id.clone()));
            }
            there.insert(id);
        }
        let missing: Vec<_> = sent.difference(&there).collect();
        assert!(missing.is_empty(), "{} of {} are lost, among them {:?}", missing.len(), sent.len(), missing.first());
        assert!(skipped.is_empty(), "{} are settled and were not handled, as {:?}", skipped.len(), skipped.first());
        let strange: Vec<_> = there.iter().chain(&handled).chain(&dead).filter(|id| !sent.contains(*id)).collect();
        assert!(strange.is_empty(), "nobody sent these {}: {:?}", strange.len(), strange.first());
        assert!(self.ledger.attempt_max() <= attempts_max, "attempt {}", self.ledger.attempt_max());
        let calls: usize = self.ledger.calls().values().map(Vec::len).sum();
        Account {
            dead,
            published_twice: records.len() - there.len(),
            called_again: calls.saturating_sub(records.len()),
        }
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
pub(crate) fn settings(server: &Server, listener: Listener) -> Settings {
    Settings {
        brokers: vec![server.address(listener).to_string()],
        connect_timeout: Duration::from_secs(3),
        publish_timeout: Duration::from_secs(5),
        // Longer than a server that is killed takes to come back.
        session_timeout: Duration::from_secs(30),
        heartbeat_interval: Duration::from_millis(300),
        metadata_interval: Duration::from_secs(1),
        statistics_interval: Duration::from_millis(200),
        // A connection that is silent for so long is given up.
        extra: BTreeMap::from([("socket.timeout.ms".to_owned(), "3000".to_owned())]),
        ..Settings::default()
    }
}

pub(crate) fn topic(address: &Address, partitions: u32) -> Declaration {
    let settings = TopicSettings { partitions, storage: Storage::Disk, ..TopicSettings::default() };
    Declaration::Topic(std::sync::Arc::clone(&address.name), settings)
}
