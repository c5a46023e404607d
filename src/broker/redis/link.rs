//! One connection, kept up: connected again whenever it is lost, until it is stopped. In: settings. Out: the connection
//! that is up now, to whoever waits for it. Start at [`Link::run`].

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::Client,
    errors,
    reply::Reply,
    scripts::Script,
    settings::Settings,
    transport::{self, ConnectError, Driver},
};
use crate::broker::{BrokerError, ConnectionState};

/// First pause before connecting again; doubles up to the longest, spread by full jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A connection that said nothing for so long is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(2);
/// How long it may take to give one.
const PING: Duration = Duration::from_secs(5);

/// One connection, kept up.
#[derive(Debug)]
pub(super) struct Link {
    settings: Arc<Settings>,
    /// What it is for, as people see it: `publish` or `consume`.
    purpose: &'static str,
    state: watch::Sender<State>,
    /// It must not be used any more, though it still answers.
    given_up: Notify,
    generation: AtomicU64,
}

/// Whether it is up.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Not connected.
    Away {
        /// Why, as far as it is known.
        reason: String,
        /// Connecting, away, or refused.
        state: ConnectionState,
    },
    /// Connected.
    Up(Up),
    /// Stopped.
    Closed,
}

/// A connection that was made.
#[derive(Clone, Debug)]
pub(super) struct Up {
    client: Client,
    /// Which one it is.
    pub(super) generation: u64,
}

/// A connection with what moves its bytes.
pub(super) type Made = (Client, Driver);

impl Up {
    /// One that nobody keeps up.
    pub(super) fn once(client: Client) -> Self {
        Self { client, generation: 0 }
    }

    /// Carries out one command.
    ///
    /// # Errors
    /// What the server says against it, or that the connection was lost.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.client.ask(command).await
    }

    /// Carries out several, in one round trip. What the server says against one is in its place.
    ///
    /// # Errors
    /// The connection was lost: any of them may have been carried out.
    pub(super) async fn ask_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.client.ask_all(commands).await?.iter().map(Reply::any).collect()
    }

    /// The same, with the answers as they came.
    ///
    /// # Errors
    /// As [`Up::ask_all`].
    pub(super) async fn ask_each(&self, commands: &Pipeline) -> Result<Vec<Reply>, RedisError> {
        self.client.ask_all(commands).await
    }

    /// Runs a script, and gives it to the server where that has forgotten it.
    ///
    /// # Errors
    /// As [`Up::ask`].
    pub(super) async fn run(&self, script: &Script, arguments: impl Fn(&mut Cmd)) -> Result<Value, RedisError> {
        let mut command = script.by_hash();
        arguments(&mut command);
        match self.ask(&command).await {
            Err(error) if errors::is_forgotten_script(&error) => {
                let mut command = script.by_text();
                arguments(&mut command);
                self.ask(&command).await
            }
            answered => answered,
        }
    }
}

impl Link {
    pub(super) fn new(settings: Arc<Settings>, purpose: &'static str) -> Self {
        let reason = format!("not connected to Redis at {} yet", settings.endpoint());
        let state = State::Away { reason, state: ConnectionState::Connecting };
        Self {
            settings,
            purpose,
            state: watch::Sender::new(state),
            given_up: Notify::new(),
            generation: AtomicU64::new(0),
        }
    }

    /// Connects once, and gives the server our scripts.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) async fn connect(&self) -> Result<Made, ConnectError> {
        transport::connect(&self.settings).await
    }

    /// Notes why there is no connection.
    pub(super) fn lacks(&self, error: &ConnectError) {
        let state = if error.is_refusal { ConnectionState::Refused } else { ConnectionState::Away };
        self.state.send_replace(State::Away { reason: error.text.clone(), state });
    }

    /// Keeps it up until `stop`. `restore` is done on a new connection before anybody else may use it.
    pub(super) async fn run<F: Future<Output = Result<(), BrokerError>>>(
        &self,
        mut first: Option<Made>,
        restore: impl Fn(Up) -> F,
        stop: CancellationToken,
    ) {
        let mut pause = PAUSE_MIN;
        while !stop.is_cancelled() {
            let (client, mut driver) = match first.take() {
                Some(made) => made,
                None => match self.connect_again(&mut pause, &stop).await {
                    Some(made) => made,
                    None => break,
                },
            };
            let up = Up { client, generation: self.generation.fetch_add(1, Relaxed) + 1 };
            let restored = tokio::select! {
                restored = restore(up.clone()) => restored,
                () = &mut driver => Err(BrokerError::Lost("the connection was lost at once".to_owned())),
                () = stop.cancelled() => break,
            };
            if let Err(error) = restored {
                self.lost(&format!("it is not as it has to be: {error}"));
                continue;
            }
            pause = PAUSE_MIN;
            self.state.send_replace(State::Up(up.clone()));
            tracing::info!(connection = self.purpose, "connected to Redis");
            let why = tokio::select! {
                () = &mut driver => "the server ended it".to_owned(),
                () = self.given_up.notified() => "it takes no messages any more".to_owned(),
                why = silent(&up) => why,
                () = stop.cancelled() => break,
            };
            self.lost(&why);
        }
        self.state.send_replace(State::Closed);
    }

    fn lost(&self, why: &str) {
        tracing::warn!(connection = self.purpose, "the connection to Redis was lost, connecting again: {why}");
        let reason = format!("the connection to Redis at {} was lost: {why}", self.settings.endpoint());
        self.state.send_replace(State::Away { reason, state: ConnectionState::Away });
    }

    /// Tries until it is connected; `None` when it was stopped.
    async fn connect_again(&self, pause: &mut Duration, stop: &CancellationToken) -> Option<Made> {
        let mut said = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(pause.mul_f64(crate::message::random())) => {}
            }
            *pause = (*pause * 2).min(self.settings.reconnect_delay_max);
            let error = tokio::select! {
                () = stop.cancelled() => return None,
                made = self.connect() => match made {
                    Ok(made) => return Some(made),
                    Err(error) => error,
                },
            };
            if said == error.text {
                tracing::debug!(connection = self.purpose, "Redis is still away: {said}");
            } else {
                tracing::warn!(
                    connection = self.purpose,
                    "Redis is away, trying again until it is there: {}",
                    error.text
                );
                said.clone_from(&error.text);
            }
            let state = if error.is_refusal { ConnectionState::Refused } else { ConnectionState::Away };
            self.state.send_replace(State::Away { reason: error.text, state });
        }
    }

    /// Where it is now.
    pub(super) fn connection(&self) -> ConnectionState {
        match &*self.state.borrow() {
            State::Away { state, .. } => *state,
            State::Up(_) => ConnectionState::Ready,
            State::Closed => ConnectionState::Closed,
        }
    }

    /// How it is now.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The connection, if it is up now.
    pub(super) fn now(&self) -> Option<Up> {
        match &*self.state.borrow() {
            State::Up(up) => Some(up.clone()),
            _ => None,
        }
    }

    /// Waits until it is up.
    ///
    /// # Errors
    /// [`BrokerError::Closed`] once it was stopped.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn up(&self) -> Result<Up, BrokerError> {
        let mut states = self.state.subscribe();
        let is_decided = |state: &State| !matches!(state, State::Away { .. });
        match states.wait_for(is_decided).await.as_deref() {
            Ok(State::Up(up)) => Ok(up.clone()),
            _ => Err(BrokerError::Closed),
        }
    }

    /// Waits until that connection is not the one in use any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn lost_since(&self, generation: u64) {
        let mut states = self.state.subscribe();
        let is_gone = |state: &State| !matches!(state, State::Up(now) if now.generation == generation);
        // Its sender is here.
        states.wait_for(is_gone).await.ok();
    }

    /// Why it is away, while it is.
    pub(super) fn away(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Away { reason, .. } => Some(reason.clone()),
            _ => None,
        }
    }

    /// What went wrong over a connection: one to a server that became another's copy is of no use any more.
    pub(super) fn judge(&self, error: &RedisError) {
        if errors::is_demoted(error) {
            self.given_up.notify_one();
        }
    }
}

/// Ends when the server gives no sign of life any more, with the reason. A kernel would take minutes to notice.
async fn silent(up: &Up) -> String {
    loop {
        sleep(PING_EVERY).await;
        match timeout(PING, up.ask(&redis::cmd("PING"))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("it gave no sign of life for {PING:?}"),
        }
    }
}
