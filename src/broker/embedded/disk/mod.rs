//! Queues and topics on disk: the same guarantees as in memory, and what was confirmed survives the process and the
//! power. The store (`src/store`) writes; who decides what is in `queue/` and `topic/`.
//!
//! Start at `queue/mod.rs`; then `grants.rs` and `suspects.rs`, which say how attempts are counted over crashes.

mod grants;
mod queue;
mod suspects;
mod topic;

use std::{sync::Arc, time::Duration};

pub(super) use self::{
    queue::{DiskQueue, Memory},
    topic::DiskTopic,
};
use crate::{
    broker::{
        BrokerError, PublishError,
        commit::{answering, safely},
    },
    message::{Address, Message},
    store::{Permit, Purpose, Store, StoreError, StoreStatus},
};

/// Fails where nothing is written any more.
fn check(store: &Store) -> Result<(), BrokerError> {
    match store.status() {
        StoreStatus::Failed { what } => Err(BrokerError::Storage(Arc::new(StoreError::Failed { what }))),
        _ => Ok(()),
    }
}

/// Room for messages. What the engine made of messages that are there has some where publishers have none: those go
/// only once it is safe, so a backlog could not drain otherwise.
async fn admit<'a>(
    store: &Store,
    messages: impl ExactSizeIterator<Item = &'a Message> + Clone,
    bytes: usize,
) -> Result<Permit, StoreError> {
    let count = messages.len();
    match store.admit(count, bytes, Purpose::Publish).await {
        // Looked at only here, so that nobody else pays for it.
        Err(StoreError::NoSpace { .. }) if messages.clone().all(Message::is_follow_up) => {
            store.admit(count, bytes, Purpose::FollowUp).await
        }
        admitted => admitted,
    }
}

/// What a publisher is told.
fn refused(address: &Address, error: &StoreError) -> PublishError {
    match error {
        StoreError::NoSpace { .. } => PublishError::NoSpace { address: address.clone(), reason: error.to_string() },
        StoreError::Closed => PublishError::Closed,
        error => PublishError::Unconfirmed(error.to_string()),
    }
}

/// Milliseconds, at most.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
