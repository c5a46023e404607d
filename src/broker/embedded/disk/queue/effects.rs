//! What follows from a change of a queue, as data: what to write, what to read, whom to wake.

use super::{item::Item, later::Entry};
use crate::{
    broker::{
        Delivery,
        embedded::{clock::Tick, readers::Wakes},
    },
    store::{Change, LaneId, QueueKey},
};

/// What follows from a change.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// To be written, in this order, before the lock is released.
    pub(super) changes: Vec<Change>,
    /// To be read, afterwards.
    pub(super) loads: Vec<Load>,
    /// They wait from the moment at which the changes are on disk.
    pub(super) later: Vec<Entry>,
    /// Something is ready: wake one of those who wait; or all, as something is due earlier than they think.
    pub(super) wake_one: bool,
    pub(super) wake_all: bool,
    /// These have room again.
    pub(super) rooms: Wakes,
}

/// What is needed from the disk.
#[derive(Debug)]
pub(super) enum Load {
    /// The next of a lane, behind a sequence.
    Page { place: usize, lane: LaneId, behind: u64, count: usize },
    /// Messages whose time has come.
    Due(Vec<QueueKey>),
    /// The next that wait, behind one.
    Later(Option<Entry>),
}

/// What [`State::take`] found.
#[derive(Debug)]
pub(super) enum Taken {
    Some(Vec<Delivery>),
    /// Nothing for now: look again at `until`, or when woken. `full`: not before something is settled.
    Nothing {
        until: Tick,
        full: bool,
    },
    Ended,
}

/// What [`State::take`](super::state::State::take) finds at the head of a lane.
#[derive(Debug)]
pub(super) enum Popped {
    Item(Box<Item>),
    /// Nothing, or nothing before another has ended: those of lower priority may go.
    Nothing,
    /// Something, but not into this batch.
    NotNow,
}
