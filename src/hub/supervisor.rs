//! The hub: one owner of every task and thread. It starts what the settings ask for, changes what they change, and
//! stops in three steps: no new deliveries, what is in flight may end, the rest goes back to its broker.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    budget::Budget,
    condition::Condition,
    drain::{Drain, say_while},
    error::StartError,
    exchange::Exchange,
    meters,
    outlet::BrokerOutlet,
    parts::Ending,
    plugins::{Loader, LoaderSettings},
    running::{self, LaneEnd, RouteStatus, Running},
    sweep::Sweep,
};
use crate::{
    broker::{Broker, BrokerError, BrokerStatus, Declaration},
    handler::{
        Handler, Isolation, LaneContext, Limits, Loading, PluginSettings, Registry, Terms, component::ComponentEngine,
    },
    message::Address,
    route::{Route, RouteTable, Watchdog},
};

/// How often depths are counted.
const STATS_EVERY: Duration = Duration::from_secs(1);

/// What the hub runs by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Watched for plugins.
    pub plugins_directory: PathBuf,
    /// By plugin name.
    pub plugins: BTreeMap<String, PluginSettings>,
    /// What loading a plugin may cost.
    pub loading: Loading,
    /// Where compiled plugins are kept.
    pub cache_directory: PathBuf,
    /// Queues and topics to make.
    pub declarations: Vec<Declaration>,
    /// The routes.
    pub routes: RouteTable,
    /// Where dead letters go that no route sends elsewhere.
    pub dead_letter: Address,
    /// How long a drain waits for calls that are running.
    pub grace: Duration,
    /// Bytes that messages may take while they pass through; 0: no limit.
    pub memory_budget: usize,
    /// When a subscription that brings nothing is begun anew.
    pub watchdog: Watchdog,
}

impl Default for Settings {
    /// No queues, topics and routes; plugins in `plugins-enabled`, what is compiled of them in `.helixmq/compiled`.
    fn default() -> Self {
        Self {
            plugins_directory: "plugins-enabled".into(),
            plugins: BTreeMap::new(),
            loading: Loading::default(),
            cache_directory: ".helixmq/compiled".into(),
            declarations: Vec::new(),
            routes: RouteTable::default(),
            dead_letter: Address::queue(crate::broker::topology::DEAD_LETTER_QUEUE),
            grace: Duration::from_secs(30),
            memory_budget: 1 << 30,
            watchdog: Watchdog::default(),
        }
    }
}

/// Handle on a running engine.
#[derive(Debug)]
pub struct Hub {
    broker: Arc<dyn Broker>,
    registry: Arc<Registry>,
    settings: Arc<Mutex<Settings>>,
    commands: mpsc::Sender<Command>,
    statuses: Arc<Mutex<Vec<RouteStatus>>>,
    ready: watch::Receiver<bool>,
    failure: watch::Receiver<Option<String>>,
    stop: CancellationToken,
    owner: Mutex<JoinSet<()>>,
    subscribing: tokio::sync::Mutex<()>,
}

enum Command {
    Apply(Box<Settings>, Option<Exchange>, oneshot::Sender<Result<(), StartError>>),
}

impl Hub {
    /// Starts an engine on a broker. `natives` are Rust handlers by name; `program` is our own binary, which compiles
    /// plugins in a child process.
    ///
    /// # Errors
    /// [`StartError`]: correct what it names; nothing runs.
    pub async fn start(
        broker: Arc<dyn Broker>,
        settings: Settings,
        natives: Vec<(String, Arc<dyn Handler>)>,
        program: PathBuf,
    ) -> Result<Self, StartError> {
        let engine = Arc::new(ComponentEngine::new().map_err(|error| StartError::Engine(format!("{error:#}")))?);
        let registry = Arc::new(Registry::default());
        for (name, handler) in natives {
            registry.slot(&name).serve(handler, Duration::ZERO, false);
        }
        let outlet = Arc::new(BrokerOutlet::new(Arc::clone(&broker)));
        let stop = CancellationToken::new();
        let failure = watch::Sender::new(None);
        let failed = failure.subscribe();
        let mut condition = Condition::new(failure, stop.clone());
        // Whatever takes long from here on, who looks on knows why.
        condition.look(&*broker);
        declare(&*broker, &settings.declarations).await?;
        let budget = Budget::new(settings.memory_budget);
        outlet.declare().await.map_err(|error| StartError::of(&*broker, None, error))?;
        let (commands, received) = mpsc::channel(8);
        let (plugins_changed, changed) = mpsc::channel(8);
        let ready = watch::Sender::new(false);
        let is_ready = ready.subscribe();
        let loader_settings = Arc::new(Mutex::new(loader_settings(&settings, &program)));
        let settings = Arc::new(Mutex::new(settings));
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let (lane_ended, lane_ends) = mpsc::channel(64);
        let mut supervisor = Supervisor {
            broker: Arc::clone(&broker),
            registry: Arc::clone(&registry),
            outlet: Arc::clone(&outlet),
            settings: Arc::clone(&settings),
            loader_settings: Arc::clone(&loader_settings),
            plugins_changed,
            running: BTreeMap::new(),
            loading: Ending::new(),
            lane_ended,
            statuses: Arc::clone(&statuses),
            program,
            condition,
            budget,
        };
        let table = supervisor.current().routes;
        if let Err(error) = supervisor.start_missing(&table).await {
            supervisor.running.values().for_each(Running::stop_taking);
            return Err(error);
        }
        supervisor.show();
        let loader = Loader {
            engine,
            registry: Arc::clone(&registry),
            context: supervisor.first_instance_context(),
            settings: loader_settings,
            changed,
            ready,
        };
        let mut owner = JoinSet::new();
        owner.spawn(supervisor.run(loader, received, lane_ends, stop.clone()));
        let owner = Mutex::new(owner);
        Ok(Self {
            broker,
            registry,
            settings,
            commands,
            statuses,
            ready: is_ready,
            failure: failed,
            stop,
            owner,
            subscribing: Default::default(),
        })
    }

    /// The broker messages go through.
    #[must_use]
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// Which version of which handler serves.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Held while settings are built on those in force.
    pub(super) fn subscribing(&self) -> &tokio::sync::Mutex<()> {
        &self.subscribing
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How each route is doing.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteStatus> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every plugin that was there at the start has been looked at.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Waits until [`Self::is_ready`].
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        // Fails only when the hub has stopped: nobody waits for it then.
        ready.wait_for(|ready| *ready).await.ok();
    }

    /// Waits until the broker has failed, and gives the reason. By then the engine is [stopping](Self::is_stopping):
    /// nothing is confirmed any more until the broker is opened anew.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // It has stopped without.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether it is stopping.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Replaces the settings: routes that did not change go on undisturbed, the others end between two batches and
    /// begin anew. Systems that are exchanged end what reads from them or publishes to them in the same way.
    ///
    /// # Errors
    /// [`StartError`]: the settings before go on.
    pub async fn apply(&self, settings: Settings, exchange: Option<Exchange>) -> Result<(), StartError> {
        let (done, applied) = oneshot::channel();
        self.commands
            .send(Command::Apply(Box::new(settings), exchange, done))
            .await
            .map_err(|_| StartError::Stopping)?;
        applied.await.map_err(|_| StartError::Stopping)?
    }

    /// Stops: takes nothing new, lets what is running end within the grace period, gives the rest back.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut owner = std::mem::take(&mut *self.owner.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(ended) = owner.join_next().await {
            if let Err(error) = ended {
                tracing::error!("the supervisor did not end well: {error}");
            }
        }
        say_while("closing the connections", self.broker.close()).await;
    }
}

pub(super) struct Supervisor {
    pub(super) broker: Arc<dyn Broker>,
    registry: Arc<Registry>,
    outlet: Arc<BrokerOutlet>,
    pub(super) settings: Arc<Mutex<Settings>>,
    pub(super) loader_settings: Arc<Mutex<LoaderSettings>>,
    pub(super) plugins_changed: mpsc::Sender<Vec<String>>,
    pub(super) running: BTreeMap<Address, Running>,
    /// Ends what loading a plugin calls.
    loading: Ending,
    lane_ended: mpsc::Sender<LaneEnd>,
    statuses: Arc<Mutex<Vec<RouteStatus>>>,
    pub(super) program: PathBuf,
    condition: Condition,
    pub(super) budget: Arc<Budget>,
}

impl Supervisor {
    async fn run(
        mut self,
        loader: Loader,
        mut commands: mpsc::Receiver<Command>,
        mut lane_ends: mpsc::Receiver<LaneEnd>,
        stop: CancellationToken,
    ) {
        let mut tasks: JoinSet<()> = JoinSet::new();
        let late_stop = CancellationToken::new();
        tasks.spawn(loader.run(stop.clone()));
        let sweep = Sweep { broker: Arc::clone(&self.broker), settings: Arc::clone(&self.settings) };
        tasks.spawn(sweep.run(stop.clone()));
        let (outlet, answers_stop) = (Arc::clone(&self.outlet), late_stop.clone());
        tasks.spawn(async move { outlet.run(answers_stop).await });
        let mut stats = tokio::time::interval(STATS_EVERY);
        stats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewal = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(renewal.into()) => renewal = running::keep_alive(&self.running),
                Some(end) = lane_ends.recv() => self.lane_ended(end),
                Some(Command::Apply(settings, exchange, done)) = commands.recv() => {
                    let applied = self.apply(*settings, exchange, &mut lane_ends, &stop).await;
                    // Whoever asked may have gone.
                    done.send(applied).ok();
                }
                _ = stats.tick() => {
                    self.condition.look(&*self.broker);
                    self.look_at_sources();
                    self.show();
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!("a task of the hub panicked: {error}");
                    }
                }
            }
        }
        self.loading.cancel();
        let grace = self.current().grace;
        let all: Vec<Address> = self.running.keys().cloned().collect();
        self.drain(&all, grace, &mut lane_ends, None).await;
        late_stop.cancel();
        while tasks.join_next().await.is_some() {}
    }

    pub(super) fn current(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the first instance of a plugin's version is made with: the terms of a route that names it, or the defaults.
    fn first_instance_context(&self) -> Arc<dyn Fn(&str) -> LaneContext + Send + Sync> {
        let settings = Arc::clone(&self.settings);
        let terms = Terms {
            route: "".into(),
            isolation: Isolation::Instance,
            limits: Limits::default(),
            destinations: BTreeMap::new(),
            may_reply: false,
        };
        let base = self.lane_context(Arc::new(terms), self.loading.clone());
        Arc::new(move |name: &str| {
            let settings = settings.lock().unwrap_or_else(PoisonError::into_inner);
            let route = settings.routes.iter().find(|route| &*route.handler == name);
            let terms = match (route, settings.plugins.get(name)) {
                (Some(route), _) => Arc::clone(&route.terms),
                (None, Some(plugin)) => {
                    Arc::new(Terms { limits: plugin.limits.over(&Limits::default()), ..Terms::clone(&base.terms) })
                }
                (None, None) => Arc::clone(&base.terms),
            };
            LaneContext { terms, ..base.clone() }
        })
    }

    fn lane_context(&self, terms: Arc<Terms>, ending: Ending) -> LaneContext {
        LaneContext { terms, outlet: Arc::clone(&self.outlet) as _, runtime: tokio::runtime::Handle::current(), ending }
    }

    pub(super) async fn start_missing(&mut self, routes: &RouteTable) -> Result<(), StartError> {
        // All that is not there is named at once.
        let mut missing = Vec::new();
        for (source, of_source) in routes.sources() {
            if self.running.contains_key(&source.address) {
                continue;
            }
            let ending = Ending::new();
            let context = |route: &Arc<Route>| self.lane_context(Arc::clone(&route.terms), ending.clone());
            let contexts = of_source
                .iter()
                .map(|route| (Arc::clone(route), self.registry.slot(&route.handler), context(route)))
                .collect();
            match Running::start(&self.broker, source, contexts, ending.clone(), &self.lane_ended, &self.budget).await {
                Ok(running) => drop(self.running.insert(source.address.clone(), running)),
                Err(BrokerError::NotFound(address)) => {
                    missing.push((address, of_source.iter().map(|route| Arc::clone(&route.name)).collect()));
                }
                Err(error) => return Err(StartError::of(&*self.broker, Some(&source.address), error)),
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(StartError::Missing(missing)) }
    }

    /// Ends sources; false when the engine stops before they have: then they end with the others.
    pub(super) async fn drain(
        &mut self,
        which: &[Address],
        grace: Duration,
        lane_ends: &mut mpsc::Receiver<LaneEnd>,
        stop: Option<&CancellationToken>,
    ) -> bool {
        let drain = Drain { running: &mut self.running, which, ended: &self.lane_ended, broker: &*self.broker };
        drain.run(grace, lane_ends, stop).await
    }

    fn lane_ended(&mut self, end: LaneEnd) {
        if let Some(running) = self.running.get_mut(&end.source) {
            running.lane_ended(&end, &self.lane_ended);
        }
    }

    pub(super) fn show(&self) {
        let statuses = self.running.values().flat_map(Running::statuses).collect();
        *self.statuses.lock().unwrap_or_else(PoisonError::into_inner) = statuses;
    }

    /// Counts what waits, and notices sources that have stalled.
    fn look_at_sources(&mut self) {
        let (stats, settings) = (self.broker.stats(), self.current());
        meters::count_depths(&*self.broker, &stats, &settings.dead_letter);
        let systems = self.broker.systems();
        for (address, running) in &mut self.running {
            let name = self.broker.name_of(address);
            let is_well = systems.iter().all(|system| *system.name != *name || system.status == BrokerStatus::Ready);
            running.look_for_stall(settings.watchdog, &*self.broker, &stats, is_well);
        }
    }
}

pub(super) async fn declare(broker: &dyn Broker, what: &[Declaration]) -> Result<(), StartError> {
    broker.declare(what).await.map_err(|error| StartError::of(broker, None, error))
}

pub(super) fn loader_settings(settings: &Settings, program: &std::path::Path) -> LoaderSettings {
    LoaderSettings {
        directory: settings.plugins_directory.clone(),
        settings: settings.plugins.clone(),
        loading: settings.loading.clone(),
        cache: settings.cache_directory.clone(),
        program: program.to_owned(),
    }
}
