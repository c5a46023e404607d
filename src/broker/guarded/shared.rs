//! What publishers, drains and the patrol of one guarded system share: its circuit and its backlogs, behind one lock that
//! is held for a moment only, and one word in front of it that says that there is nothing to ask.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    backlog::{Backlog, Front, Load},
    breaker::{Breaker, Ended, Permit},
    settings::{Fallback, GuardSettings},
    spool::Place,
};
use crate::{
    broker::{
        Broker, BrokerStatus, Circuit, ConnectionState, PublishError, SpoolStats, Storage,
        embedded::{Embedded, Held},
    },
    codec::time::rfc3339,
    message::{Address, UnixMs, now_ms},
};

/// Most queues and topics that are known at a time.
const ADDRESSES_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) inner: Arc<dyn Broker>,
    pub(super) embedded: Arc<Embedded>,
    pub(super) settings: GuardSettings,
    /// The circuit is closed, nothing failed lately, and nothing waits: there is nothing to ask behind the lock. Set and
    /// read so that whoever was told of a message sees what was known then.
    is_calm: AtomicBool,
    state: Mutex<State>,
    circuit: watch::Sender<Circuit>,
    /// Something changed that those who wait want to know: the circuit, a probe that has ended, messages that have left.
    pub(super) changed: Notify,
    /// Until when nothing more is to leave the spool, where its pace is limited.
    pub(super) paced: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    /// Of what has a backlog, or had one a moment ago.
    backlogs: HashMap<Address, Backlog>,
    /// Where each waits that ever did, and whether that was made.
    places: HashMap<Address, (Place, bool)>,
    total: Load,
    /// What the last one who came had no room for, by which limit.
    full: Option<String>,
}

/// Where messages go.
#[derive(Debug)]
pub(super) enum Way {
    /// Straight to the system.
    Direct(Permit),
    /// Behind what waits.
    Behind,
    /// Nowhere.
    Nowhere(PublishError),
}

/// Room in the spool.
#[derive(Debug)]
pub(super) struct Room {
    /// So many of the first messages have room.
    pub(super) count: usize,
    pub(super) load: Load,
    /// Nobody drains it yet.
    pub(super) begins: bool,
    /// Why the others have none.
    pub(super) full: Option<PublishError>,
}

impl Shared {
    pub(super) fn new(inner: Arc<dyn Broker>, embedded: Arc<Embedded>, settings: GuardSettings) -> Self {
        let breaker = Breaker::new(settings.circuit);
        Self {
            name: inner.name().into(),
            inner,
            embedded,
            settings,
            is_calm: AtomicBool::new(true),
            state: Mutex::new(State {
                breaker,
                backlogs: HashMap::new(),
                places: HashMap::new(),
                total: Load::default(),
                full: None,
            }),
            circuit: watch::Sender::new(Circuit::Closed),
            changed: Notify::new(),
            paced: Mutex::default(),
        }
    }

    /// Whether everything goes straight to the system.
    pub(super) fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::Acquire)
    }

    pub(super) fn circuit(&self) -> Circuit {
        *self.circuit.borrow()
    }

    pub(super) fn watched(&self) -> watch::Receiver<Circuit> {
        self.circuit.subscribe()
    }

    /// Where what is published to this address goes now.
    pub(super) fn way(&self, to: &Address) -> Way {
        self.change(|state| {
            let (waits, circuit) =
                (state.backlogs.get(to).filter(|backlog| !backlog.is_clear()), state.breaker.circuit());
            if self.settings.fallback != Fallback::None {
                return match (waits.is_some(), circuit) {
                    (false, Circuit::Closed) => Way::Direct(Permit::Direct),
                    // Nothing else would show that it is well again.
                    (false, Circuit::HalfOpen) => {
                        state.breaker.permit(Instant::now(), false).map_or(Way::Behind, Way::Direct)
                    }
                    _ => Way::Behind,
                };
            }
            match waits {
                // Left from before the fallback was switched off: it leaves soon, and keeps its order until then.
                Some(waits) if circuit == Circuit::Closed && !matches!(waits.front, Front::Refused(_)) => Way::Behind,
                None if let Some(permit) = state.breaker.permit(Instant::now(), false) => Way::Direct(permit),
                waits => Way::Nowhere(self.unavailable(state, waits)),
            }
        })
    }

    /// Leave to drain; `None`: not now.
    pub(super) fn permit(&self) -> Option<Permit> {
        self.change(|state| state.breaker.permit(Instant::now(), true))
    }

    /// Leave to ask the system whether it answers, where nobody publishes; `None`: there is no need, or not now.
    pub(super) fn permit_asking(&self) -> Option<Permit> {
        if self.circuit() != Circuit::HalfOpen {
            return None;
        }
        self.change(|state| state.breaker.permit_asking(Instant::now()))
    }

    /// What was permitted has ended.
    pub(super) fn ended(&self, permit: Permit, how: Ended) {
        let has_failed = matches!(how, Ended::Failed { .. });
        self.change(|state| state.breaker.ended(permit, how, Instant::now()));
        if has_failed {
            // It may know why.
            self.look();
        }
        if matches!(permit, Permit::Probe(_)) {
            self.changed.notify_waiters();
        }
    }

    /// Sees what the system says of its connections, and what time it is.
    pub(super) fn look(&self) {
        let connection = self.inner.connection();
        self.change(|state| {
            let now = Instant::now();
            match connection {
                ConnectionState::Away | ConnectionState::Refused | ConnectionState::Blocked => {
                    state.breaker.away(now, || self.why(connection));
                }
                ConnectionState::Ready => state.breaker.back(now),
                ConnectionState::Connecting | ConnectionState::Closed => {}
            }
            state.breaker.tick(now);
        });
    }

    /// Where messages for an address wait, and whether that was made; `None`: nothing ever did.
    pub(super) fn place(&self, of: &Address) -> Option<(Place, bool)> {
        self.lock().places.get(of).cloned()
    }

    /// Whether one more may be made.
    pub(super) fn has_room_for(&self, of: &Address) -> Result<(), PublishError> {
        match self.lock().places.len() < ADDRESSES_MAX {
            true => Ok(()),
            false => Err(self.full(of, format!("{ADDRESSES_MAX} queues and topics in the spool"))),
        }
    }

    /// It was made, and takes messages. Gives it as it is known: what was in memory may have left meanwhile.
    pub(super) fn made(&self, of: &Address, place: Place) -> Place {
        let mut state = self.lock();
        let (known, is_made) = state.places.entry(of.clone()).or_insert((place, true));
        *is_made = true;
        known.clone()
    }

    /// Nothing is left of what was in memory beside.
    pub(super) fn older_left(&self, of: &Address) {
        if let Some((place, _)) = self.lock().places.get_mut(of) {
            place.older = None;
        }
    }

    /// Something of an earlier guard waits.
    pub(super) fn found(&self, of: &Address, place: &Place) {
        let held = place.held(&self.embedded);
        self.change(|state| {
            let backlog = Backlog::found(held, now_ms());
            state.total.messages += backlog.load().messages;
            state.total.bytes += backlog.load().bytes;
            state.backlogs.insert(of.clone(), backlog);
            state.places.insert(of.clone(), (place.clone(), false));
        });
    }

    /// How many messages that wait are gone when the engine ends.
    pub(super) fn in_memory(&self) -> u64 {
        let places: Vec<_> = self.lock().places.values().map(|(place, _)| place.clone()).collect();
        places.iter().map(|place| place.in_memory(&self.embedded)).sum()
    }

    /// Takes room for the first of these, by their sizes; owed [`Shared::entered`] or [`Shared::given_up`].
    pub(super) fn enter(&self, to: &Address, sizes: impl Iterator<Item = usize>) -> Room {
        self.change(|state| {
            let (spool, now) = (&self.settings.spool, now_ms());
            let mut load = Load::default();
            let mut full = None;
            let waits = state.backlogs.get(to);
            let age = waits.and_then(Backlog::oldest).map_or(0, |oldest| now.saturating_sub(oldest));
            if let Some(max) = spool.age_max.filter(|max| u128::from(age) > max.as_millis()) {
                full = Some(format!("spool age_max {max:?}"));
            } else {
                for size in sizes {
                    let more = Load { messages: load.messages + 1, bytes: load.bytes + size as u64 };
                    if state.total.messages + more.messages > spool.messages_max {
                        full = Some(format!("spool messages_max {}", spool.messages_max));
                    } else if state.total.bytes + more.bytes > spool.bytes_max {
                        full = Some(format!("spool bytes_max {}", spool.bytes_max));
                    }
                    if full.is_some() {
                        break;
                    }
                    load = more;
                }
            }
            state.full.clone_from(&full);
            let full = full.map(|limit| self.full(to, limit));
            if load.messages == 0 {
                return Room { count: 0, load, begins: false, full };
            }
            if waits.is_none() {
                state.backlogs.insert(to.clone(), Backlog::default());
            }
            let begins = state.with(to, |backlog| backlog.enter(load)).unwrap_or_default();
            Room { count: usize::try_from(load.messages).unwrap_or(usize::MAX), load, begins, full }
        })
    }

    pub(super) fn entered(&self, to: &Address, load: Load, refused: Load) {
        self.tell(to, |backlog| backlog.entered(load, refused, now_ms()));
    }

    pub(super) fn given_up(&self, to: &Address) {
        self.tell(to, Backlog::given_up);
    }

    /// These were confirmed and are settled.
    pub(super) fn left(&self, to: &Address, load: Load) {
        self.tell(to, |backlog| backlog.left(load));
        self.changed.notify_waiters();
    }

    /// How bringing what is in front to the system went.
    pub(super) fn tried(&self, to: &Address, front: Front) {
        let moves = front == Front::Moves;
        self.tell(to, |backlog| backlog.front = front);
        if !moves {
            // Nobody waits for what does not move.
            self.changed.notify_waiters();
        }
    }

    /// What is in front has waited since then.
    pub(super) fn is_since(&self, to: &Address, at: UnixMs) {
        self.tell(to, |backlog| backlog.is_since(at));
    }

    /// Whether nothing waits there any more.
    pub(super) fn is_empty(&self, to: &Address, held: impl FnOnce() -> Held) -> bool {
        self.change(|state| state.with(to, |backlog| backlog.is_empty(held(), now_ms())).unwrap_or(true))
    }

    /// Ends a drain, if nothing waits there any more.
    pub(super) fn end(&self, to: &Address, held: impl FnOnce() -> Held) -> bool {
        let is_ended = self.change(|state| {
            let is_ended = state.with(to, |backlog| backlog.end(held(), now_ms())).unwrap_or(true);
            if is_ended {
                state.backlogs.remove(to);
            }
            is_ended
        });
        if is_ended {
            self.changed.notify_waiters();
        }
        is_ended
    }

    /// Whether whoever put messages behind others goes on: none of them waits, so many have left, or nothing leaves.
    pub(super) fn is_behind(&self, to: &Address, gone: u64) -> bool {
        let state = self.lock();
        let waits =
            state.backlogs.get(to).is_some_and(|backlog| backlog.gone() < gone && backlog.front == Front::Moves);
        waits && state.breaker.circuit() == Circuit::Closed
    }

    /// How many must have left before a publisher of so many goes on.
    pub(super) fn owes(&self, to: &Address, messages: u64) -> u64 {
        let mut state = self.lock();
        let is_well = state.breaker.circuit() == Circuit::Closed;
        state.backlogs.get_mut(to).filter(|_| is_well).map_or(0, |backlog| backlog.owes(messages))
    }

    /// What waits; `None`: nothing ever does.
    pub(super) fn stats(&self) -> Option<SpoolStats> {
        let state = self.lock();
        if self.settings.fallback == Fallback::None && state.backlogs.is_empty() {
            return None;
        }
        let oldest = state.backlogs.values().filter_map(Backlog::oldest).min();
        let is_in_memory = |to| {
            state.places.get(to).is_some_and(|(place, _)| place.storage == Storage::Memory || place.older.is_some())
        };
        let refused = |(to, backlog): (&Address, &Backlog)| match &backlog.front {
            Front::Refused(why) => Some(format!("{to}: {why}")),
            Front::Moves | Front::Waits => None,
        };
        Some(SpoolStats {
            // What waits says it, whatever the fallback is by now.
            is_durable: match state.backlogs.is_empty() {
                true => self.settings.fallback != Fallback::Memory,
                false => !state.backlogs.keys().any(is_in_memory),
            },
            messages: state.total.messages,
            bytes: state.total.bytes,
            oldest_ms: oldest.map_or(0, |oldest| now_ms().saturating_sub(oldest)),
            refused: state.backlogs.iter().filter_map(refused).min(),
        })
    }

    /// How the system is doing, with what waits for it.
    pub(super) fn status(&self) -> BrokerStatus {
        let mut reasons = match self.inner.status() {
            failed @ BrokerStatus::Failed { .. } => return failed,
            BrokerStatus::Degraded { reason } => vec![reason],
            BrokerStatus::Ready => Vec::new(),
        };
        if self.is_calm() {
            return reasons.pop().map_or(BrokerStatus::Ready, |reason| BrokerStatus::Degraded { reason });
        }
        {
            let state = self.lock();
            match state.breaker.circuit() {
                Circuit::Closed => {}
                Circuit::Open => reasons.push(self.opened(&state)),
                Circuit::HalfOpen => reasons.push(format!("{}; whether it is again is tried now", self.opened(&state))),
            }
        }
        if let Some(spool) = self.stats().filter(|spool| spool.messages > 0) {
            let place = if spool.is_durable { "on disk" } else { "in memory" };
            reasons.push(format!(
                "{} messages ({} bytes) wait for it {place}, the oldest since {}",
                spool.messages,
                spool.bytes,
                time(now_ms().saturating_sub(spool.oldest_ms))
            ));
            let limit = self.lock().full.clone();
            reasons.extend(limit.map(|limit| format!("no more has room there ({limit}): publishers are refused")));
            reasons.extend(spool.refused.map(|why| format!("it does not take what waits for {why}")));
        }
        match reasons.is_empty() {
            true => BrokerStatus::Ready,
            false => BrokerStatus::Degraded { reason: reasons.join("; ") },
        }
    }

    fn unavailable(&self, state: &State, waits: Option<&Backlog>) -> PublishError {
        PublishError::Unavailable(match waits {
            Some(_) if state.breaker.circuit() == Circuit::Closed => {
                format!("{} does not take what an earlier fallback kept for it, and this would pass it", self.name)
            }
            _ => self.opened(state),
        })
    }

    /// Since when and why it is not published to.
    fn opened(&self, state: &State) -> String {
        let Some((at, why)) = state.breaker.opened() else { return format!("{} is tried again", self.name) };
        let ago = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        format!("{} is not published to since {}: {why}", self.name, time(now_ms().saturating_sub(ago)))
    }

    /// Why it is away, as it says itself.
    fn why(&self, connection: ConnectionState) -> String {
        match self.inner.status() {
            BrokerStatus::Degraded { reason } | BrokerStatus::Failed { reason } => reason,
            BrokerStatus::Ready => format!("its connection is {}", connection.as_str()),
        }
    }

    fn full(&self, to: &Address, limit: String) -> PublishError {
        PublishError::Full { address: to.clone(), limit: format!("{limit}, while {} is away", self.name) }
    }

    fn tell(&self, to: &Address, change: impl FnOnce(&mut Backlog)) {
        self.change(|state| {
            state.with(to, change);
        });
    }

    /// Changes what is behind the lock, and tells what follows of it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.is_calm.store(state.breaker.is_calm() && state.backlogs.is_empty(), Ordering::Release);
        let circuit = state.breaker.circuit();
        let before = self.circuit();
        if before != circuit {
            self.circuit.send_replace(circuit);
            let said = self.opened(&state);
            drop(state);
            match (before, circuit) {
                (Circuit::Closed, _) => tracing::warn!(broker = &*self.name, "{said}"),
                (_, Circuit::Closed) => tracing::info!(broker = &*self.name, "it is published to again"),
                _ => tracing::debug!(broker = &*self.name, circuit = circuit.as_str(), "{said}"),
            }
            self.changed.notify_waiters();
        }
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Changes one backlog, where there is one, and the sum of all.
    fn with<T>(&mut self, to: &Address, change: impl FnOnce(&mut Backlog) -> T) -> Option<T> {
        let backlog = self.backlogs.get_mut(to)?;
        let before = backlog.load();
        let result = change(backlog);
        let after = backlog.load();
        self.total.messages = (self.total.messages + after.messages).saturating_sub(before.messages);
        self.total.bytes = (self.total.bytes + after.bytes).saturating_sub(before.bytes);
        Some(result)
    }
}

/// For people.
fn time(at: UnixMs) -> String {
    rfc3339(at).unwrap_or_else(|| at.to_string())
}
