//! What a handler returns is confirmed before its message is settled, and carries on what it came from.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use helixmq::{
    broker::{
        Broker, PublishError, QueueSettings, Storage,
        embedded::{self, DiskSettings},
    },
    message::{Address, FailureKind, Message, MessageId, Outbound, Outcome, ReasonCode, Settlement, now_ms},
    telemetry::metrics,
};

use crate::support::*;

fn result(destination: &str, name: &str) -> Outbound {
    Outbound { destination: destination.into(), message: message(name) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_confirmed_before_their_message_is_settled() {
    let engine = Plan::new().plugin("echo").route(from_queue("work", "echo").attempts(1000)).start().await;
    let (refused, out) = (Arc::new(AtomicU32::new(0)), Address::queue("out"));
    let counted = Arc::clone(&refused);
    engine.broker.refuse(move |to, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        *to == out
    });
    let sent = engine.send_to_queue("work", (0..20).map(|number| message(number.to_string()))).await;
    eventually("each was refused, and again", || refused.load(Ordering::SeqCst) >= 60).await;
    let accepted =
        |passed: &Passed| matches!(passed, Passed::Settled(.., Settlement::Accept | Settlement::DeadLetter { .. }));
    assert!(!engine.broker.ledger().iter().any(accepted), "nothing may be accepted while nothing is confirmed");
    assert_eq!(engine.left(&Address::queue("work")), 20);
    engine.broker.recover();
    engine.queue_done("work").await;
    let published = engine.published("out");
    assert_eq!(published.len(), 20);
    let ledger = engine.broker.ledger();
    for message in &sent {
        let id = message.id.to_string();
        let place = |wanted: &dyn Fn(&Passed) -> bool| ledger.iter().position(wanted).expect("it passed");
        let confirmed = place(
            &|passed| matches!(passed, Passed::Published(_, result) if result.correlation_id.as_deref() == Some(&*id)),
        );
        let settled =
            place(&|passed| matches!(passed, Passed::Settled(settled, _, Settlement::Accept) if *settled == id));
        assert!(confirmed < settled);
        let settlements = engine.broker.settlements(message);
        let is_spared = |how: &Settlement| matches!(how, Settlement::Release { .. } | Settlement::Accept);
        assert!(settlements.len() > 1 && settlements.iter().all(is_spared), "no attempt is used up: {settlements:?}");
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_attempt_repeats_the_ids_of_its_results() {
    let engine = Plan::new().plugin("returns-many").route(from_queue("work", "returns-many")).start().await;
    let mut once = true;
    engine.broker.refuse(move |_, message| message.payload == "1" && std::mem::take(&mut once));
    let sent = engine.send_to_queue("work", [with_headers(message("many"), &[("count", "3")])]).await;
    engine.queue_done("work").await;
    let published = engine.published("out");
    assert_eq!(engine.out(), ["0", "2", "0", "1", "2"]);
    let id = |place: usize| &published[place].id;
    assert_eq!((id(0), id(1)), (id(2), id(4)));
    assert!(id(2) != id(3) && id(3) != id(4));
    let MessageId::Uuid(uuid) = id(3) else { panic!("{:?}", id(3)) };
    assert_eq!(uuid.get_version_num(), 8);
    assert!(matches!(engine.broker.settlements(&sent[0])[..], [Settlement::Release { .. }, Settlement::Accept]));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_carry_trace_correlation_and_hops() {
    let engine = Plan::new().plugin("marker-v1").route(from_queue("work", "marker-v1")).start().await;
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut correlated =
        with_headers(message("one"), &[("traceparent", PARENT), ("tracestate", "a=b"), ("x-helix-hops", "3")]);
    correlated.correlation_id = Some("correlated".into());
    let sent = engine.send_to_queue("work", [correlated, message("two")]).await;
    engine.queue_done("work").await;
    let [one, two] = &engine.published("out")[..] else { panic!("two results") };
    assert_eq!((one.headers.get("traceparent"), one.headers.get("tracestate")), (Some(PARENT), Some("a=b")));
    assert_eq!((one.correlation_id.as_deref(), one.hops()), (Some("correlated"), 4));
    assert_eq!((two.correlation_id.as_deref(), two.hops()), (Some(&*sent[1].id.to_string()), 1));
    assert_eq!((one.priority, two.reply_to.as_deref()), (5, None));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_of_results_ends() {
    let engine =
        Plan::new().plugin("echo").route(from_queue("loop", "echo").to("out", Address::queue("loop"))).start().await;
    engine.send_to_queue("loop", [message("round")]).await;
    let dead = engine.one_dead().await;
    assert_eq!((dead.code(), dead.message.hops()), (ReasonCode::LoopDetected, 17));
    assert!(dead.letter.text.contains("17") && dead.letter.text.contains("16"), "{}", dead.letter.text);
    assert_eq!(engine.published("loop").len(), 17);
    engine.queue_done("loop").await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_while_it_waited_is_not_handled() {
    let engine = Plan::new().plugin("echo").route(from_queue("work", "echo")).start().await;
    let late = Message { expires_at: Some(now_ms() - 5), ..message("late") };
    engine.send_to_queue("work", [late, Message { expires_at: Some(now_ms() + 60_000), ..message("in time") }]).await;
    let dead = engine.one_dead().await;
    engine.queue_done("work").await;
    assert_eq!((dead.code(), text(&dead.message).as_str()), (ReasonCode::MessageExpired, "late"));
    assert_eq!((dead.message.expires_at, dead.history()), (None, Vec::new()));
    assert_eq!(engine.out(), ["in time"]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_nobody_expects_takes_the_other_results_with_it() {
    let answer = |_: &helixmq::handler::Call<'_>| {
        Outcome::Done(vec![result("out", "a result"), result("reply-to", "an answer")])
    };
    let route = from_queue("work", "native").attempts(2).terms(|terms| terms.may_reply = true);
    let engine = Plan::new().native("native", answer).route(route).start().await;
    let expecting = Message { reply_to: Some("queue:answers".into()), ..message("expects one") };
    engine.send_to_queue("work", [message("expects none"), expecting]).await;
    let dead = engine.one_dead().await;
    engine.queue_done("work").await;
    assert_eq!((dead.code(), text(&dead.message).as_str()), (ReasonCode::HandlerContract, "expects none"));
    assert_eq!(engine.out(), ["a result"], "only of the one that expects an answer");
    assert_eq!(engine.published("answers").len(), 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_reply_does_not() {
    let answer = |_: &helixmq::handler::Call<'_>| Outcome::Done(vec![result("reply-to", "an answer")]);
    let engine = Plan::new().native("native", answer).route(from_queue("work", "native")).start().await;
    engine.send_to_queue("work", [Message { reply_to: Some("queue:answers".into()), ..message("one") }]).await;
    assert_eq!(engine.one_dead().await.code(), ReasonCode::CapabilityDenied);
    assert!(engine.broker.published(&Address::queue("answers")).is_empty());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_the_broker_does_not_take_is_a_failure_of_its_own_message_only() {
    let engine = Plan::new()
        .embedded(|embedded| embedded.message_bytes_max = 100_000)
        .plugin("returns-huge")
        .route(from_queue("work", "returns-huge").attempts(2))
        .start()
        .await;
    let of = |bytes: &str| with_headers(message(bytes), &[("bytes", bytes)]);
    engine.send_to_queue("work", [of("10"), of("200000"), of("20")]).await;
    let dead = engine.one_dead().await;
    engine.queue_done("work").await;
    assert_eq!((dead.code(), dead.history().len()), (ReasonCode::PublishFailed, 2));
    assert!(dead.letter.text.contains("100000"), "{}", dead.letter.text);
    assert_eq!(engine.out().iter().map(String::len).collect::<Vec<_>>(), [10, 20]);
    engine.stop().await;
}

#[tokio::test]
async fn a_result_that_finds_no_room_uses_up_no_attempt() {
    let engine = Plan::new().plugin("returns-huge").route(from_queue("work", "returns-huge").attempts(1)).start().await;
    let refusals = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&refusals);
    engine.broker.refuse_with(move |to, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let reason = "256 MiB are to stay free".to_owned();
        Some(PublishError::NoSpace { address: to.clone(), reason })
    });
    let message = with_headers(message("10"), &[("bytes", "10")]);
    engine.send_to_queue("work", [message.clone()]).await;
    eventually("it was tried three times", || refusals.load(Ordering::SeqCst) >= 3).await;
    engine.broker.recover();
    engine.queue_done("work").await;
    assert_eq!(engine.out().len(), 1);
    let settlements = engine.broker.settlements(&message);
    let (last, before) = settlements.split_last().unwrap();
    assert_eq!(*last, Settlement::Accept);
    assert!(before.iter().all(|how| matches!(how, Settlement::Release { .. })), "{before:?}");
    engine.stop().await;
}

/// A store that is full of messages whose results go to the same store: there is room for those, or it would stay full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_filled_the_disk_drains_into_the_same_disk() {
    let directory = tempfile::tempdir().unwrap();
    let disk = DiskSettings { free_min: 0, bytes_max: Some(4 << 20), ..DiskSettings::new(directory.path()) };
    let queue = QueueSettings { storage: Storage::Disk, ..QueueSettings::default() };
    let embedded = embedded::Settings { auto_create: true, queue, disk: Some(disk), ..embedded::Settings::default() };
    let broker = Arc::new(Tap::new(embedded));
    let work = Address::queue("work");
    let batch = || (0..20).map(|_| Arc::new(message("x".repeat(2000)))).collect();
    let mut sent = 0;
    let refused = loop {
        match broker.inner.publish(&work, batch()).await {
            Ok(()) => sent += 20,
            Err(refused) => break refused,
        }
        assert!(sent < 10_000, "bytes_max is no limit");
    };
    assert!(matches!(refused.0[0], (_, PublishError::NoSpace { .. })), "{refused:?}");
    let engine = Plan::new().plugin("echo").route(from_queue("work", "echo")).start_on(Arc::clone(&broker)).await;
    engine.queue_done("work").await;
    assert_eq!((engine.published("out").len(), engine.dead().len()), (sent, 0));
    assert!(broker.inner.publish(&work, batch()).await.is_err(), "publishers are still refused: as much is kept");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_is_counted_once() {
    let end = |call: &helixmq::handler::Call<'_>| match &call.message.payload[..] {
        b"retry" => Outcome::Retry { reason: "later".into(), delay: None },
        b"reject" => Outcome::Reject { reason: "no".into(), code: None },
        b"fail" => Outcome::failed(FailureKind::Trapped, "trapped"),
        _ => Outcome::Done(Vec::new()),
    };
    let engine = Plan::new()
        .native("native", end)
        .route(from_queue("counted", "native").named("counted").attempts(2))
        .start()
        .await;
    let names = ["done", "done", "done", "retry", "reject", "fail"];
    engine.send_to_queue("counted", names.map(message)).await;
    engine.some_dead(3).await;
    engine.queue_done("counted").await;
    let count = |outcome| metrics().outcomes.with_label_values(&["counted", "native", outcome]).get();
    assert_eq!((count("done"), count("retry"), count("reject"), count("failed")), (3, 2, 1, 2));
    let dead = |code: ReasonCode| metrics().dead_lettered.with_label_values(&["counted", code.as_str()]).get();
    assert_eq!(
        dead(ReasonCode::HandlerRetryExhausted) + dead(ReasonCode::HandlerRejected) + dead(ReasonCode::HandlerTrapped),
        3
    );
    assert_eq!(metrics().consumed.with_label_values(&["embedded", "queue:counted"]).get(), 8);
    engine.stop().await;
}
