//! The consumer that one writes by hand with the client library: what the benchmark measures the engine against. It asks the
//! same of the server (prefetch, acknowledgements by hand, results that are persistent, mandatory, and confirmed before
//! their message is acknowledged) and nothing of what the engine adds: no connecting again, no attempts, no time limits, no
//! sandbox. In: deliveries. Out: what a function makes of them.
//!
//! Start at [`ByHand`]; [`Ground`] has the queues of a run. Nothing of the engine uses this.

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::time::timeout;

use super::{
    errors,
    settings::Settings,
    transport::{self, ConnectError},
};
use crate::broker::BrokerError;

/// Acknowledgements on their way to the server at a time, where each message has its own.
const IN_FLIGHT: usize = 64;
/// Messages that one acknowledgement covers, where one covers several.
const BATCH: usize = 100;
/// A queue that a run left behind is gone after this time, in milliseconds.
const EXPIRES_MS: i64 = 3_600_000;
/// How long nothing comes before a queue counts as drained.
const DRAINED: std::time::Duration = std::time::Duration::from_secs(1);
/// Unacknowledged messages while a queue is drained.
const DRAIN_PREFETCH: u16 = 1000;

/// How the loop acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Each message on its own, as many at a time as [`IN_FLIGHT`].
    InFlight,
    /// One acknowledgement for each [`BATCH`].
    Batched,
}

/// What the loop reads, and how.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// It.
    pub(crate) queue: String,
    /// Where results go.
    pub(crate) results: Option<String>,
    /// Unacknowledged messages, at most.
    pub(crate) prefetch: u16,
    /// How.
    pub(crate) acks: Acks,
    /// How many come: what the last ones wait for is not waited for.
    pub(crate) messages: u64,
}

/// What a message became.
#[derive(Debug)]
pub(crate) struct Handled {
    /// Its number.
    pub(crate) number: u64,
    /// To be published, and confirmed, before it is acknowledged.
    pub(crate) result: Option<Vec<u8>>,
}

/// The loop, connected: one connection to consume and one to publish, as servers ask for.
pub(crate) struct ByHand {
    settings: Settings,
    task: Task,
    consume: Connection,
    publish: Option<Connection>,
}

impl ByHand {
    /// Connects, without TLS as the library does it.
    ///
    /// # Errors
    /// As [`Ground::connect`].
    pub(crate) async fn connect(settings: &Settings, task: Task) -> Result<Self, BrokerError> {
        let consume = connect(settings).await?;
        let publish = match task.results {
            Some(_) => Some(connect(settings).await?),
            None => None,
        };
        Ok(Self { settings: settings.clone(), task, consume, publish })
    }

    /// Reads until the connection is closed. `handle` gets the id and the payload of each message; `note` the numbers of
    /// those that were acknowledged.
    ///
    /// # Errors
    /// Whatever goes wrong: nothing is tried again.
    pub(crate) async fn run(
        &self,
        handle: impl Fn(&str, &[u8]) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), BrokerError> {
        let reading = async {
            let channel = self.consume.create_channel().await?;
            channel.basic_qos(self.task.prefetch, BasicQosOptions::default()).await?;
            let queue = self.task.queue.as_str().into();
            let consumer =
                channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default());
            let consumer = consumer.await?;
            let results = match (&self.publish, &self.task.results) {
                (Some(connection), Some(queue)) => {
                    let channel = connection.create_channel().await?;
                    channel.confirm_select(ConfirmSelectOptions::default()).await?;
                    Some(Results { channel, queue: queue.as_str().into() })
                }
                _ => None,
            };
            let results = results.as_ref();
            match self.task.acks {
                Acks::InFlight => self.in_flight(consumer, results, handle, note).await,
                Acks::Batched => self.batched(&channel, consumer, results, handle, note).await,
            }
        };
        reading.await.map_err(|wrong: Wrong| match wrong {
            Wrong::Library(error) => errors::away(&self.settings, &error),
            Wrong::Refused(reason) => BrokerError::Invalid(reason.to_owned()),
        })
    }

    async fn in_flight(
        &self,
        mut consumer: Consumer,
        results: Option<&Results>,
        handle: impl Fn(&str, &[u8]) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), Wrong> {
        let in_flight_max = IN_FLIGHT.min(self.task.prefetch.into());
        let mut acks = FuturesUnordered::new();
        let mut handled = 0;
        while let Some(delivery) = consumer.next().await {
            let delivery = match delivery {
                Err(_) if handled >= self.task.messages => return Ok(()),
                delivery => delivery?,
            };
            let id = delivery.properties.message_id();
            let Handled { number, result } = handle(id.as_ref().map_or("", ShortString::as_str), &delivery.data);
            acks.push(async move {
                if let (Some(results), Some(result)) = (results, result) {
                    results.publish(delivery.properties.message_id().clone(), &result).await?;
                }
                delivery.acker.ack(BasicAckOptions::default()).await?;
                Ok::<_, Wrong>(number)
            });
            handled += 1;
            let left_max = if handled >= self.task.messages { 0 } else { in_flight_max - 1 };
            while acks.len() > left_max {
                if let Some(number) = acks.next().await {
                    note(&[number?]);
                }
            }
        }
        Ok(())
    }

    async fn batched(
        &self,
        channel: &Channel,
        mut consumer: Consumer,
        results: Option<&Results>,
        handle: impl Fn(&str, &[u8]) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), Wrong> {
        let batch_max = BATCH.min(self.task.prefetch.into());
        let mut batch = Vec::with_capacity(batch_max);
        let mut confirmations = FuturesUnordered::new();
        let mut handled = 0;
        while let Some(delivery) = consumer.next().await {
            let delivery = match delivery {
                Err(_) if handled >= self.task.messages => return Ok(()),
                delivery => delivery?,
            };
            let id = delivery.properties.message_id();
            let Handled { number, result } = handle(id.as_ref().map_or("", ShortString::as_str), &delivery.data);
            batch.push(number);
            if let (Some(results), Some(result)) = (results, result) {
                let id = id.clone();
                confirmations.push(async move { results.publish(id, &result).await });
            }
            handled += 1;
            if batch.len() >= batch_max || handled >= self.task.messages {
                while let Some(confirmed) = confirmations.next().await {
                    confirmed?;
                }
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
                note(&batch);
                batch.clear();
            }
        }
        Ok(())
    }

    /// Ends the loop: what it was told before has got there.
    pub(crate) async fn close(&self) {
        for connection in std::iter::once(&self.consume).chain(&self.publish) {
            // One that is gone already need not be closed.
            connection.close(200, "done".into()).await.ok();
        }
    }
}

/// Where results go.
struct Results {
    channel: Channel,
    queue: ShortString,
}

impl Results {
    /// Publishes one, and waits until the server has it. It answers the message of that id.
    async fn publish(&self, id: Option<ShortString>, payload: &[u8]) -> Result<(), Wrong> {
        let mut properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_type("order.priced".into());
        if let Some(id) = id {
            properties = properties.with_message_id(id.clone()).with_correlation_id(id);
        }
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let sent = self.channel.basic_publish("".into(), self.queue.clone(), options, payload, properties);
        match sent.await?.await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(Wrong::Refused("no queue takes the results")),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(Wrong::Refused("a result was not confirmed")),
        }
    }
}

/// Why the loop ended.
enum Wrong {
    Library(lapin::Error),
    Refused(&'static str),
}

impl From<lapin::Error> for Wrong {
    fn from(error: lapin::Error) -> Self {
        Self::Library(error)
    }
}

/// The queues of a run: durable quorum queues of its own, which it removes.
pub(crate) struct Ground {
    settings: Settings,
    connection: Connection,
    channel: Channel,
}

impl Ground {
    /// Connects.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: no server is there. [`BrokerError::Refused`]: it will not have us.
    pub(crate) async fn connect(settings: &Settings) -> Result<Self, BrokerError> {
        let connection = transport::connect(settings, "bench").await.map_err(|error| seam(settings, error))?;
        let channel = connection.create_channel().await.map_err(|error| errors::away(settings, &error))?;
        Ok(Self { settings: settings.clone(), connection, channel })
    }

    /// Makes a queue.
    ///
    /// # Errors
    /// What the server says against it.
    pub(crate) async fn make(&self, queue: &str) -> Result<(), BrokerError> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
        arguments.insert("x-expires".into(), AMQPValue::LongLongInt(EXPIRES_MS));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await.map_err(|error| self.wrong(&error))?;
        Ok(())
    }

    /// How many messages wait in it, and how many consumers it has.
    ///
    /// # Errors
    /// What the server says against it.
    pub(crate) async fn left(&self, queue: &str) -> Result<(u32, u32), BrokerError> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        let queue = queue.map_err(|error| self.wrong(&error))?;
        Ok((queue.message_count(), queue.consumer_count()))
    }

    /// Takes everything out of it, and shows the correlation id of each message.
    ///
    /// # Errors
    /// What the server says against it.
    pub(crate) async fn drain(&self, queue: &str, mut note: impl FnMut(&str)) -> Result<(), BrokerError> {
        let drained = async {
            let channel = self.connection.create_channel().await?;
            channel.basic_qos(DRAIN_PREFETCH, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
            let mut taken = 0_usize;
            let mut last = None;
            while let Ok(Some(delivery)) = timeout(DRAINED, consumer.next()).await {
                let delivery = delivery?;
                note(delivery.properties.correlation_id().as_ref().map_or("", ShortString::as_str));
                taken += 1;
                last = Some(delivery.delivery_tag);
                if taken.is_multiple_of(BATCH) {
                    channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
                    last = None;
                }
            }
            if let Some(tag) = last {
                channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
            }
            channel.close(200, "done".into()).await
        };
        drained.await.map_err(|error: lapin::Error| self.wrong(&error))
    }

    /// Removes a queue with all that is in it.
    ///
    /// # Errors
    /// It is still there, and will be gone in an hour.
    pub(crate) async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        let removed = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        removed.map(drop).map_err(|error| self.wrong(&error))
    }

    /// Ends the connection.
    pub(crate) async fn close(&self) {
        // One that is gone already need not be closed.
        self.connection.close(200, "done".into()).await.ok();
    }

    fn wrong(&self, error: &lapin::Error) -> BrokerError {
        errors::away(&self.settings, error)
    }
}

/// A connection as the library makes it by itself; with TLS, as ours.
async fn connect(settings: &Settings) -> Result<Connection, BrokerError> {
    let Some(host) = settings.hosts.first().filter(|_| settings.tls.is_none()) else {
        return transport::connect(settings, "bench").await.map_err(|error| seam(settings, error));
    };
    let properties = ConnectionProperties::default().with_connection_name("helixmq bench, by hand".into());
    let connected = Connection::connect_uri(transport::uri(host, settings), properties).await;
    connected.map_err(|error| errors::away(settings, &error))
}

fn seam(settings: &Settings, error: ConnectError) -> BrokerError {
    if error.is_refusal() {
        return BrokerError::Refused { reason: error.to_string(), code: error.code() };
    }
    let endpoint = settings.endpoint();
    BrokerError::Unreachable { endpoint, timeout: settings.connect_timeout, cause: Box::new(error) }
}
