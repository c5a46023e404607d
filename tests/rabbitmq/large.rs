//! Messages of many megabytes: carried where the server takes them, refused with its limit where it does not, and never at
//! the cost of others.

use std::{collections::BTreeSet, sync::Arc};

use helixmq::{
    broker::{Broker, PublishError, PublishFailures, rabbitmq::topology::QueueKind::Classic},
    message::{Address, Message, ReasonCode, Settlement, now_ms},
};

use crate::{
    reader,
    server::Server,
    site::{Site, WORK},
    support::{
        ledger::{message, send},
        soon,
    },
};

/// Bytes that are not all the same.
fn payload(count: usize) -> Vec<u8> {
    (0..count).map(|place| (place % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carries_a_hundred_megabytes() {
    let mut site = Site::new(&Server::shared(), Classic).await;
    site.settings.message_bytes_max = 120_000_000;
    site.settings.publish_timeout = std::time::Duration::from_secs(20);
    let broker = site.broker_with_queues().await;
    let large = Message::new("large", payload(100_000_000), now_ms());
    let (id, work) = (large.id.clone(), Address::queue(WORK));
    soon("a confirmation", broker.publish(&work, vec![Arc::new(large)])).await.expect("confirmed");
    let taken = reader::take(&broker, WORK, 1).await.remove(0);
    assert_eq!(taken.id, id);
    assert!(*taken.payload == *payload(100_000_000), "it is not the same");
    soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuses_what_is_larger_than_configured_without_asking_the_server() {
    let mut site = Site::new(&Server::shared(), Classic).await;
    site.settings.message_bytes_max = 1000;
    let broker = site.broker_with_queues().await;
    let large = Message::new("large", payload(1001), now_ms());
    let batch = vec![Arc::new(message(0)), Arc::new(large), Arc::new(message(2))];
    let PublishFailures(failures) = broker.publish(&Address::queue(WORK), batch).await.expect_err("one is too large");
    assert!(matches!(&failures[..], [(1, PublishError::TooLarge { max: 1000, .. })]), "{failures:?}");
    assert_eq!(reader::take(&broker, WORK, 2).await.len(), 2);
    soon("the broker closes", broker.close()).await;
}

/// The ids of so many different messages, each taken as often as it is there.
async fn taken(broker: &Arc<dyn Broker>, count: usize) -> BTreeSet<String> {
    let mut subscription = reader::subscribe(broker, WORK).await;
    let mut ids = BTreeSet::new();
    while ids.len() < count {
        let deliveries = reader::next(&mut subscription).await;
        ids.extend(deliveries.as_slice().iter().map(|delivery| delivery.message.id.to_string()));
        let how = vec![Settlement::Accept; deliveries.len()];
        deliveries.settle(how).await.expect("settled");
    }
    ids
}

/// The server closes a channel over which it is sent more than it takes: others go on, and only that one is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_what_the_server_takes_at_most_and_publishes_the_others() {
    let mut site = Site::new(&Server::strict().await, Classic).await;
    site.settings.message_bytes_max = 200_000_000;
    let broker = site.broker_with_queues().await;
    for size in [1_000_001, 100_000_000] {
        let large = Message::new("large", payload(size), now_ms());
        let batch = vec![Arc::new(message(0)), Arc::new(large), Arc::new(message(2))];
        let others = BTreeSet::from([batch[0].id.to_string(), batch[2].id.to_string()]);
        let published = soon("an answer", broker.publish(&Address::queue(WORK), batch)).await;
        let PublishFailures(failures) = published.expect_err("one is too large");
        let [(1, error @ PublishError::TooLarge { bytes, max: 1_000_000, .. })] = &failures[..] else {
            panic!("{size}: {failures:?}");
        };
        assert!(*bytes >= size && !error.is_retryable() && error.code() == ReasonCode::MessageTooLarge);
        let sent = others.into_iter().chain(send(&broker, &Address::queue(WORK), 10).await).collect();
        // Those that went over the channel before it was closed may be there twice: nobody knows which the server took.
        assert_eq!(taken(&broker, 12).await, sent);
    }
    soon("the broker closes", broker.close()).await;
}
