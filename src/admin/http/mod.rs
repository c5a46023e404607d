//! The HTTP interface: publish, look on, ask how the engine is doing. In: requests. Out: what the hub, its broker and its
//! handlers say, as JSON. Source: SPEC §6.
//!
//! Whoever may call is decided in `guard` by their `token`, how long and how much anybody may take of the server in `server` and `body`;
//! each group of calls is a file. `openapi.json` describes every call, and a test compares it with what is mounted.
//!
//! Start at [`serve`], then `router.rs`.

mod body;
mod dead_letters;
mod explain;
mod guard;
mod health;
mod lines;
mod openapi;
mod params;
mod plugins;
mod problem;
mod publish;
mod router;
mod server;
mod stats;
mod tail;
mod token;
mod views;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use server::serve;
pub use token::{NamedToken, Role, Token};

use crate::hub::Hub;

/// What the interface is made of.
#[derive(Debug)]
pub struct Api {
    hub: Arc<Hub>,
    options: Options,
    /// Kibibytes that bodies may take while they are read, all together.
    buffers: Arc<Semaphore>,
    /// Answers that have no end of their own.
    streams: Arc<Semaphore>,
}

/// How the interface behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What callers must bring who may do everything. `None` with `open` false: nobody may do anything but look at health and metrics.
    pub token: Option<Token>,
    /// Further tokens, each with what it may do.
    pub tokens: Vec<NamedToken>,
    /// Whether callers may do everything without a token.
    pub open: bool,
    /// Longest request body that is read as a whole, in bytes. Bodies that are read line by line may be longer.
    pub body_bytes_max: usize,
    /// Bytes that all bodies together may take while they are read.
    pub buffer_bytes_max: usize,
    /// Connections at a time; others wait to be accepted.
    pub connections_max: usize,
    /// Answers at a time that have no end of their own.
    pub streams_max: usize,
    /// How long a request's head may take, and how long a connection may be idle.
    pub header_timeout: Duration,
    /// How long a client may send nothing of a body, or take nothing of an answer.
    pub idle_timeout: Duration,
    /// How long a stop waits for answers that are under way.
    pub drain_timeout: Duration,
    /// The engine's version, as it is shown.
    pub version: Arc<str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            tokens: Vec::new(),
            open: false,
            body_bytes_max: 64 << 20,
            buffer_bytes_max: 256 << 20,
            connections_max: 1024,
            streams_max: 256,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl Api {
    /// An interface to a hub.
    #[must_use]
    pub fn new(hub: Arc<Hub>, options: Options) -> Self {
        let buffers = Arc::new(Semaphore::new((options.buffer_bytes_max / 1024).clamp(1, Semaphore::MAX_PERMITS)));
        let streams = Arc::new(Semaphore::new(options.streams_max.min(Semaphore::MAX_PERMITS)));
        Self { hub, options, buffers, streams }
    }
}

/// What every call gets.
#[derive(Clone, Debug)]
struct Context {
    api: Arc<Api>,
    /// Ends what has no end of its own.
    stop: CancellationToken,
    /// Whether only this machine can reach the server.
    loopback: bool,
}

impl Context {
    fn hub(&self) -> &Hub {
        &self.api.hub
    }
}
