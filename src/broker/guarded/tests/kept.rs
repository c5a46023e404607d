//! What is kept survives: as it was, over a close, over a kill, and whatever the configuration says by then.

use std::{collections::BTreeSet, time::Duration};

use tempfile::TempDir;

use super::{
    super::{Fallback, SpoolSettings, is_spool},
    MAX,
    double::{Mood, System, eventually, guarded, message, text},
    numbered, publish,
};
use crate::{
    broker::{BatchMax, Broker, BrokerStatus, PublishError},
    message::{Address, Extra, Message, now_ms},
};

/// The files as they are, which is what a process finds that was killed.
fn copied(directory: &TempDir) -> TempDir {
    let copy = TempDir::new().unwrap();
    for file in std::fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[tokio::test]
async fn messages_leave_the_spool_as_they_came() {
    let now = now_ms();
    let mut odd = Message {
        priority: 9,
        key: Some("".into()),
        content_type: Some("text/plain".into()),
        correlation_id: Some("c".into()),
        reply_to: Some("queue:answers".into()),
        // Long ago, and a long time from now: it is not for the spool to see to that.
        expires_at: Some(now - 1000),
        not_before: Some(now + 3_600_000),
        retries_max: Some(7),
        transient: true,
        extra: Some(Box::new(Extra { subject: Some("s".into()), ..Extra::default() })),
        ..Message::new("odd", "0", now - 5000)
    };
    for (name, value) in [("a", "1"), ("x-helix-hops", "3"), ("a", "2"), ("x-helix-dead-code", "TIMEOUT")] {
        odd.headers.append(name, value);
    }
    let all: Vec<Message> =
        (0..6_u8).map(|place| Message { priority: place % 3, ..Message::new("plain", vec![place], now) }).collect();
    let sent: Vec<Message> = [odd.clone()].into_iter().chain(all).chain([odd]).collect();
    for fallback in [Fallback::Memory, Fallback::Spool] {
        let (system, topic, directory) = (System::new(), Address::topic("t"), TempDir::new().unwrap());
        let (guarded, embedded) = guarded(&system, fallback, MAX, Some(directory.path()));
        system.is(Mood::Away);
        for message in &sent {
            guarded.publish(&topic, vec![message.clone().into()]).await.unwrap();
        }
        guarded.publish(&topic, sent.iter().cloned().map(Into::into).collect()).await.unwrap();
        // Whoever looks through the queues of the embedded broker finds nothing to do in a spool.
        for stats in embedded.stats().into_iter().filter(|stats| is_spool(&stats.address)) {
            assert_eq!((stats.delayed, stats.ready + stats.unsettled), (0, 16));
            let max = BatchMax { count: 100, bytes: 1 << 20 };
            assert!(embedded.evict(&stats.address, max).await.unwrap().len() <= 1, "and what there is goes back");
        }
        system.is(Mood::Well);
        eventually("all of it is there", || guarded.shared.is_calm()).await;
        let twice: Vec<Message> = sent.iter().chain(&sent).cloned().collect();
        assert_eq!(system.taken().iter().map(|message| Message::clone(message)).collect::<Vec<_>>(), twice);
    }
}

#[tokio::test]
async fn what_was_kept_is_drained_by_the_next_process_whatever_its_fallback() {
    for next in [Fallback::None, Fallback::Memory, Fallback::Spool] {
        let (system, queue, directory) = (System::new(), Address::queue("q"), TempDir::new().unwrap());
        let (before, embedded) = guarded(&system, Fallback::Spool, MAX, Some(directory.path()));
        system.is(Mood::Away);
        for number in numbered(0..100) {
            publish(&before, &queue, &number).await.unwrap();
        }
        before.close().await;
        embedded.close().await;
        drop((before, embedded));
        let (after, embedded) = guarded(&system, next, MAX, Some(directory.path()));
        let spool = after.systems().remove(0).spool.unwrap();
        assert_eq!(spool.messages, 100);
        assert!(matches!(after.status(), BrokerStatus::Degraded { .. }));
        system.is(Mood::Well);
        publish(&after, &queue, "100").await.unwrap();
        eventually("it is as before", || after.shared.is_calm()).await;
        assert_eq!(system.has(&queue), numbered(0..101), "with {next:?}");
        after.close().await;
        embedded.close().await;
    }
}

#[tokio::test]
async fn without_a_fallback_nothing_passes_what_is_left_and_refused() {
    let (system, queue, directory) = (System::new(), Address::queue("q"), TempDir::new().unwrap());
    let (before, embedded) = guarded(&system, Fallback::Spool, MAX, Some(directory.path()));
    system.is(Mood::Away);
    publish(&before, &queue, "0").await.unwrap();
    before.close().await;
    embedded.close().await;
    drop((before, embedded));
    system.is(Mood::Refusing(queue.clone(), PublishError::NotFound(queue.clone())));
    let (after, _embedded) = guarded(&system, Fallback::None, MAX, Some(directory.path()));
    eventually("that is known", || after.systems()[0].spool.as_ref().unwrap().refused.is_some()).await;
    let refused = publish(&after, &queue, "1").await;
    assert!(
        matches!(&refused, Err(PublishError::Unavailable(text)) if text.contains("earlier fallback")),
        "{refused:?}"
    );
    publish(&after, &Address::queue("other"), "2").await.unwrap();
}

#[tokio::test]
async fn the_age_of_what_waits_is_known_after_a_restart() {
    let (system, queue, directory) = (System::new(), Address::queue("q"), TempDir::new().unwrap());
    let (before, _before) = guarded(&system, Fallback::Spool, MAX, Some(directory.path()));
    system.is(Mood::Away);
    publish(&before, &queue, "0").await.unwrap();
    eventually("it has aged", || before.systems()[0].spool.as_ref().unwrap().oldest_ms > 300).await;
    let copy = copied(&directory);
    let (after, _after) = guarded(&system, Fallback::Spool, MAX, Some(copy.path()));
    eventually("it is as old as before", || after.systems()[0].spool.as_ref().unwrap().oldest_ms > 300).await;
}

#[tokio::test]
async fn a_process_killed_while_it_drains_loses_nothing() {
    let paced = SpoolSettings { drain_per_second: Some(4000), ..MAX };
    let slow = Mood::Slow { call: Duration::ZERO, each: Duration::from_micros(250) };
    // A little at a time; and with one portion on its way, the next read and the one before being settled.
    for (settings, mood) in [(paced, Mood::Well), (MAX, slow)] {
        let (system, queue) = (System::new(), Address::queue("q"));
        let mut directory = TempDir::new().unwrap();
        let (guard, embedded) = guarded(&system, Fallback::Spool, settings, Some(directory.path()));
        system.is(Mood::Away);
        let all = (0..2000).map(|number| message(&number.to_string(), "key")).collect();
        guard.publish(&queue, all).await.unwrap();
        system.is(mood);
        let mut running = (guard, embedded);
        for kill in 1..4 {
            eventually("some of it has left", || system.has(&queue).len() > kill * 450).await;
            let left = copied(&directory);
            drop(running);
            directory = left;
            running = guarded(&system, Fallback::Spool, settings, Some(directory.path()));
        }
        eventually("it is as before", || running.0.shared.is_calm()).await;
        let mut first = BTreeSet::new();
        let in_order: Vec<String> = system.has(&queue).into_iter().filter(|text| first.insert(text.clone())).collect();
        assert_eq!(in_order, numbered(0..2000), "each, in order; some twice");
        let ids: BTreeSet<_> = system.taken().iter().map(|message| (text(message), message.id.to_string())).collect();
        assert_eq!(ids.len(), 2000, "under the same id");
    }
}

#[tokio::test]
async fn what_is_closed_while_it_drains_goes_on_at_the_next_start() {
    let (system, queue, directory) = (System::new(), Address::queue("q"), TempDir::new().unwrap());
    let slow = SpoolSettings { drain_per_second: Some(2000), ..MAX };
    let (before, embedded) = guarded(&system, Fallback::Spool, slow, Some(directory.path()));
    system.is(Mood::Away);
    let all = (0..1000).map(|number| message(&number.to_string(), "key")).collect();
    before.publish(&queue, all).await.unwrap();
    system.is(Mood::Well);
    eventually("some of it has left", || !system.has(&queue).is_empty()).await;
    before.close().await;
    embedded.close().await;
    drop((before, embedded));
    let there = system.has(&queue).len();
    assert!(there < 1000);
    let (after, _embedded) = guarded(&system, Fallback::Spool, MAX, Some(directory.path()));
    eventually("it is as before", || after.shared.is_calm()).await;
    assert_eq!(system.has(&queue), numbered(0..1000), "nothing twice: a close waits for what is on its way");
}

#[tokio::test]
async fn a_close_does_not_wait_long_for_a_system_that_is_frozen() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    system.is(Mood::Away);
    publish(&guarded, &queue, "0").await.unwrap();
    system.is(Mood::Frozen);
    let closed = tokio::time::timeout(Duration::from_secs(5), guarded.close()).await;
    assert!(closed.is_ok());
}
