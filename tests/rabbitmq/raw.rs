//! Somebody else's client: publishes what the engine would not, and looks into queues behind its back.

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    message::Delivery,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::{server::Vhost, support::soon};

/// A connection with one channel, in confirm mode.
pub(crate) struct Raw {
    pub(crate) connection: Connection,
    pub(crate) channel: Channel,
}

impl Raw {
    pub(crate) async fn connect(vhost: &Vhost) -> Self {
        Self::connect_to(&vhost.uri()).await
    }

    pub(crate) async fn connect_to(uri: &str) -> Self {
        let connecting = Connection::connect(uri, ConnectionProperties::default());
        let connection = soon("a connection", connecting).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel }
    }

    /// A durable queue of a kind: `classic`, `quorum`, `stream`.
    pub(crate) async fn queue(&self, name: &str, kind: &str, arguments: &[(&str, AMQPValue)]) {
        let mut table = table(arguments);
        table.insert("x-queue-type".into(), text(kind));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, table).await.expect("a queue");
    }

    /// A durable exchange with one queue bound to it.
    pub(crate) async fn exchange(&self, name: &str, kind: ExchangeKind, queue: &str, key: &str) {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default();
        self.channel.exchange_declare(name.into(), kind, options, none.clone()).await.expect("an exchange");
        let bind = QueueBindOptions::default();
        self.channel.queue_bind(queue.into(), name.into(), key.into(), bind, none).await.expect("a binding");
    }

    pub(crate) async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    }

    /// Publishes to a queue, and waits for the confirmation.
    pub(crate) async fn publish(&self, queue: &str, payload: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self.channel.basic_publish("".into(), queue.into(), options, payload, properties).await;
        let confirmed = soon("a confirmation", confirm.expect("published")).await.expect("an answer");
        assert!(matches!(confirmed, Confirmation::Ack(None)), "{confirmed:?}");
    }

    /// Messages that are ready; `None`: there is no such queue.
    pub(crate) async fn depth(&self, queue: &str) -> Option<u32> {
        // It costs the channel where there is none.
        let channel = self.connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        let depth = found.message_count();
        channel.close(200, "".into()).await.ok();
        Some(depth)
    }

    /// Takes everything that is ready.
    pub(crate) async fn drain(&self, queue: &str) -> Vec<Delivery> {
        let mut drained = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = self.channel.basic_get(queue.into(), options).await.expect("an answer") {
            drained.push(got.delivery);
        }
        drained
    }

    /// Consumes on a channel of its own, nothing of it acknowledged.
    pub(crate) async fn consume(&self, queue: &str, exclusive: bool, prefetch: u16) -> (Channel, lapin::Consumer) {
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("a prefetch");
        let options = BasicConsumeOptions { exclusive, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let consumer = consumer.await.expect("a consumer");
        (channel, consumer)
    }
}

/// A table of header fields or arguments.
pub(crate) fn table(fields: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert((*name).into(), value.clone());
    }
    table
}

pub(crate) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// The frame of `basic.ack` for one delivery, as a client sends it. Source: AMQP 0-9-1, sections 2.3.5 and 1.8.3.13.
pub(crate) fn ack_frame(channel: u16, tag: u64) -> Vec<u8> {
    let mut method = vec![0, 60, 0, 80];
    method.extend(tag.to_be_bytes());
    method.push(0);
    frame(channel, &method)
}

/// The frame of `basic.cancel` that asks for no answer. Source: AMQP 0-9-1, sections 2.3.5 and 1.8.3.5.
pub(crate) fn cancel_frame(channel: u16, consumer: &str) -> Vec<u8> {
    let mut method = vec![0, 60, 0, 30, u8::try_from(consumer.len()).expect("short")];
    method.extend(consumer.as_bytes());
    method.push(1);
    frame(channel, &method)
}

/// The frame of a method.
fn frame(channel: u16, method: &[u8]) -> Vec<u8> {
    let size = u32::try_from(method.len()).expect("short").to_be_bytes();
    [&[1][..], &channel.to_be_bytes(), &size, method, &[0xce]].concat()
}
