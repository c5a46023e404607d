//! The whole engine on the embedded broker, without a network: plugins from the fixtures in a folder of their own, a
//! broker in front of the broker that keeps a ledger of everything that passes, and patience instead of sleep.
//!
//! Start at [`Plan`]; a started one is an [`Engine`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerError, Browse, BrowseAt, Capabilities, Declaration, Deliveries,
        KeepAlive, Page, PublishError, PublishFailures, QueueSettings, Settler, Start, Subscribe, Subscription, Tag,
        TopicSettings,
        embedded::{self, Embedded},
    },
    handler::{
        Call, Handler, Isolation, Limits, Loading, PluginSettings, Receipt, ReloadResult, Terms, native::Native,
    },
    hub::{BrakeState, Hub, RouteStatus, Settings},
    message::{Address, FailedAttempt, Message, Outcome, ReasonCode, Settlement, now_ms},
    route::{CrashBudget, Match, Order, Route, RouteTable, Source},
    settle::{DeadLetter, RetryPolicy},
};

/// Longer than anything that should happen takes, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Where dead letters go.
pub(crate) const DEAD: &str = "dead";

/// Looks again until it is so, without a guess at how long that takes.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A message that says its name.
pub(crate) fn message(name: impl Into<String>) -> Message {
    Message::new("test.message", name.into(), now_ms())
}

/// The same with a key.
pub(crate) fn keyed(key: &str, name: impl Into<String>) -> Message {
    Message { key: Some(key.to_owned().into()), ..message(name) }
}

/// The same with headers: what most fixtures are told by.
pub(crate) fn with_headers(mut message: Message, headers: &[(&str, &str)]) -> Message {
    for (name, value) in headers {
        message.headers.append(name, value);
    }
    message
}

/// The same of another type.
pub(crate) fn of_type(kind: &str, message: Message) -> Message {
    Message { kind: kind.into(), ..message }
}

/// The payload as text.
pub(crate) fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// The ids, each once.
pub(crate) fn ids<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeSet<String> {
    messages.into_iter().map(|message| message.id.to_string()).collect()
}

/// A route from a source to a handler, which may publish to `out`, is tried three times at once, and never braked.
pub(crate) fn route(source: Address, handler: &str) -> Route {
    let name: Arc<str> = format!("{}-{handler}", source.name).into();
    Route {
        name: Arc::clone(&name),
        source: Source { address: source, group: "engine".into(), start: Start::Earliest },
        matches: Match::default(),
        handler: handler.into(),
        order: Order::None,
        concurrency: 1,
        terms: Arc::new(Terms {
            route: name,
            isolation: Isolation::Instance,
            limits: Limits::default(),
            destinations: [("out".into(), Address::queue("out"))].into_iter().collect(),
            may_reply: false,
        }),
        retry: RetryPolicy {
            attempts_max: 3,
            delay: Duration::from_millis(10),
            factor: 1.0,
            delay_max: Duration::from_millis(10),
            jitter: 0.0,
        },
        dead_letter: Address::queue(DEAD),
        crash_budget: CrashBudget { failures_max: u32::MAX, ..CrashBudget::default() },
    }
}

/// A route from a queue.
pub(crate) fn from_queue(queue: &str, handler: &str) -> Route {
    route(Address::queue(queue), handler)
}

/// A route from a topic.
pub(crate) fn from_topic(topic: &str, handler: &str) -> Route {
    route(Address::topic(topic), handler)
}

/// What tests say of a route, in a chain.
pub(crate) trait RouteExt: Sized {
    fn named(self, name: &str) -> Self;
    fn ordered(self, order: Order) -> Self;
    fn lanes(self, concurrency: usize) -> Self;
    fn attempts(self, attempts_max: u32) -> Self;
    fn limits(self, set: impl FnOnce(&mut Limits)) -> Self;
    fn terms(self, set: impl FnOnce(&mut Terms)) -> Self;
    fn types(self, patterns: &[&str]) -> Self;
    fn timeout(self, ms: u64) -> Self {
        self.limits(|limits| limits.timeout = Duration::from_millis(ms))
    }
    fn to(self, name: &str, address: Address) -> Self {
        self.terms(|terms| drop(terms.destinations.insert(name.into(), address)))
    }
    fn isolated(self, isolation: Isolation) -> Self {
        self.terms(|terms| terms.isolation = isolation)
    }
}

impl RouteExt for Route {
    fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self.terms(|terms| terms.route = name.into())
    }

    fn ordered(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    fn lanes(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    fn attempts(mut self, attempts_max: u32) -> Self {
        self.retry.attempts_max = attempts_max;
        self
    }

    fn limits(self, set: impl FnOnce(&mut Limits)) -> Self {
        self.terms(|terms| set(&mut terms.limits))
    }

    fn terms(mut self, set: impl FnOnce(&mut Terms)) -> Self {
        set(Arc::make_mut(&mut self.terms));
        self
    }

    fn types(mut self, patterns: &[&str]) -> Self {
        self.matches.types = patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
        self
    }
}

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
        };
        let program = PathBuf::from(env!("CARGO_BIN_EXE_helixmq"));
        let hub = Hub::start(Arc::<Tap>::clone(&broker) as Arc<dyn Broker>, settings, self.natives, program).await;
        let engine = Engine { hub: hub.expect("a hub that starts"), broker, directory };
        engine.hub.ready().await;
        for (_, name) in &self.files {
            assert!(engine.hub.registry().slot(name).serving().is_some(), "{name}: {:?}", engine.receipts(name));
        }
        engine
    }
}

/// An engine that runs.
pub(crate) struct Engine {
    pub(crate) hub: Hub,
    pub(crate) broker: Arc<Tap>,
    directory: tempfile::TempDir,
}

impl Engine {
    /// The plugins directory.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.directory.path().join("plugins")
    }

    /// A place beside it, on the same file system.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file where the engine looks for a plugin, as a careful deployment does: whole, or not at all.
    pub(crate) fn install(&self, file: &Path, name: &str) {
        let whole = self.beside(&format!("{name}.new"));
        fs::copy(file, &whole).expect("copied");
        fs::rename(whole, self.plugins().join(format!("{name}.wasm"))).expect("renamed");
    }

    pub(crate) async fn send(&self, to: &Address, messages: impl IntoIterator<Item = Message>) -> Vec<Arc<Message>> {
        let messages: Vec<_> = messages.into_iter().map(Arc::new).collect();
        self.broker.inner.publish(to, messages.clone()).await.expect("confirmed");
        messages
    }

    pub(crate) async fn send_to_queue(
        &self,
        queue: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Arc<Message>> {
        self.send(&Address::queue(queue), messages).await
    }

    pub(crate) async fn send_to_topic(
        &self,
        topic: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Arc<Message>> {
        self.send(&Address::topic(topic), messages).await
    }

    /// What the engine published to a queue, in that order.
    pub(crate) fn published(&self, queue: &str) -> Vec<Arc<Message>> {
        self.broker.published(&Address::queue(queue))
    }

    /// The payloads of what it published to `out`.
    pub(crate) fn out(&self) -> Vec<String> {
        self.published("out").iter().map(|message| text(message)).collect()
    }

    /// The dead letters, with what is known of each.
    pub(crate) fn dead(&self) -> Vec<Dead> {
        let read = |message: &Arc<Message>| Dead {
            letter: DeadLetter::read(message).expect("a dead letter"),
            message: Arc::clone(message),
        };
        self.published(DEAD).iter().map(read).collect()
    }

    /// The only dead letter, when there is one.
    pub(crate) async fn one_dead(&self) -> Dead {
        self.some_dead(1).await.remove(0)
    }

    /// So many dead letters, when they are there.
    pub(crate) async fn some_dead(&self, count: usize) -> Vec<Dead> {
        eventually(&format!("there are {count} dead letters"), || self.dead().len() >= count).await;
        let dead = self.dead();
        assert_eq!(dead.len(), count, "{dead:?}");
        dead
    }

    pub(crate) fn stats(&self, of: &Address) -> AddressStats {
        self.broker.stats().into_iter().find(|stats| stats.address == *of).expect("a queue or topic of that name")
    }

    /// Messages of a source that are not settled for good.
    pub(crate) fn left(&self, source: &Address) -> u64 {
        let stats = self.stats(source);
        match stats.lag.iter().find(|(group, _)| &**group == "engine") {
            Some((_, lag)) => *lag,
            None => stats.ready + stats.delayed + stats.unsettled,
        }
    }

    /// Waits until everything of that queue is settled.
    pub(crate) async fn queue_done(&self, queue: &str) {
        self.done(&Address::queue(queue)).await;
    }

    /// Waits until everything of that topic is settled.
    pub(crate) async fn topic_done(&self, topic: &str) {
        self.done(&Address::topic(topic)).await;
    }

    async fn done(&self, source: &Address) {
        let begin = Instant::now();
        while self.left(source) > 0 {
            assert!(
                begin.elapsed() < PATIENCE,
                "{source} is not done: {:?}, routes {:?}, dead {:?}",
                self.stats(source),
                self.hub.routes(),
                self.dead().last()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn receipts(&self, plugin: &str) -> Vec<Receipt> {
        self.hub.registry().slot(plugin).receipts()
    }

    /// The last refusal of a plugin, in words.
    pub(crate) fn refusal(&self, plugin: &str) -> Option<String> {
        match self.receipts(plugin).pop()?.result {
            ReloadResult::Refused(reason) => Some(reason),
            _ => None,
        }
    }

    /// The digest that serves.
    pub(crate) fn digest(&self, plugin: &str) -> Option<String> {
        self.hub.registry().slot(plugin).identity().map(|identity| identity.digest)
    }

    pub(crate) fn status(&self, route: &str) -> RouteStatus {
        self.hub.routes().into_iter().find(|status| &*status.route == route).expect("a route of that name")
    }

    pub(crate) async fn brake(&self, route: &str, state: BrakeState) {
        eventually(&format!("route {route} is {state:?}"), || {
            self.hub.routes().iter().any(|status| &*status.route == route && status.brake == state)
        })
        .await;
    }

    /// Stops the engine, and leaves its broker as it is. Bounded, so that a drain that hangs fails its test.
    pub(crate) async fn stop(self) -> Arc<Tap> {
        tokio::time::timeout(PATIENCE, self.hub.stop()).await.expect("an end");
        self.broker
    }
}

/// A dead letter.
#[derive(Debug, Clone)]
pub(crate) struct Dead {
    pub(crate) letter: DeadLetter,
    pub(crate) message: Arc<Message>,
}

impl Dead {
    pub(crate) fn code(&self) -> ReasonCode {
        self.letter.code
    }

    /// Numbers and codes of its failed attempts.
    pub(crate) fn history(&self) -> Vec<(u32, ReasonCode)> {
        self.letter.attempts.iter().map(|attempt| (attempt.attempt, attempt.code)).collect()
    }
}

/// Something that passed.
#[derive(Clone, Debug)]
pub(crate) enum Passed {
    /// A message was published and confirmed.
    Published(Address, Arc<Message>),
    /// A message was refused.
    Refused,
    /// A delivery of a message, by its id, on this attempt, was settled.
    Settled(String, u32, Settlement),
    /// A delivery was dropped, and went back.
    Dropped,
}

type Refuse = Box<dyn FnMut(&Address, &Message) -> bool + Send>;

/// A broker in front of the embedded one: keeps a ledger of what passes, refuses what it is told to, breaks
/// subscriptions, and stays open when an engine closes it.
pub(crate) struct Tap {
    pub(crate) inner: Embedded,
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Mutex<Vec<Passed>>,
    refuse: Mutex<Option<Refuse>>,
    breaks: AtomicU32,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Vec<Passed>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Tap {
    pub(crate) fn new(settings: embedded::Settings) -> Self {
        let shared = Shared { ledger: Mutex::default(), refuse: Mutex::default(), breaks: AtomicU32::new(0) };
        Self { inner: Embedded::new("embedded", settings).expect("settings that can work"), shared: Arc::new(shared) }
    }

    /// Everything so far, in order.
    pub(crate) fn ledger(&self) -> Vec<Passed> {
        self.shared.ledger().clone()
    }

    /// What was published and confirmed at one address, in order.
    pub(crate) fn published(&self, at: &Address) -> Vec<Arc<Message>> {
        self.shared
            .ledger()
            .iter()
            .filter_map(|passed| match passed {
                Passed::Published(to, message) if to == at => Some(Arc::clone(message)),
                _ => None,
            })
            .collect()
    }

    /// How the deliveries of one message were settled, in order.
    pub(crate) fn settlements(&self, of: &Message) -> Vec<Settlement> {
        let id = of.id.to_string();
        self.shared
            .ledger()
            .iter()
            .filter_map(|passed| match passed {
                Passed::Settled(settled, _, how) if *settled == id => Some(how.clone()),
                _ => None,
            })
            .collect()
    }

    /// From now on, what this says yes to is not published.
    pub(crate) fn refuse(&self, refuse: impl FnMut(&Address, &Message) -> bool + Send + 'static) {
        *self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(refuse));
    }

    /// Everything is published again.
    pub(crate) fn recover(&self) {
        *self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The next so many batches end in an error instead, and their subscription with them.
    pub(crate) fn break_subscriptions(&self, times: u32) {
        self.shared.breaks.store(times, Ordering::SeqCst);
    }

    /// What lies at an address, without taking it.
    pub(crate) async fn lies_at(&self, from: &Address) -> Vec<Arc<Message>> {
        let at = BrowseAt::Start(Start::Earliest);
        let page = self.inner.browse(Browse { from: from.clone(), at, limit: usize::MAX }).await.expect("a page");
        page.items.into_iter().map(|item| item.message).collect()
    }
}

#[async_trait]
impl Broker for Tap {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let refused: Vec<bool> = {
            let mut refuse = self.shared.refuse.lock().unwrap_or_else(PoisonError::into_inner);
            messages.iter().map(|message| refuse.as_mut().is_some_and(|refuse| refuse(to, message))).collect()
        };
        let mut failures = Vec::new();
        // One by one, so that the ledger has what the broker has, in its order.
        for (place, (message, refused)) in messages.into_iter().zip(refused).enumerate() {
            if refused {
                self.shared.ledger().push(Passed::Refused);
                failures.push((place, PublishError::Unconfirmed("refused by the test".to_owned())));
            } else if let Err(error) = self.inner.publish(to, vec![Arc::clone(&message)]).await {
                failures.extend(error.0.into_iter().map(|(_, error)| (place, error)));
            } else {
                self.shared.ledger().push(Passed::Published(to.clone(), message));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(PublishFailures(failures)) }
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let inner = self.inner.subscribe(request).await?;
        let shared = Arc::clone(&self.shared);
        let settler = TapSettler { inner: OnceLock::new(), names: Mutex::default(), shared };
        Ok(Box::new(TapSubscription { inner, settler: Arc::new(settler) }))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.inner.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.inner.stats()
    }

    async fn close(&self) {}
}

#[derive(Debug)]
struct TapSubscription {
    inner: Box<dyn Subscription>,
    settler: Arc<TapSettler>,
}

#[async_trait]
impl Subscription for TapSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let Some(deliveries) = self.inner.next(max).await? else { return Ok(None) };
        let breaks = |left: u32| left.checked_sub(1);
        if self.settler.shared.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, breaks).is_ok() {
            let cause = "broken by the test".into();
            return Err(BrokerError::Unreachable { endpoint: "embedded".into(), timeout: Duration::ZERO, cause });
        }
        Ok(Some(deliveries.settled_by(|items, inner| {
            let names = items.iter().map(|item| (item.tag, (item.message.id.to_string(), item.attempt)));
            self.settler.names.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
            self.settler.inner.get_or_init(|| inner);
            Arc::<TapSettler>::clone(&self.settler)
        })))
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Settles for one subscription.
#[derive(Debug)]
struct TapSettler {
    /// The same for every batch.
    inner: OnceLock<Arc<dyn Settler>>,
    names: Mutex<BTreeMap<Tag, (String, u32)>>,
    shared: Arc<Shared>,
}

impl TapSettler {
    fn name(&self, tag: Tag) -> (String, u32) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag).unwrap_or_default()
    }

    fn inner(&self) -> &Arc<dyn Settler> {
        self.inner.get().expect("a batch came before its settlement")
    }
}

#[async_trait]
impl Settler for TapSettler {
    async fn settle(&self, settled: Vec<(Tag, Settlement)>) -> Result<(), BrokerError> {
        let named = settled.iter().map(|(tag, how)| (self.name(*tag), how.clone()));
        let passed: Vec<_> = named.map(|((id, attempt), how)| Passed::Settled(id, attempt, how)).collect();
        self.shared.ledger().extend(passed);
        self.inner().settle(settled).await
    }

    async fn count_attempt(&self, tag: Tag, failure: FailedAttempt) -> Result<(), BrokerError> {
        if let Some((_, attempt)) = self.names.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&tag) {
            *attempt += 1;
        }
        self.inner().count_attempt(tag, failure).await
    }

    fn release(&self, tags: Vec<Tag>) {
        self.shared.ledger().extend(tags.iter().map(|tag| {
            self.name(*tag);
            Passed::Dropped
        }));
        self.inner().release(tags);
    }
}
