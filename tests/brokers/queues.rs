//! Queues: what comes out, in which order and when.

use std::{collections::BTreeSet, time::Duration};

use helixmq::{
    broker::{BatchMax, Ordering, Overflow, PublishError, QueueSettings},
    message::{Message, ReasonCode, Settlement, now_ms},
};
use tokio::time::Instant;

use crate::system::*;

pub(crate) async fn keeps_the_order_of_arrival(system: &dyn System) {
    let at = At::new(system).await;
    let Some(queue) = at.queue(QueueSettings::default()).await else { return };
    if !at.claims("ordering", |can| can.ordering == Ordering::Arrival) {
        return;
    }
    at.publish(&queue, numbered(0..300)).await;
    at.publish(&queue, numbered(300..2000)).await;
    let mut reader = at.read(&queue).await;
    assert_eq!(reader.consume(2000).await, number_names(0..2000));
    reader.expect_nothing().await;
}

pub(crate) async fn delivers_higher_priorities_first(system: &dyn System) {
    let at = At::new(system).await;
    let Some(queue) = at.queue(QueueSettings::default()).await else { return };
    if !at.claims("priority", |can| can.priority) {
        return;
    }
    let ranked = |priority: u8, name: &str| Message { priority, ..message(name) };
    at.publish(&queue, [ranked(1, "low"), ranked(5, "normal 1"), ranked(10, "critical"), ranked(5, "normal 2")]).await;
    let mut reader = at.read(&queue).await;
    assert_eq!(reader.consume(4).await, ["critical", "normal 1", "normal 2", "low"]);
}

pub(crate) async fn counts_a_priority_above_the_highest_as_the_highest(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("priority", |can| can.priority) {
        return;
    }
    let Some(queue) = at.queue(QueueSettings { priority_max: 5, ..QueueSettings::default() }).await else { return };
    let ranked = |priority: u8, name: &str| Message { priority, ..message(name) };
    at.publish(&queue, [ranked(4, "four"), ranked(5, "five"), ranked(10, "ten"), ranked(255, "most")]).await;
    assert_eq!(at.read(&queue).await.consume(4).await, ["five", "ten", "most", "four"]);
}

pub(crate) async fn does_not_deliver_before_the_time(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("delay", |can| can.delay) {
        return;
    }
    for place in at.one_of_each(Duration::from_secs(30)).await {
        let mut reader = at.read(&place).await;
        // A reader may have to join its group first.
        at.publish(&place, [message("it reads")]).await;
        assert_eq!(reader.consume(1).await, ["it reads"], "{place}");
        let begin = Instant::now();
        let delayed = |ms: u64| Message { not_before: Some(now_ms() + ms), ..message(format!("after {ms}")) };
        at.publish(&place, [delayed(3000), delayed(1000), message("at once"), delayed(2000)]).await;
        assert_eq!(reader.consume(1).await, ["at once"], "{place}");
        for ms in [1000, 2000, 3000] {
            assert_eq!(reader.consume(1).await, [format!("after {ms}")], "{place}");
            // The time is given in whole milliseconds of the wall clock, read after `begin`.
            assert!(begin.elapsed() >= Duration::from_millis(ms - 1), "{place}: {ms} came at {:?}", begin.elapsed());
            assert!(begin.elapsed() < Duration::from_millis(ms) + PATIENCE / 10, "{place}: {ms} came late");
        }
    }
}

pub(crate) async fn wakes_who_waits_when_something_earlier_is_published(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("delay", |can| can.delay) {
        return;
    }
    for place in at.one_of_each(Duration::from_secs(600)).await {
        let delayed = |ms: u64| Message { not_before: Some(now_ms() + ms), ..message(format!("after {ms}")) };
        at.publish(&place, [delayed(60_000)]).await;
        let mut reader = at.read(&place).await;
        let begin = Instant::now();
        let (taken, ()) = tokio::join!(reader.take(1), async {
            tokio::task::yield_now().await;
            at.publish(&place, [delayed(500)]).await;
        });
        assert_eq!(names(&taken), ["after 500"], "{place}");
        assert!(begin.elapsed() < PATIENCE, "{place}");
    }
}

pub(crate) async fn delivers_what_has_expired_marked_by_its_time(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("expiry", |can| can.expiry) {
        return;
    }
    let ttl = system.span(Duration::from_secs(60));
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
    let Some(queue) = at.queue(QueueSettings { ttl: Some(ttl), ..QueueSettings::default() }).await else { return };
    let before = now_ms();
    let expiring = |at| Message { expires_at: Some(at), ..message("its own") };
    at.publish(&queue, [message("the queue's"), expiring(before + 10), expiring(before + 600_000)]).await;
    let after = now_ms();
    let mut reader = at.read(&queue).await;
    system.pass(2 * ttl).await;
    let taken = reader.take(3).await;
    let expires: Vec<u64> = taken.as_slice().iter().map(|delivery| delivery.message.expires_at.unwrap()).collect();
    assert!((before + ttl_ms..=after + ttl_ms).contains(&expires[0]), "the queue's applies where there is none");
    assert_eq!(expires[1], before + 10, "the earlier one counts");
    assert!((before + ttl_ms..=after + ttl_ms).contains(&expires[2]), "the earlier one counts");
    assert!(taken.as_slice().iter().all(|delivery| delivery.message.expired(before + 2 * ttl_ms)));
    accept(taken).await;
}

pub(crate) async fn gives_a_batch_no_larger_than_asked_for(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(30)).await {
        at.publish(&place, (0..20).map(|_| message("x".repeat(1000)))).await;
        let mut reader = at.read(&place).await;
        assert!(reader.batch(BatchMax { count: 3, ..ALL }).await.len() <= 3, "{place}: count");
        let some = reader.batch(BatchMax { bytes: 4500, ..ALL }).await;
        assert!((1..=4).contains(&some.len()), "{place}: bytes gave {}", some.len());
        assert_eq!(reader.batch(BatchMax { bytes: 1, ..ALL }).await.len(), 1, "{place}: one always fits");
    }
}

pub(crate) async fn rejects_what_does_not_fit_and_says_which(system: &dyn System) {
    let at = At::new(system).await;
    let settings = QueueSettings { length_max: Some(3), ..QueueSettings::default() };
    let Some(queue) = at.queue(settings).await else { return };
    if !at.does("exact limits") {
        let mut more = Vec::new();
        // A few more get in; then it is full.
        while let Ok(()) = at.try_publish(&queue, numbered(0..1)).await {
            more.push(());
            assert!(more.len() < 1000, "there is no limit");
        }
        return;
    }
    let failures = at.try_publish(&queue, numbered(0..5)).await.unwrap_err().0;
    assert_eq!(failures.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [3, 4]);
    assert!(failures.iter().all(|(_, error)| matches!(error, PublishError::Full { .. }) && error.is_retryable()));
    let mut reader = at.read(&queue).await;
    assert_eq!(reader.consume(3).await, number_names(0..3));
    at.publish(&queue, numbered(5..8)).await;
    assert_eq!(reader.consume(3).await, number_names(5..8));
}

pub(crate) async fn bounds_a_queue_by_bytes(system: &dyn System) {
    let at = At::new(system).await;
    let settings = QueueSettings { bytes_max: Some(1000), ..QueueSettings::default() };
    let Some(queue) = at.queue(settings).await else { return };
    if !at.does("exact limits") || !at.does("bytes of what is out") {
        return;
    }
    let sized = |bytes: usize| message("x".repeat(bytes));
    let failures = at.try_publish(&queue, [sized(600), sized(600), sized(300), sized(2000)]).await.unwrap_err().0;
    assert_eq!(failures.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1, 3]);
    at.read(&queue).await.consume(2).await;
    at.publish(&queue, [sized(1000)]).await;
}

pub(crate) async fn drops_the_oldest_of_the_lowest_priority_where_told_to(system: &dyn System) {
    let at = At::new(system).await;
    let settings = QueueSettings { length_max: Some(3), overflow: Overflow::DropOldest, ..QueueSettings::default() };
    let Some(queue) = at.queue(settings).await else { return };
    if !at.claims("priority", |can| can.priority) {
        return;
    }
    let ranked = |priority: u8, name: &str| Message { priority, ..message(name) };
    at.publish(&queue, [ranked(8, "a"), ranked(1, "b"), ranked(1, "c"), ranked(8, "d"), ranked(8, "e")]).await;
    if !at.does("choose what leaves") {
        return;
    }
    assert_eq!(at.stats(&queue).dropped, 2);
    assert_eq!(at.read(&queue).await.consume(3).await, ["a", "d", "e"]);
}

pub(crate) async fn evicts_what_has_expired_at_the_head_of_each_priority(system: &dyn System) {
    let at = At::new(system).await;
    if !at.claims("expiry", |can| can.expiry) || !at.claims("priority", |can| can.priority) {
        return;
    }
    let Some(queue) = at.queue(QueueSettings::default()).await else { return };
    let late = |priority: u8, name: &str| Message { priority, expires_at: Some(now_ms() - 1), ..message(name) };
    let fresh = |priority: u8, name: &str| Message { priority, expires_at: Some(now_ms() + 600_000), ..message(name) };
    at.publish(&queue, [late(1, "a"), late(1, "b"), fresh(1, "c"), late(1, "behind c"), late(8, "d"), fresh(8, "e")])
        .await;
    assert_eq!(at.evict(&queue, 2).await.len(), 2, "no more than asked for");
    // What was not settled went back, as the same attempt.
    let evicted = at.evict(&queue, 100).await;
    let all: BTreeSet<String> = names(&evicted).into_iter().collect();
    assert_eq!(all, ["a", "b", "d"].map(str::to_owned).into());
    assert_eq!(attempts(&evicted), [1; 3]);
    assert_eq!(at.depth(&queue), (3, 0, 3));
    settle(evicted, Settlement::DeadLetter { code: ReasonCode::MessageExpired }).await;
    assert!(at.evict(&queue, 100).await.is_empty());
    assert_eq!((at.depth(&queue), at.stats(&queue).dead_lettered), ((3, 0, 0), 3));
    assert_eq!(at.read(&queue).await.consume(3).await, ["e", "c", "behind c"]);
}

pub(crate) async fn evicts_the_oldest_of_the_lowest_priority_beyond_the_limit(system: &dyn System) {
    let at = At::new(system).await;
    let settings =
        QueueSettings { length_max: Some(3), overflow: Overflow::DeadLetterOldest, ..QueueSettings::default() };
    let Some(queue) = at.queue(settings).await else { return };
    if !at.claims("priority", |can| can.priority) || !at.does("choose what leaves") {
        return;
    }
    let ranked = |priority: u8, name: &str| Message { priority, ..message(name) };
    at.publish(&queue, [ranked(8, "a"), ranked(1, "b"), ranked(1, "c"), ranked(8, "d"), ranked(8, "e")]).await;
    let failures = at.try_publish(&queue, [ranked(8, "f"), ranked(8, "too many")]).await.unwrap_err().0;
    assert_eq!(failures.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1], "twice the limit is the end");
    let evicted = at.evict(&queue, 100).await;
    assert_eq!(names(&evicted), ["b", "c", "a"]);
    settle(evicted, Settlement::DeadLetter { code: ReasonCode::QueueOverflow }).await;
    assert!(at.evict(&queue, 100).await.is_empty());
    assert_eq!((at.stats(&queue).dropped, at.stats(&queue).dead_lettered), (0, 3));
    assert_eq!(at.read(&queue).await.consume(3).await, ["d", "e", "f"]);
}

pub(crate) async fn evicts_nothing_where_nothing_has_to_leave(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(30)).await {
        at.publish(&place, numbered(0..10)).await;
        assert!(at.evict(&place, 100).await.is_empty(), "{place}");
        assert_eq!(at.read(&place).await.consume(10).await, number_names(0..10), "{place}");
    }
}

pub(crate) async fn gives_each_message_to_one_of_the_competing_readers(system: &dyn System) {
    let at = At::new(system).await;
    let Some(queue) = at.queue(QueueSettings::default()).await else { return };
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(at.read_at_most(&queue, 10).await);
    }
    at.publish(&queue, numbered(0..90)).await;
    let mut seen = BTreeSet::new();
    // None can have more than ten out, so all three are needed, and each goes on as it settles.
    for _ in 0..3 {
        let mut held = Vec::new();
        for reader in &mut readers {
            held.push(reader.take(10).await);
        }
        for taken in held {
            for name in names(&taken) {
                assert!(seen.insert(name.clone()), "{name} came twice");
            }
            accept(taken).await;
        }
    }
    assert_eq!(seen.len(), 90);
    assert_eq!(at.depth(&queue), (0, 0, 0));
}

pub(crate) async fn wakes_every_reader_that_waits_when_there_is_enough(system: &dyn System) {
    let at = At::new(system).await;
    let Some(queue) = at.queue(QueueSettings::default()).await else { return };
    let (mut a, mut b, mut c) =
        (at.read_at_most(&queue, 1).await, at.read_at_most(&queue, 1).await, at.read_at_most(&queue, 1).await);
    let (a, b, c, ()) = tokio::join!(a.take(1), b.take(1), c.take(1), async {
        tokio::task::yield_now().await;
        at.publish(&queue, numbered(0..3)).await;
    });
    let all: BTreeSet<String> = [a, b, c].iter().flat_map(names).collect();
    assert_eq!(all.len(), 3);
}

pub(crate) async fn bounds_what_waits_for_its_time_as_well(system: &dyn System) {
    let at = At::new(system).await;
    let settings = QueueSettings { length_max: Some(5), overflow: Overflow::DropOldest, ..QueueSettings::default() };
    let Some(queue) = at.queue(settings).await else { return };
    if !at.does("bound what waits elsewhere") {
        return;
    }
    let later = |name: usize| Message { not_before: Some(now_ms() + 3_600_000), ..message(name.to_string()) };
    at.publish(&queue, (0..20).map(later)).await;
    eventually("the oldest are gone", || at.depth(&queue) == (0, 5, 0)).await;
    assert_eq!(at.stats(&queue).dropped, 15);
    let mut reader = at.read(&queue).await;
    reader.expect_nothing().await;
}
