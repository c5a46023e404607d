//! What all readers and publishers of one broker share: its connections, what was declared, and what is used.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use redis::{Value, cmd};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    channels::Listener,
    declared, durability, errors,
    link::{Link, Up},
    patrol,
    place::{GROUP, Place},
    reader::{Actor, Reading, Session},
    scripts,
    settings::Settings,
};
use crate::{
    broker::{BrokerError, Declaration, PublishError, Start},
    message::{Address, Kind, random64},
};

/// What all parts of the broker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) consume: Arc<Link>,
    pub(super) publish: Arc<Link>,
    /// How the names of readers of this engine begin; empty where it has no name of its own.
    engine: String,
    /// How those of this run begin.
    run: String,
    readers: AtomicU64,
    closing: CancellationToken,
    state: Mutex<State>,
    /// Whether the server has no memory for messages, as of what it said last.
    full: AtomicBool,
    /// Whether its disk has what it confirms, as far as it says so.
    durable: AtomicBool,
    /// Readers' tasks.
    pub(super) tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// What is declared again on a new connection.
    declared: BTreeMap<Address, Declaration>,
    places: BTreeMap<Address, Arc<Place>>,
    sessions: Vec<Weak<Session>>,
    /// Takes what queues are to keep no longer.
    evictors: BTreeMap<Address, Arc<Session>>,
    /// What is wrong with what was declared.
    trouble: Option<String>,
    /// What was said of the server: what it could lose.
    worries: Vec<(String, String)>,
}

impl Shared {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let engine = settings.engine.as_ref().map(|engine| format!("{engine}/")).unwrap_or_default();
        let own = if engine.is_empty() { "engine/" } else { &engine };
        let run = format!("{own}{:016x}/", random64());
        Self {
            consume: Arc::new(Link::new(Arc::clone(&settings), "consume")),
            publish: Arc::new(Link::new(Arc::clone(&settings), "publish")),
            engine,
            run,
            readers: AtomicU64::new(0),
            closing: CancellationToken::new(),
            state: Mutex::default(),
            full: AtomicBool::new(false),
            durable: AtomicBool::new(true),
            tasks: Mutex::default(),
            settings,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the names of readers of this engine begin, whichever run of it.
    pub(super) fn engine(&self) -> &str {
        &self.engine
    }

    /// How the names of readers of this run begin.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// A name for a reader.
    pub(super) fn reader_name(&self) -> String {
        format!("{}{}", self.run, self.readers.fetch_add(1, Relaxed))
    }

    /// Whether it is a Pub/Sub channel.
    pub(super) fn is_channel(&self, address: &Address) -> bool {
        address.kind == Kind::Topic && self.settings.channels.contains(&address.name)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Waits until it is closed.
    pub(super) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Nothing new begins any more.
    pub(super) fn close(&self) {
        self.closing.cancel();
        let (sessions, evictors) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.sessions), std::mem::take(&mut state.evictors))
        };
        sessions.iter().filter_map(Weak::upgrade).for_each(|session| session.close());
        evictors.values().for_each(|session| session.close());
    }

    /// The connection that messages go out over, once it is up.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`]: it is not within the time that a publish may take. [`PublishError::Closed`].
    pub(super) async fn connection_to_publish(&self) -> Result<Up, PublishError> {
        match timeout(self.settings.publish_timeout, self.publish.up()).await {
            Ok(Ok(up)) => Ok(up),
            Ok(Err(_)) => Err(PublishError::Closed),
            Err(_) => {
                let why = self.publish.away().unwrap_or_else(|| "it is being connected to".to_owned());
                Err(PublishError::Unavailable(why))
            }
        }
    }

    /// The connection that all else goes over, if it is up now.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: try again later. [`BrokerError::Closed`].
    pub(super) fn connection(&self) -> Result<Up, BrokerError> {
        if let Some(up) = self.consume.now() {
            return Ok(up);
        }
        let why = self.consume.away().ok_or(BrokerError::Closed)?;
        let settings = &self.settings;
        let (endpoint, timeout) = (settings.endpoint(), settings.connect_timeout);
        Err(BrokerError::Unreachable { endpoint, timeout, cause: why.into() })
    }

    /// Whether it is made as soon as the server is there.
    pub(super) fn is_declared(&self, address: &Address) -> bool {
        self.lock().declared.contains_key(address)
    }

    /// What is used under that address.
    pub(super) fn place(&self, address: &Address) -> Arc<Place> {
        let mut state = self.lock();
        let made = || Arc::new(Place::new(address, &self.settings));
        Arc::clone(state.places.entry(address.clone()).or_insert_with(made))
    }

    /// What is used.
    pub(super) fn places(&self) -> Vec<Arc<Place>> {
        self.lock().places.values().map(Arc::clone).collect()
    }

    /// Forgets what turned out not to be there.
    pub(super) fn forget(&self, address: &Address) {
        let mut state = self.lock();
        if !state.declared.contains_key(address) {
            state.places.remove(address);
        }
    }

    /// The connection that settles and looks around, once it is up, within the time that connecting may take.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`], [`BrokerError::Closed`].
    pub(super) async fn connected(&self) -> Result<Up, BrokerError> {
        let patience = self.settings.connect_timeout;
        timeout(patience, self.consume.up()).await.unwrap_or_else(|_| {
            Err(BrokerError::Unreachable {
                endpoint: self.settings.endpoint(),
                timeout: patience,
                cause: self.consume.away().unwrap_or_else(|| "it was not there".to_owned()).into(),
            })
        })
    }

    /// What is wrong with what was declared.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// The server has no memory for messages; or has some again.
    pub(super) fn full(&self, is_full: bool) {
        self.full.store(is_full, Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Whether what the server confirms outlives it, as far as is known.
    pub(super) fn is_durable(&self) -> bool {
        self.durable.load(Relaxed)
    }

    /// Makes what is missing, compares what is there, and sees to it that it is there on every new connection.
    ///
    /// # Errors
    /// As [`Broker::declare`](crate::broker::Broker::declare).
    pub(super) async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        what.iter().try_for_each(declared::check)?;
        if self.is_closed() {
            return Err(BrokerError::Closed);
        }
        let up = self.consume.now();
        for declaration in what.iter().filter(|declaration| !self.is_channel(&declaration.address())) {
            let place = self.place(&declaration.address());
            if let Some(up) = &up {
                declared::declare(up, declaration, &place, &self.settings).await?;
                patrol::look(self, up, &place).await.map_err(|error| errors::seam(&self.settings, &error))?;
            } else {
                place.learn(declared::known(declaration));
            }
            self.lock().declared.insert(declaration.address(), declaration.clone());
        }
        Ok(())
    }

    /// Puts everything on a new connection that has to be there.
    ///
    /// # Errors
    /// The connection was lost again; or a user may not do what is needed.
    pub(super) async fn restore(&self, up: Up) -> Result<(), BrokerError> {
        scripts::load_all(&up).await.map_err(|error| errors::seam(&self.settings, &error))?;
        let declared: Vec<Declaration> = self.lock().declared.values().cloned().collect();
        let mut trouble = None;
        for declaration in declared {
            let place = self.place(&declaration.address());
            match declared::declare(&up, &declaration, &place, &self.settings).await {
                Ok(()) => {}
                // Somebody has made it otherwise meanwhile. What is there is used.
                Err(error @ BrokerError::Mismatch { .. }) => {
                    tracing::error!("{error}");
                    trouble = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        self.lock().trouble = trouble;
        self.warn(&up).await;
        Ok(())
    }

    /// Says what the server could lose, as it is configured: once, and again where that has changed.
    async fn warn(&self, up: &Up) {
        let Ok(found) = timeout(durability::ANSWERS, durability::of(up)).await else { return };
        self.durable.store(found.is_durable.unwrap_or(true), Relaxed);
        let before = std::mem::replace(&mut self.lock().worries, found.worries.clone());
        for (found, fix) in found.worries.iter().filter(|worry| !before.contains(worry)) {
            tracing::warn!("Redis at {}: {found}; {fix}", self.settings.endpoint());
        }
    }

    /// Makes a queue, or a topic's group, that the server has forgotten.
    ///
    /// # Errors
    /// As [`Broker::declare`](crate::broker::Broker::declare).
    pub(super) async fn make_again(&self, place: &Place, group: &str) -> Result<(), BrokerError> {
        let declaration = self.lock().declared.get(&place.address).cloned();
        let up = self.connected().await?;
        if let Some(declaration) = declaration {
            declared::declare(&up, &declaration, place, &self.settings).await?;
        }
        if place.address.kind == Kind::Topic {
            self.make_group(&up, place, group, Start::Earliest).await?;
        }
        Ok(())
    }

    /// Makes a topic's group, unless it is there.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`].
    pub(super) async fn make_group(
        &self,
        up: &Up,
        place: &Place,
        group: &str,
        start: Start,
    ) -> Result<(), BrokerError> {
        let wrong = |error| errors::seam(&self.settings, &error);
        let from = match start {
            Start::Earliest => "0".to_owned(),
            Start::Latest => "$".to_owned(),
            Start::Offset(offset) => format!("{offset}-0"),
            Start::Time(at) => {
                let mut command = cmd("ZREVRANGEBYSCORE");
                command.arg(place.key("marks")).arg(at).arg("-inf").arg("LIMIT").arg(0).arg(1);
                // All before a mark was published before it, and so was this or a later one after it.
                let mark = match up.ask(&command).await.map_err(wrong)? {
                    Value::Array(marks) => marks.into_iter().next(),
                    _ => None,
                };
                match mark {
                    Some(Value::BulkString(mark)) => {
                        let first = String::from_utf8_lossy(&mark);
                        let first = first.split(':').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(1);
                        format!("{}-0", first.saturating_sub(1))
                    }
                    _ => "0".to_owned(),
                }
            }
        };
        let mut command = cmd("XGROUP");
        command.arg("CREATE").arg(place.key("log")).arg(group).arg(from).arg("MKSTREAM");
        match up.ask(&command).await {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(wrong(error)),
            _ => Ok(()),
        }
    }

    /// Begins to read.
    pub(super) fn begin(self: &Arc<Self>, session: &Arc<Session>, reading: Reading) {
        {
            let mut state = self.lock();
            state.sessions.retain(|session| session.strong_count() > 0);
            state.sessions.push(Arc::downgrade(session));
        }
        let generation = self.consume.now().map_or(0, |up| up.generation);
        self.spawn(Actor::new(Arc::clone(session), reading, generation).run());
        if self.is_closed() {
            session.close();
        }
    }

    /// Begins to listen to a channel.
    pub(super) fn listen(self: &Arc<Self>, listener: &Arc<Listener>) {
        self.spawn(Arc::clone(listener).run(Arc::clone(self)));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!("a reader of Redis did not end well: {error}");
            }
        }
        tasks.spawn(task);
    }

    /// What takes from a queue what it is to keep no longer.
    pub(super) fn evictor(self: &Arc<Self>, place: &Arc<Place>) -> Arc<Session> {
        if let Some(there) = self.lock().evictors.get(&place.address) {
            return Arc::clone(there);
        }
        let made = Arc::new(Session::new(Arc::clone(self), Arc::clone(place), GROUP.into(), String::new(), usize::MAX));
        made.end();
        let session = Arc::clone(self.lock().evictors.entry(place.address.clone()).or_insert(Arc::clone(&made)));
        if Arc::ptr_eq(&session, &made) {
            self.begin(&session, Reading { only_settles: true, ..Reading::default() });
        }
        session
    }
}

/// Whether the server says yes.
pub(super) fn is_true(value: &Value) -> bool {
    *value == Value::Int(1)
}
