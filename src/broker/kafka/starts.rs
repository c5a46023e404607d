//! Where a group begins that has no place yet. What is published from now on, or since a time, is found out when reading
//! begins, not when the group has given out its partitions: what comes in between is read.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};

use super::{
    Shared,
    group::{is_pattern, matches},
};
use crate::broker::Start;

/// How long each question may take.
const QUESTION: Duration = Duration::from_secs(5);

/// Offsets by topic and partition.
pub(super) type Starts = HashMap<(Arc<str>, i32), i64>;

/// Where a group begins; `None`: no server can say it now, so that it is found out when there are partitions.
pub(super) async fn resolve(shared: &Shared, place: &Arc<str>, start: Start) -> Option<Starts> {
    if start == Start::Earliest {
        return Some(Starts::new());
    }
    let of = Arc::clone(place);
    let found = shared.topics.query().ask(move |consumer| ask(consumer, &of, start)).await.ok()?;
    found.inspect_err(|error| tracing::warn!("where to begin in {place} is not known yet: {error}")).ok()
}

/// The same; waits for the server.
pub(super) fn ask<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    place: &str,
    start: Start,
) -> Result<Starts, KafkaError> {
    let all = consumer.fetch_metadata((!is_pattern(place)).then_some(place), QUESTION)?;
    let topics = all.topics().iter().filter(|topic| {
        topic.error().is_none() && if is_pattern(place) { matches(place, topic.name()) } else { topic.name() == place }
    });
    let mut starts = Starts::new();
    for topic in topics {
        let name: Arc<str> = topic.name().into();
        let mut times = TopicPartitionList::new();
        for partition in topic.partitions() {
            let (low, end) = consumer.fetch_watermarks(&name, partition.id(), QUESTION)?;
            let begin = match start {
                Start::Offset(offset) => i64::try_from(offset).unwrap_or(i64::MAX).clamp(low, end),
                _ => end,
            };
            starts.insert((Arc::clone(&name), partition.id()), begin);
            if let Start::Time(at) = start {
                let at = i64::try_from(at).unwrap_or(i64::MAX);
                times.add_partition_offset(&name, partition.id(), Offset::Offset(at))?;
            }
        }
        if times.count() > 0 {
            // A time behind the last message is its end.
            for one in consumer.offsets_for_times(times, QUESTION)?.elements() {
                if let Offset::Offset(offset) = one.offset() {
                    starts.insert((Arc::clone(&name), one.partition()), offset);
                }
            }
        }
    }
    Ok(starts)
}
