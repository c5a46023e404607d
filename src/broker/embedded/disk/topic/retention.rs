//! What a topic gives up for its age or its size: the oldest first, a bounded number at a time. What lies in memory is
//! known by itself; of what lies on disk only, ages and sizes are read first, one reading of a partition at a time.

use std::time::Duration;

use super::{
    effects::{Batch, Effects, Follow, Read},
    group::Group,
    log::Log,
    state::{GroupKey, State},
};
use crate::{
    broker::{
        TopicSettings,
        embedded::clock::{Now, Tick},
    },
    message::UnixMs,
    store::{Change, FORGET_MAX},
};

/// How often the age of what lies on disk only is looked at: a part of the retention, within bounds.
const LOOK_PART: u32 = 64;
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Of one partition.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// The oldest are being read, or given up.
    busy: bool,
    /// Ages on disk need not be looked at before.
    look: Tick,
}

/// Which of the oldest to read: those from `start` on, with their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oldest {
    /// That were appended before this.
    Aged { start: u64, before: UnixMs },
    /// Whatever their age.
    Any { start: u64 },
}

impl State {
    /// Applies retention, as far as it can be done now.
    pub(super) fn retain(&mut self, now: Now, out: &mut Effects) {
        let Self { settings, logs, retention, groups, .. } = self;
        for (partition, (log, retention)) in logs.iter_mut().zip(retention).enumerate() {
            let mut gone = Vec::new();
            let start = log.start();
            while let Some(oldest) = log.oldest() {
                let aged = aged_before(settings, now).is_some_and(|before| oldest.appended < before);
                if !aged && log.bytes() <= bytes_max(settings) {
                    break;
                }
                gone.push((oldest.offset, oldest.bytes));
                log.pop();
            }
            forget(groups, partition, log, start, &gone, Follow::Nothing, out);
            if retention.busy || log.start() >= log.tail_start() {
                continue;
            }
            let start = log.start();
            let what = if log.bytes() > bytes_max(settings) {
                Some(Oldest::Any { start })
            } else {
                let due = aged_before(settings, now).filter(|_| now.tick >= retention.look);
                due.map(|before| Oldest::Aged { start, before })
            };
            let Some(what) = what else { continue };
            retention.busy = true;
            retention.look = now.after(
                settings.retention.map_or(LOOK_MAX, |retention| (retention / LOOK_PART).clamp(LOOK_MIN, LOOK_MAX)),
            );
            out.reads.push(Read::Oldest { partition, id: log.id, what });
        }
    }

    /// The oldest of a partition were read: their offsets and sizes, at most [`FORGET_MAX`]; `None`: they were not.
    pub(super) fn put_oldest(
        &mut self,
        partition: usize,
        what: Oldest,
        oldest: Option<Vec<(u64, u32)>>,
        out: &mut Effects,
    ) {
        let Self { settings, logs, retention, groups, .. } = self;
        let (Some(log), Some(retention)) = (logs.get_mut(partition), retention.get_mut(partition)) else { return };
        let Some(oldest) = oldest else {
            retention.busy = false;
            return;
        };
        let (start, full) = (log.start(), oldest.len() as u64 >= FORGET_MAX);
        let mut gone = Vec::new();
        for (offset, size) in oldest {
            let enough = match what {
                Oldest::Aged { .. } => false,
                Oldest::Any { .. } => log.bytes() <= bytes_max(settings),
            };
            if enough || offset >= log.tail_start() {
                break;
            }
            // Some may have gone while they were read.
            if offset >= start {
                gone.push((offset, size));
                log.forget_to(offset + 1, u64::from(size));
            }
        }
        if full {
            // There is more: look again as soon as these are gone.
            retention.look = 0;
        }
        retention.busy = !gone.is_empty();
        forget(groups, partition, log, start, &gone, Follow::Forgotten(partition), out);
    }

    /// What a partition gave up is gone from disk.
    pub(super) fn forgotten(&mut self, partition: usize, now: Now, out: &mut Effects) {
        if let Some(retention) = self.retention.get_mut(partition) {
            retention.busy = false;
        }
        self.retain(now, out);
    }
}

/// Says that a partition begins later now, in pieces that take no commit long. `gone` is what of it goes, from `start` on.
fn forget(
    groups: &[(GroupKey, Group)],
    partition: usize,
    log: &mut Log,
    start: u64,
    gone: &[(u64, u32)],
    follow: Follow,
    out: &mut Effects,
) {
    let mut follow = Some(follow);
    let mut from = start;
    let mut left = gone;
    while let Some((_, end)) = left.last().map(|(last, _)| (from, last + 1)) {
        let end = end.min(from + FORGET_MAX);
        let (piece, rest) = left.split_at(left.partition_point(|(offset, _)| *offset < end));
        let bytes = piece.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        let mut keep: Vec<u64> = groups.iter().flat_map(|(_, group)| group.open(partition, from, end)).collect();
        keep.iter().for_each(|offset| log.keep(*offset));
        keep.sort_unstable();
        keep.dedup();
        let changes = vec![Change::Forget { partition: log.id, start: from, end, bytes, keep }];
        let follow = follow.take_if(|_| rest.is_empty()).unwrap_or(Follow::Nothing);
        out.batches.push(Batch { changes, follow });
        (from, left) = (end, rest);
    }
}

/// What was appended before this has had its time.
fn aged_before(settings: &TopicSettings, now: Now) -> Option<UnixMs> {
    let retention = u64::try_from(settings.retention?.as_millis()).unwrap_or(u64::MAX);
    // Those of exactly that age have had it.
    now.steady.checked_sub(retention).map(|oldest| oldest + 1)
}

fn bytes_max(settings: &TopicSettings) -> u64 {
    settings.retention_bytes.unwrap_or(u64::MAX)
}
