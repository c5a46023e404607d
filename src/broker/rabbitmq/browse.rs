//! Reading without consuming: streams are made for it, queues are not. A queue is read by taking its first messages and
//! giving them back, which its server remembers as a delivery; so it is done only where nobody counts those, on queues of
//! dead letters.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::{
    Channel,
    message::Delivery,
    options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::{errors, shared::Shared, wire};
use crate::{
    broker::{BrokerError, Browse, BrowseAt, Browsed, Page, Start},
    message::{Address, Kind, Position, UnixMs, now_ms},
};

/// How far into a queue one may look: everything before has to be taken as well.
const DEPTH_MAX: usize = 10_000;
/// How long a stream may be silent before it is taken for read to its end.
const SILENCE: Duration = Duration::from_millis(300);
/// Most messages of a stream on their way.
const PREFETCH: u16 = 500;

/// One page.
pub(super) async fn page(shared: &Shared, request: &Browse) -> Result<Page, BrokerError> {
    let up = shared.consume.now().ok_or_else(|| {
        let away = shared.consume.away().unwrap_or_else(|| "RabbitMQ is away".to_owned());
        BrokerError::Lost(away)
    })?;
    let wrong = |error: lapin::Error| errors::seam(&shared.settings, &request.from, &error);
    let channel = up.connection.create_channel().await.map_err(wrong)?;
    let page = match request.from.kind {
        Kind::Queue => queue(&channel, request).await,
        Kind::Topic => stream(&channel, request).await,
    };
    // What was taken goes back with the channel. One that the server closed is closed.
    channel.close(200, "read".into()).await.ok();
    match page {
        Ok(page) => Ok(page),
        Err(Wrong::Library(error)) => Err(wrong(error)),
        Err(Wrong::Cursor(text)) => Err(BrokerError::Invalid(text)),
    }
}

enum Wrong {
    Library(lapin::Error),
    Cursor(String),
}

impl From<lapin::Error> for Wrong {
    fn from(error: lapin::Error) -> Self {
        Self::Library(error)
    }
}

fn cursor(text: &str) -> Result<u64, Wrong> {
    text.parse().map_err(|_| Wrong::Cursor(format!("{text:?} is not a cursor of an earlier page")))
}

/// How many messages wait there.
async fn waiting(channel: &Channel, from: &Address) -> Result<u64, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare((&*from.name).into(), options, FieldTable::default()).await?.message_count().into())
}

async fn queue(channel: &Channel, request: &Browse) -> Result<Page, Wrong> {
    let total = waiting(channel, &request.from).await?;
    let skip = match &request.at {
        BrowseAt::Start(Start::Latest) => return Ok(Page { items: Vec::new(), next: total.to_string(), total }),
        BrowseAt::Start(_) => 0,
        BrowseAt::Cursor(text) => usize::try_from(cursor(text)?).unwrap_or(usize::MAX),
    };
    let end = skip.saturating_add(request.limit);
    if skip > DEPTH_MAX {
        return Err(Wrong::Cursor(format!("RabbitMQ shows only the first {DEPTH_MAX} messages of a queue")));
    }
    let now = now_ms();
    let mut items = Vec::new();
    let mut seen = 0;
    while seen < end.min(DEPTH_MAX + request.limit) {
        let Some(got) = channel.basic_get((&*request.from.name).into(), BasicGetOptions { no_ack: false }).await?
        else {
            break;
        };
        seen += 1;
        if seen > skip {
            items.push(browsed(got.delivery, now).0);
        }
    }
    Ok(Page { items, next: seen.max(skip).to_string(), total })
}

async fn stream(channel: &Channel, request: &Browse) -> Result<Page, Wrong> {
    let total = waiting(channel, &request.from).await?;
    let offset = |number: u64| AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX));
    let (start, mut next) = match &request.at {
        BrowseAt::Start(Start::Earliest) => (AMQPValue::LongString("first".into()), 0),
        BrowseAt::Start(Start::Latest) => (AMQPValue::LongString("next".into()), u64::MAX),
        BrowseAt::Start(Start::Time(at)) => (AMQPValue::Timestamp(at / 1000), 0),
        BrowseAt::Start(Start::Offset(number)) => (offset(*number), *number),
        BrowseAt::Cursor(text) => match cursor(text)? {
            u64::MAX => (AMQPValue::LongString("next".into()), u64::MAX),
            number => (offset(number), number),
        },
    };
    channel.basic_qos(PREFETCH, BasicQosOptions { global: false }).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), start);
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume((&*request.from.name).into(), "".into(), options, arguments).await?;
    let now = now_ms();
    let mut items = Vec::new();
    while items.len() < request.limit {
        let Ok(Some(delivery)) = timeout(SILENCE, consumer.next()).await else { break };
        let delivery = delivery?;
        channel.basic_ack(delivery.delivery_tag, Default::default()).await?;
        let (mut item, offset) = browsed(delivery, now);
        let offset = offset.unwrap_or_default();
        next = offset + 1;
        if matches!(request.at, BrowseAt::Start(Start::Time(at)) if item.message.timestamp < at) {
            continue;
        }
        item.position = Some(Position { partition: 0, offset });
        items.push(item);
    }
    Ok(Page { items, next: next.to_string(), total })
}

fn browsed(delivery: Delivery, now: UnixMs) -> (Browsed, Option<u64>) {
    let Delivery { properties, data, exchange, routing_key, .. } = delivery;
    let (message, facts) = wire::incoming(properties, Bytes::from(data), exchange.as_str(), routing_key.as_str(), now);
    (Browsed { message: Arc::new(message), position: None }, facts.stream_offset)
}
