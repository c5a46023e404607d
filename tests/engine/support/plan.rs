//! What an engine is started with, and where its plugins come from.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use helixmq::{
    broker::{Broker, Joined, JoinedSystem, QueueSettings, TopicSettings, embedded},
    handler::{Call, Handler, Loading, PluginSettings, native::Native},
    hub::{Hub, Settings},
    message::{Address, Outcome},
    route::{Route, RouteTable, Watchdog},
};

use super::{DEAD, Engine, Tap};

/// The file of a fixture, which a task builds before the tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/plugins/target/plugins/{name}.wasm"));
    assert!(
        file.exists(),
        "{} is not built; in tests/fixtures/plugins run: cargo build --release --examples --target wasm32-wasip2 && \
         cargo run --features generate --bin generate",
        file.display()
    );
    file
}

/// The file of an example plugin, which a task builds before the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("plugins/target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_")));
    assert!(
        file.exists(),
        "{} is not built; in plugins run: cargo build --release --target wasm32-wasip2",
        file.display()
    );
    file
}

/// What an engine is started with.
pub(crate) struct Plan {
    routes: Vec<Route>,
    natives: Vec<(String, Arc<dyn Handler>)>,
    files: Vec<(PathBuf, String)>,
    plugins: BTreeMap<String, PluginSettings>,
    loading: Loading,
    grace: Duration,
    memory_budget: usize,
    watchdog: Watchdog,
    embedded: embedded::Settings,
    cache: Option<PathBuf>,
}

impl Plan {
    pub(crate) fn new() -> Self {
        let queue = QueueSettings::default();
        let topic = TopicSettings { retention: None, ..TopicSettings::default() };
        Self {
            routes: Vec::new(),
            natives: Vec::new(),
            files: Vec::new(),
            plugins: BTreeMap::new(),
            loading: Loading::default(),
            grace: Duration::from_secs(10),
            memory_budget: 0,
            watchdog: Watchdog::default(),
            embedded: embedded::Settings { auto_create: true, queue, topic, ..embedded::Settings::default() },
            cache: None,
        }
    }

    pub(crate) fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// A fixture under its own name.
    pub(crate) fn plugin(self, name: &str) -> Self {
        self.plugin_as(fixture(name), name)
    }

    /// A file under another name.
    pub(crate) fn plugin_as(mut self, file: PathBuf, name: &str) -> Self {
        self.files.push((file, name.to_owned()));
        self
    }

    pub(crate) fn native(self, name: &str, run: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static) -> Self {
        self.handler(name, Native::new(name, run))
    }

    pub(crate) fn handler(mut self, name: &str, handler: Arc<dyn Handler>) -> Self {
        self.natives.push((name.to_owned(), handler));
        self
    }

    pub(crate) fn settings(mut self, plugin: &str, config: &[(&str, &str)]) -> Self {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.plugins.insert(plugin.to_owned(), PluginSettings { config, ..PluginSettings::default() });
        self
    }

    pub(crate) fn loading(mut self, set: impl FnOnce(&mut Loading)) -> Self {
        set(&mut self.loading);
        self
    }

    /// In bytes.
    pub(crate) fn memory_budget(mut self, bytes: usize) -> Self {
        self.memory_budget = bytes;
        self
    }

    pub(crate) fn grace(mut self, ms: u64) -> Self {
        self.grace = Duration::from_millis(ms);
        self
    }

    pub(crate) fn embedded(mut self, set: impl FnOnce(&mut embedded::Settings)) -> Self {
        set(&mut self.embedded);
        self
    }

    /// A compile cache of its own, so that everything is compiled.
    pub(crate) fn cold(mut self, cache: PathBuf) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Starts on a new broker, and waits until everything serves that should.
    pub(crate) async fn start(self) -> Engine {
        let broker = Arc::new(Tap::new(self.embedded.clone()));
        self.start_on(broker).await
    }

    /// Starts on a broker that is there.
    pub(crate) async fn start_on(self, broker: Arc<Tap>) -> Engine {
        let all = Arc::<Tap>::clone(&broker) as Arc<dyn Broker>;
        self.start_in_front(broker, all).await
    }

    /// Starts on a broker, as `embedded`, and others by their names.
    pub(crate) async fn start_joined(self, others: &[(&str, &Arc<Tap>)]) -> (Engine, Arc<Joined>) {
        let broker = Arc::new(Tap::new(self.embedded.clone()));
        let system = |(name, tap): (&str, &Arc<Tap>)| JoinedSystem { name: name.into(), broker: Arc::clone(tap) as _ };
        let all = others.iter().copied().chain([("embedded", &broker)]).map(system).collect();
        let joined = Arc::new(Joined::new("embedded".into(), "embedded".into(), all));
        (self.start_in_front(broker, Arc::clone(&joined) as _).await, joined)
    }

    async fn start_in_front(self, broker: Arc<Tap>, all: Arc<dyn Broker>) -> Engine {
        let directory = tempfile::tempdir().expect("a directory");
        let plugins = directory.path().join("plugins");
        fs::create_dir(&plugins).expect("made");
        for (file, name) in &self.files {
            fs::copy(file, plugins.join(format!("{name}.wasm"))).expect("copied");
        }
        let settings = Settings {
            plugins_directory: plugins,
            plugins: self.plugins,
            loading: self.loading,
            // Shared by all tests and kept between runs: code is found by the content it was compiled from.
            cache_directory: self.cache.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine-cache")),
            declarations: Vec::new(),
            routes: RouteTable::new(self.routes).expect("routes that go together"),
            dead_letter: Address::queue(DEAD),
            grace: self.grace,
            memory_budget: self.memory_budget,
            watchdog: self.watchdog,
        };
        let program = PathBuf::from(env!("CARGO_BIN_EXE_helixmq"));
        let hub = Hub::start(all, settings, self.natives, program).await;
        let engine = Engine { hub: hub.expect("a hub that starts"), broker, directory };
        engine.hub.ready().await;
        for (_, name) in &self.files {
            assert!(engine.hub.registry().slot(name).serving().is_some(), "{name}: {:?}", engine.receipts(name));
        }
        engine
    }
}
