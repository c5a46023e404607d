//! What all lanes of one route share.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{brake::Brake, circuits::Circuits, meters::Meters};
use crate::{
    broker::Broker,
    handler::{LaneContext, Slot},
    route::Route,
};

/// How long a delivery waits whose dead letter could not be kept, or whose handler cannot be run.
pub(super) const SETBACK: Duration = Duration::from_secs(1);

/// What all lanes of one route share.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) route: Arc<Route>,
    pub(super) slot: Arc<Slot>,
    pub(super) brake: Arc<Brake>,
    /// Of where it publishes.
    pub(super) circuits: Circuits,
    pub(super) context: LaneContext,
    pub(super) meters: Meters,
}

/// Cancelled when the grace period of a drain is over: the running calls of its source are ended.
pub(super) type Ending = CancellationToken;
