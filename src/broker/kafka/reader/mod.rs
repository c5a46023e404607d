//! Reading without a group: nothing is kept of it on the servers. [`page`] is for people who look at a topic, bounded by
//! where it ended when they asked; [`AssignedSubscription`] for who only looks on.
//!
//! Every wait for a server is on a thread of its own, or one of the runtime's for that.

mod page;
mod subscription;

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode,
};

pub(super) use self::{page::page, subscription::AssignedSubscription};

use super::{
    Settings,
    client::{self, Watched},
    group::{is_pattern, matches},
};
use crate::broker::Start;

/// Most bytes that the client library fetches ahead, in KiB.
const AHEAD_KIB: usize = 8 << 10;

/// A partition, and where to read it.
#[derive(Clone, Debug)]
struct Span {
    topic: Arc<str>,
    partition: i32,
    /// The first offset that is kept.
    low: i64,
    /// Where to begin: neither before `low` nor behind `end`.
    from: i64,
    /// Behind the last record, when it was asked for.
    end: i64,
}

/// A partition: its topic, and its number there.
type Place = (Arc<str>, i32);

/// What a reader is configured with. Names: librdkafka, CONFIGURATION.md.
fn config(settings: &Settings) -> ClientConfig {
    let mut config = client::config(settings);
    config
        // The library wants a name; it joins no group and commits nothing.
        .set("group.id", format!("{}-reader", settings.client_id))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        // What was deleted before it could be read is passed over.
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", (settings.fetch_bytes_max / 1024).clamp(1024, AHEAD_KIB).to_string())
        .set("fetch.wait.max.ms", settings.fetch_wait.as_millis().to_string())
        .set("fetch.error.backoff.ms", "100");
    for (name, value) in &settings.extra {
        config.set(name, value);
    }
    config
}

/// The partitions of a topic, or of all topics of a pattern, as they are now, sorted. `None`: there is no such topic.
fn partitions(consumer: &BaseConsumer<Watched>, place: &str, timeout: Duration) -> KafkaResult<Option<Vec<Place>>> {
    let is_pattern = is_pattern(place);
    let metadata = consumer.fetch_metadata((!is_pattern).then_some(place), timeout)?;
    let mut found = Vec::new();
    for topic in metadata.topics() {
        let is_wanted = if is_pattern { matches(place, topic.name()) } else { topic.name() == place };
        match topic.error().map(RDKafkaErrorCode::from) {
            _ if !is_wanted => {}
            None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
                let name: Arc<str> = topic.name().into();
                found.extend(topic.partitions().iter().map(|partition| (Arc::clone(&name), partition.id())));
            }
            Some(_) if is_pattern => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => return Ok(None),
            Some(code) => return Err(KafkaError::MetadataFetch(code)),
        }
    }
    found.sort_unstable();
    Ok(Some(found))
}

/// Where each partition begins and ends, and where to begin in it.
fn spans(
    consumer: &BaseConsumer<Watched>,
    partitions: &[Place],
    start: Start,
    timeout: Duration,
) -> KafkaResult<Vec<Span>> {
    let mut spans = Vec::with_capacity(partitions.len());
    let mut times = TopicPartitionList::new();
    for (topic, partition) in partitions {
        let (low, end) = consumer.fetch_watermarks(topic, *partition, timeout)?;
        let from = match start {
            Start::Earliest => low,
            // A time behind the last record is its end.
            Start::Latest | Start::Time(_) => end,
            Start::Offset(offset) => i64::try_from(offset).unwrap_or(i64::MAX).clamp(low, end.max(low)),
        };
        if let Start::Time(at) = start {
            let at = Offset::Offset(i64::try_from(at).unwrap_or(i64::MAX));
            times.add_partition_offset(topic, *partition, at)?;
        }
        spans.push(Span { topic: Arc::clone(topic), partition: *partition, low, from, end });
    }
    if times.count() > 0 {
        for found in consumer.offsets_for_times(times, timeout)?.elements() {
            found.error()?;
            let of = |span: &&mut Span| *span.topic == *found.topic() && span.partition == found.partition();
            if let (Offset::Offset(offset), Some(span)) = (found.offset(), spans.iter_mut().find(of)) {
                span.from = offset.clamp(span.low, span.end);
            }
        }
    }
    Ok(spans)
}

/// Begins to fetch where they say.
fn assign<'a>(consumer: &BaseConsumer<Watched>, spans: impl Iterator<Item = &'a Span>) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    for span in spans {
        list.add_partition_offset(&span.topic, span.partition, Offset::Offset(span.from))?;
    }
    consumer.assign(&list)
}
