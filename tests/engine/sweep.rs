//! Messages that no lane takes: what expired, and what is too much, ends in the dead letters all the same.

use std::sync::Arc;

use helixmq::{
    broker::{
        Broker, Declaration, Overflow, QueueSettings, Storage,
        embedded::{self, DiskSettings},
    },
    message::{Address, Message, ReasonCode, now_ms},
    route::Route,
    settle::DeadLetter,
};

use crate::support::*;

fn late(name: &str) -> Message {
    Message { expires_at: Some(now_ms() - 5), ..message(name) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_in_a_queue_that_nobody_reads_is_a_dead_letter() {
    let engine = Plan::new().start().await;
    let in_time = Message { expires_at: Some(now_ms() + 600_000), ..message("in time") };
    engine.send_to_queue("unread", [late("late"), in_time]).await;
    let dead = engine.one_dead().await;
    assert_eq!((dead.code(), text(&dead.message).as_str()), (ReasonCode::MessageExpired, "late"));
    assert_eq!((dead.letter.source.as_str(), dead.letter.route.as_deref()), ("queue:unread", None));
    assert!(dead.letter.text.starts_with("expired "), "{}", dead.letter.text);
    assert_eq!((dead.message.expires_at, dead.history()), (None, Vec::new()));
    let unread = Address::queue("unread");
    eventually("it is settled", || engine.stats(&unread).dead_lettered == 1).await;
    assert_eq!(engine.stats(&unread).ready, 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_handler_that_is_away_goes_where_its_route_says() {
    let route = Route { dead_letter: Address::queue("letters"), ..from_queue("work", "ghost") };
    let engine = Plan::new().route(route.clone()).start().await;
    engine.send_to_queue("work", [late("late")]).await;
    eventually("there is a letter", || !engine.published("letters").is_empty()).await;
    let letter = DeadLetter::read(&engine.published("letters")[0]).unwrap();
    assert_eq!((letter.code, letter.route.as_deref()), (ReasonCode::MessageExpired, Some(&*route.name)));
    engine.queue_done("work").await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_too_long_gives_its_oldest_to_the_dead_letters() {
    too_long(Storage::Memory).await;
    too_long(Storage::Disk).await;
}

async fn too_long(storage: Storage) {
    let directory = tempfile::tempdir().unwrap();
    let disk = DiskSettings { free_min: 1 << 20, ..DiskSettings::new(directory.path().join("store")) };
    let embedded = embedded::Settings { auto_create: true, disk: Some(disk), ..embedded::Settings::default() };
    let broker = Arc::new(Tap::new(embedded));
    let settings = QueueSettings {
        storage,
        length_max: Some(300),
        overflow: Overflow::DeadLetterOldest,
        ..QueueSettings::default()
    };
    broker.declare(&[Declaration::Queue("full".into(), settings)]).await.unwrap();
    let engine = Plan::new().start_on(broker).await;
    // More than a batch has to leave.
    engine.send_to_queue("full", (0..600).map(|number| message(number.to_string()))).await;
    let dead = engine.some_dead(300).await;
    let names: Vec<String> = dead.iter().map(|dead| text(&dead.message)).collect();
    assert_eq!(names, (0..300).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(dead.iter().all(|dead| dead.code() == ReasonCode::QueueOverflow));
    let full = Address::queue("full");
    eventually("they are settled", || engine.stats(&full).dead_lettered == 300).await;
    assert_eq!((engine.stats(&full).ready, engine.stats(&full).dropped), (300, 0), "{storage:?}");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_letter_cannot_be_kept_stays_where_it_is() {
    let engine = Plan::new().start().await;
    let dead = Address::queue(DEAD);
    engine.broker.refuse(move |to, _| *to == dead);
    engine.send_to_queue("unread", [late("late")]).await;
    let refused = |passed: &Passed| matches!(passed, Passed::Refused);
    // Twice: the first time it went back.
    eventually("it was tried twice", || engine.broker.ledger().iter().filter(|passed| refused(passed)).count() >= 2)
        .await;
    assert!(engine.dead().is_empty());
    engine.broker.recover();
    let dead = engine.one_dead().await;
    assert_eq!((text(&dead.message).as_str(), dead.history()), ("late", Vec::new()));
    let settled = || engine.stats(&Address::queue("unread")).dead_lettered == 1;
    eventually("it is settled", settled).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_expires_stays_with_its_cause() {
    let engine = Plan::new().start().await;
    engine.send_to_queue(DEAD, [late("a letter")]).await;
    // Looked at after the dead letters, whose name comes before.
    engine.send_to_queue("unread", [late("marker")]).await;
    let dead = engine.one_dead().await;
    assert_eq!(text(&dead.message), "marker");
    let kept: Vec<String> =
        engine.broker.lies_at(&Address::queue(DEAD)).await.iter().map(|letter| text(letter)).collect();
    assert_eq!(kept, ["a letter", "marker"]);
    assert_eq!(engine.stats(&Address::queue(DEAD)).dead_lettered, 0);
    engine.stop().await;
}
