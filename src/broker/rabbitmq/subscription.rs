//! Deliveries of one queue or stream, for as long as somebody reads: over outages, closed channels and queues that are made
//! anew. In: what the server sends. Out: batches.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Channel, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::{sleep, sleep_until};

use super::{errors, place::Place, session::Session, shared::Shared, wire};
use crate::{
    broker::{BatchMax, BrokerError, Count, Deliveries, Delivery, KeepAlive, Settler, Start, Subscription},
    message::{FAILURES_MAX, FailedAttempt, Position, ReasonCode, Settlement, UnixMs, now_ms, remember},
    telemetry::metrics,
};

/// First pause before consuming again what could not be; doubles up to the longest, spread by full jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

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
#[derive(Debug)]
pub(super) struct RabbitSubscription {
    shared: Arc<Shared>,
    reading: Reading,
    open: Option<Open>,
    seen: Seen,
    /// Messages that came before their time, on their way to where they wait.
    sending_on: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// What has come so far.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Of a stream: the last offset.
    offset: Option<u64>,
    /// Something that was not out before. What was may be why the process before this one ended: until then one comes at a
    /// time. A server counts a delivery of everything that it sent ahead, so one message that ends the process each time
    /// would use up the attempts of all that are behind it.
    something_new: bool,
}

#[derive(Debug)]
struct Open {
    session: Arc<Session>,
    consumer: Consumer,
    /// Came, and was not handed out yet.
    unread: VecDeque<Delivery>,
    /// As the consumer has it.
    prefetch: u16,
}

impl RabbitSubscription {
    /// Begins to read, if the server is there; else once it is.
    pub(super) async fn begin(shared: Arc<Shared>, reading: Reading) -> Result<Self, BrokerError> {
        let mut subscription =
            Self { shared, reading, open: None, seen: Seen::default(), sending_on: FuturesUnordered::new() };
        if subscription.shared.consume.now().is_some() {
            match subscription.opening().open().await {
                Ok(open) => subscription.open = Some(open),
                // It went away in between: later, then.
                Err(BrokerError::Unreachable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(subscription)
    }

    fn opening(&self) -> Opening<'_> {
        Opening { shared: &self.shared, reading: &self.reading, seen: self.seen }
    }

    /// Everything that was out before has come: the rest may come as many at a time as it should.
    ///
    /// # Cancel safety
    /// Cancel safe: half-way, there is no consumer, and another one is made.
    async fn widen(&mut self) -> Result<(), lapin::Error> {
        let opening = self.opening();
        let Some(Open { session, consumer, prefetch, .. }) = &self.open else { return Ok(()) };
        if opening.prefetch() == *prefetch {
            return Ok(());
        }
        session.channel().basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        let wide = opening.consume(session.channel()).await?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let narrow = std::mem::replace(&mut open.consumer, wide);
        open.prefetch = self.reading.prefetch;
        // What came while it was cancelled.
        let mut left = narrow;
        while let Some(Some(Ok(raw))) = left.next().now_or_never() {
            let came = received(&open.session, raw, now_ms(), &mut self.seen, &self.reading, &self.shared);
            open.unread.extend(came);
        }
        Ok(())
    }

    /// What is there now.
    fn take(open: &mut Open, max: BatchMax, seen: &mut Seen, reading: &Reading, shared: &Shared) -> Taken {
        let mut batch = Batch { max, count: 0, bytes: 0 };
        let mut items = open.session.due(Instant::now(), |delivery| batch.takes(delivery));
        let mut now = None;
        let mut lost = None;
        loop {
            while let Some(next) = open.unread.pop_front() {
                if !batch.takes(&next) {
                    open.unread.push_front(next);
                    return Taken { items, lost };
                }
                items.push(next);
            }
            match open.consumer.next().now_or_never() {
                Some(Some(Ok(raw))) => {
                    let now = *now.get_or_insert_with(now_ms);
                    open.unread.extend(received(&open.session, raw, now, seen, reading, shared));
                }
                Some(Some(Err(error))) => lost = Some(error.to_string()),
                Some(None) => lost = Some("the server cancelled the consumer".to_owned()),
                None => return Taken { items, lost },
            }
            if lost.is_some() {
                return Taken { items, lost };
            }
        }
    }

    /// The channel or its consumer is gone.
    fn lose(&mut self, why: &str) {
        let Some(open) = self.open.take() else { return };
        let is_cancelled = open.session.channel().status().connected();
        let reason = if is_cancelled { "cancelled" } else { "lost" };
        let label = self.reading.place.address.to_string();
        metrics().rabbitmq_restarts.with_label_values(&[label.as_str(), reason]).inc();
        tracing::warn!(source = %self.reading.place.address, "reading was interrupted, beginning again: {why}");
        if is_cancelled {
            open.session.end(open.consumer.tag(), open.unread.into());
        } else {
            // They come again, and nobody has tried them.
            self.shared.forgive(&self.reading.place, open.session.untried().iter().chain(&open.unread));
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
        let after =
            |delivery: &Delivery| Duration::from_millis(delivery.message.not_before.unwrap_or(now).saturating_sub(now));
        let settled: Vec<_> = early
            .into_iter()
            .map(|delivery| (after(&delivery), delivery))
            .map(|(after, delivery)| (delivery, Settlement::Release { after }))
            .collect();
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

/// How a reading goes on.
#[derive(Clone, Copy)]
struct Opening<'a> {
    shared: &'a Arc<Shared>,
    reading: &'a Reading,
    seen: Seen,
}

impl Opening<'_> {
    fn prefetch(self) -> u16 {
        if self.seen.something_new || self.reading.stream.is_some() { self.reading.prefetch } else { 1 }
    }

    /// A channel with a consumer, once the server is there.
    async fn open(self) -> Result<Open, BrokerError> {
        let place = &self.reading.place;
        let up = self.shared.consume.up().await?;
        let wrong = |error: lapin::Error| errors::seam(&self.shared.settings, &place.address, &error);
        let channel = up.connection.create_channel().await.map_err(wrong)?;
        let consumer = self.consume(&channel).await.map_err(wrong)?;
        let session = Arc::new(Session::new(Arc::clone(place), channel, self.reading.prefetch));
        self.shared.watch(&session);
        Ok(Open { session, consumer, unread: VecDeque::new(), prefetch: self.prefetch() })
    }

    /// A consumer on a channel.
    async fn consume(self, channel: &Channel) -> Result<Consumer, lapin::Error> {
        let options = BasicQosOptions { global: self.shared.settings.prefetch_global };
        channel.basic_qos(self.prefetch(), options).await?;
        let mut arguments = FieldTable::default();
        if let Some(start) = self.reading.stream {
            arguments.insert("x-stream-offset".into(), self.offset(start));
        }
        let queue = (&*self.reading.place.name).into();
        channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), arguments).await
    }

    /// Where in a stream to go on.
    fn offset(&self, start: Start) -> AMQPValue {
        let number = |offset: u64| AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX));
        match (self.seen.offset, start) {
            (Some(offset), _) => number(offset + 1),
            (None, Start::Earliest) => AMQPValue::LongString("first".into()),
            (None, Start::Latest) => AMQPValue::LongString("next".into()),
            // In whole seconds: a little earlier than asked, the rest is passed over.
            (None, Start::Time(at)) => AMQPValue::Timestamp(at / 1000),
            (None, Start::Offset(offset)) => number(offset),
        }
    }

    /// A channel with a consumer, however often that takes.
    async fn open_again(self) -> Result<Open, BrokerError> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.open().await {
                Ok(open) => return Ok(open),
                Err(BrokerError::Closed) => return Err(BrokerError::Closed),
                Err(error) => {
                    tracing::warn!(source = %self.reading.place.address, "cannot be read, trying again: {error}");
                    if matches!(error, BrokerError::NotFound(_)) {
                        self.shared.make_again(&self.reading.place).await;
                    }
                }
            }
            sleep(pause.mul_f64(crate::message::random())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
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

/// A delivery as the server sent it; `None` for what a stream was only asked for to begin early enough.
fn received(
    session: &Session,
    raw: lapin::message::Delivery,
    now: UnixMs,
    seen: &mut Seen,
    reading: &Reading,
    shared: &Shared,
) -> Option<Delivery> {
    let tag = raw.delivery_tag;
    session.arrived(tag);
    seen.something_new |= !raw.redelivered;
    let (message, facts) =
        wire::incoming(raw.properties, Bytes::from(raw.data), raw.exchange.as_str(), raw.routing_key.as_str(), now);
    let mut delivery = Delivery {
        message: Arc::new(message),
        tag,
        attempt: facts.attempt.max(1),
        count: Count::Exact,
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
        let forgiven = shared.forgiven(&reading.place, &delivery.message.id);
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
            let Some(open) = &mut self.open else {
                match self.opening().open_again().await {
                    Ok(open) => self.open = Some(open),
                    Err(BrokerError::Closed) => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            if self.seen.something_new && open.prefetch != self.reading.prefetch {
                if let Err(error) = self.widen().await {
                    self.lose(&error.to_string());
                }
                continue;
            }
            while self.sending_on.next().now_or_never().flatten().is_some() {}
            let taken = Self::take(open, max, &mut self.seen, &self.reading, &self.shared);
            let session = Arc::clone(&open.session);
            if let Some(why) = taken.lost {
                open.unread.extend(taken.items);
                if self.shared.is_closed() {
                    return Ok(None);
                }
                self.lose(&why);
                continue;
            }
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
            tokio::select! {
                next = open.consumer.next() => match next {
                    Some(Ok(raw)) => {
                        open.unread.extend(received(&session, raw, now_ms(), &mut self.seen, &self.reading, &self.shared));
                    }
                    Some(Err(error)) => self.lose(&error.to_string()),
                    None if self.shared.is_closed() => return Ok(None),
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
        Arc::new(NoLease)
    }
}

impl Drop for RabbitSubscription {
    fn drop(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        // What has come meanwhile goes back as well.
        while let Some(Some(Ok(raw))) = open.consumer.next().now_or_never() {
            open.unread.extend(received(&open.session, raw, now_ms(), &mut self.seen, &self.reading, &self.shared));
        }
        open.session.end(open.consumer.tag(), open.unread.into());
    }
}

/// The server notices by itself when a consumer is gone.
#[derive(Debug)]
struct NoLease;

impl KeepAlive for NoLease {
    fn renew(&self) {}

    fn every(&self) -> Option<Duration> {
        None
    }
}
