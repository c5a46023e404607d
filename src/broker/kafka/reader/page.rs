//! A topic, page by page: all partitions together in the order of their records' times.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use super::{Span, assign, config, partitions, spans};
use crate::{
    broker::{
        BrokerError, Browse, BrowseAt, Browsed, Page, Start,
        kafka::{
            Settings,
            client::{self, Watched},
            group::is_pattern,
            metadata::{Topics, code},
            wire,
        },
    },
    message::{Address, Position},
};

/// Most bytes in a page; one message always fits.
const PAGE_BYTES: usize = 32 << 20;
/// Most records of one partition that wait for their turn, and how few make room for more.
const AHEAD_MAX: usize = 256;
const AHEAD_MIN: usize = 64;
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);

/// Why there is no page.
enum Failed {
    Missing,
    NoCursor,
    Kafka(KafkaError),
    /// No server gave anything for that long.
    Silent,
}

impl From<KafkaError> for Failed {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

/// What of one partition is still to be shown.
struct Head {
    span: Span,
    /// The offset behind the last one that was shown.
    next: i64,
    ahead: VecDeque<(i64, i64, Browsed, usize)>,
    /// All of it has come.
    is_read: bool,
    is_paused: bool,
}

/// Some of a topic, as it was when it was asked for. A cursor names the next offset of each partition: `4.0.17`.
///
/// # Errors
/// [`BrokerError::NotFound`], [`BrokerError::Invalid`] for what is no cursor, [`BrokerError::Unreachable`].
pub(in crate::broker::kafka) async fn page(
    settings: &Arc<Settings>,
    topics: &Topics,
    request: &Browse,
) -> Result<Page, BrokerError> {
    let (name, timeout) = (Arc::clone(&request.from.name), topics.timeout());
    let (at, limit) = (request.at.clone(), request.limit.max(1));
    let consumer: BaseConsumer<Watched> = config(settings)
        .create_with_context(Watched(Arc::clone(topics.condition())))
        .map_err(|error| client::refused(&error))?;
    let _turn = topics.turn().await;
    let read = tokio::task::spawn_blocking(move || {
        let page = read(&consumer, &name, &at, limit, timeout);
        // Ended here, where that may take its time.
        drop(consumer);
        page
    });
    let read = read.await.map_err(|error| BrokerError::Lost(format!("reading Kafka ended without a page: {error}")))?;
    read.map_err(|failed| match failed {
        Failed::Missing => BrokerError::NotFound(Address::topic(Arc::clone(&request.from.name))),
        Failed::NoCursor => BrokerError::Invalid(match &request.at {
            BrowseAt::Cursor(text) => format!("{text:?} is not a cursor of {}", request.from),
            BrowseAt::Start(_) => format!("{} cannot be shown", request.from),
        }),
        Failed::Kafka(error) => topics.failed(&request.from.name, code(&error)),
        Failed::Silent => topics.failed(&request.from.name, RDKafkaErrorCode::OperationTimedOut),
    })
}

fn read(
    consumer: &BaseConsumer<Watched>,
    name: &str,
    at: &BrowseAt,
    limit: usize,
    timeout: Duration,
) -> Result<Page, Failed> {
    let partitions = partitions(consumer, name, timeout)?.filter(|_| !is_pattern(name)).ok_or(Failed::Missing)?;
    let spans = match at {
        BrowseAt::Start(start) => spans(consumer, &partitions, *start, timeout)?,
        BrowseAt::Cursor(text) => {
            let offsets: Option<Vec<i64>> =
                text.split('.').map(|offset| offset.parse().ok().filter(|offset| *offset >= 0)).collect();
            // The topic may have grown since.
            let offsets = offsets.filter(|offsets| offsets.len() <= partitions.len()).ok_or(Failed::NoCursor)?;
            let mut spans = spans(consumer, &partitions, Start::Earliest, timeout)?;
            for (span, offset) in spans.iter_mut().zip(offsets) {
                // What retention took since the last page is passed over.
                span.from = offset.clamp(span.low, span.end.max(span.low));
            }
            spans
        }
    };
    let total = spans.iter().map(|span| u64::try_from(span.end - span.low).unwrap_or(0)).sum();
    let mut heads: Vec<Head> = spans.into_iter().map(Head::new).collect();
    assign(consumer, heads.iter().filter(|head| !head.is_read).map(|head| &head.span))?;
    let (mut items, mut bytes) = (Vec::new(), 0);
    let mut heard = Instant::now();
    while items.len() < limit && bytes < PAGE_BYTES {
        if heads.iter().all(|head| head.is_read || !head.ahead.is_empty()) {
            let Some(first) = heads.iter_mut().filter(|head| !head.ahead.is_empty()).min_by_key(|head| head.key())
            else {
                break;
            };
            if let Some((_, offset, item, size)) = first.ahead.pop_front() {
                first.next = offset + 1;
                items.push(item);
                bytes += size;
            }
            continue;
        }
        match poll(consumer, &mut heads)? {
            true => heard = Instant::now(),
            false if heard.elapsed() > timeout => return Err(Failed::Silent),
            false => {}
        }
    }
    // Behind the last message there may be offsets that are none.
    for head in heads.iter_mut().filter(|head| head.is_read && head.ahead.is_empty()) {
        head.next = head.next.max(head.span.end);
    }
    let next = heads.iter().map(|head| head.next.to_string()).collect::<Vec<_>>().join(".");
    Ok(Page { items, next, total })
}

/// Takes one record that has come; false: none has.
fn poll(consumer: &BaseConsumer<Watched>, heads: &mut [Head]) -> Result<bool, Failed> {
    for head in heads.iter_mut().filter(|head| !head.is_read) {
        let (is_paused, length) = (head.is_paused, head.ahead.len());
        if is_paused && length < AHEAD_MIN || !is_paused && length > AHEAD_MAX {
            let mut list = TopicPartitionList::new();
            list.add_partition(&head.span.topic, head.span.partition);
            if is_paused {
                consumer.resume(&list)?
            } else {
                consumer.pause(&list)?
            }
            head.is_paused = !is_paused;
        }
    }
    let record = match consumer.poll(POLL) {
        None => return Ok(false),
        Some(Ok(record)) => record,
        Some(Err(KafkaError::PartitionEOF(partition))) => {
            if let Some(head) = heads.iter_mut().find(|head| head.span.partition == partition) {
                head.is_read = true;
            }
            return Ok(true);
        }
        Some(Err(error)) => match code(&error) {
            // Said of a topic that is there, too, when a server has just come up.
            RDKafkaErrorCode::TopicAuthorizationFailed => return Err(error.into()),
            _ => return Ok(false),
        },
    };
    let (offset, of) = (record.offset(), record.partition());
    let Some(head) = heads.iter_mut().find(|head| head.span.partition == of) else { return Ok(true) };
    // What was published since the page was asked for is not shown.
    head.is_read |= offset + 1 >= head.span.end;
    if offset < head.span.end {
        let position =
            Position { partition: u32::try_from(of).unwrap_or(0), offset: u64::try_from(offset).unwrap_or(0) };
        let message = wire::incoming(&record).message;
        let size = message.size();
        let at = record.timestamp().to_millis().unwrap_or(0);
        head.ahead.push_back((at, offset, Browsed { message: Arc::new(message), position: Some(position) }, size));
    }
    Ok(true)
}

impl Head {
    fn new(span: Span) -> Self {
        let (next, is_read) = (span.from, span.from >= span.end);
        Self { span, next, ahead: VecDeque::new(), is_read, is_paused: false }
    }

    /// Whose turn it is: the earliest, then by partition.
    fn key(&self) -> (i64, i32) {
        (self.ahead.front().map_or(i64::MAX, |(at, ..)| *at), self.span.partition)
    }
}
