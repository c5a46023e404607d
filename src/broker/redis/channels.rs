//! Topics that are Pub/Sub channels: at most once. Who is not there when something is published never gets it, and the server
//! keeps nothing. What may have been missed is counted as a gap, as far as it can be seen: a message that nobody heard, a
//! connection that was lost, a reader that was too slow. What is to be tried again waits here, in memory.
//!
//! Messages are JSON, as the API has them; anything else that comes is a payload.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::{PushInfo, PushKind, Value, aio::SendError};
use rustc_hash::FxHashMap;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{errors, shared::Shared, transport};
use crate::{
    broker::{BatchMax, BrokerError, Deliveries, Delivery, KeepAlive, PublishError, Settler, Subscription, Tag},
    codec::json,
    message::{Address, FailedAttempt, Kind, Message, Settlement, now_ms, remember},
    telemetry::metrics,
};

/// Messages that wait for their reader, at most: the oldest of more are lost, and counted.
const WAITING_MAX: usize = 10_000;
/// Bytes of them.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// First pause before connecting again; doubles up to the longest, spread by full jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Why something may have been missed.
#[derive(Clone, Copy, Debug)]
enum Gap {
    /// Nobody heard it.
    Unheard,
    /// The connection was lost, and made again.
    Reconnected,
    /// It came faster than it was read.
    Slow,
}

fn count(address: &Address, why: Gap) {
    let why = match why {
        Gap::Unheard => "unheard",
        Gap::Reconnected => "reconnected",
        Gap::Slow => "slow",
    };
    metrics().pubsub_gaps.with_label_values(&["redis", &*address.name, why]).inc();
}

/// Publishes to a channel. One result for each.
pub(super) async fn publish(shared: &Shared, to: &Address, messages: &[&Message]) -> Vec<Result<(), PublishError>> {
    let all = |error: PublishError| messages.iter().map(|_| Err(error.clone())).collect::<Vec<_>>();
    let up = match shared.connection_to_publish().await {
        Ok(up) => up,
        Err(error) => return all(error),
    };
    let mut pipeline = redis::pipe();
    for message in messages {
        // Written without fail; what is not is empty.
        let document = json::write(message, Kind::Topic).unwrap_or_default();
        pipeline.cmd("PUBLISH").arg(&*to.name).arg(document);
    }
    let sent = tokio::time::timeout(shared.settings.publish_timeout, up.ask_all(&pipeline)).await;
    match sent {
        Ok(Ok(answers)) => answers
            .into_iter()
            .map(|answer| match errors::of(answer) {
                Ok(Value::Int(0)) => {
                    count(to, Gap::Unheard);
                    Ok(())
                }
                Ok(_) => Ok(()),
                Err(error) => {
                    shared.publish.judge(&error);
                    Err(errors::unpublished(&shared.settings, to, &error))
                }
            })
            .collect(),
        Ok(Err(error)) => all(errors::unpublished(&shared.settings, to, &error)),
        Err(_) => {
            let text = format!("Redis did not answer within {:?}", shared.settings.publish_timeout);
            all(PublishError::Unconfirmed(text))
        }
    }
}

/// One message, with what is known of its attempts.
#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    attempt: u32,
    failures: Vec<FailedAttempt>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Kept>,
    bytes: usize,
    /// To be tried again, by when.
    later: BTreeMap<(Instant, Tag), Kept>,
    out: FxHashMap<Tag, ()>,
    next_tag: Tag,
    has_ended: bool,
}

impl State {
    fn front(&mut self, kept: Kept) {
        self.bytes += kept.message.size();
        self.waiting.push_front(kept);
    }

    fn due(&mut self, now: Instant) {
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now) {
            let kept = first.remove();
            self.front(kept);
        }
    }
}

/// One reader of a channel.
#[derive(Debug)]
pub(super) struct Listener {
    address: Address,
    prefetch: usize,
    state: Mutex<State>,
    arrived: Notify,
    ended: Notify,
}

impl Listener {
    pub(super) fn new(address: Address, prefetch: usize) -> Self {
        let (state, arrived, ended) = Default::default();
        Self { address, prefetch: prefetch.max(1), state, arrived, ended }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing comes any more.
    pub(super) fn end(&self) {
        self.state().has_ended = true;
        self.arrived.notify_one();
        self.ended.notify_one();
    }

    /// What the server says.
    fn heard(&self, push: PushInfo, bytes_max: usize) {
        if push.kind != PushKind::Message {
            return;
        }
        let Some(Value::BulkString(payload)) = push.data.into_iter().nth(1) else { return };
        let message = read(payload, bytes_max);
        let mut state = self.state();
        state.bytes += message.size();
        state.waiting.push_back(Kept { message: Arc::new(message), attempt: 1, failures: Vec::new() });
        while state.waiting.len() > WAITING_MAX || (state.bytes > WAITING_BYTES_MAX && state.waiting.len() > 1) {
            let Some(lost) = state.waiting.pop_front() else { break };
            state.bytes -= lost.message.size();
            count(&self.address, Gap::Slow);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Listens until nobody wants to hear any more.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let (mut pause, mut is_first) = (PAUSE_MIN, true);
        loop {
            let listen = async {
                let heard = Arc::clone(&self);
                let bytes_max = shared.settings.message_bytes_max;
                let listening = transport::listen(&shared.settings, move |push| {
                    heard.heard(push, bytes_max);
                    Ok::<_, SendError>(())
                });
                let (mut connection, mut driver) = listening.await.map_err(|error| error.text)?;
                tokio::select! {
                    begun = connection.subscribe(&*self.address.name) => begun.map_err(|error| error.to_string())?,
                    () = &mut driver => return Err("the connection was lost".to_owned()),
                }
                if !std::mem::take(&mut is_first) {
                    count(&self.address, Gap::Reconnected);
                }
                pause = PAUSE_MIN;
                driver.await;
                Err::<(), String>("the connection was lost".to_owned())
            };
            let why = tokio::select! {
                ended = listen => ended.err().unwrap_or_default(),
                () = self.ended.notified() => return,
                () = shared.closing() => {
                    self.end();
                    return;
                }
            };
            tracing::warn!(source = %self.address, "messages of this channel may be missed, connecting again: {why}");
            tokio::select! {
                () = sleep(pause.mul_f64(crate::message::random())) => {}
                () = self.ended.notified() => return,
                () = shared.closing() => {
                    self.end();
                    return;
                }
            }
            pause = (pause * 2).min(shared.settings.reconnect_delay_max);
        }
    }
}

/// Our own JSON, or a payload.
fn read(payload: Vec<u8>, bytes_max: usize) -> Message {
    let now = now_ms();
    match json::read(&payload, Kind::Topic, now, bytes_max) {
        Ok(read) if !read.message.kind.is_empty() || !read.message.payload.is_empty() => read.message,
        _ => Message::new("", payload, now),
    }
}

#[async_trait]
impl Settler for Listener {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let now = Instant::now();
        let mut state = self.state();
        if state.has_ended {
            return Err(BrokerError::Closed);
        }
        for (delivery, how) in settled {
            if state.out.remove(&delivery.tag).is_none() {
                continue;
            }
            let Delivery { message, tag, attempt, mut failures, .. } = delivery;
            match how {
                Settlement::Accept | Settlement::DeadLetter { .. } => {}
                Settlement::Release { after } => {
                    state.later.insert((now + after, tag), Kept { message, attempt, failures });
                }
                Settlement::Redeliver { after, failure } => {
                    remember(&mut failures, *failure);
                    state
                        .later
                        .insert((now + after, tag), Kept { message, attempt: attempt.saturating_add(1), failures });
                }
            }
        }
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    async fn count_attempt(&self, _: &Delivery, _: FailedAttempt) -> Result<(), BrokerError> {
        Ok(())
    }

    fn release(&self, released: Vec<Delivery>) {
        let mut state = self.state();
        for delivery in released.into_iter().rev() {
            if state.out.remove(&delivery.tag).is_some() {
                let Delivery { message, attempt, failures, .. } = delivery;
                state.front(Kept { message, attempt, failures });
            }
        }
        drop(state);
        self.arrived.notify_one();
    }
}

impl KeepAlive for Listener {
    fn renew(&self) {}

    fn every(&self) -> Option<Duration> {
        None
    }
}

/// Reads a channel.
#[derive(Debug)]
pub(super) struct ChannelSubscription(pub(super) Arc<Listener>);

#[async_trait]
impl Subscription for ChannelSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let listener = &self.0;
        loop {
            let mut taken = Vec::new();
            let next_due = {
                let mut state = listener.state();
                if state.has_ended {
                    return Ok(None);
                }
                state.due(Instant::now());
                let room = listener.prefetch.saturating_sub(state.out.len()).min(max.count);
                let mut bytes = 0_usize;
                while taken.len() < room {
                    let Some(size) = state.waiting.front().map(|kept| kept.message.size()) else { break };
                    bytes = bytes.saturating_add(size);
                    if bytes > max.bytes && !taken.is_empty() {
                        break;
                    }
                    let Some(Kept { message, attempt, failures }) = state.waiting.pop_front() else { break };
                    state.bytes -= size;
                    state.next_tag += 1;
                    let tag = state.next_tag;
                    state.out.insert(tag, ());
                    let (topic, position, count) = (None, None, Default::default());
                    taken.push(Delivery { message, tag, attempt, topic, position, count, failures });
                }
                state.later.first_key_value().map(|((at, _), _)| *at)
            };
            if !taken.is_empty() {
                return Ok(Some(Deliveries::new(taken, Arc::clone(listener) as Arc<dyn Settler>)));
            }
            let due = async {
                match next_due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = listener.arrived.notified() => {}
                () = due => {}
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::clone(&self.0) as Arc<dyn KeepAlive>
    }
}

impl Drop for ChannelSubscription {
    fn drop(&mut self) {
        // What is out is settled all the same: there is nothing to be told.
        self.0.ended.notify_one();
    }
}
