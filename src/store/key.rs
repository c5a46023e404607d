//! Keys of rows: where a message lies, in one positive 64-bit integer that sorts as the messages do, so that rows are
//! added at the end of their range and read in order.

use std::fmt;

/// Bits of the number that a message has in its queue.
const SEQUENCE_BITS: u32 = 47;
const SEQUENCE_MASK: u64 = (1 << SEQUENCE_BITS) - 1;
const LANE_BITS: u32 = 4;
/// Bits of an offset.
const OFFSET_BITS: u32 = 43;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// Most queues and topics of a store, those that are gone included.
pub const PLACES_MAX: u16 = (1 << (63 - LANE_BITS - SEQUENCE_BITS)) - 1;
/// Most partitions of a store.
pub const PARTITIONS_MAX: u32 = (1 << (63 - OFFSET_BITS)) - 1;
/// The lane of messages that were published for later, whatever their priority. The others are the priorities.
pub const LANE_LATER: u8 = 15;

/// A queue or topic of a store, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(pub u16);

/// One lane of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(u16);

/// One partition of a topic, over all topics of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u32);

/// A consumer group of a topic, over all topics of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// A message in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey(u64);

/// A message in a topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey(u64);

impl LaneId {
    /// The lane of a queue: a priority, or [`LANE_LATER`].
    #[must_use]
    pub fn new(queue: PlaceId, lane: u8) -> Self {
        Self(queue.0 << LANE_BITS | u16::from(lane & 0xf))
    }

    /// Of which queue.
    #[must_use]
    pub fn queue(self) -> PlaceId {
        PlaceId(self.0 >> LANE_BITS)
    }

    /// Which lane of it.
    #[must_use]
    pub fn lane(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// The key of a message in it.
    #[must_use]
    pub fn key(self, sequence: u64) -> QueueKey {
        QueueKey(u64::from(self.0) << SEQUENCE_BITS | (sequence & SEQUENCE_MASK))
    }

    /// As the database has it.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        i64::from(self.0)
    }

    /// From the database.
    #[must_use]
    pub fn from_i64(id: i64) -> Self {
        Self(id as u16)
    }
}

impl QueueKey {
    /// In which lane.
    #[must_use]
    pub fn lane(self) -> LaneId {
        LaneId((self.0 >> SEQUENCE_BITS) as u16)
    }

    /// Its number in its queue, over all lanes, counted from 1.
    #[must_use]
    pub fn sequence(self) -> u64 {
        self.0 & SEQUENCE_MASK
    }

    /// As the database has it.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        // Sixty-three bits are used.
        self.0 as i64
    }

    /// From the database.
    #[must_use]
    pub fn from_i64(key: i64) -> Self {
        Self(key as u64)
    }
}

impl fmt::Debug for QueueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.lane().queue().0, self.lane().lane(), self.sequence())
    }
}

impl LogKey {
    /// The message at an offset.
    #[must_use]
    pub fn new(partition: PartitionId, offset: u64) -> Self {
        Self(u64::from(partition.0) << OFFSET_BITS | (offset & OFFSET_MASK))
    }

    /// In which partition.
    #[must_use]
    pub fn partition(self) -> PartitionId {
        PartitionId((self.0 >> OFFSET_BITS) as u32)
    }

    /// At which offset.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// As the database has it.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// From the database.
    #[must_use]
    pub fn from_i64(key: i64) -> Self {
        Self(key as u64)
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition().0, self.offset())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_keep_what_they_are_made_of_and_sort_as_messages_do(
            queue in 1..=PLACES_MAX, lane in 0_u8..16, sequence in 0..=SEQUENCE_MASK,
            partition in 1..=PARTITIONS_MAX, offset in 0..=OFFSET_MASK,
        ) {
            let key = LaneId::new(PlaceId(queue), lane).key(sequence);
            prop_assert_eq!((key.lane().queue(), key.lane().lane(), key.sequence()), (PlaceId(queue), lane, sequence));
            prop_assert!(key.as_i64() >= 0 && QueueKey::from_i64(key.as_i64()) == key);
            prop_assert!(key.lane().key(sequence.saturating_sub(1)) <= key);
            let key = LogKey::new(PartitionId(partition), offset);
            prop_assert_eq!((key.partition(), key.offset()), (PartitionId(partition), offset));
            prop_assert!(key.as_i64() >= 0 && LogKey::from_i64(key.as_i64()) == key);
        }
    }
}
