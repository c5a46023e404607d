//! What changes of a commit add up to: one row a lane, partition and group, however many messages there were.

use rusqlite::{Connection, params};
use rustc_hash::FxHashMap;

use super::TIME_OFFSETS;
use crate::{
    message::UnixMs,
    store::{GroupId, LaneId, LogKey, PartitionId, PlaceId, QueueKey, note::time},
};

/// Sequences that are reserved at once.
const SEQUENCES: u64 = 65_536;

#[derive(Default)]
pub(super) struct Sums<'a> {
    lanes: FxHashMap<LaneId, Lane>,
    partitions: FxHashMap<PartitionId, Partition>,
    /// By the first key of each segment.
    times: FxHashMap<i64, UnixMs>,
    progress: FxHashMap<(GroupId, PartitionId), (u64, &'a [u8])>,
}

/// What is added to a lane.
#[derive(Default)]
struct Lane {
    count: i64,
    bytes: i64,
    waiting: i64,
    handed: u64,
    /// The highest that was put.
    sequence: u64,
}

#[derive(Default)]
struct Partition {
    start: u64,
    next: u64,
    bytes: i64,
    appended: UnixMs,
}

impl<'a> Sums<'a> {
    pub(super) fn put(&mut self, key: QueueKey, bytes: u32, waits: bool) {
        let lane = self.lanes.entry(key.lane()).or_default();
        lane.count += 1;
        lane.bytes += i64::from(bytes);
        lane.waiting += i64::from(waits);
        lane.sequence = lane.sequence.max(key.sequence());
    }

    pub(super) fn remove(&mut self, key: QueueKey, bytes: u32, waited: bool) {
        let lane = self.lanes.entry(key.lane()).or_default();
        lane.count -= 1;
        lane.bytes -= i64::from(bytes);
        lane.waiting -= i64::from(waited);
    }

    pub(super) fn note(&mut self, key: QueueKey, waited: bool, waits: bool) {
        self.lanes.entry(key.lane()).or_default().waiting += i64::from(waits) - i64::from(waited);
    }

    pub(super) fn handed(&mut self, key: QueueKey) {
        let lane = self.lanes.entry(key.lane()).or_default();
        lane.handed = lane.handed.max(key.sequence());
    }

    pub(super) fn append(&mut self, key: LogKey, bytes: u32, appended: UnixMs, timestamp: UnixMs) {
        let partition = self.partitions.entry(key.partition()).or_default();
        partition.next = partition.next.max(key.offset() + 1);
        partition.bytes += i64::from(bytes);
        partition.appended = partition.appended.max(appended);
        let segment = LogKey::new(key.partition(), key.offset() - key.offset() % TIME_OFFSETS);
        let greatest = self.times.entry(segment.as_i64()).or_default();
        *greatest = timestamp.max(*greatest);
    }

    pub(super) fn forget(&mut self, partition: PartitionId, end: u64, bytes: u64) {
        let partition = self.partitions.entry(partition).or_default();
        partition.start = partition.start.max(end);
        partition.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    pub(super) fn progress(&mut self, group: GroupId, partition: PartitionId, handed: u64, settled: &'a [u8]) {
        self.progress.insert((group, partition), (handed, settled));
    }

    /// Raises what is reserved of the sequences of these queues, where more was used. Says what it is then.
    pub(super) fn reserve(
        &self,
        connection: &Connection,
        reserved: &FxHashMap<PlaceId, u64>,
    ) -> rusqlite::Result<Vec<(PlaceId, u64)>> {
        let mut raised = Vec::new();
        for (lane, sum) in &self.lanes {
            let queue = lane.queue();
            if sum.sequence >= reserved.get(&queue).copied().unwrap_or(0) {
                let next = sum.sequence + SEQUENCES;
                let sql = "UPDATE place SET sequence_next = max(sequence_next, ?2) WHERE place = ?1";
                connection.prepare_cached(sql)?.execute((queue.0, next as i64))?;
                raised.push((queue, next));
            }
        }
        Ok(raised)
    }

    /// Writes a row for each.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        for (lane, sum) in &self.lanes {
            let sql = "INSERT INTO lane (lane, count, bytes, waiting, handed) VALUES (?1, ?2, ?3, ?4, ?5) \
                       ON CONFLICT (lane) DO UPDATE SET count = count + excluded.count, \
                       bytes = bytes + excluded.bytes, waiting = waiting + excluded.waiting, \
                       handed = max(handed, excluded.handed)";
            let values = params![lane.as_i64(), sum.count, sum.bytes, sum.waiting, sum.handed as i64];
            connection.prepare_cached(sql)?.execute(values)?;
        }
        for (partition, sum) in &self.partitions {
            let sql = "UPDATE partition SET start = max(start, ?2), next = max(next, ?3), bytes = bytes + ?4, \
                       appended = max(appended, ?5) WHERE partition = ?1";
            let values = params![partition.0, sum.start as i64, sum.next as i64, sum.bytes, time(sum.appended)];
            connection.prepare_cached(sql)?.execute(values)?;
        }
        for (segment, greatest) in &self.times {
            let sql = "INSERT INTO log_time (key, timestamp) VALUES (?1, ?2) \
                       ON CONFLICT (key) DO UPDATE SET timestamp = max(timestamp, excluded.timestamp)";
            connection.prepare_cached(sql)?.execute((segment, time(*greatest)))?;
        }
        for ((group, partition), (handed, settled)) in &self.progress {
            let sql = "INSERT OR REPLACE INTO progress (consumer_group, partition, handed, settled) \
                       VALUES (?1, ?2, ?3, ?4)";
            connection.prepare_cached(sql)?.execute(params![group.0, partition.0, *handed as i64, settled])?;
        }
        Ok(())
    }
}
