//! What readers and the server say to each other, as data: what was delivered, and what became of it.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::super::wire::EntryId;
use crate::{
    broker::BrokerError,
    message::{FailedAttempt, Message, Position},
};

/// An entry: the place of its stream among those of its queue or topic, and its id.
pub(super) type Entry = (u8, EntryId);

/// What waits to be handed out.
#[derive(Debug)]
pub(in crate::broker::redis) struct Item {
    pub(super) entry: Entry,
    pub(super) message: Arc<Message>,
    /// How often it was delivered, this time included.
    pub(super) count: u32,
    pub(super) failures: Vec<FailedAttempt>,
    /// Whether the server keeps what went wrong before.
    pub(super) has_notes: bool,
    pub(super) position: Option<Position>,
}

/// Something to be forgotten.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) entry: Entry,
    pub(super) size: usize,
    pub(super) has_notes: bool,
}

/// Something to be delivered again.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) entry: Entry,
    /// Its count, as the server has it, and as it is to be.
    pub(super) count: u32,
    pub(super) count_then: u32,
    pub(super) to: To,
    /// What went wrong so far, where that has changed.
    pub(super) failures: Option<Vec<FailedAttempt>>,
}

/// To whom.
#[derive(Debug)]
pub(super) enum To {
    /// To this reader, as that.
    Me(Box<Item>),
    /// To whoever comes first.
    Anyone,
    /// The same, after a while.
    Later(Duration),
}

/// Who waits for something to be confirmed.
pub(super) type Waiter = oneshot::Sender<Result<(), BrokerError>>;

/// What the server is to be told.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) done: Vec<Done>,
    pub(super) back: Vec<Back>,
    pub(super) waiters: Vec<Waiter>,
    /// Leases begin anew.
    pub(super) renews: bool,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.says_nothing() && self.waiters.is_empty() && !self.renews
    }

    /// Whether there are only some who wait for what was said before.
    pub(super) fn only_waits(&self) -> bool {
        self.says_nothing() && !self.waiters.is_empty()
    }

    fn says_nothing(&self) -> bool {
        self.done.is_empty() && self.back.is_empty()
    }
}
