//! The thread that fetches for one subscription. It polls all the time, however long handlers take, so that membership in the
//! group never depends on them; what there is no room for stays with the client library. It commits, and it leaves in good
//! order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, CommitMode, base_consumer::PartitionQueue},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};

use super::{
    Trouble,
    context::GroupContext,
    part::{Now, Part, PartId, Ready},
    stalls::Stalls,
};
use crate::{
    broker::{BrokerError, Count, kafka::wire},
    message::{FailedAttempt, Position, ReasonCode, now_ms},
};

/// Longest sleep: rebalances and figures are looked for at least so often.
const SLEEP: Duration = Duration::from_millis(100);
/// Messages of one partition at a time.
const RUN: usize = 1024;
/// Events at a time: one that was only an event looks like none.
const EVENTS: usize = 4;

/// The thread's own.
pub(super) struct Poller {
    consumer: Arc<BaseConsumer<GroupContext>>,
    context: Arc<GroupContext>,
    /// Each partition by itself, so that a full one does not hold up the others, nor events.
    queues: BTreeMap<PartId, PartitionQueue<GroupContext>>,
    fetched: Vec<Ready>,
    commit_at: Instant,
    stalls: Stalls,
}

impl Poller {
    pub(super) fn new(consumer: BaseConsumer<GroupContext>, context: Arc<GroupContext>) -> Self {
        let consumer = Arc::new(consumer);
        // Said once, before anything is polled.
        context.consumer.set(Arc::downgrade(&consumer)).ok();
        Self {
            consumer,
            queues: BTreeMap::new(),
            fetched: Vec::with_capacity(RUN),
            commit_at: Instant::now(),
            stalls: Stalls::new(),
            context,
        }
    }

    /// The consumer, for as long as the thread runs.
    pub(super) fn consumer(&self) -> Weak<BaseConsumer<GroupContext>> {
        Arc::downgrade(&self.consumer)
    }

    /// Fetches until the subscription is dropped, or the broker closed.
    pub(super) fn run(mut self) {
        let share = Arc::clone(&self.context.share);
        share.is_fetched_here();
        loop {
            let (is_stopped, is_due, asked) = {
                let mut state = share.lock();
                let is_due = state.begun || state.done >= self.context.settings.commit_messages_max;
                (state.stopped, is_due, state.asked())
            };
            if !asked.is_empty() {
                self.commit(CommitMode::Sync);
                // Whoever asked may have given up.
                asked.into_iter().for_each(|answer| answer.send(()).unwrap_or_default());
            }
            if is_stopped {
                break;
            }
            self.serve();
            self.split();
            let any = self.fetch();
            let now = Instant::now();
            if is_due || now >= self.commit_at {
                self.commit(CommitMode::Async);
                self.commit_at = now + self.context.settings.commit_interval;
                self.stalls.look(&self.context, now);
            }
            if !any {
                thread::park_timeout(SLEEP.min(self.commit_at.saturating_duration_since(now)));
            }
        }
        self.leave();
    }

    /// Hears what the client library has to say: rebalances, figures, errors. Never waits.
    fn serve(&mut self) {
        for _ in 0..EVENTS {
            match self.consumer.poll(Duration::ZERO) {
                None => {}
                // Of a partition that has no queue of its own yet.
                Some(Ok(message)) => {
                    let id = self.context.share.lock().of(message.topic(), message.partition()).map(|part| part.id);
                    if let Some(id) = id {
                        let ready = read(&message, &self.context);
                        drop(message);
                        self.context.share.fetched(id, &mut vec![ready], Now::read());
                    }
                }
                Some(Err(error)) => self.context.heard(&error, None),
            }
        }
    }

    /// Gives each partition that is new a queue of its own.
    fn split(&mut self) {
        let new: Vec<(PartId, Arc<str>, i32)> = {
            let state = self.context.share.lock();
            if state.parts.len() == self.queues.len()
                && state.parts.iter().all(|part| self.queues.contains_key(&part.id))
            {
                return;
            }
            self.queues.retain(|id, _| state.part(*id).is_some());
            let parts = state.parts.iter().filter(|part| !self.queues.contains_key(&part.id));
            parts.map(|part| (part.id, Arc::clone(&part.topic), part.partition)).collect()
        };
        for (id, topic, partition) in new {
            let Some(mut queue) = self.consumer.split_partition_queue(&topic, partition) else { continue };
            let share = Arc::clone(&self.context.share);
            queue.set_nonempty_callback(move || share.wake());
            self.queues.insert(id, queue);
        }
    }

    /// Fetches what there is room for; true if there was any.
    fn fetch(&mut self) -> bool {
        let (mut any, mut more) = (false, false);
        for (id, queue) in &self.queues {
            let room = self.context.share.room(*id).min(RUN);
            let mut failed = None;
            for _ in 0..room {
                match queue.poll(Duration::ZERO) {
                    Some(Ok(message)) => self.fetched.push(read(&message, &self.context)),
                    Some(Err(error)) => {
                        failed = Some(error);
                        break;
                    }
                    None => break,
                }
            }
            if !self.fetched.is_empty() {
                any = true;
                self.context.reading.meters.received(self.fetched.len());
                self.context.share.fetched(*id, &mut self.fetched, Now::read());
            }
            // It is about what comes behind those.
            if let Some(error) = failed {
                more = true;
                self.context.heard(&error, Some(*id));
            }
        }
        if any {
            self.context.condition.is_up();
            self.context.may_read();
        }
        any || more
    }

    fn commit(&self, mode: CommitMode) {
        let ids: Vec<PartId> = self.context.share.lock().parts.iter().map(|part| part.id).collect();
        self.context.commit(&self.consumer, &ids, mode);
    }

    /// Waits for what is out, commits, and lets the others have the partitions.
    fn leave(mut self) {
        let context = Arc::clone(&self.context);
        let until = Instant::now() + context.settings.session_timeout;
        while Instant::now() < until {
            let (closed, out) = {
                let state = context.share.lock();
                (state.closed, state.out())
            };
            if closed || out == 0 {
                break;
            }
            self.serve();
            if Instant::now() >= self.commit_at {
                self.commit(CommitMode::Async);
                self.commit_at = Instant::now() + context.settings.commit_interval;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        let ids: Vec<PartId> = context.share.lock().parts.iter().map(|part| part.id).collect();
        context.share.leave(&ids, Duration::ZERO);
        if context.condition.why_away().is_none() {
            self.commit(CommitMode::Sync);
        }
        context.remember(&ids);
        context.share.left(&ids);
        self.queues.clear();
        // Leaves the group; the callbacks of that find no partition of ours any more.
        drop(self.consumer);
        context.places.ended(&*context, &context.reading.place);
    }
}

impl GroupContext {
    /// A partition cannot be read on until somebody decides; where it is not known which, each may be it.
    fn stuck(&self, of: Option<PartId>, why: impl Fn(&Part) -> String) {
        let mut state = self.share.lock();
        // Said again and again, and each time the same.
        let new = state.parts.iter_mut().filter(|part| of.is_none_or(|id| part.id == id) && part.stuck.is_none());
        for part in new {
            let reason = why(part);
            self.condition.trouble(&self.reading.trouble(Trouble::Pace), reason.clone());
            part.stuck = Some(reason);
        }
    }

    /// An error that is no message, of a partition where it is known.
    fn heard(&self, error: &KafkaError, of: Option<PartId>) {
        let reading = &self.reading;
        let Some(code) = error.rdkafka_error_code() else { return };
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            let reason = match code {
                RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::UnreleasedInstanceId => format!(
                    "another member of group {} has the same kafka.group_instance_id: give each engine its own",
                    reading.group
                ),
                _ => format!("reading {} as {} ended: {error}", reading.place, reading.group),
            };
            self.barred(reason.clone());
            return self.share.fail(BrokerError::Refused { reason, code: ReasonCode::ConsumeFailed });
        }
        match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                // Said once after a restart of the server, too, though the topic is there.
                tracing::debug!(source = %reading.place, "not there, or not yet");
                self.share.lock().missing = true;
            }
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed => {
                let what = if code == RDKafkaErrorCode::GroupAuthorizationFailed { "group" } else { "topic" };
                let reason = format!(
                    "Kafka does not let us read {} as group {}: allow the user Read on the {what}",
                    reading.place, reading.group
                );
                self.barred(reason);
            }
            RDKafkaErrorCode::AutoOffsetReset => self.stuck(of, |_| {
                format!(
                    "the place where group {} left {} is not kept any more, and kafka.offset_reset is none: set it to earliest or latest, or reset the group",
                    reading.group, reading.place
                )
            }),
            RDKafkaErrorCode::NotImplemented | RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::BadMessage => {
                self.stuck(of, |part| {
                    format!(
                        "what lies at offset {} in partition {} of {} is broken, or compressed in a way that is not known here ({code}): it is read on once it is not kept any more, or group {} is reset to behind it",
                        part.progress.next().unwrap_or(part.low), part.partition, part.topic, reading.group
                    )
                });
            }
            RDKafkaErrorCode::PollExceeded => {
                tracing::warn!(source = %reading.place, "the engine did not ask for messages in time, and joins the group anew");
            }
            _ => self.condition.failed(&KafkaError::Global(code), &error.to_string()),
        }
    }

    /// The servers do not let us read.
    fn barred(&self, reason: String) {
        self.reading.barred.store(true, Relaxed);
        self.condition.trouble(&self.reading.trouble(Trouble::Rights), reason);
    }
}

/// A record as a message that may be handed out.
fn read(record: &BorrowedMessage<'_>, context: &GroupContext) -> Ready {
    let incoming = wire::incoming(record);
    let offset = u64::try_from(record.offset()).unwrap_or_default();
    let partition = u32::try_from(record.partition()).unwrap_or_default();
    let mut ready = Ready {
        due: incoming.message.not_before,
        message: Arc::new(incoming.message),
        offset,
        position: Position { partition, offset },
        attempt: 1,
        count: Count::AtLeast,
        failures: Vec::new(),
        skip: false,
    };
    if let Some(text) = incoming.poison {
        // No handler can have it: as one whose attempts are used up it goes to the dead letters, with its place.
        let failure = FailedAttempt { attempt: 1, at: now_ms(), code: ReasonCode::MessageInvalid, text };
        (ready.attempt, ready.count, ready.failures, ready.due) = (u32::MAX, Count::Exact, vec![failure], None);
    } else if context.reading.copies_of.is_some() {
        match incoming.copy.filter(|copy| context.reading.wants(copy)) {
            Some(copy) => {
                ready.position = Position { partition: copy.partition, offset: copy.offset };
                (ready.attempt, ready.failures) = (copy.attempt.max(1), copy.failures);
                ready.due = ready.due.max(Some(copy.due));
            }
            None => ready.skip = true,
        }
    }
    ready
}
