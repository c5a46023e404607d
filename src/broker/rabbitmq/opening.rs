//! Begins to read a queue or stream: a channel with a consumer.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::sleep;

use super::{
    errors,
    link::Up,
    session::Session,
    shared::Shared,
    subscription::{Open, Reading, Seen},
    topology::Queue,
};
use crate::broker::{BrokerError, Start};

/// First pause before consuming again what could not be; doubles up to the longest, spread by full jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How a reading goes on.
pub(super) struct Opening {
    pub(super) shared: Arc<Shared>,
    pub(super) reading: Reading,
    pub(super) seen: Seen,
}

impl Opening {
    /// Unsettled deliveries, for now: one, as long as what comes may be what ended the process before this one.
    pub(super) fn prefetch(&self) -> u16 {
        let begins_wide = self.seen.something_new || !self.begins_narrow();
        if begins_wide { self.reading.prefetch } else { 1 }
    }

    /// Streams count nothing. A queue that feeds one consumer alone gives itself to the next as soon as a consumer is
    /// replaced.
    fn begins_narrow(&self) -> bool {
        let settings = &self.shared.settings;
        let queue = settings.topology.queues.get(&self.reading.place.name);
        settings.suspects_apart && self.reading.stream.is_none() && !queue.is_some_and(Queue::has_single_consumer)
    }

    /// A channel with a consumer, once the server is there.
    pub(super) async fn open(&self) -> Result<Open, BrokerError> {
        let up = self.shared.consume.up().await?;
        tokio::select! {
            opened = self.open_on(&up) => opened,
            // The library may not answer any more what was asked while the connection was lost.
            () = self.shared.consume.lost(&up) => Err(BrokerError::Lost("the connection was lost".to_owned())),
        }
    }

    async fn open_on(&self, up: &Arc<Up>) -> Result<Open, BrokerError> {
        let place = &self.reading.place;
        let wrong = |error: lapin::Error| errors::seam(&self.shared.settings, &place.address, &error);
        let channel = up.connection.create_channel().await.map_err(wrong)?;
        let consumer = self.consume(&channel).await.map_err(wrong)?;
        let session = Arc::new(Session::new(Arc::clone(place), channel, self.reading.prefetch));
        self.shared.watch(&session);
        Ok(Open { up: Arc::clone(up), session, consumer, unread: VecDeque::new(), prefetch: self.prefetch() })
    }

    /// A consumer on a channel.
    pub(super) async fn consume(&self, channel: &Channel) -> Result<Consumer, lapin::Error> {
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
    pub(super) async fn open_again(self) -> Result<Open, BrokerError> {
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
