//! Tests of the parts of this folder on the Kafka that `scripts/brokers run` has started.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod publishing;
mod reading;
mod topics;

use std::{env, sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::OwnedMessage,
};

use super::{
    Settings,
    client::Query,
    condition::Condition,
    metadata::Topics,
    publisher::Publisher,
    settings::TopicPlan,
    topology::{How, compare},
};

/// Settings for the server that is there.
fn settings() -> Settings {
    let Ok(port) = env::var("KAFKA_TEST_PORT") else {
        panic!(
            "KAFKA_TEST_PORT names no server: run `cargo xtask test`, or `scripts/brokers run cargo test --features real-brokers --lib`"
        );
    };
    Settings {
        brokers: vec![format!("127.0.0.1:{port}")],
        connect_timeout: Duration::from_secs(10),
        ..Settings::default()
    }
}

/// A name that no other test has.
fn unique(name: &str) -> String {
    format!("live.{name}.{:x}", crate::message::random64())
}

fn topics(settings: &Settings) -> Arc<Topics> {
    let condition = Arc::new(Condition::new(&settings.brokers));
    let query = Query::new(settings, Arc::clone(&condition)).unwrap();
    Arc::new(Topics::new(query, condition, Duration::from_secs(5)))
}

fn publisher(settings: Settings) -> Publisher {
    let (condition, topics) = (Arc::new(Condition::new(&settings.brokers)), topics(&settings));
    Publisher::start(&Arc::new(settings), condition, topics, Arc::new(|_, _, _| {})).unwrap()
}

/// A topic of that many partitions, made now.
async fn topic(name: &str, partitions: u32, config: &[(&str, &str)]) -> String {
    let (settings, name) = (settings(), unique(name));
    let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let plan = TopicPlan { partitions, config, ..TopicPlan::default() };
    compare(&settings, &topics(&settings), &[(name.as_str().into(), plan)], How::Make).await.unwrap();
    name
}

/// All that is in a topic, by partition and offset.
async fn read(topic: &str, partitions: i32) -> Vec<OwnedMessage> {
    let (brokers, topic) = (settings().brokers.join(","), topic.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "live").create().unwrap();
        let (mut list, mut left) = (TopicPartitionList::new(), 0);
        for partition in 0..partitions {
            let (low, end) = consumer.fetch_watermarks(&topic, partition, Duration::from_secs(5)).unwrap();
            left += end - low;
            list.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        let mut found = Vec::new();
        while found.len() < usize::try_from(left).unwrap() {
            if let Some(Ok(record)) = consumer.poll(Duration::from_secs(5)) {
                found.push(record.detach());
            }
        }
        found.sort_by_key(|record| (record.partition(), record.offset()));
        found
    });
    reading.await.unwrap()
}
