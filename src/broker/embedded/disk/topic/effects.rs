//! What follows from a change to a topic: for the disk, and for those who wait.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    log::Entry,
    pages::Stretch,
    progress::{Again, Wanted},
    retention::Oldest,
    state::GroupKey,
};
use crate::{
    broker::embedded::readers::Wakes,
    store::{Change, PartitionId, StoreError},
};

#[derive(Debug, Default)]
pub(super) struct Effects {
    /// To be submitted before the lock is released, in this order.
    pub(super) batches: Vec<Batch>,
    pub(super) reads: Vec<Read>,
    /// To be told after the lock is released.
    pub(super) wakes: Wakes,
}

/// What must be on disk some time, together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) follow: Follow,
}

/// What to do once it is.
#[derive(Debug)]
pub(super) enum Follow {
    Nothing,
    /// Tells who waits for it.
    Answer(oneshot::Sender<Result<(), Arc<StoreError>>>),
    /// [`super::state::State::flushed`].
    Flushed(GroupKey),
    /// [`super::state::State::forgotten`].
    Forgotten(usize),
}

/// What is to be read.
#[derive(Debug)]
pub(super) enum Read {
    /// For a group, in the order of a partition.
    Ahead { group: GroupKey, partition: usize, id: PartitionId, wanted: Wanted },
    /// For retention.
    Oldest { partition: usize, id: PartitionId, what: Oldest },
}

/// What was read for a group.
#[derive(Debug)]
pub(super) enum Found {
    Page(Stretch, Result<Vec<Entry>, Arc<StoreError>>),
    Again(Result<Vec<Again>, Arc<StoreError>>),
}

impl Found {
    pub(super) fn error(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Page(_, read) => read.as_ref().err(),
            Self::Again(read) => read.as_ref().err(),
        }
    }
}
