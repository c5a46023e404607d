//! What runs: a handler is a version of a WebAssembly component, or a Rust function, and the engine cannot tell which.
//! In: calls and the terms they are made on. Out: outcomes. What they lead to is not decided here.
//!
//! Start at [`Handler`] and [`Runner`]; [`native`] is the short implementation, [`component`] the one with the walls.

pub mod component;
mod limits;
pub mod native;
mod registry;
pub mod reload;
mod settings;
mod terms;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
pub use limits::{Limits, LimitsPatch};
pub use registry::{Receipt, Registry, ReloadResult, Slot, Version};
pub use settings::{Loading, PluginSettings};
pub use terms::{Isolation, REPLY_TO, Terms};
use tokio_util::sync::CancellationToken;

use crate::message::{Address, HandlerIdentity, Kind, Message, Outcome, Position};

/// One version of something that handles messages. Shared by all lanes; each lane opens a runner of its own.
pub trait Handler: Send + Sync + Debug {
    /// Which version this is.
    fn identity(&self) -> &HandlerIdentity;

    /// Whether it can handle what comes from queues, or from topics.
    fn handles(&self, kind: Kind) -> bool;

    /// Makes what one lane needs to run it. Cheap: instances are made when they are needed.
    ///
    /// # Errors
    /// [`OpenError`]: the lane reports each message as failed with it, and asks again.
    fn open(self: Arc<Self>, lane: &LaneContext, source: Kind) -> Result<Box<dyn Runner>, OpenError>;
}

/// A handler cannot be run now.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// Runs one version of a handler on one lane: called from one thread, one batch at a time.
pub trait Runner {
    /// Called before the calls of a batch.
    fn begin(&mut self) {}

    /// One call. Returns when the guest has answered, or has been ended at its deadline; never later than that by more
    /// than a few milliseconds, and never panics.
    fn handle(&mut self, call: &Call<'_>) -> Outcome;

    /// How many messages one call takes; 1 where the handler takes them one by one.
    fn calls_take(&self) -> usize {
        1
    }

    /// One call for many, where [`Self::calls_take`] is more than 1: one outcome for each, in order. `None`: it crashed,
    /// and which of them did it is not known; each is to be handled on its own.
    fn handle_batch(&mut self, calls: &[Call<'_>]) -> Option<Vec<Outcome>> {
        Some(calls.iter().map(|call| self.handle(call)).collect())
    }

    /// Called after the calls of a batch.
    fn end(&mut self) {}
}

/// One message to handle.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The message.
    pub message: &'a Arc<Message>,
    /// Where it was read.
    pub source: &'a Address,
    /// Topics: which one, where `source` is a pattern.
    pub topic: Option<&'a str>,
    /// Topics: where it lies.
    pub position: Option<Position>,
    /// Which attempt this is, counted from 1.
    pub attempt: u32,
    /// After how many attempts it becomes a dead letter.
    pub attempts_max: u32,
}

/// What a lane gives the runners it opens.
#[derive(Clone, Debug)]
pub struct LaneContext {
    /// What the route allows.
    pub terms: Arc<Terms>,
    /// How its guests publish in the middle of a call.
    pub outlet: Arc<dyn Outlet>,
    /// Where async work is waited for from the lane's thread.
    pub runtime: tokio::runtime::Handle,
    /// Cancelled when the lane has to stop and its grace is over: guests are ended, and their calls count as not made.
    pub ending: CancellationToken,
}

/// Publishes for a guest in the middle of its call. The hub implements it; it checks nothing that the runner has
/// checked already (destination, size).
#[async_trait]
pub trait Outlet: Send + Sync + Debug {
    /// Publishes and waits for the confirm.
    ///
    /// # Errors
    /// [`OutletError`], as the guest will see it.
    async fn publish(&self, to: &Address, message: Message) -> Result<(), OutletError>;

    /// Publishes and waits for the first message that answers it, at most `timeout`.
    ///
    /// # Errors
    /// [`OutletError`], as the guest will see it.
    async fn request(&self, to: &Address, message: Message, timeout: Duration) -> Result<Arc<Message>, OutletError>;
}

/// Why a message was not published in the middle of a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutletError {
    /// Send less.
    #[error("larger than the {max} bytes that are allowed")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// Try again, or give up.
    #[error("not confirmed, or not answered, in time")]
    Timeout,
    /// Try again later.
    #[error("{0}")]
    Unavailable(String),
}
