//! Where a group begins that has no place yet. What is published from now on, or since a time, is found out when reading
//! begins, not when the group has given out its partitions: what comes in between is read.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use super::{
    Shared,
    client::Watched,
    group::{is_pattern, matches},
};
use crate::broker::{BrokerError, Start};

/// How long each question may take.
const QUESTION: Duration = Duration::from_secs(5);

/// Offsets by topic and partition; empty where the server knows.
pub(super) async fn resolve(
    shared: &Shared,
    place: &Arc<str>,
    start: Start,
) -> Result<HashMap<(Arc<str>, i32), i64>, BrokerError> {
    if start == Start::Earliest {
        return Ok(HashMap::new());
    }
    let of = Arc::clone(place);
    let found = shared.topics.query().ask(move |consumer| ask(consumer, &of, start)).await?;
    found.map_err(|error| BrokerError::Unreachable {
        endpoint: shared.common.condition.endpoint().to_owned(),
        timeout: QUESTION,
        cause: error.into(),
    })
}

fn ask(
    consumer: &BaseConsumer<Watched>,
    place: &str,
    start: Start,
) -> Result<HashMap<(Arc<str>, i32), i64>, KafkaError> {
    let all = consumer.fetch_metadata((!is_pattern(place)).then_some(place), QUESTION)?;
    let topics = all.topics().iter().filter(|topic| {
        topic.error().is_none() && if is_pattern(place) { matches(place, topic.name()) } else { topic.name() == place }
    });
    let mut starts = HashMap::new();
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
