//! Where a route publishes, nothing is taken: its lanes wait instead of handling what they cannot get rid of.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use helixmq::{
    broker::{Circuit, PublishError},
    handler::Call,
    message::{Address, Message, Outbound, Outcome, Settlement},
    route::{Order, Route},
};

use crate::support::*;

/// A handler that answers, and what is known of its calls.
#[derive(Default)]
struct Counted {
    calls: AtomicUsize,
    last_attempt: AtomicU32,
}

impl Counted {
    fn handler(self: &Arc<Self>) -> impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static {
        let counted = Arc::clone(self);
        move |call| {
            counted.calls.fetch_add(1, Ordering::SeqCst);
            counted.last_attempt.fetch_max(call.attempt, Ordering::SeqCst);
            let result = Message { key: call.message.key.clone(), ..message(text(call.message)) };
            Outcome::Done(vec![Outbound { destination: "out".into(), message: result }])
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn out() -> Address {
    Address::queue("out")
}

fn done(_: &Call<'_>) -> Outcome {
    Outcome::Done(Vec::new())
}

/// A route that publishes nowhere but its dead letters, which have a place of their own.
fn apart(mut route: Route) -> Route {
    route.dead_letter = Address::queue("dead-apart");
    route.terms(|terms| terms.destinations.clear())
}

/// An engine with the route `work-native` to `out`, and one beside it, whose messages pass while others wait.
async fn engine(route: Route, counted: &Arc<Counted>) -> Engine {
    let beside = apart(from_queue("beside", "done"));
    Plan::new().native("native", counted.handler()).native("done", done).route(route).route(beside).start().await
}

/// Long enough for whatever does not wait to show.
async fn others_pass(engine: &Engine) {
    for _ in 0..20 {
        engine.send_to_queue("beside", (0..50).map(|number| message(number.to_string()))).await;
        engine.queue_done("beside").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handled_while_a_circuit_is_open() {
    let destinations = [out(), Address::queue(DEAD)];
    for (place, closed) in destinations.iter().enumerate() {
        let counted = Arc::new(Counted::default());
        let engine = engine(from_queue("work", "native").lanes(2), &counted).await;
        engine.broker.circuit_is(closed, Circuit::Open);
        engine.send_to_queue("work", (0..40).map(|number| message(number.to_string()))).await;
        eventually("it is shown", || engine.status("work-native").waits_for.as_ref() == Some(closed)).await;
        others_pass(&engine).await;
        assert_eq!((counted.calls(), engine.left(&Address::queue("work"))), (0, 40), "{place}");
        engine.broker.circuit_is(closed, Circuit::Closed);
        engine.queue_done("work").await;
        assert_eq!((engine.out().len(), counted.calls(), engine.dead().len()), (40, 40, 0));
        assert_eq!(counted.last_attempt.load(Ordering::SeqCst), 1);
        eventually("it is shown", || engine.status("work-native").waits_for.is_none()).await;
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_that_is_half_open_lets_one_message_through_at_a_time() {
    let counted = Arc::new(Counted::default());
    let engine = engine(from_queue("work", "native").lanes(4), &counted).await;
    engine.broker.circuit_is(&out(), Circuit::Open);
    engine.send_to_queue("work", (0..100).map(|number| message(number.to_string()))).await;
    eventually("it is shown", || engine.status("work-native").waits_for.is_some()).await;
    // Whatever is tried fails, and opens the circuit again.
    let circuit = engine.broker.circuit_of(&out());
    let opens = circuit.clone();
    engine.broker.refuse_with(move |to, _| {
        (*to == out()).then(|| {
            opens.send_replace(Circuit::Open);
            PublishError::Unavailable("away".to_owned())
        })
    });
    for trials in 1..=5 {
        engine.broker.circuit_is(&out(), Circuit::HalfOpen);
        eventually("one was tried", || *circuit.borrow() == Circuit::Open).await;
        others_pass(&engine).await;
        assert_eq!(counted.calls(), trials);
    }
    engine.broker.recover();
    engine.broker.circuit_is(&out(), Circuit::HalfOpen);
    eventually("some have passed, one by one", || engine.out().len() >= 10).await;
    engine.broker.circuit_is(&out(), Circuit::Closed);
    engine.queue_done("work").await;
    assert_eq!((engine.out().len(), engine.dead().len(), counted.calls()), (100, 0, 105));
    assert_eq!(counted.last_attempt.load(Ordering::SeqCst), 1, "no attempt is used up");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_that_share_the_source_go_on() {
    let counted = Arc::new(Counted::default());
    let waiting = from_queue("work", "native").types(&["a"]);
    let others = apart(from_queue("work", "done").types(&["b"]));
    let engine =
        Plan::new().native("native", counted.handler()).native("done", done).route(waiting).route(others).start().await;
    engine.broker.circuit_is(&out(), Circuit::Open);
    let both = |number: i32| [of_type("a", message(number.to_string())), of_type("b", message(number.to_string()))];
    engine.send_to_queue("work", (0..600).flat_map(both)).await;
    eventually("the others are done", || engine.left(&Address::queue("work")) == 600).await;
    assert_eq!(counted.calls(), 0);
    engine.broker.circuit_is(&out(), Circuit::Closed);
    engine.queue_done("work").await;
    assert_eq!((engine.out().len(), engine.dead().len(), counted.last_attempt.load(Ordering::SeqCst)), (600, 0, 1));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_keep_their_order_meanwhile() {
    let counted = Arc::new(Counted::default());
    let engine = engine(from_queue("work", "native").ordered(Order::Key).lanes(3), &counted).await;
    let keys = ["a", "b", "c", "d"];
    for number in 0..50 {
        engine.send_to_queue("work", keys.map(|key| keyed(key, format!("{key} {number:02}")))).await;
        let circuit = [Circuit::Open, Circuit::HalfOpen, Circuit::Closed][number % 3];
        engine.broker.circuit_is(&out(), circuit);
    }
    engine.broker.circuit_is(&out(), Circuit::Closed);
    engine.queue_done("work").await;
    for key in keys {
        let of_key: Vec<_> = engine.out().into_iter().filter(|text| text.starts_with(key)).collect();
        assert_eq!((of_key.len(), of_key.is_sorted()), (50, true), "{of_key:?}");
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_does_not_confirm_uses_up_no_attempt() {
    let is_away = |name: &str| PublishError::Unconfirmed(format!("{name} did not answer"));
    let is_full = |name: &str| PublishError::Full { address: Address::queue(name), limit: "1 message".to_owned() };
    for error in [is_away("out"), is_full("out")] {
        let counted = Arc::new(Counted::default());
        let engine = engine(from_queue("work", "native").attempts(1), &counted).await;
        let refused = error.clone();
        engine.broker.refuse_with(move |to, _| (*to == out()).then(|| refused.clone()));
        let sent = engine.send_to_queue("work", (0..5).map(|number| message(number.to_string()))).await;
        eventually("each was tried twice", || counted.calls() >= 10).await;
        engine.broker.recover();
        engine.queue_done("work").await;
        assert_eq!((engine.out().len(), engine.dead().len()), (5, 0), "{error}");
        let is_spared = |how: &Settlement| matches!(how, Settlement::Release { .. } | Settlement::Accept);
        assert!(sent.iter().all(|message| engine.broker.settlements(message).iter().all(is_spared)));
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_stops_while_its_lanes_wait() {
    let counted = Arc::new(Counted::default());
    let engine = engine(from_queue("work", "native").lanes(2), &counted).await;
    engine.send_to_queue("work", (0..10).map(|number| message(number.to_string()))).await;
    engine.queue_done("work").await;
    engine.broker.circuit_is(&out(), Circuit::Open);
    engine.send_to_queue("work", (0..10).map(|number| message(number.to_string()))).await;
    others_pass(&engine).await;
    let broker = engine.stop().await;
    assert_eq!((broker.lies_at(&Address::queue("work")).await.len(), counted.calls()), (10, 10));
}
