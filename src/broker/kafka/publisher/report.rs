//! What the server says of records that were sent: a report for each call, filled from the client library's thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rdkafka::{
    ClientContext, Message, Statistics,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{BorrowedHeaders, BorrowedMessage, DeliveryResult},
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::broker::kafka::{client::Watched, metadata::code, wire::Record};

/// Told of what is published: the topic, a partition, and the offset behind the last record that is confirmed there.
pub(in crate::broker::kafka) type OnPublished = Arc<dyn Fn(&str, i32, u64) + Send + Sync>;

/// What a producer hears.
pub(in crate::broker::kafka) struct Reports {
    watched: Watched,
    on_published: OnPublished,
}

/// One record of a report.
#[derive(Debug)]
pub(in crate::broker::kafka) struct Ticket {
    report: Arc<Report>,
    place: u32,
}

/// Why a record was not published.
#[derive(Clone, Debug)]
pub(in crate::broker::kafka) struct Failure {
    /// The record's place in the call.
    pub(in crate::broker::kafka) place: usize,
    /// Why.
    pub(in crate::broker::kafka) code: RDKafkaErrorCode,
    /// Whether it never left: the client library did not take it.
    pub(in crate::broker::kafka) is_unsent: bool,
    /// The record, where the server found what it came in too large: that may have been others that shared its request.
    pub(in crate::broker::kafka) shared: Option<Box<Record>>,
}

/// Records on their way.
#[derive(Debug)]
pub(in crate::broker::kafka) struct Sent(oneshot::Receiver<Vec<Failure>>);

#[derive(Debug)]
struct Report {
    topic: Arc<str>,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// Records of which nothing is known yet, and one more as long as they are being sent.
    left: usize,
    failures: Vec<Failure>,
    /// Behind the last confirmed record, by partition.
    ends: SmallVec<[(i32, u64); 8]>,
    done: Option<oneshot::Sender<Vec<Failure>>>,
    /// Given back when all is known.
    room: Option<Room>,
}

/// What records on their way take: of their number, and of their bytes.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) _messages: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}

impl Reports {
    pub(in crate::broker::kafka) fn new(watched: Watched, on_published: OnPublished) -> Self {
        Self { watched, on_published }
    }
}

/// Sends records in this order; never waits. They are on their way when it returns, as far as the client library takes
/// them.
pub(in crate::broker::kafka) fn send(
    producer: &ThreadedProducer<Reports>,
    topic: &Arc<str>,
    records: impl IntoIterator<Item = Record>,
) -> Sent {
    send_within(producer, topic, records, None)
}

pub(super) fn send_within(
    producer: &ThreadedProducer<Reports>,
    topic: &Arc<str>,
    records: impl IntoIterator<Item = Record>,
    room: Option<Room>,
) -> Sent {
    let (done, sent) = oneshot::channel();
    let open = Open { left: 1, failures: Vec::new(), ends: SmallVec::new(), done: Some(done), room };
    let report = Arc::new(Report { topic: Arc::clone(topic), open: Mutex::new(open) });
    for (place, record) in (0_u32..).zip(records) {
        report.lock().left += 1;
        let ticket = Box::new(Ticket { report: Arc::clone(&report), place });
        let offered = BaseRecord {
            topic,
            partition: record.partition,
            payload: record.value.as_deref(),
            key: record.key.as_deref(),
            timestamp: Some(record.timestamp),
            headers: Some(record.headers),
            delivery_opaque: ticket,
        };
        if let Err((error, _)) = producer.send(offered) {
            report.failed(Failure { place: place as usize, code: code(&error), is_unsent: true, shared: None });
            report.one_less(|_, _, _| {});
        }
    }
    report.one_less(|_, _, _| {});
    Sent(sent)
}

impl Sent {
    /// Waits until all is known; answers what was not published, in order.
    pub(in crate::broker::kafka) async fn failures(self) -> Vec<Failure> {
        // The report answers before it goes: each record is reported on, at the latest when its producer goes.
        let mut failures = self.0.await.unwrap_or_default();
        failures.sort_unstable_by_key(|failure| failure.place);
        failures
    }
}

impl Report {
    fn failed(&self, failure: Failure) {
        self.lock().failures.push(failure);
    }

    /// One more of which all is known.
    fn one_less(&self, on_published: impl Fn(&str, i32, u64)) {
        let mut open = self.lock();
        open.left -= 1;
        if open.left > 0 {
            return;
        }
        let ends = std::mem::take(&mut open.ends);
        let (failures, done, room) = (std::mem::take(&mut open.failures), open.done.take(), open.room.take());
        drop(open);
        for (partition, end) in ends {
            on_published(&self.topic, partition, end);
        }
        drop(room);
        // Whoever does not wait any more has given up on the answer.
        if let Some(done) = done {
            drop(done.send(failures));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Self::DeliveryOpaque) {
        let Ticket { report, place } = *ticket;
        match result {
            Ok(record) => {
                // Without acknowledgements nobody knows where it is.
                if let Ok(offset) = u64::try_from(record.offset()) {
                    let (partition, end) = (record.partition(), offset + 1);
                    let mut open = report.lock();
                    match open.ends.iter_mut().find(|(of, _)| *of == partition) {
                        Some((_, known)) => *known = end.max(*known),
                        None => open.ends.push((partition, end)),
                    }
                }
            }
            Err((error, record)) => {
                let code = code(error);
                let shared = (code == RDKafkaErrorCode::MessageSizeTooLarge).then(|| Box::new(again(record)));
                report.failed(Failure { place: place as usize, code, is_unsent: false, shared });
            }
        }
        report.one_less(|topic, partition, end| (self.on_published)(topic, partition, end));
    }
}

/// The same record, to the partition that was chosen for it.
fn again(record: &BorrowedMessage<'_>) -> Record {
    Record {
        key: record.key().map(Bytes::copy_from_slice),
        value: record.payload().map(Bytes::copy_from_slice),
        headers: record.headers().map(BorrowedHeaders::detach).unwrap_or_default(),
        timestamp: record.timestamp().to_millis().unwrap_or(0),
        partition: Some(record.partition()).filter(|partition| *partition >= 0),
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.watched.log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.watched.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watched.error(error, reason);
    }
}
