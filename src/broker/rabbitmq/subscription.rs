//! Deliveries of one queue or stream, for as long as somebody reads: over outages, closed channels and queues that are made
//! anew. In: what the server sends. Out: batches.

use std::{
    collections::VecDeque,
    fmt::{self, Debug, Formatter},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{Consumer, options::BasicCancelOptions};
use tokio::time::sleep_until;

use super::{
    leaving::Leaving, link::Up, opening::Opening, place::Place, session::Session, shared::Shared, topology::Queue, wire,
};
use crate::{
    broker::{BatchMax, BrokerError, Count, Deliveries, Delivery, KeepAlive, Settler, Start, Subscription},
    message::{FAILURES_MAX, FailedAttempt, Position, ReasonCode, Settlement, UnixMs, now_ms, remember},
    telemetry::metrics,
};

/// What is read, and how.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) place: Arc<Place>,
    /// Unsettled deliveries, at most.
    pub(super) prefetch: u16,
    /// Where in a stream to begin; `None`: a queue.
    pub(super) stream: Option<Start>,
}

/// Deliveries of one queue or stream.
pub(super) struct RabbitSubscription {
    shared: Arc<Shared>,
    reading: Reading,
    open: Option<Open>,
    seen: Seen,
    /// A channel with a consumer, on its way. Kept, as whoever waits for it may go away again and again.
    opening: Option<BoxFuture<'static, Result<Open, BrokerError>>>,
    /// A consumer that takes more at a time, on its way.
    widening: Option<Widening>,
    /// Messages that came before their time, on their way to where they wait.
    sending_on: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Debug for RabbitSubscription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitSubscription")
            .field("reading", &self.reading)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

/// A consumer that takes more at a time, on its way.
pub(super) type Widening = BoxFuture<'static, Result<Consumer, lapin::Error>>;

/// What has come so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Of a stream: the last offset.
    pub(super) offset: Option<u64>,
    /// Something that was not out before. What was may be why the process before this one ended: until then one comes at
    /// a time. A server counts a delivery of everything that it sent, so one message that ends the process each time would
    /// use up the attempts of all that came with it.
    pub(super) something_new: bool,
}

/// A channel with a consumer.
#[derive(Debug)]
pub(super) struct Open {
    /// Over which it is open.
    pub(super) up: Arc<Up>,
    pub(super) session: Arc<Session>,
    pub(super) consumer: Consumer,
    /// Came, and was not handed out yet.
    pub(super) unread: VecDeque<Delivery>,
    /// As the consumer has it.
    pub(super) prefetch: u16,
}

impl RabbitSubscription {
    /// Begins to read, if the server is there; else once it is.
    pub(super) async fn begin(shared: Arc<Shared>, reading: Reading) -> Result<Self, BrokerError> {
        let mut subscription = Self {
            shared,
            reading,
            open: None,
            seen: Seen::default(),
            opening: None,
            widening: None,
            sending_on: FuturesUnordered::new(),
        };
        if subscription.shared.consume.now().is_some() {
            match subscription.opening().open().await {
                Ok(open) => subscription.open = Some(open),
                // It went away in between, or somebody has it for himself: later, then.
                Err(error @ (BrokerError::Unreachable { .. } | BrokerError::Lost(_))) => {
                    let address = &subscription.reading.place.address;
                    tracing::warn!(source = %address, "cannot be read yet: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(subscription)
    }

    fn opening(&self) -> Opening {
        Opening { shared: Arc::clone(&self.shared), reading: self.reading.clone(), seen: self.seen }
    }

    /// Once everything that was out before has come, the rest may come as many at a time as it should. The narrow consumer is
    /// cancelled while the only delivery that it may have is here: one that is on its way then would be counted. Until
    /// that one is settled it is out beside the prefetch.
    fn widen(&mut self) {
        let Some(open) = &self.open else { return };
        if !self.seen.something_new || open.prefetch == self.reading.prefetch || self.widening.is_some() {
            return;
        }
        let opening = self.opening();
        let (channel, narrow) = (open.session.channel().clone(), open.consumer.tag());
        let mut widening: Widening = Box::pin(async move {
            channel.basic_cancel(narrow, BasicCancelOptions::default()).await?;
            opening.consume(&channel).await
        });
        // Asked once, the library has the frame in line to be written, before any acknowledgement.
        self.widening = Some(match (&mut widening).now_or_never() {
            Some(wide) => Box::pin(std::future::ready(wide)),
            None => widening,
        });
    }

    /// The consumer that takes more is there.
    fn widened(&mut self, wide: Consumer) {
        let Some(open) = &mut self.open else { return };
        let mut narrow = std::mem::replace(&mut open.consumer, wide);
        open.prefetch = self.reading.prefetch;
        // What came while it was cancelled.
        while let Some(Some(Ok(raw))) = narrow.next().now_or_never() {
            received_one(open, raw, &mut self.seen, &self.reading);
        }
    }

    /// What is there now.
    fn take(&mut self, max: BatchMax) -> Taken {
        let is_widening = self.widening.is_some();
        let Self { open, seen, reading, .. } = self;
        let Some(open) = open else { return Taken { items: Vec::new(), lost: None } };
        let mut batch = Batch { max, count: 0, bytes: 0 };
        let mut items = open.session.due(Instant::now(), |delivery| batch.takes(delivery));
        let (mut now, mut last) = (None, None);
        let lost = loop {
            if let Some(next) = open.unread.pop_front() {
                if batch.takes(&next) {
                    items.push(next);
                    continue;
                }
                open.unread.push_front(next);
                break None;
            }
            // One that is being replaced has been cancelled.
            if is_widening {
                break None;
            }
            match open.consumer.next().now_or_never() {
                Some(Some(Ok(raw))) => {
                    let now = *now.get_or_insert_with(now_ms);
                    last = Some(raw.delivery_tag);
                    open.unread.extend(received(&open.session, raw, now, seen, reading));
                }
                Some(Some(Err(error))) => break Some(error.to_string()),
                Some(None) => break Some("the server cancelled the consumer".to_owned()),
                None => break None,
            }
        };
        if let Some(last) = last {
            open.session.arrived(last);
        }
        Taken { items, lost }
    }

    /// The channel or its consumer is gone.
    fn lose(&mut self, why: &str) {
        let Some(mut open) = self.open.take() else { return };
        let widening = self.widening.take();
        // What the library has and nobody saw.
        while let Some(Some(next)) = open.consumer.next().now_or_never() {
            let Ok(raw) = next else { continue };
            received_one(&mut open, raw, &mut self.seen, &self.reading);
        }
        let is_cancelled = open.session.channel().status().connected();
        let reason = if is_cancelled { "cancelled" } else { "lost" };
        let label = self.reading.place.address.to_string();
        metrics().rabbitmq_restarts.with_label_values(&[label.as_str(), reason]).inc();
        tracing::warn!(source = %self.reading.place.address, "reading was interrupted, beginning again: {why}");
        if is_cancelled {
            self.shared.leave(Leaving::begin(open, widening));
        } else {
            // They come again, and nobody has tried them.
            self.reading.place.forgiven.add(open.session.untried().iter().chain(&open.unread));
            self.shared.consume.suspect();
        }
    }

    /// Takes away what came before its time, and sends it to where it waits.
    fn keep_early(&self, items: Vec<Delivery>, session: &Arc<Session>) -> Vec<Delivery> {
        let now = now_ms();
        let is_early = |delivery: &Delivery| delivery.message.not_before.is_some_and(|at| at > now);
        if !items.iter().any(is_early) {
            return items;
        }
        let (early, due): (Vec<_>, Vec<_>) = items.into_iter().partition(is_early);
        let later = |delivery: Delivery| {
            let left = delivery.message.not_before.unwrap_or(now).saturating_sub(now);
            (delivery, Settlement::Release { after: Duration::from_millis(left) })
        };
        let settled: Vec<_> = early.into_iter().map(later).collect();
        let session = Arc::clone(session);
        session.are_out(settled.len());
        self.sending_on.push(Box::pin(async move {
            if let Err(error) = session.settle(settled).await {
                tracing::debug!("what came early comes again: {error}");
            }
        }));
        due
    }
}

/// What was there.
struct Taken {
    items: Vec<Delivery>,
    /// Why nothing more comes.
    lost: Option<String>,
}

/// What is in a batch so far.
struct Batch {
    max: BatchMax,
    count: usize,
    bytes: usize,
}

impl Batch {
    /// Whether one more fits; if so, it is counted. One always does.
    fn takes(&mut self, delivery: &Delivery) -> bool {
        let bytes = self.bytes.saturating_add(delivery.message.size());
        if self.count > 0 && (self.count >= self.max.count || bytes > self.max.bytes) {
            return false;
        }
        (self.count, self.bytes) = (self.count + 1, bytes);
        true
    }
}

/// As [`received`], one by one.
fn received_one(open: &mut Open, raw: lapin::message::Delivery, seen: &mut Seen, reading: &Reading) {
    open.session.arrived(raw.delivery_tag);
    open.unread.extend(received(&open.session, raw, now_ms(), seen, reading));
}

/// A delivery as the server sent it; `None` for what a stream was only asked for to begin early enough.
fn received(
    session: &Session,
    raw: lapin::message::Delivery,
    now: UnixMs,
    seen: &mut Seen,
    reading: &Reading,
) -> Option<Delivery> {
    let tag = raw.delivery_tag;
    seen.something_new |= !raw.redelivered;
    let (message, facts) =
        wire::incoming(raw.properties, Bytes::from(raw.data), raw.exchange.as_str(), raw.routing_key.as_str(), now);
    let mut delivery = Delivery {
        message: Arc::new(message),
        tag,
        attempt: facts.attempt.max(1),
        count: Count::Exact,
        topic: None,
        position: None,
        failures: facts.failures,
    };
    if let Some(start) = reading.stream {
        let offset = facts.stream_offset.unwrap_or_default();
        seen.offset = Some(offset);
        delivery.position = Some(Position { partition: 0, offset });
        if matches!(start, Start::Time(at) if delivery.message.timestamp < at) {
            session.pass_over(tag);
            return None;
        }
        return Some(delivery);
    }
    if raw.redelivered {
        // From 4.3 on a message that was given back untried has only the count of how often it was sent.
        let counted = facts.delivery_count.or(facts.acquired_count.map(|_| 0));
        let times = match counted {
            Some(times) => u32::try_from(times).unwrap_or(u32::MAX),
            // It knows that it was handed over before, and not how often.
            None => {
                delivery.count = Count::AtLeast;
                1
            }
        };
        let forgiven = reading.place.forgiven.of(&delivery.message.id, counted.is_some());
        for _ in forgiven..times.min(FAILURES_MAX as u32) {
            let text = "the server delivered it again: the engine, its connection or the server ended while it was out";
            let code = ReasonCode::OperationCanceled;
            remember(
                &mut delivery.failures,
                FailedAttempt { attempt: delivery.attempt, at: now, code, text: text.to_owned() },
            );
            delivery.attempt = delivery.attempt.saturating_add(1);
        }
        delivery.attempt = delivery.attempt.saturating_add(times.saturating_sub(FAILURES_MAX as u32));
    }
    Some(delivery)
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        loop {
            if self.shared.is_closed() {
                return Ok(None);
            }
            let Some(open) = &mut self.open else {
                let opening = self.opening();
                let opening = self.opening.get_or_insert_with(|| Box::pin(opening.open_again()));
                let opened = tokio::select! {
                    opened = opening => opened,
                    () = self.shared.closed() => return Ok(None),
                };
                self.opening = None;
                match opened {
                    Ok(open) => self.open = Some(open),
                    Err(BrokerError::Closed) => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            let session = Arc::clone(&open.session);
            while self.sending_on.next().now_or_never().flatten().is_some() {}
            let taken = self.take(max);
            if let Some(why) = taken.lost {
                if let Some(open) = &mut self.open {
                    open.unread.extend(taken.items);
                }
                self.lose(&why);
                continue;
            }
            // Before what has come can be settled.
            self.widen();
            if !taken.items.is_empty() {
                let items = self.keep_early(taken.items, &session);
                if !items.is_empty() {
                    return Ok(Some(session.hand_out(items)));
                }
                continue;
            }
            // Nothing else is to be done: nothing is gained by waiting for one acknowledgement that says it all.
            session.tell_all();
            let due = session.next_due();
            let until_due = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let Some(open) = &mut self.open else { continue };
            let is_widening = self.widening.is_some();
            let widening = async {
                match &mut self.widening {
                    // The library may not answer any more what was asked while the connection was lost.
                    Some(widening) => tokio::select! {
                        wide = widening => wide.map_err(|error| error.to_string()),
                        () = self.shared.consume.lost(&open.up) => Err("the connection was lost".to_owned()),
                    },
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                wide = widening => {
                    self.widening = None;
                    match wide {
                        Ok(wide) => self.widened(wide),
                        Err(why) => self.lose(&why),
                    }
                }
                next = open.consumer.next(), if !is_widening => match next {
                    Some(Ok(raw)) => {
                        received_one(open, raw, &mut self.seen, &self.reading);
                        // More is most often right behind it: whoever reads the socket may be waiting for this core.
                        std::thread::yield_now();
                    }
                    Some(Err(error)) => self.lose(&error.to_string()),
                    None => self.lose("the server cancelled the consumer"),
                },
                () = session.something_back() => {}
                () = session.restarted() => self.lose("messages wait, and none came"),
                () = self.shared.closed() => return Ok(None),
                () = until_due => {}
                Some(()) = self.sending_on.next(), if !self.sending_on.is_empty() => {}
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        let queue = self.shared.settings.topology.queues.get(&self.reading.place.name);
        Arc::new(NoLease { may_stand_by: queue.is_some_and(Queue::has_single_consumer) })
    }
}

impl Drop for RabbitSubscription {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.shared.leave(Leaving::begin(open, self.widening.take()));
    }
}

/// The server notices by itself when a consumer is gone.
#[derive(Debug)]
struct NoLease {
    /// What waits may be for another consumer, which alone is served.
    may_stand_by: bool,
}

impl KeepAlive for NoLease {
    fn renew(&self) {}

    fn every(&self) -> Option<Duration> {
        None
    }

    fn waiting(&self) -> Option<u64> {
        self.may_stand_by.then_some(0)
    }
}
