//! One consumer on one channel, and everything it has out. In: deliveries of the server, settlements of the engine. Out:
//! acknowledgements, and copies for what is to come again later.
//!
//! What is given back stays here, unacknowledged, and is handed out first: it keeps its place, and no server counts it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::FutureExt;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use tokio::sync::Notify;

use super::{
    acks::{Acks, Told},
    place::Place,
    publisher::Copied,
};
use crate::{
    broker::{BrokerError, Deliveries, Delivery, Settler, Tag},
    message::{FailedAttempt, Settlement},
};

/// One consumer on one channel.
#[derive(Debug)]
pub(super) struct Session {
    place: Arc<Place>,
    channel: Channel,
    /// So many acknowledgements may wait for one that covers them.
    waiting_max: usize,
    state: Mutex<State>,
    /// Something was given back.
    given_back: Notify,
    /// Somebody found that it has stalled.
    restarted: Notify,
    /// The channel is known to be gone. The library's own word for it costs a lock that it takes for each frame.
    is_lost: AtomicBool,
    /// When something came last, in milliseconds since the session began.
    moved: AtomicU64,
    began: Instant,
}

#[derive(Debug, Default)]
struct State {
    acks: Acks,
    back: BTreeMap<Tag, Waiting>,
    /// Handed out, and not settled.
    out: usize,
    /// Since when messages were seen to wait, and when something had come last by then.
    waits: Option<(Instant, u64)>,
    /// Nobody reads any more: what comes back goes to the server.
    has_ended: bool,
}

/// A delivery that was given back.
#[derive(Debug)]
struct Waiting {
    delivery: Delivery,
    due: Option<Instant>,
    /// Its last attempt failed: should the channel go, the server rightly counts it.
    has_failed: bool,
}

/// Something is told to the server, once, without waiting for it: an acknowledgement has no answer, and the frame is in line
/// to be written as soon as the library was asked once. Should it not get there, the message comes again.
macro_rules! say {
    ($session:expr, $frame:expr) => {
        if let Some(Err(error)) = $frame.now_or_never() {
            $session.is_lost.store(true, Ordering::Relaxed);
            tracing::debug!("an acknowledgement was not sent, its message comes again: {error}");
        }
    };
}

impl Session {
    pub(super) fn new(place: Arc<Place>, channel: Channel, prefetch: u16) -> Self {
        Self {
            place,
            channel,
            waiting_max: usize::from(prefetch / 4).clamp(1, 1024),
            state: Mutex::default(),
            given_back: Notify::new(),
            restarted: Notify::new(),
            is_lost: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deliveries came from the server, this one last.
    pub(super) fn arrived(&self, tag: Tag) {
        self.lock().acks.arrived(tag);
        self.moved.store(self.age(), Ordering::Relaxed);
    }

    /// Milliseconds since the session began.
    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Called with each look at the queue: for how long messages were seen to wait there, while nothing came and nothing is
    /// out. What is seen for the first time may be on its way.
    pub(super) fn stalled(&self, messages_wait: bool) -> Option<Duration> {
        let mut state = self.lock();
        if !messages_wait || state.has_ended || state.out > 0 || !state.back.is_empty() {
            state.waits = None;
            return None;
        }
        let moved = self.moved.load(Ordering::Relaxed);
        let (since, _) = state.waits.filter(|(_, then)| *then == moved).unwrap_or_else(|| (Instant::now(), moved));
        state.waits = Some((since, moved));
        Some(since.elapsed())
    }

    /// What was given back and is due, oldest first, as long as `take` will have it.
    pub(super) fn due(&self, now: Instant, mut take: impl FnMut(&Delivery) -> bool) -> Vec<Delivery> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        if state.back.is_empty() {
            return taken;
        }
        let due: Vec<Tag> =
            state.back.iter().filter(|(_, one)| one.due.is_none_or(|due| due <= now)).map(|(tag, _)| *tag).collect();
        for tag in due {
            if !state.back.get(&tag).is_some_and(|one| take(&one.delivery)) {
                break;
            }
            taken.extend(state.back.remove(&tag).map(|one| one.delivery));
        }
        taken
    }

    /// When the next of what was given back is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lock().back.values().filter_map(|one| one.due).min()
    }

    /// Waits until something is given back.
    pub(super) async fn something_back(&self) {
        self.given_back.notified().await;
    }

    /// Waits until the session is to begin anew.
    pub(super) async fn restarted(&self) {
        self.restarted.notified().await;
    }

    /// Messages wait and none come: it begins anew.
    pub(super) fn restart(&self) {
        self.restarted.notify_one();
    }

    /// The queue or stream that it reads.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// A message of a stream that nobody asked for.
    pub(super) fn pass_over(&self, tag: Tag) {
        let mut state = self.lock();
        state.acks.arrived(tag);
        state.acks.settled(tag);
    }

    /// These are about to be settled by ourselves.
    pub(super) fn are_out(&self, count: usize) {
        self.lock().out += count;
        self.place.counts.out(count);
    }

    /// These are handed out.
    pub(super) fn hand_out(self: &Arc<Self>, items: Vec<Delivery>) -> Deliveries {
        self.are_out(items.len());
        Deliveries::new(items, Arc::clone(self) as Arc<dyn Settler>)
    }

    /// Tells the server what it can be told in one frame, and the rest if it is too much to wait for one. Says whether there
    /// was anything.
    fn tell_enough(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let waiting_max = if state.has_ended { 1 } else { self.waiting_max };
        let told = state.acks.tell(waiting_max);
        let is_any = told != Told::default();
        self.tell(state, told);
        is_any
    }

    /// Tells the server what it was not told yet: nothing else is to be done.
    pub(super) fn tell_all(&self) {
        let mut state = self.lock();
        let told = state.acks.tell(1);
        self.tell(&state, told);
    }

    /// Under the lock: of two that cover each other the larger must not be first, as the server would not know the other's
    /// deliveries any more, and close the channel.
    fn tell(&self, _: &MutexGuard<'_, State>, told: Told) {
        if let Some(tag) = told.up_to {
            say!(self, self.channel.basic_ack(tag, BasicAckOptions { multiple: true }));
        }
        for tag in told.each {
            say!(self, self.channel.basic_ack(tag, BasicAckOptions { multiple: false }));
        }
    }

    /// Under the lock as well: an acknowledgement of all before a later delivery would take this one along.
    fn requeue(&self, state: &mut MutexGuard<'_, State>, tag: Tag) {
        state.acks.told(tag);
        say!(self, self.channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }));
    }

    /// Nobody reads any more, and the server was told. What waits here goes back to it, what is out follows as it is
    /// settled; with the last of them the channel goes.
    pub(super) fn end(&self, unread: Vec<Delivery>) {
        let mut state = self.lock();
        state.has_ended = true;
        let told = state.acks.tell(1);
        self.tell(&state, told);
        for tag in std::mem::take(&mut state.back).into_keys().chain(unread.iter().map(|one| one.tag)) {
            self.requeue(&mut state, tag);
        }
    }

    /// Came after nobody read any more.
    pub(super) fn give_back(&self, tag: Tag) {
        self.requeue(&mut self.lock(), tag);
    }

    /// What was prefetched and not handed out, for the count of what was never tried: the channel is lost.
    pub(super) fn untried(&self) -> Vec<Delivery> {
        self.is_lost.store(true, Ordering::Relaxed);
        let back = std::mem::take(&mut self.lock().back);
        back.into_values().filter(|one| !one.has_failed).map(|one| one.delivery).collect()
    }

    /// Why nothing can be settled any more.
    fn lost(&self) -> BrokerError {
        if self.place.publisher.is_closed() {
            return BrokerError::Closed;
        }
        BrokerError::Lost(format!("the channel to {} was lost", self.place.address))
    }

    /// Keeps deliveries here, to be handed out again.
    fn take_back(&self, waiting: impl IntoIterator<Item = Waiting>) {
        let mut state = self.lock();
        for one in waiting {
            let tag = one.delivery.tag;
            if state.has_ended {
                self.requeue(&mut state, tag);
            } else {
                state.back.insert(tag, one);
            }
        }
        drop(state);
        self.given_back.notify_one();
    }

    /// Publishes a copy of each to a queue that brings it back when its time has come, and acknowledges what was confirmed.
    /// The others wait here instead.
    async fn send_on(&self, later: Vec<Later>) {
        let now = Instant::now();
        let copies = later.iter().map(|one| one.copied(&self.place.name)).collect();
        let confirmed = self.place.publisher.publish_copies(copies).await;
        let (mut waiting, mut failed) = (Vec::new(), None);
        {
            let mut state = self.lock();
            for (one, confirmed) in later.into_iter().zip(confirmed) {
                match confirmed {
                    Ok(()) => state.acks.settled(one.delivery.tag),
                    Err(error) => {
                        failed.get_or_insert(error);
                        let Later { delivery, after, has_failed } = one;
                        waiting.push(Waiting { delivery, due: Some(now + after), has_failed });
                    }
                }
            }
            self.tell_enough(&mut state);
        }
        if let Some(error) = failed {
            let (queue, messages) = (&self.place.name, waiting.len());
            tracing::warn!(%queue, messages, "copies could not be sent to a retry queue, the messages wait here instead: {error}");
        }
        self.take_back(waiting);
    }
}

/// A delivery that comes again later: with its attempt and failures as they will be then.
#[derive(Debug)]
struct Later {
    delivery: Delivery,
    after: Duration,
    has_failed: bool,
}

impl Later {
    fn copied(&self, queue: &Arc<str>) -> Copied {
        let Delivery { message, attempt, failures, .. } = &self.delivery;
        Copied {
            message: Arc::clone(message),
            attempt: *attempt,
            failures: failures.clone(),
            queue: Arc::clone(queue),
            after: self.after,
        }
    }
}

/// Whether nothing more comes of this delivery here, but a copy at most.
fn ends(how: &Settlement) -> bool {
    match how {
        Settlement::Accept | Settlement::DeadLetter { .. } => true,
        Settlement::Redeliver { after, .. } | Settlement::Release { after } => !after.is_zero(),
    }
}

/// The attempt did not succeed: the next one follows.
fn failed(mut delivery: Delivery, failure: FailedAttempt) -> Delivery {
    delivery.attempt = delivery.attempt.saturating_add(1);
    crate::message::remember(&mut delivery.failures, failure);
    delivery
}

#[async_trait]
impl Settler for Session {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        self.place.counts.back(settled.len());
        self.place.forgiven.forget(settled.iter().filter(|(_, how)| ends(how)).map(|(delivery, _)| delivery));
        if self.is_lost.load(Ordering::Relaxed) {
            self.lock().out -= settled.len();
            return Err(self.lost());
        }
        let (mut back, mut later) = (Vec::new(), Vec::new());
        let (mut acked, mut dead) = (0, 0);
        {
            let mut state = self.lock();
            state.out -= settled.len();
            for (delivery, how) in settled {
                match how {
                    Settlement::Accept => {
                        acked += 1;
                        state.acks.settled(delivery.tag);
                    }
                    Settlement::DeadLetter { .. } => {
                        dead += 1;
                        state.acks.settled(delivery.tag);
                    }
                    Settlement::Redeliver { after, failure } if after.is_zero() => {
                        back.push(Waiting { delivery: failed(delivery, *failure), due: None, has_failed: true });
                    }
                    Settlement::Redeliver { after, failure } => {
                        later.push(Later { delivery: failed(delivery, *failure), after, has_failed: true });
                    }
                    Settlement::Release { after } if after.is_zero() => {
                        back.push(Waiting { delivery, due: None, has_failed: false });
                    }
                    Settlement::Release { after } => later.push(Later { delivery, after, has_failed: false }),
                }
            }
            // Where nothing is told now, or copies are to be sent, the library has to say whether the channel is there: the
            // server has given back what came over one that is not.
            if !self.tell_enough(&mut state) || !later.is_empty() {
                let is_there = self.channel.status().connected();
                self.is_lost.fetch_or(!is_there, Ordering::Relaxed);
            }
        }
        if self.is_lost.load(Ordering::Relaxed) {
            return Err(self.lost());
        }
        self.place.counts.settled(acked, dead, back.len() + later.len());
        if !back.is_empty() {
            self.take_back(back);
        }
        if !later.is_empty() {
            self.send_on(later).await;
        }
        Ok(())
    }

    /// Nothing to do: the server counts when it delivers, and the ledger what happens in between.
    async fn count_attempt(&self, _: &Delivery, _: FailedAttempt) -> Result<(), BrokerError> {
        Ok(())
    }

    fn release(&self, released: Vec<Delivery>) {
        self.place.counts.back(released.len());
        self.lock().out -= released.len();
        self.take_back(released.into_iter().map(|delivery| Waiting { delivery, due: None, has_failed: false }));
    }
}
