//! The disk: messages, what is noted of them and how far groups are, in one SQLite database, written by one thread that
//! commits what has come together. The only place that knows SQLite.

mod change;
mod key;

pub use change::{Batch, Change, FORGET_MAX, LedgerKey, Need, Note, Noted, Then};
pub use key::{GroupId, LANE_LATER, LaneId, LogKey, PARTITIONS_MAX, PLACES_MAX, PartitionId, PlaceId, QueueKey};
