//! What a store holds, as it is found when it is opened: enough to go on where the last process ended, whatever the
//! backlog. Messages are not among it.

use std::sync::Arc;

use super::{GroupId, LaneId, Note, PartitionId, PlaceId};
use crate::message::UnixMs;

/// Everything but the messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// In the order they were made.
    pub queues: Vec<StoredQueue>,
    /// In the order they were made.
    pub topics: Vec<StoredTopic>,
    /// In the order they were made.
    pub groups: Vec<StoredGroup>,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredQueue {
    /// Its number.
    pub id: PlaceId,
    /// Its name.
    pub name: Arc<str>,
    /// Above every sequence that was ever used.
    pub sequence_next: u64,
    /// Those that were ever used.
    pub lanes: Vec<StoredLane>,
}

/// A lane of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLane {
    /// Which.
    pub lane: LaneId,
    /// Messages.
    pub count: u64,
    /// What they count towards limits.
    pub bytes: u64,
    /// How many of them are noted with a time before which they are not delivered.
    pub waiting: u64,
    /// Sequence up to which everything was handed over at least once; 0: nothing was.
    pub handed: u64,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTopic {
    /// Its number.
    pub id: PlaceId,
    /// Its name.
    pub name: Arc<str>,
    /// All, in their order.
    pub partitions: Vec<StoredPartition>,
}

impl StoredTopic {
    /// One that was just made.
    #[must_use]
    pub fn new(id: PlaceId, name: Arc<str>, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        let empty = |id| StoredPartition { id, start: 0, end: 0, bytes: 0, appended_last: 0 };
        Self { id, name, partitions: partitions.into_iter().map(empty).collect() }
    }
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPartition {
    /// Its number.
    pub id: PartitionId,
    /// Offset of the first that retention left.
    pub start: u64,
    /// Offset of the next.
    pub end: u64,
    /// What those from `start` on count.
    pub bytes: u64,
    /// When the last was appended; 0: none was.
    pub appended_last: UnixMs,
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGroup {
    /// Its number.
    pub id: GroupId,
    /// Of which topic.
    pub topic: PlaceId,
    /// Its name.
    pub name: Arc<str>,
    /// Partition, first offset that was never handed over, and what of those below is settled, as the broker encoded it.
    pub progress: Vec<(PartitionId, u64, Vec<u8>)>,
    /// Partition, offset and what is noted, in that order.
    pub retries: Vec<(PartitionId, u64, Note)>,
}
