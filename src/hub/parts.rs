//! What all lanes of one route share.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{brake::Brake, circuits::Circuits, doing::Doing, meters::Meters};
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
    pub(super) doing: Doing,
}

/// How long a broker may still take to answer once the grace period of a drain is over.
pub(super) const LAST_ANSWER: Duration = Duration::from_millis(500);

impl Parts {
    /// Waits for a broker. `None`: the grace period of a drain is over, and it has not answered: whatever it was told may be
    /// true or not, so that it has to come again.
    pub(super) fn wait<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let ending = &self.context.ending;
        let over = async {
            ending.cancelled().await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        self.context.runtime.block_on(async {
            tokio::select! {
                biased;
                answer = answer => Some(answer),
                () = over => None,
            }
        })
    }
}

/// Cancelled when the grace period of a drain is over: the running calls of its source are ended.
pub(super) type Ending = CancellationToken;
