//! What the thread that fetches, the engine that handles and the callbacks of rebalances share of one subscription, behind one
//! lock. Whoever waits is woken: the engine for messages, the thread for room and for work that has ended.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use super::{
    part::{Now, Part, PartId, Ready, id_after, named},
    progress::Commit,
};
use crate::{
    broker::{BatchMax, BrokerError, Delivery},
    message::Settlement,
};

/// Messages of one partition that are fetched ahead, at most, beside what the client library has.
const AHEAD_MAX: usize = 4096;
/// And their bytes, over all partitions.
const AHEAD_BYTES_MAX: usize = 16 << 20;
/// Messages that wait for their time, at most; beyond it their partition is not read on.
const DELAYED_MAX: usize = 16_384;
const DELAYED_BYTES_MAX: usize = 64 << 20;

/// What is shared of one subscription.
#[derive(Debug)]
pub(super) struct Share {
    state: Mutex<State>,
    /// Something can be handed out, or it has ended.
    pub(super) some: Notify,
    /// Work has ended: of interest to a partition that is about to leave.
    ended: Condvar,
    /// The thread that fetches, once it runs.
    thread: OnceLock<Thread>,
    /// It waits for room.
    needs_room: AtomicBool,
    /// A commit has failed: what was believed to be committed may not be.
    pub(super) not_committed: AtomicBool,
    /// Ends what the process before this one has left of a transaction, where it had our name.
    unfinished: OnceLock<Ending>,
    /// After how many it is to commit.
    commit_after: u64,
    /// Most deliveries out at a time.
    prefetch: usize,
    /// Whether deliveries have to say of which topic they are.
    names_topics: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) parts: Vec<Part>,
    last: PartId,
    /// Where handing out goes on, so that no partition waits for another to run dry.
    turn: usize,
    out: usize,
    /// The subscription has been dropped: nothing new is handed out.
    pub(super) stopped: bool,
    /// The broker has been closed: nothing holds any more.
    pub(super) closed: bool,
    /// It cannot go on, and why.
    pub(super) failed: Option<BrokerError>,
    /// Who waits until all that is done now is committed.
    asked: Vec<oneshot::Sender<()>>,
    /// Done since the last commit.
    pub(super) done: u64,
    /// A partition began where the group has no place: that is to be kept, before what comes is done.
    pub(super) begun: bool,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
    /// The server has said that the topic is not there.
    pub(super) missing: bool,
    /// When something was last fetched or handed out, or there was nothing to fetch.
    pub(super) moved: Option<Instant>,
}

struct Ending(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ending")
    }
}

/// What there is to hand out.
pub(super) enum Taken {
    Some(Vec<Delivery>),
    /// Nothing now; something at that time, where it is known.
    Nothing(Option<Instant>),
    Ended,
    Failed(BrokerError),
}

impl Share {
    pub(super) fn new(prefetch: usize, names_topics: bool, commit_after: u64) -> Self {
        Self {
            state: Mutex::default(),
            some: Notify::new(),
            ended: Condvar::new(),
            thread: OnceLock::new(),
            needs_room: AtomicBool::new(false),
            unfinished: OnceLock::new(),
            not_committed: AtomicBool::new(false),
            commit_after,
            prefetch: prefetch.max(1),
            names_topics,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread is the one that fetches.
    pub(super) fn is_fetched_here(&self) {
        // Said once, as it begins.
        self.thread.set(std::thread::current()).ok();
    }

    /// Lets the thread look around. Never blocks: the client library calls it under locks of its own.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Says how a transaction is ended that a process of our name has left open.
    pub(super) fn ends_unfinished(&self, end: impl Fn() + Send + Sync + 'static) {
        // Said once, as the subscription begins.
        self.unfinished.set(Ending(Box::new(end))).ok();
    }

    /// Ends it; waits for the server.
    pub(super) fn end_unfinished(&self) {
        if let Some(Ending(end)) = self.unfinished.get() {
            end();
        }
    }

    /// Asks the thread to commit; hears when it has, or has ended.
    pub(super) fn ask_for_commit(&self) -> oneshot::Receiver<()> {
        let (answer, committed) = oneshot::channel();
        self.lock().asked.push(answer);
        self.wake();
        committed
    }

    /// Hands out what there is, a part of it from each partition.
    pub(super) fn take(&self, max: BatchMax, now: Instant) -> Taken {
        let mut state = self.lock();
        let state = &mut *state;
        if state.closed || state.stopped {
            return Taken::Ended;
        }
        if let Some(error) = state.failed.take() {
            return Taken::Failed(error);
        }
        let mut left = max.count.min(self.prefetch.saturating_sub(state.out));
        let mut bytes = max.bytes;
        let mut items = Vec::new();
        let some = state.parts.iter_mut().filter_map(|part| part.has_some(now).then_some(())).count();
        if some > 0 && left > 0 {
            items.reserve(left.min(256));
        }
        let count = state.parts.len();
        let mut with_some = some;
        while left > 0 && bytes > 0 && with_some > 0 {
            let share = left.div_ceil(with_some);
            with_some = 0;
            for step in 0..count {
                let Some(part) = state.parts.get_mut((state.turn + step) % count) else { continue };
                if left == 0 || bytes == 0 || part.leaving {
                    continue;
                }
                let before = items.len();
                let named = self.names_topics.then(|| Arc::clone(&part.topic));
                part.take(
                    BatchMax { count: share.min(left), bytes: max.bytes },
                    &mut bytes,
                    named.as_ref(),
                    &mut items,
                );
                left -= items.len() - before;
                with_some += usize::from(part.has_some(now));
            }
            state.turn = (state.turn + 1) % count.max(1);
        }
        state.out += items.len();
        if items.is_empty() {
            return Taken::Nothing(state.parts.iter().filter(|part| !part.leaving).filter_map(Part::next_due).min());
        }
        state.moved = Some(now);
        if self.needs_room.swap(false, Relaxed) {
            self.wake();
        }
        Taken::Some(items)
    }

    /// A partition is ours from now on. Returns the name of the assignment.
    pub(super) fn joined(&self, part: impl FnOnce(PartId) -> Part) -> PartId {
        let mut state = self.lock();
        state.last = id_after(state.last);
        let part = part(state.last);
        state.begun |= part.committed.is_none() && part.progress.next().is_some();
        state.parts.retain(|other| (other.partition, &other.topic) != (part.partition, &part.topic));
        state.parts.push(part);
        state.last
    }

    /// Which partition has room for more, and for how many messages.
    pub(super) fn room(&self, id: PartId) -> usize {
        let state = self.lock();
        let Some(part) = state.part(id) else { return 0 };
        let bytes: usize = state.parts.iter().map(|part| part.bytes).sum();
        let is_full = part.leaving
            || part.delayed() >= DELAYED_MAX
            || bytes >= if part.delayed() > 0 { DELAYED_BYTES_MAX } else { AHEAD_BYTES_MAX };
        let room = if is_full { 0 } else { AHEAD_MAX.saturating_sub(part.len() - part.delayed()) };
        if room == 0 {
            self.needs_room.store(true, Relaxed);
        }
        room
    }

    /// Messages of one partition have come, in order. Leaves `fetched` empty.
    pub(super) fn fetched(&self, id: PartId, fetched: &mut Vec<Ready>, now: Now) {
        let mut state = self.lock();
        let mut last = state.last;
        if let Some(part) = state.part_mut(id).filter(|part| !part.leaving) {
            for ready in fetched.drain(..) {
                if part.goes_back(ready.offset) {
                    tracing::warn!(topic = %part.topic, partition = part.partition, offset = ready.offset, "the topic was made anew, or cut off: reading goes back");
                    last = id_after(last);
                    part.begin_anew(last, ready.offset);
                }
                part.fetched(ready, now);
            }
        }
        state.last = last;
        fetched.clear();
        state.moved = Some(now.tick);
        drop(state);
        self.some.notify_one();
    }

    /// Carries out settlements. Those whose partition is gone are of no interest any more: false if there were any.
    pub(super) fn settle(&self, settled: Vec<(Delivery, Settlement)>, now: Now) -> bool {
        let mut state = self.lock();
        let mut all = true;
        // Whoever waits for room is told when there is some.
        let mut again = state.out >= self.prefetch;
        for (delivery, how) in settled {
            let (id, offset) = named(delivery.tag);
            state.out = state.out.saturating_sub(1);
            let is_dead = matches!(how, Settlement::DeadLetter { .. });
            let Some(part) = state.part_mut(id) else {
                all = false;
                continue;
            };
            part.out = part.out.saturating_sub(1);
            match how {
                Settlement::Accept | Settlement::DeadLetter { .. } => {
                    part.progress.done(offset);
                    state.done += 1;
                    state.dead_lettered += u64::from(is_dead);
                }
                Settlement::Redeliver { after, failure } => {
                    let mut ready = ready(delivery, offset);
                    ready.attempt = ready.attempt.saturating_add(1);
                    crate::message::remember(&mut ready.failures, *failure);
                    again |= part.back(ready, after, now);
                }
                Settlement::Release { after } => again |= part.back(ready(delivery, offset), after, now),
            }
        }
        let is_due = state.done >= self.commit_after;
        drop(state);
        self.ended.notify_all();
        if is_due {
            self.wake();
        }
        if again {
            self.some.notify_one();
        }
        all
    }

    /// A transaction has settled these: `done` are done, and `commits` committed. What is to come again does.
    pub(super) fn settled(
        &self,
        settled: &[(&Delivery, &Settlement)],
        done: &[(PartId, u64)],
        commits: Vec<(PartId, Commit)>,
        now: Now,
    ) {
        let again = settled.iter().filter(|(delivery, _)| !done.contains(&named(delivery.tag)));
        let again = again.map(|(delivery, how)| (copied(delivery), Settlement::clone(how))).collect();
        let mut state = self.lock();
        let was_full = state.out >= self.prefetch;
        for (id, offset) in done {
            state.out = state.out.saturating_sub(1);
            if let Some(part) = state.part_mut(*id) {
                part.out = part.out.saturating_sub(1);
                part.progress.done(*offset);
            }
        }
        for (id, commit) in commits {
            if let Some(part) = state.part_mut(id) {
                part.committed = Some(commit);
            }
        }
        let dead = settled.iter().filter(|(_, how)| matches!(how, Settlement::DeadLetter { .. })).count();
        state.dead_lettered += dead as u64;
        drop(state);
        if was_full {
            self.some.notify_one();
        }
        self.settle(again, now);
    }

    /// What was not settled goes back, as the same attempt.
    pub(super) fn release(&self, released: Vec<Delivery>) {
        let back = released.into_iter().map(|delivery| (delivery, Settlement::Release { after: Duration::ZERO }));
        self.settle(back.collect(), Now::read());
    }

    /// Whether the partition of a delivery is still ours.
    pub(super) fn has(&self, delivery: &Delivery) -> bool {
        self.lock().part(named(delivery.tag).0).is_some_and(|part| !part.leaving)
    }

    /// Which of these deliveries are of partitions that are not ours any more, or go.
    pub(super) fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        let state = self.lock();
        let mut lost = Vec::new();
        // Most of a batch lies next to each other.
        let mut last = None;
        for (place, delivery) in deliveries.iter().enumerate() {
            let (id, _) = named(delivery.tag);
            let is_lost = match last {
                Some((of, is_lost)) if of == id => is_lost,
                _ => state.part(id).is_none_or(|part| part.leaving),
            };
            last = Some((id, is_lost));
            if is_lost {
                lost.push(place);
            }
        }
        lost
    }

    /// Nothing more is handed out of these; waits, at most so long, for what is out of them.
    pub(super) fn leave(&self, ids: &[PartId], at_most: Duration) {
        let mut state = self.lock();
        state.parts.iter_mut().filter(|part| ids.contains(&part.id)).for_each(Part::leave);
        let is_out =
            |state: &mut State| !state.closed && state.parts.iter().any(|part| ids.contains(&part.id) && part.out > 0);
        drop(self.ended.wait_timeout_while(state, at_most, is_out).unwrap_or_else(PoisonError::into_inner));
    }

    /// These are not ours any more.
    pub(super) fn left(&self, ids: &[PartId]) {
        let mut state = self.lock();
        state.parts.retain(|part| !ids.contains(&part.id));
        drop(state);
        self.some.notify_one();
    }

    /// Nothing new is handed out, what is out may be settled.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        drop(state);
        self.ended.notify_all();
        self.wake();
        self.some.notify_one();
    }

    /// Nothing holds any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.stop();
    }

    /// Nothing that is known of its partitions holds any more; it cannot go on.
    pub(super) fn forget_all(&self, error: BrokerError) {
        let mut state = self.lock();
        state.parts.clear();
        state.failed.get_or_insert(error);
        drop(state);
        self.ended.notify_all();
        self.some.notify_one();
    }

    /// It cannot go on.
    pub(super) fn fail(&self, error: BrokerError) {
        self.lock().failed.get_or_insert(error);
        self.some.notify_one();
    }
}

impl State {
    /// Those who wait for a commit.
    pub(super) fn asked(&mut self) -> Vec<oneshot::Sender<()>> {
        std::mem::take(&mut self.asked)
    }

    pub(super) fn part(&self, id: PartId) -> Option<&Part> {
        self.parts.iter().find(|part| part.id == id)
    }

    pub(super) fn part_mut(&mut self, id: PartId) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.id == id)
    }

    /// The part that has this partition.
    pub(super) fn of(&mut self, topic: &str, partition: i32) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.partition == partition && *part.topic == *topic)
    }

    /// Deliveries that are out, of partitions that are still ours.
    pub(super) fn out(&self) -> usize {
        self.parts.iter().map(|part| part.out).sum()
    }
}

fn copied(delivery: &Delivery) -> Delivery {
    Delivery {
        message: Arc::clone(&delivery.message),
        tag: delivery.tag,
        attempt: delivery.attempt,
        count: delivery.count,
        topic: delivery.topic.clone(),
        position: delivery.position,
        failures: delivery.failures.clone(),
    }
}

fn ready(delivery: Delivery, offset: u64) -> Ready {
    let position = delivery.position.unwrap_or(crate::message::Position { partition: 0, offset });
    Ready {
        message: delivery.message,
        offset,
        position,
        attempt: delivery.attempt,
        count: delivery.count,
        failures: delivery.failures,
        due: None,
        skip: false,
    }
}

impl Part {
    /// Given back; true if it can be handed out at once.
    fn back(&mut self, ready: Ready, after: Duration, now: Now) -> bool {
        if !self.leaving {
            self.returned(ready, after, now);
        }
        true
    }
}

impl crate::broker::kafka::threads::Ends for Share {
    fn close(&self) {
        Self::close(self);
    }
}
