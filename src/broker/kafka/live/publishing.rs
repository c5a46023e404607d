use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    Message as _,
    message::{Header, Headers as _, OwnedHeaders},
};

use super::{publisher, read, settings, topic, topics, unique};
use crate::{
    broker::{
        PublishError,
        kafka::{
            Settings,
            condition::Condition,
            publisher::Publisher,
            settings::{Acks, Compression, Format},
            wire::{Record, incoming, outgoing},
        },
    },
    message::{Address, Message},
};

fn record(key: Option<&str>, value: impl Into<Bytes>) -> Record {
    let key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
    Record { key, value: Some(value.into()), headers: OwnedHeaders::new(), timestamp: 0, partition: None }
}

#[tokio::test]
async fn what_is_published_comes_back_in_every_compression_and_format() {
    let compressions = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for compression in compressions {
        for format in [Format::Native, Format::CloudEventsBinary, Format::CloudEventsStructured] {
            let topic = topic("format", 1, &[]).await;
            let publisher = publisher(Settings { compression, ..settings() });
            let messages: Vec<_> = (0..50)
                .map(|n| Message {
                    key: Some(Bytes::new()),
                    headers: [("n", n.to_string())].into_iter().collect(),
                    ..Message::new("order", format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(500)), 1_000 + n)
                })
                .collect();
            let records: Vec<_> = messages.iter().map(|message| outgoing(message, format, None)).collect();
            publisher.publish(&topic, &Address::topic(&*topic), records).await.unwrap();
            let mut back: Vec<_> = read(&topic, 1).await.iter().map(|record| incoming(record).message).collect();
            for message in &mut back {
                message.headers.retain(|name, _| name == "n");
            }
            assert_eq!(back, messages, "{compression:?} {format:?}");
            publisher.close().await;
        }
    }
}

#[tokio::test]
async fn keys_lead_where_java_puts_them_and_a_partition_may_be_named() {
    let topic = topic("keys", 4, &[]).await;
    let publisher = publisher(settings());
    // Source: Apache Kafka, `UtilsTest.testMurmur2`, made positive, modulo 4.
    let hashes = [("21", -973_932_308_i32), ("foobar", -790_332_482), ("abc", 479_470_107)];
    let mut records: Vec<_> = hashes.iter().map(|(key, _)| record(Some(key), *key)).collect();
    records.push(Record { partition: Some(3), ..record(Some("21"), "named") });
    publisher.publish(&topic, &Address::topic(&*topic), records).await.unwrap();
    let found: HashMap<_, _> = read(&topic, 4)
        .await
        .iter()
        .map(|record| (String::from_utf8(record.payload().unwrap().to_vec()).unwrap(), record.partition()))
        .collect();
    for (key, hash) in hashes {
        assert_eq!(found[key], (hash & 0x7fff_ffff) % 4, "{key}");
    }
    assert_eq!(found["named"], 3);
    let nowhere = Record { partition: Some(9), ..record(None, "x") };
    let failed = publisher.publish(&topic, &Address::topic(&*topic), [nowhere]).await.unwrap_err();
    assert!(matches!(failed.0[..], [(0, PublishError::NotFound(_))]), "{failed:?}");
    publisher.close().await;
}

#[tokio::test]
async fn a_record_keeps_what_is_null_and_what_is_empty() {
    let topic = topic("null", 1, &[]).await;
    let publisher = publisher(settings());
    let headers = || {
        OwnedHeaders::new()
            .insert(Header { key: "null", value: None::<&[u8]> })
            .insert(Header { key: "empty", value: Some(&b""[..]) })
            .insert(Header { key: "bytes", value: Some(&b"\xff"[..]) })
    };
    let records = [
        Record { headers: headers(), ..record(None, "x") },
        Record { key: Some(Bytes::new()), ..record(None, "") },
        Record { value: None, timestamp: 77, ..record(Some("k"), "") },
    ];
    publisher.publish(&topic, &Address::topic(&*topic), records).await.unwrap();
    let found = read(&topic, 1).await;
    let named: Vec<_> = found[0].headers().unwrap().iter().map(|header| (header.key, header.value)).collect();
    assert_eq!(named, [("null", None), ("empty", Some(&b""[..])), ("bytes", Some(b"\xff"))]);
    let shapes: Vec<_> = found.iter().map(|record| (record.key(), record.payload().map(<[u8]>::len))).collect();
    assert_eq!(shapes, [(None, Some(1)), (Some(&b""[..]), Some(0)), (Some(b"k"), None)]);
    assert_eq!(found[2].timestamp().to_millis(), Some(77));
    assert!(found[0].timestamp().to_millis() > Some(1_700_000_000_000));
    // Through a message and out again, it is the same.
    let again: Vec<_> = found.iter().map(|record| outgoing(&incoming(record).message, Format::Native, None)).collect();
    publisher.publish(&topic, &Address::topic(&*topic), again).await.unwrap();
    let found = read(&topic, 1).await;
    for (before, after) in found[..3].iter().zip(&found[3..]) {
        assert_eq!(
            (before.key(), before.payload(), before.timestamp()),
            (after.key(), after.payload(), after.timestamp())
        );
    }
    let kept: Vec<_> = found[3].headers().unwrap().iter().take(3).map(|header| (header.key, header.value)).collect();
    assert_eq!(kept, named);
    publisher.close().await;
}

#[tokio::test]
async fn what_is_too_large_or_has_no_topic_is_known_at_once_and_the_rest_is_published() {
    let topic = topic("large", 1, &[("max.message.bytes", "20000")]).await;
    // Not compressed: the limit of a topic is about what arrives. Late, so that all of them share a request.
    let linger = Duration::from_millis(200);
    let publisher = publisher(Settings { compression: Compression::None, linger, ..settings() });
    let address = Address::topic(&*topic);
    let began = Instant::now();
    let sizes = [10, 10 << 20, 20, 30_000, 30];
    let records: Vec<_> = sizes.iter().map(|size| record(None, vec![7; *size])).collect();
    let failed = publisher.publish(&topic, &address, records).await.unwrap_err().0;
    let too_large: Vec<_> = failed
        .iter()
        .map(|(place, error)| match error {
            PublishError::TooLarge { bytes, max, .. } if bytes > max => (*place, *bytes),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(too_large, [(1, 10 << 20), (3, 30_000)]);
    let mut found: Vec<_> = read(&topic, 1).await.iter().map(|record| record.payload().unwrap().len()).collect();
    found.sort_unstable();
    assert_eq!(found, [10, 20, 30]);
    let missing = unique("missing");
    let to = Address::topic(&*missing);
    let failed = publisher.publish(&missing, &to, (0..3).map(|_| record(None, "x"))).await.unwrap_err().0;
    assert_eq!(failed, (0..3).map(|place| (place, PublishError::NotFound(to.clone()))).collect::<Vec<_>>());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    publisher.close().await;
    let failed = publisher.publish(&topic, &address, [record(None, "x")]).await.unwrap_err().0;
    assert_eq!(failed, [(0, PublishError::Closed)]);
}

#[tokio::test]
async fn more_than_may_be_in_flight_waits_and_keeps_its_order() {
    let topic = topic("waits", 2, &[]).await;
    let ends: Arc<Mutex<HashMap<i32, u64>>> = Arc::default();
    let told = Arc::clone(&ends);
    let settings = Arc::new(Settings { in_flight_max: 7, linger: Duration::ZERO, ..settings() });
    let condition = Arc::new(Condition::new(&settings.brokers));
    let hook = Arc::new(move |_: &str, partition, end| {
        told.lock().unwrap().insert(partition, end);
    });
    let publisher = Publisher::start(&settings, condition, topics(&settings), hook).unwrap();
    let to = Address::topic(&*topic);
    let batch = |key: &'static str| (0..2000).map(move |n| record(Some(key), n.to_string())).collect::<Vec<_>>();
    let all = [batch("21"), batch("foobar"), batch("abc")].map(|batch| publisher.publish(&topic, &to, batch));
    for done in futures_util::future::join_all(all).await {
        done.unwrap();
    }
    assert_eq!(publisher.in_flight(), 0);
    let found = read(&topic, 2).await;
    for key in ["21", "foobar", "abc"] {
        let of_key = found.iter().filter(|record| record.key() == Some(key.as_bytes()));
        let numbers: Vec<usize> =
            of_key.map(|r| std::str::from_utf8(r.payload().unwrap()).unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..2000).collect::<Vec<_>>(), "{key}");
    }
    let counted: u64 = ends.lock().unwrap().values().sum();
    assert_eq!(counted, 6000);
    publisher.close().await;
}

#[tokio::test]
async fn nobody_is_waited_for_longer_than_a_publish_may_take() {
    let topic = topic("away", 1, &[]).await;
    // The port of nobody: bound, and not listened on.
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let away = vec![format!("127.0.0.1:{}", held.local_addr().unwrap().port())];
    let live = settings();
    let settings = Arc::new(Settings { brokers: away, publish_timeout: Duration::from_millis(700), ..settings() });
    let condition = Arc::new(Condition::new(&settings.brokers));
    // Known before it went away.
    let topics = topics(&live);
    topics.partitions(&topic).await.unwrap();
    let publisher = Publisher::start(&settings, condition, topics, Arc::new(|_, _, _| {})).unwrap();
    let to = Address::topic(&*topic);
    let began = Instant::now();
    for _ in 0..2 {
        let failed = publisher.publish(&topic, &to, [record(None, "x")]).await.unwrap_err().0;
        assert!(matches!(failed[..], [(0, PublishError::Unavailable(_) | PublishError::Unconfirmed(_))]), "{failed:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    publisher.close().await;
}

#[tokio::test]
async fn it_goes_on_without_acknowledgements_and_with_those_of_the_leader_only() {
    for required_acks in [Acks::None, Acks::Leader] {
        let topic = topic("acks", 1, &[]).await;
        let publisher = publisher(Settings { required_acks, ..settings() });
        publisher.publish(&topic, &Address::topic(&*topic), (0..10).map(|_| record(None, "x"))).await.unwrap();
        publisher.close().await;
        assert_eq!(read(&topic, 1).await.len(), 10);
    }
}
