//! An engine on the embedded broker, with handlers that are Rust functions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use helixmq::{
    broker::{
        Aside, Broker, Declaration, QueueSettings, Start, TopicSettings,
        embedded::{Embedded, Settings as EmbeddedSettings},
    },
    handler::{Call, Handler, Isolation, Limits, Terms, native::Native},
    hub::{Hub, Settings},
    message::{Address, Outcome},
    route::{CrashBudget, Delivery, Match, Order, OutageBrake, Route, RouteTable, Source, Watchdog},
    settle::RetryPolicy,
};

/// What an engine is made of. The directory goes with it.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) routes: Vec<Route>,
    pub(crate) natives: Vec<(String, Arc<dyn Handler>)>,
    pub(crate) directory: tempfile::TempDir,
}

impl Default for Parts {
    fn default() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let plugins = directory.path().join("plugins");
        std::fs::create_dir(&plugins).expect("a plugins directory");
        let dead_letter = Address::queue("dlq");
        let settings = Settings {
            plugins_directory: plugins,
            plugins: BTreeMap::new(),
            loading: helixmq::handler::Loading::default(),
            cache_directory: directory.path().join("cache"),
            declarations: vec![queue("dlq")],
            routes: RouteTable::default(),
            dead_letter,
            grace: Duration::from_secs(5),
            memory_budget: 0,
            watchdog: Watchdog::default(),
        };
        Self { settings, routes: Vec::new(), natives: Vec::new(), directory }
    }
}

impl Parts {
    /// Another declaration.
    #[must_use]
    pub(crate) fn declare(mut self, declaration: Declaration) -> Self {
        self.settings.declarations.push(declaration);
        self
    }

    /// Another route.
    #[must_use]
    pub(crate) fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Another handler.
    #[must_use]
    pub(crate) fn native(mut self, name: &str, run: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static) -> Self {
        self.natives.push((name.to_owned(), Native::new(name, run)));
        self
    }

    /// Starts it. What is given back besides must live as long.
    pub(crate) async fn start(self) -> (Arc<Hub>, tempfile::TempDir) {
        self.start_on(Arc::new(Embedded::new("embedded", EmbeddedSettings::default()).expect("a broker"))).await
    }

    /// Starts it on a broker of the test's own.
    pub(crate) async fn start_on(mut self, broker: Arc<dyn Broker>) -> (Arc<Hub>, tempfile::TempDir) {
        self.settings.routes = RouteTable::new(self.routes).expect("routes");
        let program = env!("CARGO_BIN_EXE_helixmq").into();
        let hub = Hub::start(broker, self.settings, self.natives, program).await.expect("an engine");
        (Arc::new(hub), self.directory)
    }
}

/// A queue with the defaults.
pub(crate) fn queue(name: &str) -> Declaration {
    Declaration::Queue(name.into(), QueueSettings::default())
}

/// A queue that holds so many messages.
pub(crate) fn queue_of(name: &str, length_max: u64) -> Declaration {
    Declaration::Queue(name.into(), QueueSettings { length_max: Some(length_max), ..QueueSettings::default() })
}

/// A topic with so many partitions.
pub(crate) fn topic(name: &str, partitions: u32) -> Declaration {
    Declaration::Topic(name.into(), TopicSettings { partitions, ..TopicSettings::default() })
}

/// A route that takes everything, one message at a time, and gives up after one attempt.
pub(crate) fn route(name: &str, source: Address, handler: &str) -> Route {
    Route {
        name: name.into(),
        source: Source { address: source, group: "group".into(), start: Start::Earliest, aside: Aside::default() },
        matches: Match::default(),
        handler: handler.into(),
        order: Order::None,
        delivery: Delivery::default(),
        concurrency: 1,
        terms: Arc::new(Terms {
            route: name.into(),
            isolation: Isolation::Instance,
            limits: Limits::default(),
            destinations: BTreeMap::new(),
            may_reply: false,
        }),
        retry: RetryPolicy { attempts_max: 1, ..RetryPolicy::default() },
        dead_letter: Address::queue("dlq"),
        crash_budget: CrashBudget::default(),
        // Many fail the same way in tests, and that is no outage behind the handler.
        outage: OutageBrake { failures_max: 0, ..OutageBrake::default() },
    }
}
