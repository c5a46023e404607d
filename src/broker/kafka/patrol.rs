//! Looks around while nobody asks: what could not be made while Kafka was away, and how far topics reach that are not read
//! here, such as those of dead letters.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::consumer::Consumer;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::broker::BrokerError;

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// After how many of these topics are counted.
const COUNTED_EVERY: u32 = 5;
/// How long counting one partition may take.
const COUNT: Duration = Duration::from_secs(2);
/// Name of what is wrong with topics.
const TOPICS: &str = "topics";

/// Runs until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turn = 0_u32;
    let name: Arc<str> = TOPICS.into();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        turn = turn.wrapping_add(1);
        let condition = &shared.common.condition;
        // Its questions hear what the connection has to say; without any, somebody has to.
        if shared.topics.query().ask(super::client::serve).await.is_err() || condition.why_away().is_some() {
            continue;
        }
        if !shared.pending().is_empty() {
            match shared.declare_pending().await {
                Ok(()) => condition.well(&name),
                Err(error @ (BrokerError::Mismatch { .. } | BrokerError::Refused { .. })) => {
                    condition.trouble(&name, error.to_string());
                }
                Err(error) => tracing::debug!("topics cannot be made yet: {error}"),
            }
        }
        if turn % COUNTED_EVERY == 1 {
            tokio::select! {
                () = stop.cancelled() => return,
                () = count(&shared) => {}
            }
        }
    }
}

/// How far topics reach.
async fn count(shared: &Arc<Shared>) {
    for topic in shared.common.places.topics() {
        let Ok(Some(partitions)) = shared.topics.partitions(&topic).await else { continue };
        let of = Arc::clone(&topic);
        let counted = shared.topics.query().ask(move |consumer| {
            let mut ends = BTreeMap::new();
            for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
                let (low, end) = consumer.fetch_watermarks(&of, partition, COUNT).ok()?;
                ends.insert(partition, (u64::try_from(low).ok()?, u64::try_from(end).ok()?));
            }
            Some(ends)
        });
        if let Ok(Some(ends)) = counted.await {
            shared.common.places.counted(&topic, ends);
        }
    }
}
