//! Topics: partitions, groups and what they remember.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use helixmq::{
    broker::{BatchMax, Deliveries, Start, TopicSettings},
    message::Message,
};

use crate::system::*;

fn placed(deliveries: &Deliveries) -> Vec<(u32, u64)> {
    let positions = deliveries.as_slice().iter().map(|delivery| delivery.position.expect("a topic's have a position"));
    positions.map(|position| (position.partition, position.offset)).collect()
}

pub(crate) async fn puts_a_key_where_kafka_would(system: &dyn System) {
    let at = At::new(system).await;
    // Source: Apache Kafka, `UtilsTest.testMurmur2`; the partition is `toPositive(hash) % partitions`.
    let hashes = [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    for partitions in [1, 3, 6, 12, 7] {
        let Some(topic) = at.topic_of(partitions).await else { return };
        for _ in 0..2 {
            at.publish(&topic, hashes.map(|(key, _)| keyed(key, key))).await;
        }
        let mut reader = at.read(&topic).await;
        let taken = reader.take(12).await;
        for delivery in taken.as_slice() {
            let (_, hash) = hashes.iter().find(|(key, _)| *key == name(&delivery.message)).unwrap();
            let expected = (*hash as u32 & 0x7fff_ffff) % partitions;
            assert_eq!(delivery.position.unwrap().partition, expected, "of {partitions}");
        }
    }
}

pub(crate) async fn keeps_the_order_within_each_partition(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(4).await else { return };
    at.publish(&topic, (0..1000).map(|n| keyed(&format!("key {}", n % 17), n.to_string()))).await;
    at.publish(&topic, numbered(1000..2000)).await;
    let mut reader = at.read(&topic).await;
    let mut last: BTreeMap<u32, (u64, usize)> = BTreeMap::new();
    for _ in 0..20 {
        let taken = reader.take(100).await;
        for (delivery, (partition, offset)) in taken.as_slice().iter().zip(placed(&taken)) {
            let number = name(&delivery.message).parse().unwrap();
            let before = last.insert(partition, (offset, number));
            match before {
                None => assert_eq!(offset, 0),
                Some((before, earlier)) => assert!(offset == before + 1 && number > earlier, "partition {partition}"),
            }
        }
        accept(taken).await;
    }
}

pub(crate) async fn spreads_messages_without_a_key(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(4).await else { return };
    let mut reader = at.read(&topic).await;
    let mut seen = BTreeSet::new();
    // A publisher may keep to one partition for a while, and choose each by chance: 4 partitions in 400 such choices are
    // missed once in 10^49 times.
    for _ in 0..400 {
        at.publish(&topic, numbered(0..5)).await;
        let taken = reader.take(5).await;
        seen.extend(placed(&taken).into_iter().map(|(partition, _)| partition));
        accept(taken).await;
        if seen.len() == 4 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("of 4 partitions only {seen:?} were given anything");
}

pub(crate) async fn lets_no_partition_wait_for_another_to_run_dry(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(4).await else { return };
    at.publish(&topic, (0..1000).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    let mut reader = at.read(&topic).await;
    let mut seen = BTreeSet::new();
    // A server may bring a part of them first; what it has brought is shared out long before half of all is through.
    let mut left = 400_usize;
    while seen.len() < 4 && left > 0 {
        let taken = reader.batch(BatchMax { count: 10, ..ALL }).await;
        seen.extend(placed(&taken).into_iter().map(|(partition, _)| partition));
        left = left.saturating_sub(taken.len());
        accept(taken).await;
    }
    assert_eq!(seen.len(), 4);
}

pub(crate) async fn wakes_who_waits_for_any_of_its_partitions(system: &dyn System) {
    let at = At::new(system).await;
    let settings = TopicSettings { partitions: 4, lease: Duration::from_secs(600), ..TopicSettings::default() };
    let Some(topic) = at.topic(settings).await else { return };
    let mut reader = at.read(&topic).await;
    for key in 0..10 {
        let (taken, ()) = tokio::join!(reader.take(1), async {
            tokio::task::yield_now().await;
            at.publish(&topic, [keyed(&key.to_string(), key.to_string())]).await;
        });
        accept(taken).await;
    }
}

pub(crate) async fn gives_every_group_every_message(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(2).await else { return };
    at.publish(&topic, numbered(0..100)).await;
    for group in ["one", "two", "three"] {
        let mut reader = at.read_from(&topic, group, Start::Earliest).await;
        let seen: BTreeSet<String> = reader.consume(100).await.into_iter().collect();
        assert_eq!(seen.len(), 100, "{group}");
        reader.expect_nothing().await;
    }
}

pub(crate) async fn shares_partitions_among_the_members_of_a_group(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(4).await else { return };
    let mut readers = [at.read(&topic).await, at.read(&topic).await];
    // The second may get its share only some time after it came.
    for round in 0.. {
        assert!(round < 400, "only one of them ever reads");
        at.publish(&topic, (0..40).map(|n| keyed(&n.to_string(), format!("before {round} {n}")))).await;
        let (mut left, mut by) = (40, BTreeSet::new());
        while left > 0 {
            let (a, b) = readers.split_at_mut(1);
            let (who, taken) = tokio::select! {
                taken = a[0].batch(ALL) => (0, taken),
                taken = b[0].batch(ALL) => (1, taken),
            };
            left -= taken.len().min(left);
            by.insert(who);
            accept(taken).await;
        }
        if by.len() == 2 {
            break;
        }
        system.pass(Duration::from_millis(50)).await;
    }
    let mut owners: BTreeMap<u32, usize> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for round in 0..10 {
        at.publish(&topic, (0..40).map(|n| keyed(&n.to_string(), format!("{round} {n}")))).await;
        while seen.len() < 40 * (round + 1) {
            let (a, b) = readers.split_at_mut(1);
            let (who, taken) = tokio::select! {
                taken = a[0].batch(ALL) => (0, taken),
                taken = b[0].batch(ALL) => (1, taken),
            };
            for (partition, _) in placed(&taken) {
                assert_eq!(*owners.entry(partition).or_insert(who), who, "partition {partition} has two readers");
            }
            for name in names(&taken) {
                assert!(seen.insert(name.clone()), "{name} came twice");
            }
            accept(taken).await;
        }
    }
    assert_eq!(owners.values().collect::<BTreeSet<_>>().len(), 2, "both read");
}

pub(crate) async fn passes_partitions_on_when_a_member_leaves(system: &dyn System) {
    let at = At::new(system).await;
    if !at.does("divide a partition") {
        return;
    }
    let Some(topic) = at.topic_of(4).await else { return };
    let (mut stays, mut leaves) = (at.read(&topic).await, at.read(&topic).await);
    at.publish(&topic, (0..100).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    let held = leaves.batch(ALL).await;
    let mut seen: BTreeSet<String> = names(&held).into_iter().collect();
    drop(leaves);
    // Nobody else works on those partitions while these are out.
    while seen.len() < 100 {
        let taken = stays.batch(ALL).await;
        assert!(names(&taken).iter().all(|name| seen.insert(name.clone())));
        accept(taken).await;
    }
    let moved = placed(&held)[0].0;
    let count = held.len();
    accept(held).await;
    at.publish(&topic, (0..100).map(|n| keyed(&n.to_string(), format!("again {n}")))).await;
    let taken = stays.take(100).await;
    assert!(placed(&taken).iter().any(|(partition, _)| *partition == moved), "{count} were held");
    accept(taken).await;
    stays.expect_nothing().await;
}

pub(crate) async fn keeps_a_partition_from_its_next_reader_until_what_is_out_has_ended(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(1).await else { return };
    at.publish(&topic, numbered(0..10)).await;
    let mut first = at.read(&topic).await;
    let held = first.take(4).await;
    let mut next = at.read(&topic).await;
    drop(first);
    next.expect_nothing().await;
    let (taken, ()) = tokio::join!(next.take(6), async {
        tokio::task::yield_now().await;
        accept(held).await;
    });
    assert_eq!(names(&taken), number_names(4..10));
}

pub(crate) async fn resumes_where_the_group_left_and_keeps_its_attempts(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(1).await else { return };
    at.publish(&topic, numbered(0..10)).await;
    let mut reader = at.read(&topic).await;
    let mut taken = reader.take(6).await;
    accept(taken.take_front(2)).await;
    settle(taken.take_front(1), redeliver(Duration::ZERO, 1)).await;
    accept(taken.take_front(2)).await;
    drop(taken);
    drop(reader);
    assert_eq!(at.stats(&topic).lag, [("group".into(), 6)]);
    // The start is for groups without progress.
    let mut reader = at.read_from(&topic, "group", Start::Latest).await;
    let rest = reader.take(6).await;
    assert_eq!(names(&rest), ["2", "5", "6", "7", "8", "9"], "what was done above the gap is not repeated");
    assert_eq!(attempts(&rest), [2, 1, 1, 1, 1, 1]);
    accept(rest).await;
    reader.expect_nothing().await;
    assert_eq!(at.stats(&topic).lag, [("group".into(), 0)]);
}

pub(crate) async fn does_not_hold_up_a_partition_for_one_that_waits(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(1).await else { return };
    at.publish(&topic, numbered(0..1)).await;
    let mut reader = at.read_at_most(&topic, 100).await;
    let long = system.span(Duration::from_secs(200));
    settle(reader.take(1).await, redeliver(long, 1)).await;
    for round in 0..50 {
        at.publish(&topic, numbered(0..100)).await;
        assert_eq!(reader.consume(100).await.len(), 100, "round {round}");
    }
    assert_eq!(at.stats(&topic).lag, [("group".into(), 1)]);
    drop(reader);
    let mut reader = at.read(&topic).await;
    reader.expect_nothing().await;
    system.pass(long).await;
    let last = reader.take(1).await;
    assert_eq!((names(&last), attempts(&last)), (number_names(0..1), vec![2]));
    accept(last).await;
    assert_eq!(at.stats(&topic).lag, [("group".into(), 0)]);
}

pub(crate) async fn begins_where_a_new_group_asks(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("replay", |can| can.replay) {
        return;
    }
    let Some(topic) = at.topic_of(1).await else { return };
    let timed = |n: usize| Message { timestamp: 1_000_000 + n as u64 * 10, ..message(n.to_string()) };
    at.publish(&topic, (0..100).map(timed)).await;
    for (group, start, from) in [
        ("earliest", Start::Earliest, 0),
        ("latest", Start::Latest, 100),
        ("exact time", Start::Time(1_000_500), 50),
        ("time between", Start::Time(1_000_501), 51),
        ("time before all", Start::Time(5), 0),
        ("time behind all", Start::Time(u64::MAX), 100),
        ("offset", Start::Offset(70), 70),
        ("offset behind all", Start::Offset(500), 100),
    ] {
        let mut reader = at.read_from(&topic, group, start).await;
        at.publish(&topic, [timed(100)]).await;
        let first = reader.take(1).await;
        assert_eq!(placed(&first)[0].1.min(100), from, "{group}");
    }
}

pub(crate) async fn forgets_a_group_without_a_name_with_its_reader(system: &dyn System) {
    let at = At::new(system).await;
    let Some(topic) = at.topic_of(1).await else { return };
    at.publish(&topic, numbered(0..2)).await;
    let (mut a, mut b) =
        (at.read_from(&topic, "", Start::Earliest).await, at.read_from(&topic, "", Start::Earliest).await);
    assert_eq!(a.consume(2).await, number_names(0..2));
    assert_eq!(b.consume(2).await, number_names(0..2));
    drop((a, b));
    assert_eq!(at.stats(&topic).lag, []);
    let mut late = at.read_from(&topic, "", Start::Latest).await;
    late.expect_nothing().await;
}

pub(crate) async fn forgets_messages_by_age(system: &dyn System) {
    let at = At::new(system).await;
    if !at.does("forget message by message") {
        return;
    }
    let settings = TopicSettings {
        partitions: 1,
        retention: Some(system.span(Duration::from_secs(60))),
        ..TopicSettings::default()
    };
    let Some(topic) = at.topic(settings).await else { return };
    // Starts to read, and falls behind.
    let mut slow = at.read_at_most(&topic, 2).await;
    at.publish(&topic, numbered(0..10)).await;
    let held = slow.take(2).await;
    system.pass(system.span(Duration::from_secs(50))).await;
    at.publish(&topic, numbered(10..20)).await;
    assert_eq!(at.stats(&topic).ready, 20);
    system.pass(system.span(Duration::from_secs(11))).await;
    let stats = at.stats(&topic);
    assert_eq!((stats.ready, stats.dropped), (10, 8), "two of ten were handed over before");
    assert_eq!(stats.lag, [("group".into(), 12)]);
    let mut new = at.read_from(&topic, "new", Start::Earliest).await;
    assert_eq!(new.consume(10).await, number_names(10..20));
    // What was out comes back all the same: its lease ran out a while ago.
    drop(held);
    let again = slow.take(2).await;
    assert_eq!(names(&again), number_names(0..2));
    accept(again).await;
    assert_eq!(slow.consume(2).await, number_names(10..12));
    assert_eq!(at.stats(&topic).lag.iter().find(|(group, _)| **group == *"group").unwrap().1, 8);
}

pub(crate) async fn forgets_messages_by_size(system: &dyn System) {
    let at = At::new(system).await;
    if !at.does("forget message by message") {
        return;
    }
    let settings = TopicSettings { partitions: 1, retention_bytes: Some(1000), ..TopicSettings::default() };
    let Some(topic) = at.topic(settings).await else { return };
    let sized = |n: usize| message(format!("{n:0100}"));
    at.publish(&topic, (0..8).map(sized)).await;
    let mut reader = at.read(&topic).await;
    settle(reader.take(3).await, redeliver(Duration::from_secs(5), 1)).await;
    at.publish(&topic, (8..5000).map(sized)).await;
    let numbers = |taken: Vec<String>| taken.iter().map(|name| name.parse::<usize>().unwrap()).collect::<Vec<_>>();
    assert_eq!(numbers(reader.consume(4).await), (4990..4994).collect::<Vec<_>>());
    let stats = at.stats(&topic);
    assert_eq!((stats.ready, stats.bytes), (10, 1000));
    assert_eq!((stats.lag, stats.dropped), (vec![("group".into(), 9)], 4990 - 3));
    assert_eq!(numbers(reader.consume(6).await), (4994..5000).collect::<Vec<_>>());
    // Those that wait for another attempt are not lost to retention.
    let again = reader.take(3).await;
    assert_eq!((numbers(names(&again)), attempts(&again)), (vec![0, 1, 2], vec![2; 3]));
    accept(again).await;
    assert_eq!(at.stats(&topic).lag, [("group".into(), 0)]);
    let mut late = at.read_from(&topic, "late", Start::Offset(17)).await;
    assert_eq!(placed(&late.take(1).await), [(0, 4990)], "the oldest kept after it");
}
