//! Something that a handler needs is away: its route slows to a probe, and no message pays for it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use helixmq::{
    handler::{Call, Handler, LaneContext, OpenError, Runner, native::Native},
    hub::BrakeState,
    message::{FailureKind, HandlerIdentity, Kind, Message, Outbound, Outcome, ReasonCode, Settlement},
    route::{CrashBudget, Order, OutageBrake, Route},
    telemetry::metrics,
};

use crate::support::*;

const PROBE: Duration = Duration::from_millis(25);

/// What handlers need, and a note of each call.
#[derive(Default)]
struct Backend {
    away: AtomicBool,
    calls: AtomicUsize,
    /// Attempts on which messages were handled.
    attempts: Mutex<Vec<u32>>,
}

impl Backend {
    fn away() -> Arc<Self> {
        Arc::new(Self { away: AtomicBool::new(true), ..Self::default() })
    }

    /// Answers with a message of the same text, where it can.
    fn handle(&self, call: &Call<'_>) -> Outcome {
        let calls = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            let reason = format!("call {calls} for \"{}\": no connection to db-{}", text(call.message), calls % 3);
            return Outcome::Retry { reason, delay: None };
        }
        self.attempts.lock().unwrap().push(call.attempt);
        let result = Message { key: call.message.key.clone(), ..message(text(call.message)) };
        Outcome::Done(vec![Outbound { destination: "out".into(), message: result }])
    }

    fn handler(self: &Arc<Self>) -> impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static {
        let backend = Arc::clone(self);
        move |call| backend.handle(call)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits for so many probes more than there were.
    async fn probed(&self, times: usize) {
        let before = self.calls();
        eventually("it was tried again and again", || self.calls() >= before + times).await;
    }

    fn is_back(&self) {
        self.away.store(false, Ordering::SeqCst);
    }
}

fn braked(mut route: Route, failures_max: u32) -> Route {
    route.outage = OutageBrake { failures_max, probe_interval: PROBE };
    route
}

/// Attempts that were used up.
fn used_up(engine: &Engine) -> usize {
    let is_retry = |passed: &&Passed| matches!(passed, Passed::Settled(.., Settlement::Redeliver { .. }));
    engine.broker.ledger().iter().filter(is_retry).count()
}

/// Everything that was sent came out, once, and nothing died.
fn check_all(engine: &Engine, sent: usize) {
    let mut out = engine.out();
    out.sort();
    out.dedup();
    assert_eq!((out.len(), engine.out().len(), engine.dead().len()), (sent, sent, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_alike_for_different_messages_slows_the_route_and_uses_up_no_attempt() {
    let backend = Backend::away();
    let route = braked(from_queue("work", "native"), 5).named("outage").attempts(2);
    let engine = Plan::new().native("native", backend.handler()).route(route).start().await;
    engine.send_to_queue("work", (0..40).map(|number| message(number.to_string()))).await;
    engine.brake("outage", BrakeState::Slowed).await;
    // Many times as often as each may be tried.
    backend.probed(100).await;
    eventually("it is shown", || engine.status("outage").outage.is_some()).await;
    let outage = engine.status("outage").outage.unwrap();
    assert!(outage.failures >= 5 && outage.code == ReasonCode::HandlerRetryExhausted, "{outage:?}");
    assert!(outage.text.contains("no connection to db-"), "{outage:?}");
    assert_eq!(metrics().brake.with_label_values(&["outage"]).get(), 1);
    assert_eq!((used_up(&engine), engine.dead().len()), (4, 0), "by those that failed before it was known");
    backend.is_back();
    engine.queue_done("work").await;
    engine.brake("outage", BrakeState::Open).await;
    check_all(&engine, 40);
    assert_eq!((engine.status("outage").outage, metrics().brake.with_label_values(&["outage"]).get()), (None, 0));
    let second = backend.attempts.lock().unwrap().iter().filter(|attempt| **attempt == 2).count();
    assert_eq!(second, 4, "{:?}", backend.attempts);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_is_tried_at_a_time_while_it_lasts() {
    let backend = Backend::away();
    let route = braked(from_queue("work", "native"), 5).lanes(6);
    let engine = Plan::new().native("native", backend.handler()).route(route).start().await;
    engine.send_to_queue("work", (0..200).map(|number| message(number.to_string()))).await;
    engine.brake("work-native", BrakeState::Slowed).await;
    backend.probed(4).await;
    let (before, begin) = (backend.calls(), std::time::Instant::now());
    backend.probed(10).await;
    let (probes, time) = (backend.calls() - before, begin.elapsed());
    assert!(probes as u128 <= time.as_millis() / PROBE.as_millis() + 2, "{probes} probes in {time:?}");
    backend.is_back();
    engine.queue_done("work").await;
    check_all(&engine, 200);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_poisonous_messages_are_dead_lettered_after_their_attempts() {
    let handler = |call: &Call<'_>| match &*text(call.message) {
        "bad" => Outcome::Retry { reason: "no such order".into(), delay: None },
        _ => Outcome::Done(Vec::new()),
    };
    let route = || braked(from_queue("work", "native"), 5);
    let engine = Plan::new().native("native", handler).route(route()).start().await;
    let mixed = (0..300).map(|number| message(if number % 80 == 0 { "bad" } else { "good" }));
    engine.send_to_queue("work", mixed).await;
    engine.queue_done("work").await;
    let history: Vec<_> = (1..=3).map(|attempt| (attempt, ReasonCode::HandlerRetryExhausted)).collect();
    for dead in engine.some_dead(4).await {
        assert_eq!(dead.history(), history);
    }
    engine.stop().await;

    // Nor do they hold up each other where nothing else comes.
    let engine = Plan::new().native("native", handler).route(route()).start().await;
    engine.send_to_queue("work", (0..4).map(|_| message("bad"))).await;
    engine.queue_done("work").await;
    for dead in engine.some_dead(4).await {
        assert_eq!(dead.history(), history);
    }
    assert_eq!(engine.status("work-native").brake, BrakeState::Open);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisonous_messages_at_the_head_of_every_key_are_dead_lettered() {
    let handler = |call: &Call<'_>| match text(call.message).starts_with("bad") {
        true => Outcome::Retry { reason: "no such order".into(), delay: None },
        false => Outcome::Done(Vec::new()),
    };
    let route = braked(from_queue("work", "native"), 5).ordered(Order::Key).lanes(3);
    let engine = Plan::new().native("native", handler).route(route).start().await;
    // Each key has its bad ones elsewhere, and as many good ones behind the last of them as make sure of a success.
    for number in 0..160 {
        let of_each = (0..4).map(|key| {
            let kind = if number % 16 == key * 4 { "bad" } else { "good" };
            keyed(&key.to_string(), format!("{kind} {number}"))
        });
        engine.send_to_queue("work", of_each).await;
    }
    engine.queue_done("work").await;
    assert_eq!(engine.some_dead(40).await.len(), 40);
    assert_eq!(engine.status("work-native").brake, BrakeState::Open);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_shows_as_calls_that_run_out_of_time_ends_by_itself() {
    let backend = Backend::away();
    let late = Arc::clone(&backend);
    let handler = move |call: &Call<'_>| match late.handle(call) {
        Outcome::Retry { .. } => Outcome::failed(FailureKind::Timeout, "no answer within 30 s"),
        done => done,
    };
    let mut route = braked(from_queue("work", "native"), 5).named("late").attempts(2);
    route.crash_budget =
        CrashBudget { failures_max: 5, probes_max: 2, probe_interval: PROBE, ..CrashBudget::default() };
    let engine = Plan::new().native("native", handler).route(route).start().await;
    engine.send_to_queue("work", (0..40).map(|number| message(number.to_string()))).await;
    engine.brake("late", BrakeState::Slowed).await;
    backend.probed(20).await;
    assert_eq!((engine.status("late").brake, used_up(&engine)), (BrakeState::Slowed, 4));
    backend.is_back();
    engine.queue_done("work").await;
    engine.brake("late", BrakeState::Open).await;
    check_all(&engine, 40);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_fail_each_for_a_reason_of_its_own_are_no_outage() {
    const REASONS: [&str; 8] =
        ["no price", "no customer", "no address", "sold out", "closed", "too heavy", "too late", "unknown currency"];
    let handler = |call: &Call<'_>| Outcome::Retry { reason: text(call.message), delay: None };
    let engine = Plan::new().native("native", handler).route(braked(from_queue("work", "native"), 2)).start().await;
    engine.send_to_queue("work", REASONS.map(message)).await;
    engine.some_dead(8).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_is_an_answer() {
    let handler = |_: &Call<'_>| Outcome::Reject { reason: "not wanted".into(), code: None };
    let engine = Plan::new().native("native", handler).route(braked(from_queue("work", "native"), 2)).start().await;
    engine.send_to_queue("work", (0..20).map(|number| message(number.to_string()))).await;
    engine.some_dead(20).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_do_without_it() {
    let backend = Backend::away();
    let route = braked(from_queue("work", "native"), 0);
    let engine = Plan::new().native("native", backend.handler()).route(route).start().await;
    engine.send_to_queue("work", (0..20).map(|number| message(number.to_string()))).await;
    engine.some_dead(20).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_keep_their_order_while_it_lasts() {
    let backend = Backend::away();
    let route = braked(from_queue("work", "native"), 5).ordered(Order::Key).lanes(3);
    let engine = Plan::new().native("native", backend.handler()).route(route).start().await;
    let keys: Vec<String> = (0..8).map(|number| format!("key {number}")).collect();
    for number in 0..20 {
        engine.send_to_queue("work", keys.iter().map(|key| keyed(key, format!("{key}: {number:02}")))).await;
    }
    engine.brake("work-native", BrakeState::Slowed).await;
    backend.probed(30).await;
    backend.is_back();
    engine.queue_done("work").await;
    check_all(&engine, 160);
    for key in keys {
        let of_key: Vec<_> = engine.out().into_iter().filter(|text| text.starts_with(&key)).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_keep_their_order_while_it_lasts() {
    let backend = Backend::away();
    let route = braked(from_topic("events", "native"), 2).ordered(Order::Partition).lanes(2);
    let engine = Plan::new().native("native", backend.handler()).route(route).start().await;
    let keys: Vec<String> = (0..16).map(|number| format!("key {number:02}")).collect();
    for number in 0..10 {
        engine.send_to_topic("events", keys.iter().map(|key| keyed(key, format!("{key}: {number:02}")))).await;
    }
    engine.brake("events-native", BrakeState::Slowed).await;
    backend.probed(30).await;
    backend.is_back();
    engine.topic_done("events").await;
    check_all(&engine, 160);
    for key in keys {
        let of_key: Vec<_> = engine.out().into_iter().filter(|text| text.starts_with(&key)).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    engine.stop().await;
}

/// Takes many messages a call.
#[derive(Debug)]
struct InBatches<H>(Arc<H>);

struct BatchRunner(Box<dyn Runner>);

impl<H: Handler + 'static> Handler for InBatches<H> {
    fn identity(&self) -> &HandlerIdentity {
        self.0.identity()
    }

    fn handles(&self, kind: Kind) -> bool {
        self.0.handles(kind)
    }

    fn open(self: Arc<Self>, lane: &LaneContext, source: Kind) -> Result<Box<dyn Runner>, OpenError> {
        Ok(Box::new(BatchRunner(Arc::clone(&self.0).open(lane, source)?)))
    }
}

impl Runner for BatchRunner {
    fn handle(&mut self, call: &Call<'_>) -> Outcome {
        self.0.handle(call)
    }

    fn calls_take(&self) -> usize {
        16
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_with_handlers_that_take_many_at_once() {
    for order in [Order::None, Order::Partition] {
        let backend = Backend::away();
        let handler = Arc::new(InBatches(Native::new("native", backend.handler())));
        let route = braked(from_topic("events", "native"), 2).attempts(2).ordered(order);
        let engine = Plan::new().handler("native", handler).route(route).start().await;
        engine.send_to_topic("events", (0..100).map(|number| message(format!("{number:03}")))).await;
        engine.brake("events-native", BrakeState::Slowed).await;
        backend.probed(20).await;
        assert!(used_up(&engine) <= 1, "{}", used_up(&engine));
        backend.is_back();
        engine.topic_done("events").await;
        check_all(&engine, 100);
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_with_transactional_routes() {
    let backend = Backend::away();
    let route = braked(from_topic("events", "native"), 5).attempts(2).transactional();
    let engine = Plan::new().native("native", backend.handler()).route(route).start().await;
    engine.send_to_topic("events", (0..60).map(|number| message(number.to_string()))).await;
    engine.brake("events-native", BrakeState::Slowed).await;
    backend.probed(40).await;
    assert_eq!((used_up(&engine), engine.dead().len()), (4, 0));
    backend.is_back();
    engine.topic_done("events").await;
    check_all(&engine, 60);
    engine.stop().await;
}
