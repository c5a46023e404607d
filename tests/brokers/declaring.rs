//! Making queues and topics, and what is refused.

use std::{sync::Arc, time::Duration};

use helixmq::{
    broker::{
        BrokerError, Declaration, Overflow, PublishError, QueueSettings, Start, Storage, Subscribe, TopicSettings,
    },
    message::Address,
};

use crate::system::*;

pub(crate) async fn declares_the_same_twice(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(30)).await {
        at.publish(&place, [message("kept")]).await;
        let lease = Duration::from_secs(30);
        let same = match place.kind {
            helixmq::message::Kind::Queue => Declaration::Queue(
                Arc::clone(&place.name),
                QueueSettings { storage: at.storage, lease, ..QueueSettings::default() },
            ),
            helixmq::message::Kind::Topic => Declaration::Topic(
                Arc::clone(&place.name),
                TopicSettings { storage: at.storage, partitions: 1, lease, ..TopicSettings::default() },
            ),
        };
        at.broker.declare(&[same]).await.unwrap();
        assert_eq!(at.read(&place).await.consume(1).await, ["kept"], "{place}");
    }
}

pub(crate) async fn names_every_setting_that_differs(system: &dyn System) {
    let at = At::new(system).await;
    let elsewhere = if at.storage == Storage::Disk { Storage::Memory } else { Storage::Disk };
    if let Some(queue) = at.queue(QueueSettings::default()).await {
        let other = QueueSettings {
            storage: elsewhere,
            priority_max: 3,
            ttl: Some(Duration::from_secs(1)),
            length_max: Some(10),
            bytes_max: Some(10),
            overflow: Overflow::DropOldest,
            lease: Duration::from_secs(7),
            exclusive: false,
        };
        let wrong = at.broker.declare(&[Declaration::Queue(Arc::clone(&queue.name), other)]).await;
        let fields = ["storage", "priority_max", "ttl", "length_max", "bytes_max", "overflow", "lease"];
        let fields = fields.get(usize::from(!at.does("choose where it is kept"))..).unwrap();
        check(wrong, &queue, fields, ("priority_max", "10", "3"));
        at.publish(&queue, numbered(0..20)).await;
    }
    if let Some(topic) = at.topic_of(2).await {
        let other = TopicSettings {
            storage: elsewhere,
            partitions: 3,
            retention: None,
            retention_bytes: Some(10),
            lease: Duration::from_secs(7),
        };
        let wrong = at.broker.declare(&[Declaration::Topic(Arc::clone(&topic.name), other)]).await;
        check(
            wrong,
            &topic,
            &["storage", "partitions", "retention", "retention_bytes", "lease"],
            ("partitions", "2", "3"),
        );
    }

    /// Each field has a difference of its own, and one of them shows both values.
    fn check(
        wrong: Result<(), BrokerError>,
        place: &Address,
        fields: &[&str],
        (field, is, wanted): (&str, &str, &str),
    ) {
        let Err(BrokerError::Mismatch { address, differences }) = wrong else { panic!("{place}: {wrong:?}") };
        assert_eq!(address, *place);
        let named: Vec<&str> = differences.iter().map(|text| text.split(' ').next().unwrap()).collect();
        if named.contains(&"retention.ms") {
            // As Kafka names them; it has no leases, and one storage.
            assert_eq!(named, ["partitions", "retention.bytes", "retention.ms"]);
            return;
        }
        if named.iter().any(|name| name.starts_with("x-")) {
            // A server has names of its own, and puts them in an order of its own.
            let theirs = ["x-message-ttl", "x-max-length", "x-max-length-bytes", "x-overflow"];
            assert!(theirs.iter().all(|name| named.contains(name)), "{named:?}");
            return;
        }
        assert_eq!(named, fields);
        let shown = differences.iter().find(|text| text.starts_with(field)).unwrap();
        assert!(shown.contains(is) && shown.contains(wanted), "{shown}");
    }
}

pub(crate) async fn refuses_settings_that_cannot_work(system: &dyn System) {
    let at = At::new(system).await;
    let name: Arc<str> = "conformance.impossible".into();
    if at.queue(QueueSettings::default()).await.is_some() {
        let wrong = QueueSettings { priority_max: 11, ..QueueSettings::default() };
        let refused = at.broker.declare(&[Declaration::Queue(Arc::clone(&name), wrong)]).await;
        assert!(matches!(refused, Err(BrokerError::Invalid(_))), "{refused:?}");
    }
    if at.topic_of(1).await.is_some() {
        let wrong = TopicSettings { partitions: 0, ..TopicSettings::default() };
        let refused = at.broker.declare(&[Declaration::Topic(name, wrong)]).await;
        assert!(matches!(refused, Err(BrokerError::Invalid(_))), "{refused:?}");
    }
}

pub(crate) async fn says_what_is_not_there(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(30)).await {
        let missing = Address { name: format!("{}.missing", place.name).into(), ..place };
        let failures = at.try_publish(&missing, numbered(0..2)).await.unwrap_err().0;
        let not_found = PublishError::NotFound(missing.clone());
        assert_eq!(failures, [(0, not_found.clone()), (1, not_found)]);
        let request = Subscribe {
            from: missing.clone(),
            group: "group".into(),
            start: Start::Earliest,
            prefetch: 1,
            workers: 1,
            aside: Default::default(),
        };
        let refused = at.broker.subscribe(request).await.map(drop);
        assert!(matches!(&refused, Err(BrokerError::NotFound(address)) if *address == missing), "{refused:?}");
    }
}

pub(crate) async fn makes_what_is_not_there_where_told_to(system: &dyn System) {
    let Some(at) = At::creating(system).await else { return };
    let queue = at.does("queues").then(|| Address::queue("conformance.made.queue"));
    for place in queue.into_iter().chain([Address::topic("conformance.made.topic")]) {
        let mut early = at.read(&place).await;
        at.publish(&place, [message("first")]).await;
        assert_eq!(early.consume(1).await, ["first"], "{place}");
    }
}

pub(crate) async fn refuses_one_that_is_too_large_and_publishes_the_others(system: &dyn System) {
    let at = At::new(system).await;
    let max = at.broker.capabilities().message_bytes_max;
    for place in at.one_of_each(Duration::from_secs(30)).await {
        let large = message("x".repeat(max + 1));
        let failures = at.try_publish(&place, [message("before"), large, message("behind")]).await.unwrap_err().0;
        let error = PublishError::TooLarge { address: place.clone(), bytes: max + 1, max };
        assert_eq!(failures, [(1, error)]);
        assert_eq!(at.read(&place).await.consume(2).await, ["before", "behind"], "{place}");
    }
}

pub(crate) async fn claims_what_it_says_it_claims(system: &dyn System) {
    let at = At::new(system).await;
    at.claims("durable", |can| can.durable);
    at.claims("delivery_count", |can| can.delivery_count);
    at.claims("replay", |can| can.replay);
    at.claims("browse", |can| can.browse);
    assert!(!at.broker.name().is_empty());
}
