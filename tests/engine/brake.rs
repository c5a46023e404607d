//! A handler that keeps dying is slowed, then held: its messages wait instead of using up their attempts.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use helixmq::{
    handler::{Call, ReloadResult},
    hub::BrakeState,
    message::{Address, Outcome, ReasonCode, Settlement},
    route::{CrashBudget, Order, Route},
    telemetry::metrics,
};

use crate::support::*;

fn braked(mut route: Route, probe_interval_ms: u64) -> Route {
    route.crash_budget = CrashBudget {
        failures_max: 3,
        probes_max: 2,
        probe_interval: Duration::from_millis(probe_interval_ms),
        ..CrashBudget::default()
    };
    route.attempts(1000)
}

/// Attempts that failed and are followed by another.
fn retried(engine: &Engine) -> usize {
    let is_retry = |passed: &&Passed| matches!(passed, Passed::Settled(.., Settlement::Redeliver { .. }));
    engine.broker.ledger().iter().filter(is_retry).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_keeps_crashing_is_held_until_a_new_version_comes() {
    let engine = Plan::new()
        .plugin_as(fixture("trap"), "handler")
        .native("native", |_| Outcome::Done(Vec::new()))
        .route(braked(from_queue("work", "handler"), 30).named("braked"))
        .route(from_queue("other", "native"))
        .start()
        .await;
    let sent = engine.send_to_queue("work", (0..300).map(|number| message(number.to_string()))).await;
    engine.brake("braked", BrakeState::Held).await;
    engine.send_to_queue("other", (0..300).map(|number| message(number.to_string()))).await;
    engine.queue_done("other").await;
    assert_eq!((engine.left(&Address::queue("work")), engine.dead().len()), (300, 0));
    assert_eq!(retried(&engine), 5, "three crashes in a row, then two probes");
    engine.install(&fixture("echo"), "handler");
    engine.queue_done("work").await;
    engine.brake("braked", BrakeState::Open).await;
    assert_eq!(engine.out().len(), 300);
    assert_eq!(ids(sent.iter().map(|message| &**message)).len(), 300);
    assert_eq!(metrics().brake.with_label_values(&["braked"]).get(), 0);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_answered_lets_messages_flow() {
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = Arc::clone(&sick);
    let handler =
        move |_: &Call<'_>| if is_sick.load(Ordering::SeqCst) { panic!("sick") } else { Outcome::Done(Vec::new()) };
    let mut route = braked(from_queue("work", "native"), 100);
    route.crash_budget.probes_max = 1000;
    let engine = Plan::new().native("native", handler).route(route.named("probed")).start().await;
    engine.send_to_queue("work", (0..50).map(|number| message(number.to_string()))).await;
    engine.brake("probed", BrakeState::Slowed).await;
    assert_eq!(metrics().brake.with_label_values(&["probed"]).get(), 1);
    sick.store(false, Ordering::SeqCst);
    engine.queue_done("work").await;
    engine.brake("probed", BrakeState::Open).await;
    assert_eq!((metrics().brake.with_label_values(&["probed"]).get(), engine.dead().len()), (0, 0));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_were_running_when_it_was_slowed_are_no_probes() {
    const LANES: u32 = 8;
    let (together, calls) = (Arc::new(Barrier::new(LANES as usize)), Arc::new(AtomicU32::new(0)));
    let (barrier, counted) = (Arc::clone(&together), Arc::clone(&calls));
    let handler = move |_: &Call<'_>| {
        if counted.fetch_add(1, Ordering::SeqCst) < LANES {
            barrier.wait();
        }
        panic!("all of them");
    };
    let route = braked(from_queue("work", "native"), 600_000).named("slowed").lanes(LANES as usize);
    let engine = Plan::new().native("native", handler).route(route).start().await;
    // One at a time, so that each lane has one.
    for number in 0..LANES {
        engine.send_to_queue("work", [message(number.to_string())]).await;
        eventually("it is being handled", || calls.load(Ordering::SeqCst) > number).await;
    }
    engine.brake("slowed", BrakeState::Slowed).await;
    eventually("all are settled", || retried(&engine) == LANES as usize).await;
    // What is shown is brought up to date once a second: it would say so if the route had been held.
    engine.install(&fixture("echo"), "other");
    eventually("the directory was looked at", || engine.digest("other").is_some()).await;
    eventually("the metric follows", || metrics().brake.with_label_values(&["slowed"]).get() == 1).await;
    assert_eq!((calls.load(Ordering::SeqCst), engine.status("slowed").brake), (LANES, BrakeState::Slowed));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_probe_goes_through_at_a_time() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |_: &Call<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        panic!("always");
    };
    let mut route = braked(from_queue("work", "native"), 50).lanes(6);
    route.crash_budget.probes_max = 1000;
    let engine = Plan::new().native("native", handler).route(route).start().await;
    engine.send_to_queue("work", (0..3).map(|number| message(number.to_string()))).await;
    engine.brake("work-native", BrakeState::Slowed).await;
    eventually("some probes went through", || calls.load(Ordering::SeqCst) >= 8).await;
    let (before, begin) = (calls.load(Ordering::SeqCst), std::time::Instant::now());
    eventually("more probes went through", || calls.load(Ordering::SeqCst) >= before + 6).await;
    let probes = calls.load(Ordering::SeqCst) - before;
    assert!(u128::from(probes) <= begin.elapsed().as_millis() / 50 + 2, "{probes} probes in {:?}", begin.elapsed());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_that_keeps_crashing_gives_way_to_the_one_before() {
    let engine = Plan::new()
        .plugin_as(fixture("marker-v1"), "handler")
        .route(braked(from_queue("work", "handler"), 30))
        .start()
        .await;
    let good = engine.digest("handler").expect("it serves");
    engine.install(&fixture("trap"), "handler");
    eventually("the bad one serves", || engine.digest("handler").is_some_and(|digest| digest != good)).await;
    let sent = engine.send_to_queue("work", (0..50).map(|number| message(number.to_string()))).await;
    engine.queue_done("work").await;
    assert_eq!(engine.digest("handler").as_ref(), Some(&good));
    let receipts = engine.receipts("handler");
    let last = receipts.last().expect("a receipt");
    assert_eq!((&last.result, last.digest.as_ref()), (&ReloadResult::RolledBack, Some(&good)));
    let mut wanted: Vec<_> = sent.iter().map(|message| format!("v1 {}", message.id)).collect();
    let mut out = engine.out();
    wanted.sort();
    out.sort();
    assert_eq!((out, engine.dead().len()), (wanted, 0));
    engine.brake("work-handler", BrakeState::Open).await;
    // The bad file is still there, and stays out until it changes.
    engine.send_to_queue("work", [message("later")]).await;
    engine.queue_done("work").await;
    assert_eq!(engine.receipts("handler").len(), receipts.len());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_served_too_long_is_held_not_rolled_back() {
    let mut route = braked(from_queue("work", "handler"), 30);
    route.crash_budget.rollback_within = Duration::ZERO;
    let engine = Plan::new().plugin_as(fixture("marker-v1"), "handler").route(route).start().await;
    let good = engine.digest("handler").expect("it serves");
    engine.install(&fixture("trap"), "handler");
    eventually("the bad one serves", || engine.digest("handler").is_some_and(|digest| digest != good)).await;
    engine.send_to_queue("work", (0..10).map(|number| message(number.to_string()))).await;
    engine.brake("work-handler", BrakeState::Held).await;
    assert_ne!(engine.digest("handler"), Some(good));
    engine.install(&fixture("marker-v2"), "handler");
    engine.queue_done("work").await;
    assert!(engine.out().iter().all(|text| text.starts_with("v2 ")) && engine.out().len() == 10);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_bad_messages_use_up_their_own_attempts_only() {
    let handler =
        |call: &Call<'_>| if call.message.payload == "bad" { panic!("bad") } else { Outcome::Done(Vec::new()) };
    let mut route = braked(from_queue("work", "native"), 20).attempts(4);
    route.crash_budget.probes_max = 1000;
    let engine = Plan::new().native("native", handler).route(route).start().await;
    let names = (0..60).map(|number| message(if number % 15 == 0 { "bad" } else { "good" }));
    engine.send_to_queue("work", names).await;
    engine.queue_done("work").await;
    for dead in engine.some_dead(4).await {
        assert_eq!(dead.history(), (1..=4).map(|attempt| (attempt, ReasonCode::HandlerTrapped)).collect::<Vec<_>>());
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_route_keeps_the_order_of_its_keys() {
    let engine = Plan::new()
        .plugin_as(fixture("trap"), "handler")
        .route(braked(from_queue("work", "handler"), 30).ordered(Order::Key).lanes(2))
        .start()
        .await;
    for number in 0..60 {
        engine.send_to_queue("work", ["a", "b", "c"].map(|key| keyed(key, format!("{key} {number:02}")))).await;
    }
    engine.brake("work-handler", BrakeState::Held).await;
    engine.install(&fixture("echo"), "handler");
    engine.queue_done("work").await;
    for key in ["a", "b", "c"] {
        let of_key: Vec<_> = engine.out().into_iter().filter(|text| text.starts_with(key)).collect();
        assert_eq!((of_key.len(), of_key.is_sorted()), (60, true), "{of_key:?}");
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_handler_that_keeps_crashing_does_not_take_its_batch_with_it() {
    let engine = Plan::new()
        .plugin_as(fixture("echo-event-batch"), "handler")
        .route(braked(from_topic("events", "handler"), 30))
        .start()
        .await;
    let sent = (0..100).map(|number| of_type("trap", keyed("one partition", number.to_string())));
    engine.send_to_topic("events", sent).await;
    engine.brake("events-handler", BrakeState::Held).await;
    assert_eq!(retried(&engine), 5, "three crashes in a row, then two probes");
    engine.install(&fixture("echo-event"), "handler");
    engine.topic_done("events").await;
    assert_eq!((engine.out().len(), engine.dead().len()), (100, 0));
    engine.stop().await;
}
