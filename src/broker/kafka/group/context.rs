//! What the client library tells the consumer of a group: which partitions are its own from now on and which are not, what
//! was committed, how everything is doing. All of it on the thread that fetches.

use std::{
    sync::{Arc, OnceLock, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};

use super::{
    Figures, GroupReading, Reading, Trouble,
    part::{Part, PartId},
    progress::Commit,
    share::Share,
};
use crate::broker::kafka::{client, condition::Condition, places::Places, settings::Settings};

/// How long asking for the place of a group may take, when a partition comes.
const COMMITTED: Duration = Duration::from_secs(10);
/// How long one try may take.
const ASK: Duration = Duration::from_secs(3);

/// How long until a commit is tried again that came while the group changed.
const BETWEEN_GENERATIONS: Duration = Duration::from_millis(20);

/// Whether a commit was refused because who is a member was about to change, or just has.
fn is_between_generations(committed: &KafkaResult<()>) -> bool {
    let code = committed.as_ref().err().and_then(KafkaError::rdkafka_error_code);
    matches!(code, Some(RDKafkaErrorCode::IllegalGeneration | RDKafkaErrorCode::RebalanceInProgress))
}

/// What a consumer of a group has to know when it is told something.
#[derive(Debug)]
pub(super) struct GroupContext {
    pub(super) reading: Arc<Reading>,
    pub(super) settings: Arc<Settings>,
    pub(super) condition: Arc<Condition>,
    pub(super) share: Arc<Share>,
    pub(super) places: Arc<Places>,
    /// Whose context this is, once it is known.
    pub(super) consumer: OnceLock<Weak<BaseConsumer<Self>>>,
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // All that is ever heard of a commit that nobody waited for.
        if facility == "COMMITFAIL" {
            self.share.not_committed.store(true, Relaxed);
        }
        client::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.condition.failed(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.condition.statistics(&statistics);
        let mut state = self.share.lock();
        let mut lost = 0;
        for (topic, partition) in statistics
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values().map(move |partition| (topic, partition)))
        {
            let Some(part) = state.of(&topic.topic, partition.partition) else { continue };
            let known = |offset: i64| u64::try_from(offset).ok();
            if let Some(low) = known(partition.lo_offset) {
                part.low = part.low.max(low);
            }
            if let Some(end) = known(partition.ls_offset).or(known(partition.hi_offset)) {
                part.end = part.end.max(end);
            }
            part.fetches = part.fetches.max(known(partition.next_offset).unwrap_or_default());
            // What was in front of the first message that came, and is not kept any more.
            if let (Some(expected), Some(next)) = (part.expected, part.progress.next())
                && next > expected
            {
                part.expected = None;
                let gone = part.low.min(next).saturating_sub(expected);
                if gone > 0 {
                    tracing::warn!(topic = %part.topic, partition = part.partition, "{gone} messages were gone before they were read: the topic's retention is shorter than the group was behind");
                    lost += gone;
                }
            }
            self.places.seen(&part.topic, part.partition, part.low, part.end);
            self.reading.meters.lag(part);
        }
        state.dropped += lost;
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let done = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, partitions),
            _ => self.revoked(consumer, partitions),
        };
        if let Err(error) = done {
            tracing::warn!(source = %self.reading.place, group = %self.reading.group, "a change of partitions did not go well: {error}");
        }
        self.reading.meters.assigned(self.share.lock().parts.len());
    }
}

impl GroupContext {
    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        tracing::debug!(source = %self.reading.place, group = %self.reading.group, count = partitions.count(), "partitions assigned");
        let mut from = TopicPartitionList::new();
        let committed = match partitions.count() {
            0 => Ok(TopicPartitionList::new()),
            _ => self.committed(consumer, partitions),
        };
        for one in partitions.elements() {
            let (topic, partition) = (one.topic(), one.partition());
            let commit =
                committed.as_ref().ok().and_then(|committed| committed.find_partition(topic, partition)).and_then(
                    |found| match found.offset() {
                        Offset::Offset(offset) => {
                            Some(Commit { offset: u64::try_from(offset).ok()?, metadata: found.metadata().to_owned() })
                        }
                        _ => None,
                    },
                );
            let begin = match (&commit, &committed) {
                (Some(commit), _) => Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX)),
                // Nobody could say: the client library asks again, and reads from there.
                (None, Err(_)) => Offset::Stored,
                (None, Ok(_)) => self.reading.start(consumer, topic, partition),
            };
            let at = match begin {
                Offset::Offset(offset) => u64::try_from(offset).ok(),
                _ => None,
            };
            from.add_partition_offset(topic, partition, begin)?;
            // Before anything of it is fetched: what lies with the events of all partitions would be overtaken.
            if let Some(consumer) = self.consumer.get().and_then(Weak::upgrade) {
                drop(consumer.split_partition_queue(topic, partition));
            }
            let topic = self.reading.name_of(topic);
            self.share.joined(|id| Part::new(id, topic, partition, at, commit));
        }
        if let Err(error) = &committed {
            tracing::warn!(source = %self.reading.place, group = %self.reading.group, "what was done above the committed places is not known, and may be done again: {error}");
        }
        self.reading.meters.rebalanced("assigned");
        self.reading.joined.store(true, Relaxed);
        // Those of the subscription before this one, too.
        self.condition.well(&self.reading.trouble(Trouble::Rights));
        self.condition.well(&self.reading.trouble(Trouble::Place));
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&from),
            _ => consumer.assign(&from),
        }
    }

    /// Where the group is, in partitions that come. A transaction that is still open holds back the answer until it has
    /// ended, at the latest when its time is up.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> KafkaResult<TopicPartitionList> {
        let until = Instant::now() + self.settings.transaction_timeout + COMMITTED;
        loop {
            match consumer.committed_offsets(partitions.clone(), ASK) {
                Err(error) if Instant::now() < until && !self.share.lock().stopped => {
                    tracing::debug!(source = %self.reading.place, "where the group is is not known yet: {error}");
                    self.share.end_unfinished();
                }
                answer => return answer,
            }
        }
    }

    /// The servers let it read (again).
    pub(super) fn may_read(&self) {
        if self.reading.barred.swap(false, Relaxed) {
            self.condition.well(&self.reading.trouble(Trouble::Rights));
        }
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        let ids: Vec<PartId> = {
            let mut state = self.share.lock();
            let id = |topic: &str, partition| state.of(topic, partition).map(|part| part.id);
            let mut id = id;
            partitions.elements().iter().filter_map(|one| id(one.topic(), one.partition())).collect()
        };
        let lost = consumer.assignment_lost();
        tracing::debug!(source = %self.reading.place, group = %self.reading.group, count = ids.len(), lost, "partitions revoked");
        if lost {
            // Somebody else has them already: what is committed now could undo what they have committed.
            self.reading.meters.rebalanced("lost");
            self.reading.joined.store(false, Relaxed);
        } else {
            self.reading.meters.rebalanced("revoked");
            self.share.leave(&ids, self.settings.revoke_wait);
            self.commit(consumer, &ids, CommitMode::Sync);
        }
        self.remember(&ids);
        partitions.elements().iter().for_each(|one| self.reading.meters.gone(one.topic(), one.partition()));
        self.share.left(&ids);
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            _ => consumer.unassign(),
        }
    }

    /// Commits how far these partitions are, where the server does not know it yet; waiting for it, also where that is only
    /// believed.
    pub(super) fn commit(&self, consumer: &BaseConsumer<Self>, ids: &[PartId], mode: CommitMode) {
        let mut offsets = TopicPartitionList::new();
        {
            let mut state = self.share.lock();
            (state.done, state.begun) = (0, false);
            let transacts = self.reading.transacts.load(Relaxed);
            let is_certain = matches!(mode, CommitMode::Sync) && !transacts;
            if self.share.not_committed.swap(false, Relaxed) {
                self.reading.meters.committed(false);
                state.parts.iter_mut().for_each(|part| part.committed = None);
            }
            for part in state.parts.iter_mut().filter(|part| ids.contains(&part.id)) {
                if transacts && part.out > 0 {
                    // A transaction may be about to commit more: this would come later, and say less.
                    continue;
                }
                let commit = if is_certain { part.progress.commit() } else { part.uncommitted() };
                let Some(commit) = commit else { continue };
                let mut one = offsets.add_partition(&part.topic, part.partition);
                one.set_metadata(commit.metadata.as_str());
                if one.set_offset(Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX))).is_ok() {
                    // Until we hear otherwise.
                    part.committed = Some(commit);
                }
            }
        }
        if offsets.count() == 0 {
            return;
        }
        let until = Instant::now() + self.settings.revoke_wait;
        let mut committed = consumer.commit(&offsets, mode);
        // While others come and go, the group is at its next generation before we are: we hear of it in a moment.
        while matches!(mode, CommitMode::Sync) && is_between_generations(&committed) && Instant::now() < until {
            std::thread::sleep(BETWEEN_GENERATIONS);
            committed = consumer.commit(&offsets, mode);
        }
        match committed {
            Ok(()) => self.reading.meters.committed(true),
            Err(error) => {
                // Committed again with the next.
                self.share.not_committed.store(true, Relaxed);
                tracing::debug!(source = %self.reading.place, group = %self.reading.group, "progress was not committed: {error}");
            }
        }
    }

    /// How far the group was in partitions that are about to go, for people.
    pub(super) fn remember(&self, ids: &[PartId]) {
        let state = self.share.lock();
        state
            .parts
            .iter()
            .filter(|part| ids.contains(&part.id))
            .for_each(|part| self.places.left(&self.reading.place, &self.reading.group, part.figures()));
    }
}

impl GroupReading for GroupContext {
    fn id(&self) -> u64 {
        self.reading.id
    }

    fn source(&self) -> (Arc<str>, Arc<str>) {
        (Arc::clone(&self.reading.place), Arc::clone(&self.reading.group))
    }

    fn figures(&self) -> Figures {
        let state = self.share.lock();
        Figures {
            parts: state.parts.iter().map(Part::figures).collect(),
            out: state.out() as u64,
            delayed: state.parts.iter().map(|part| part.delayed() as u64).sum(),
            dead_lettered: state.dead_lettered,
            dropped: state.dropped,
        }
    }
}
