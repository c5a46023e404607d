//! What all subscriptions and publishers of one broker share: its two connections, what was declared over them, and what is
//! known of messages that came back untried.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    declared,
    forgiven::Forgiven,
    leaving::Leaving,
    link::{Link, Up},
    place::{Counts, Place},
    publisher::Publisher,
    session::Session,
    settings::Settings,
    topology::{RUNG_DELAYS, Topology, rung},
};
use crate::{broker::BrokerError, message::Address};

/// Retry queues up to this delay are made at the start.
const RUNGS_AT_ONCE: Duration = Duration::from_secs(60);

/// What all parts of the broker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) consume: Arc<Link>,
    pub(super) publish: Arc<Link>,
    pub(super) publisher: Arc<Publisher>,
    /// Nothing new begins any more. The connections are there for a little longer.
    closing: CancellationToken,
    state: Mutex<State>,
    /// Somebody reads no more.
    left: Notify,
    seeing_off: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    leaving: Vec<Leaving>,
    /// What is declared again on a new connection.
    declared: Topology,
    /// Of these, what was declared while the server was away.
    undeclared: Topology,
    /// By the queue on the server.
    places: BTreeMap<Arc<str>, Arc<Place>>,
    sessions: Vec<Weak<Session>>,
    /// What is wrong with what was declared.
    trouble: Option<String>,
}

impl Shared {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let consume = Arc::new(Link::new(Arc::clone(&settings), "consume"));
        let publish = Arc::new(Link::new(Arc::clone(&settings), "publish"));
        let publisher = Publisher::new(Arc::clone(&settings), Arc::clone(&publish), Arc::clone(&consume));
        let mut declared = settings.topology.clone();
        // Those that ordinary retries use are there before they are needed: a server that is killed within seconds of making
        // a queue may have forgotten it.
        RUNG_DELAYS
            .iter()
            .filter(|delay| **delay <= RUNGS_AT_ONCE)
            .for_each(|delay| declared.add_missing(rung(*delay)));
        let state = State { declared, ..State::default() };
        Self {
            settings,
            consume,
            publish,
            publisher: Arc::new(publisher),
            closing: CancellationToken::new(),
            state: Mutex::new(state),
            left: Notify::new(),
            seeing_off: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is declared at the start.
    pub(super) fn everything(&self) -> Topology {
        self.lock().declared.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    pub(super) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Nothing is handed out from here on: what goes back as others end would come again otherwise.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// A queue or topic, by what the engine calls it; `name` is the queue on the server that is read.
    pub(super) fn place(&self, address: &Address, name: &Arc<str>, group: Option<&Arc<str>>) -> Arc<Place> {
        let mut state = self.lock();
        if let Some(place) = state.places.get(name) {
            return Arc::clone(place);
        }
        let place = Arc::new(Place {
            address: address.clone(),
            name: Arc::clone(name),
            group: group.cloned(),
            publisher: Arc::clone(&self.publisher),
            counts: Counts::new(address),
            forgiven: Forgiven::default(),
        });
        state.places.insert(Arc::clone(name), Arc::clone(&place));
        place
    }

    /// Every queue and topic that is used.
    pub(super) fn places(&self) -> Vec<Arc<Place>> {
        self.lock().places.values().cloned().collect()
    }

    /// A session that somebody should look at from time to time.
    pub(super) fn watch(&self, session: &Arc<Session>) {
        let mut state = self.lock();
        state.sessions.retain(|session| session.strong_count() > 0);
        state.sessions.push(Arc::downgrade(session));
    }

    /// All that read now.
    pub(super) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.iter().filter_map(Weak::upgrade).collect()
    }

    /// Nobody reads this any more: it is left to whoever sees it off.
    pub(super) fn leave(&self, leaving: Leaving) {
        self.lock().leaving.push(leaving);
        self.left.notify_one();
    }

    /// Waits until somebody reads no more.
    pub(super) async fn somebody_left(&self) {
        self.left.notified().await;
    }

    /// Ends in good order what is not read any more; returns once all has ended that had been left before.
    pub(super) async fn see_off(&self) {
        let _turn = self.seeing_off.lock().await;
        let leaving = std::mem::take(&mut self.lock().leaving);
        join_all(leaving.into_iter().map(Leaving::end)).await;
    }

    /// What is wrong with what was declared, and is not for now.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Declares something now, and again on every new connection.
    pub(super) async fn declare(&self, wanted: Topology) -> Result<(), BrokerError> {
        if self.is_closed() {
            return Err(BrokerError::Closed);
        }
        match self.consume.now() {
            Some(up) => declared::declare(&up.connection, &wanted, &self.settings).await?,
            // A connection that is just being made may have been given what there was before.
            None => self.lock().undeclared.merge(wanted.clone()),
        }
        self.lock().declared.merge(wanted);
        Ok(())
    }

    /// Declares what could not be while the server was away.
    pub(super) async fn catch_up(&self) {
        let wanted = self.lock().undeclared.clone();
        let Some(up) = self.consume.now().filter(|_| wanted != Topology::default()) else { return };
        if self.declare_over(&up, &wanted).await {
            self.lock().undeclared = Topology::default();
        }
    }

    /// Declares again what belongs to a new connection.
    pub(super) async fn restore(&self, up: Arc<Up>) {
        let declared = self.lock().declared.clone();
        self.publisher.forget_rungs();
        self.declare_over(&up, &declared).await;
    }

    /// Declares while nobody waits for it: says what is wrong, and whether it was done.
    async fn declare_over(&self, up: &Up, wanted: &Topology) -> bool {
        let trouble = declared::declare(&up.connection, wanted, &self.settings).await.err();
        if let Some(error) = &trouble {
            tracing::error!("what the engine needs cannot be declared on RabbitMQ: {error}");
        }
        let is_done = trouble.is_none();
        self.lock().trouble = trouble.map(|error| error.to_string());
        is_done
    }

    /// A queue is gone that was there: makes it again, if it is one of ours.
    pub(super) async fn make_again(&self, place: &Place) {
        let Some(up) = self.consume.now() else { return };
        let Some(wanted) = self.lock().declared.only(&place.name) else { return };
        let address = &place.address;
        match declared::declare(&up.connection, &wanted, &self.settings).await {
            Ok(()) => tracing::warn!(source = %address, "somebody deleted it; it was made again"),
            Err(error) => {
                tracing::error!(source = %address, "somebody deleted it, and it cannot be made again: {error}")
            }
        }
    }
}
