//! Waiting for the store, for the brokers that keep something there.

use std::{future::Future, sync::Arc};

use tokio::sync::oneshot;

use super::BrokerError;
use crate::store::{StoreError, Then};

/// Says when something is on disk, to [`Safe`].
pub(super) type Answer = oneshot::Sender<Result<(), Arc<StoreError>>>;
/// Hears when something is on disk.
pub(super) type Safe = oneshot::Receiver<Result<(), Arc<StoreError>>>;

/// Tells who waits what became of a submission.
pub(super) fn answering(answer: Answer) -> Then {
    // Whoever waited may have gone away.
    Box::new(move |result| drop(answer.send(result)))
}

/// Waits until what was submitted is on disk. Takes a [`Safe`], or borrows one.
pub(super) async fn safely(safe: impl Future<Output = <Safe as Future>::Output>) -> Result<(), BrokerError> {
    match safe.await {
        Ok(result) => result.map_err(|error| BrokerError::Storage(error)),
        Err(_) => Err(BrokerError::Closed),
    }
}
