//! A guard in front of a system that has its moods.

mod double;
mod drains;
mod idle;
mod kept;
mod races;
mod reload;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::time::Instant;

use self::double::{Mood, PUBLISH_TIMEOUT, System, eventually, guarded, message};
use super::{Fallback, Guarded, SpoolSettings};
use crate::{
    broker::{Broker, BrokerStatus, Circuit, ConnectionState, PublishError, PublishFailures},
    message::Address,
};

const MAX: SpoolSettings = SpoolSettings {
    bytes_max: 1 << 30,
    messages_max: 1_000_000,
    age_max: Some(Duration::from_secs(3600)),
    drain_per_second: None,
};

fn numbered(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

async fn publish(to: &Guarded, address: &Address, text: &str) -> Result<(), PublishError> {
    let published = to.publish(address, vec![message(text, "key")]).await;
    published.map_err(|PublishFailures(failures)| failures.into_iter().next().unwrap().1)
}

#[tokio::test(start_paused = true)]
async fn everything_goes_straight_to_a_system_that_is_well() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, embedded) = guarded(&system, Fallback::Memory, MAX, None);
    for number in numbered(0..3) {
        publish(&guarded, &queue, &number).await.unwrap();
    }
    assert_eq!(system.has(&queue), numbered(0..3));
    assert_eq!(embedded.stats(), [], "no spool is made");
    assert_eq!(guarded.status(), BrokerStatus::Ready);
}

#[tokio::test(start_paused = true)]
async fn without_a_fallback_the_first_wait_and_the_next_are_refused_at_once() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::None, MAX, None);
    system.is(Mood::Frozen);
    let begin = Instant::now();
    let five = (0..5).map(|_| publish(&guarded, &queue, "lost"));
    for lost in futures_util::future::join_all(five).await {
        assert!(matches!(lost, Err(PublishError::Unconfirmed(_))), "{lost:?}");
    }
    assert_eq!(begin.elapsed(), PUBLISH_TIMEOUT);
    let refused = publish(&guarded, &queue, "refused").await;
    assert_eq!(begin.elapsed(), PUBLISH_TIMEOUT, "nobody waits any more");
    let Err(PublishError::Unavailable(text)) = refused else { panic!("{refused:?}") };
    assert!(text.starts_with("double is not published to since 20") && text.contains("no answer"), "{text}");
    let mut circuit = guarded.circuit(&queue).unwrap();
    assert_eq!(*circuit.borrow_and_update(), Circuit::Open);
    assert!(matches!(guarded.status(), BrokerStatus::Degraded { reason } if reason == text));

    // One probe, and who comes meanwhile is refused.
    circuit.wait_for(|circuit| *circuit == Circuit::HalfOpen).await.unwrap();
    assert_eq!(begin.elapsed().as_secs(), 40, "after thirty seconds");
    let calls = system.calls.load(SeqCst);
    let (probe, other) = tokio::join!(publish(&guarded, &queue, "probe"), publish(&guarded, &queue, "other"));
    assert!(matches!((probe, other), (Err(PublishError::Unconfirmed(_)), Err(PublishError::Unavailable(_)))));
    assert_eq!(system.calls.load(SeqCst), calls + 1);
    circuit.wait_for(|circuit| *circuit == Circuit::HalfOpen).await.unwrap();
    system.is(Mood::Well);
    publish(&guarded, &queue, "well").await.unwrap();
    assert_eq!((guarded.status(), *circuit.borrow()), (BrokerStatus::Ready, Circuit::Closed));
    assert_eq!(system.has(&queue), ["well"]);
}

#[tokio::test(start_paused = true)]
async fn a_system_that_says_that_it_is_away_is_asked_again_when_it_says_that_it_is_back() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::None, MAX, None);
    for gone in [ConnectionState::Away, ConnectionState::Blocked, ConnectionState::Refused] {
        system.says(gone);
        let mut circuit = guarded.circuit(&queue).unwrap();
        circuit.wait_for(|circuit| *circuit == Circuit::Open).await.unwrap();
        let refused = publish(&guarded, &queue, "early").await;
        assert!(
            matches!(&refused, Err(PublishError::Unavailable(text)) if text.contains(gone.as_str())),
            "{refused:?}"
        );
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(*circuit.borrow(), Circuit::Open, "however long");
        system.says(ConnectionState::Ready);
        let begin = Instant::now();
        circuit.wait_for(|circuit| *circuit == Circuit::HalfOpen).await.unwrap();
        assert!(begin.elapsed() < Duration::from_millis(100));
        publish(&guarded, &queue, gone.as_str()).await.unwrap();
        assert_eq!(*circuit.borrow(), Circuit::Closed);
    }
    assert_eq!(system.has(&queue), ["away", "blocked", "refused"]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_publisher_goes_away_makes_room_for_another() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::None, MAX, None);
    system.is(Mood::Frozen);
    system.says(ConnectionState::Away);
    let mut circuit = guarded.circuit(&queue).unwrap();
    circuit.wait_for(|circuit| *circuit == Circuit::Open).await.unwrap();
    system.says(ConnectionState::Ready);
    circuit.wait_for(|circuit| *circuit == Circuit::HalfOpen).await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_secs(1), publish(&guarded, &queue, "given up")).await;
    assert!(given_up.is_err());
    system.is(Mood::Well);
    publish(&guarded, &queue, "next").await.unwrap();
    assert_eq!(*circuit.borrow(), Circuit::Closed);
}

#[tokio::test(start_paused = true)]
async fn with_a_fallback_nobody_fails_and_everything_follows_in_order() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    publish(&guarded, &queue, "0").await.unwrap();
    system.is(Mood::Frozen);
    let begin = Instant::now();
    let batch = (1..9).map(|number| message(&number.to_string(), "key")).collect();
    guarded.publish(&queue, batch).await.unwrap();
    assert_eq!(begin.elapsed(), PUBLISH_TIMEOUT);
    for number in numbered(9..200) {
        publish(&guarded, &queue, &number).await.unwrap();
    }
    assert!(begin.elapsed() < PUBLISH_TIMEOUT + Duration::from_millis(100), "the next do not wait");
    assert!(guarded.circuit(&queue).is_none(), "there is no need to wait");
    let [shown] = guarded.systems().try_into().unwrap();
    let spool = shown.spool.unwrap();
    assert_eq!((spool.messages, spool.is_durable, shown.circuit == Circuit::Closed), (199, false, false));
    assert!(matches!(shown.status, BrokerStatus::Degraded { reason } if reason.contains("199 messages")));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let thawed = Instant::now();
    system.is(Mood::Well);
    eventually("all of it is there", || system.has(&queue) == numbered(0..200)).await;
    assert!(thawed.elapsed() < Duration::from_secs(1), "at once: {:?}", thawed.elapsed());
    eventually("it is as before", || guarded.status() == BrokerStatus::Ready).await;
    let calls = system.calls.load(SeqCst);
    publish(&guarded, &queue, "200").await.unwrap();
    assert_eq!((system.calls.load(SeqCst), system.has(&queue).len()), (calls + 1, 201), "straight again");
}

#[tokio::test(start_paused = true)]
async fn what_fails_of_a_batch_is_kept_with_what_its_key_has_behind_it() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    system.is(Mood::Losing("lost"));
    let batch = [("a1", "a"), ("b1", "b"), ("a2 lost", "a"), ("b2", "b"), ("a3", "a"), ("none", "")];
    guarded.publish(&queue, batch.iter().map(|(text, key)| message(text, key)).collect()).await.unwrap();
    system.is(Mood::Well);
    publish(&guarded, &queue, "behind").await.unwrap();
    eventually("it is as before", || guarded.shared.is_calm()).await;
    assert_eq!(system.has(&queue), ["a1", "b1", "b2", "a3", "none", "a2 lost", "a3", "behind"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_fails_half_way_goes_on_at_what_failed() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    system.is(Mood::Away);
    let texts = ["a1", "b1", "a2 lost", "b2", "a3", "c1 lost", "b3", "c2"];
    for text in texts {
        guarded.publish(&queue, vec![message(text, &text[..1])]).await.unwrap();
    }
    system.is(Mood::Losing("lost"));
    eventually("the first is there", || system.has(&queue).iter().any(|text| text == "a1")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left = guarded.systems()[0].spool.as_ref().unwrap().messages;
    assert!((4..7).contains(&left), "what is lost and what follows it, {left}");
    system.is(Mood::Well);
    eventually("it is as before", || guarded.shared.is_calm()).await;
    for key in ["a", "b", "c"] {
        let has = system.has(&queue);
        let last = |text: &&str| has.iter().rposition(|other| other == text).unwrap();
        assert!(texts.iter().filter(|text| text.starts_with(key)).map(last).is_sorted(), "{has:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_stays_and_holds_up_its_destination_only() {
    let (system, queue, other) = (System::new(), Address::queue("q"), Address::topic("t"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    system.says(ConnectionState::Away);
    eventually("that is seen", || !guarded.shared.is_calm()).await;
    for number in numbered(0..10) {
        publish(&guarded, &queue, &number).await.unwrap();
        publish(&guarded, &other, &number).await.unwrap();
    }
    system.is(Mood::Refusing(queue.clone(), PublishError::NotFound(queue.clone())));
    system.says(ConnectionState::Ready);
    eventually("the other is there", || system.has(&other) == numbered(0..10)).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let spool = guarded.systems().remove(0).spool.unwrap();
    assert_eq!((spool.messages, spool.refused.as_deref()), (10, Some("queue:q: there is no queue:q")));
    assert!(matches!(guarded.status(), BrokerStatus::Degraded { reason } if reason.contains("there is no queue:q")));
    publish(&guarded, &other, "10").await.unwrap();
    assert_eq!(system.has(&other), numbered(0..11), "straight to where nothing waits");
    publish(&guarded, &queue, "10").await.unwrap();
    system.is(Mood::Well);
    eventually("all of it is there", || system.has(&queue) == numbered(0..11)).await;
    eventually("it is as before", || guarded.status() == BrokerStatus::Ready).await;
}

/// Publishers that are faster than the system could keep a spool from ever running empty.
#[tokio::test(start_paused = true)]
async fn the_spool_runs_empty_while_publishers_go_on() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let slow = SpoolSettings { drain_per_second: Some(1000), ..MAX };
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, slow, None);
    system.is(Mood::Away);
    let count = 2000;
    let backlog = (0..count).map(|number| message(&number.to_string(), "key")).collect();
    guarded.publish(&queue, backlog).await.unwrap();
    system.is(Mood::Well);
    let begin = Instant::now();
    let mut next = count;
    while !guarded.shared.is_calm() {
        publish(&guarded, &queue, &next.to_string()).await.unwrap();
        next += 1;
        // Four times as fast as the system.
        tokio::time::sleep(Duration::from_micros(250)).await;
    }
    assert!(begin.elapsed() > Duration::from_secs(1), "not faster than it may: {:?}", begin.elapsed());
    assert!(next < 3 * count, "{next} messages came meanwhile");
    publish(&guarded, &queue, &next.to_string()).await.unwrap();
    assert_eq!(system.has(&queue), numbered(0..next + 1));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_to_its_publisher() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let small = SpoolSettings { bytes_max: 100, messages_max: 5, ..MAX };
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, small, None);
    system.says(ConnectionState::Away);
    eventually("that is seen", || !guarded.shared.is_calm()).await;
    let too_large = publish(&guarded, &queue, &"x".repeat(1001)).await;
    assert!(matches!(too_large, Err(PublishError::TooLarge { bytes: 1004, max: 1000, .. })), "{too_large:?}");
    let batch: Vec<_> = (0..8).map(|number| message(&number.to_string(), "")).collect();
    let PublishFailures(failures) = guarded.publish(&queue, batch).await.unwrap_err();
    assert_eq!(failures.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [5, 6, 7]);
    assert!(matches!(&failures[0].1, PublishError::Full { address, limit }
        if *address == queue && limit == "spool messages_max 5, while double is away"));
    let BrokerStatus::Degraded { reason } = guarded.status() else { panic!("it is full") };
    assert!(reason.contains("no more has room there (spool messages_max 5)"), "{reason}");
    system.says(ConnectionState::Ready);
    eventually("there is room", || guarded.shared.is_calm()).await;
    assert_eq!(system.has(&queue), numbered(0..5));

    system.says(ConnectionState::Away);
    eventually("that is seen", || !guarded.shared.is_calm()).await;
    publish(&guarded, &queue, &"x".repeat(50)).await.unwrap();
    let full = publish(&guarded, &Address::topic("t"), &"x".repeat(50)).await;
    assert!(matches!(&full, Err(PublishError::Full { limit, .. }) if limit.contains("bytes_max 100")), "{full:?}");
}

#[tokio::test]
async fn nothing_more_is_taken_behind_what_is_too_old() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let soon = SpoolSettings { age_max: Some(Duration::from_millis(20)), ..MAX };
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, soon, None);
    system.is(Mood::Away);
    publish(&guarded, &queue, "0").await.unwrap();
    eventually("it is too old", || guarded.systems()[0].spool.as_ref().unwrap().oldest_ms > 20).await;
    let full = publish(&guarded, &queue, "1").await;
    assert!(matches!(&full, Err(PublishError::Full { limit, .. }) if limit.contains("age_max 20ms")), "{full:?}");
    publish(&guarded, &Address::topic("t"), "other").await.unwrap();
    system.is(Mood::Well);
    eventually("it is as before", || guarded.shared.is_calm()).await;
    assert_eq!(system.has(&queue), ["0"]);
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_leaves_no_task_behind() {
    let system = System::new();
    let (guarded, embedded) = guarded(&system, Fallback::Memory, MAX, None);
    system.is(Mood::Away);
    publish(&guarded, &Address::queue("q"), "0").await.unwrap();
    drop(guarded);
    eventually("nobody has it", || Arc::strong_count(&system) == 1 && Arc::strong_count(&embedded) == 1).await;
}
