//! One connection, kept up: connected again whenever it is lost, until it is stopped. In: settings. Out: the connection
//! that is up now, to whoever waits for it.
//!
//! The client library could do that by itself; it leaves channels closed and what is pending unanswered, so it is told not
//! to. Start at [`Link::run`].

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{Connection, Event};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    settings::Settings,
    transport::{self, ConnectError},
};
use crate::{
    broker::{BrokerError, ConnectionState},
    telemetry::metrics,
};

/// First pause before connecting again; doubles up to the longest, spread by full jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often a server that did not answer is knocked at during a pause.
const KNOCK_EVERY: Duration = Duration::from_millis(200);
/// How long a knock waits.
const KNOCK: Duration = Duration::from_millis(200);
/// How often the library is asked whether the connection is still there, beside what it tells.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long closing in good order may take.
const CLOSE: Duration = Duration::from_secs(2);

/// One connection, kept up.
#[derive(Debug)]
pub(super) struct Link {
    settings: Arc<Settings>,
    /// What it is for, as people see it: `publish` or `consume`.
    purpose: &'static str,
    state: watch::Sender<State>,
    /// Somebody saw that the connection does not work.
    suspected: Notify,
}

/// Whether it is up.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Not connected.
    Away {
        /// Why, as far as it is known.
        reason: String,
        /// Whether it was never tried, whether the server will not have us, or neither.
        at: ConnectionState,
    },
    /// Connected.
    Up(Arc<Up>),
    /// Given up: as often as was allowed.
    Failed {
        /// Why the last try did not succeed.
        reason: String,
    },
    /// Stopped.
    Closed,
}

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) connection: Connection,
    /// Why the server takes no messages for now, while it does not.
    blocked: watch::Sender<Option<String>>,
}

impl Up {
    fn new(connection: Connection) -> Self {
        Self { connection, blocked: watch::Sender::new(None) }
    }

    /// Why the server takes no messages now.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits until the server takes messages.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn unblocked(&self) {
        let mut blocked = self.blocked.subscribe();
        // Its sender is here.
        blocked.wait_for(Option::is_none).await.ok();
    }

    /// Whether the connection still works, as far as the library knows.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }
}

impl Link {
    pub(super) fn new(settings: Arc<Settings>, purpose: &'static str) -> Self {
        let state = State::Away { reason: "not connected yet".to_owned(), at: ConnectionState::Connecting };
        Self { settings, purpose, state: watch::Sender::new(state), suspected: Notify::new() }
    }

    /// Connects once.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) async fn connect(&self) -> Result<Arc<Up>, ConnectError> {
        match transport::connect(&self.settings, self.purpose).await {
            Ok(connection) => Ok(Arc::new(Up::new(connection))),
            Err(error) => {
                self.lacks(&error);
                Err(error)
            }
        }
    }

    /// Notes why there is no connection.
    pub(super) fn lacks(&self, error: &ConnectError) {
        let at = if error.is_refusal() { ConnectionState::Refused } else { ConnectionState::Away };
        self.state.send_replace(State::Away { reason: error.to_string(), at });
    }

    /// Keeps it up until `stop`. `first` is a connection that was made already, with everything that belongs to it; `restore`
    /// puts that back on a new one before anybody else may use it.
    pub(super) async fn run<R: Future<Output = ()>>(
        &self,
        mut first: Option<Arc<Up>>,
        restore: impl Fn(Arc<Up>) -> R,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let (up, is_new) = match first.take() {
                Some(up) => (up, false),
                None => match self.connect_again(&stop).await {
                    Some(up) => (up, true),
                    None => break,
                },
            };
            // Listened to before anything is sent: what comes at once is not missed.
            let events = Box::pin(up.connection.events_listener());
            if is_new {
                tokio::select! {
                    () = restore(Arc::clone(&up)) => {}
                    () = stop.cancelled() => {}
                }
            }
            self.show(1);
            self.state.send_replace(State::Up(Arc::clone(&up)));
            tracing::debug!(connection = self.purpose, "connected to RabbitMQ");
            let why = tokio::select! {
                why = self.until_lost(&up, events) => why,
                () = stop.cancelled() => {
                    self.state.send_replace(State::Closed);
                    // A server that does not answer any more need not be told.
                    timeout(CLOSE, up.connection.close(200, "stopping".into())).await.ok();
                    break;
                }
            };
            tracing::debug!(connection = self.purpose, "the connection to RabbitMQ was lost, connecting again: {why}");
            self.show(0);
            self.state.send_replace(State::Away { reason: why, at: ConnectionState::Away });
        }
        self.show(0);
        if !matches!(*self.state.borrow(), State::Failed { .. }) {
            self.state.send_replace(State::Closed);
        }
    }

    /// Waits until the connection does not work any more, and gives the reason.
    async fn until_lost(&self, up: &Up, mut events: impl StreamExt<Item = Event> + Unpin) -> String {
        let mut why = None;
        loop {
            if !up.is_connected() {
                return why.unwrap_or_else(|| "the server ended it".to_owned());
            }
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::debug!(connection = self.purpose, "RabbitMQ takes no messages for now: {reason}");
                        self.show(2);
                        up.blocked.send_replace(Some(reason));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::debug!(connection = self.purpose, "RabbitMQ takes messages again");
                        self.show(1);
                        up.blocked.send_replace(None);
                    }
                    Some(Event::Error(error)) => why = Some(error.to_string()),
                    Some(_) => {}
                    None => return why.unwrap_or_else(|| "the client library ended it".to_owned()),
                },
                () = self.suspected.notified() => {}
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Tries until it is connected; `None` when it was stopped, or has been tried often enough.
    async fn connect_again(&self, stop: &CancellationToken) -> Option<Arc<Up>> {
        let mut pause = PAUSE_MIN.min(self.settings.reconnect_delay_max);
        let mut tries = 0_u32;
        loop {
            let jittered = pause.mul_f64(crate::message::random());
            tokio::select! {
                () = stop.cancelled() => return None,
                // A server that has just begun to listen may need another moment: not one as long as it was away.
                it_answers = self.pause(jittered) => if it_answers { pause = PAUSE_MIN.min(pause) },
            }
            let error = tokio::select! {
                () = stop.cancelled() => return None,
                made = self.connect() => match made {
                    Ok(up) => return Some(up),
                    Err(error) => error,
                },
            };
            tries = tries.saturating_add(1);
            let reason = error.to_string();
            if self.settings.reconnect_attempts_max.is_some_and(|max| tries >= max) {
                tracing::error!(connection = self.purpose, tries, "RabbitMQ is given up: {reason}");
                self.state.send_replace(State::Failed { reason });
                return None;
            }
            tracing::debug!(connection = self.purpose, tries, "RabbitMQ is still away: {reason}");
            pause = (pause * 2).min(self.settings.reconnect_delay_max);
        }
    }

    /// A pause that ends sooner when a server answers that did not, and says so.
    async fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut was_silent = false;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            sleep(left.min(KNOCK_EVERY)).await;
            match self.answers().await {
                true if was_silent => return true,
                answers => was_silent |= !answers,
            }
        }
        false
    }

    async fn answers(&self) -> bool {
        for host in &self.settings.hosts {
            let address = (host.name.as_str(), host.port);
            if matches!(timeout(KNOCK, TcpStream::connect(address)).await, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }

    /// How it is now.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The connection, if it is up now.
    pub(super) fn now(&self) -> Option<Arc<Up>> {
        match &*self.state.borrow() {
            State::Up(up) if up.is_connected() => Some(Arc::clone(up)),
            _ => None,
        }
    }

    /// Waits until it is up.
    ///
    /// # Errors
    /// [`BrokerError::Closed`] once it was stopped or given up.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn up(&self) -> Result<Arc<Up>, BrokerError> {
        let mut states = self.state.subscribe();
        loop {
            match &*states.borrow_and_update() {
                State::Up(up) if up.is_connected() => return Ok(Arc::clone(up)),
                State::Up(_) => self.suspected.notify_one(),
                State::Closed | State::Failed { .. } => return Err(BrokerError::Closed),
                State::Away { .. } => {}
            }
            // One that is not connected any more is about to be replaced.
            if states.changed().await.is_err() {
                return Err(BrokerError::Closed);
            }
        }
    }

    /// Waits until that connection is not the one in use any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn lost(&self, up: &Arc<Up>) {
        let mut states = self.state.subscribe();
        let is_gone = |state: &State| !matches!(state, State::Up(now) if Arc::ptr_eq(now, up));
        // Its sender is here.
        states.wait_for(is_gone).await.ok();
    }

    /// Whether it was stopped.
    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.state.borrow(), State::Closed)
    }

    /// Where it is.
    pub(super) fn connection(&self) -> ConnectionState {
        match &*self.state.borrow() {
            State::Up(up) if up.blocked().is_some() => ConnectionState::Blocked,
            State::Up(_) => ConnectionState::Ready,
            State::Away { at, .. } => *at,
            State::Failed { .. } => ConnectionState::Away,
            State::Closed => ConnectionState::Closed,
        }
    }

    /// Why it is away, while it is.
    pub(super) fn away(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Away { reason, .. } => Some(format!("RabbitMQ is away: {reason}")),
            _ => None,
        }
    }

    /// The connection does not seem to work: look at once.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    fn show(&self, state: i64) {
        metrics().rabbitmq_connection_state.with_label_values(&[self.purpose]).set(state);
    }
}
