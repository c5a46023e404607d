//! One that spins keeps its own lane busy, and nobody else's.

use helixmq::message::{Address, Outcome, ReasonCode};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spinning_route_does_not_stop_another() {
    let engine = Plan::new()
        .plugin("spin")
        .plugin("echo")
        .route(from_queue("spinning", "spin").timeout(60_000).lanes(2))
        .route(from_queue("working", "echo"))
        .grace(50)
        .start()
        .await;
    engine.send_to_queue("spinning", (0..50).map(|number| message(number.to_string()))).await;
    for number in 0..500 {
        engine.send_to_queue("working", [message(number.to_string())]).await;
    }
    engine.queue_done("working").await;
    assert_eq!(engine.out().len(), 500);
    assert_eq!(engine.left(&Address::queue("spinning")), 50);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spinning_route_does_not_stop_another_of_the_same_source() {
    let engine = Plan::new()
        .plugin("spin")
        .native("native", |_| Outcome::Done(Vec::new()))
        .route(from_queue("work", "spin").types(&["spin"]).timeout(60_000))
        .route(from_queue("work", "native").types(&["go"]))
        .grace(50)
        .start()
        .await;
    let kind = |number: u32| if number.is_multiple_of(2) { "spin" } else { "go" };
    for number in 0..2000 {
        engine.send_to_queue("work", [of_type(kind(number), message(number.to_string()))]).await;
    }
    let work = Address::queue("work");
    eventually("the others are handled", || engine.left(&work) == 1000).await;
    assert_eq!(engine.dead().len(), 0);
    let broker = engine.stop().await;
    assert_eq!(broker.lies_at(&work).await.len(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_timeout_costs_its_own_message_only() {
    let engine = Plan::new()
        .plugin("spin")
        .native("native", |_| Outcome::Done(Vec::new()))
        .route(from_queue("work", "spin").types(&["spin"]).timeout(100).attempts(2))
        .route(from_queue("work", "native").types(&["go"]))
        .start()
        .await;
    let kind = |number: u32| if number.is_multiple_of(100) { "spin" } else { "go" };
    engine.send_to_queue("work", (0..500).map(|number| of_type(kind(number), message(number.to_string())))).await;
    engine.queue_done("work").await;
    for dead in engine.some_dead(5).await {
        assert_eq!(dead.history(), [(1, ReasonCode::HandlerTimeout), (2, ReasonCode::HandlerTimeout)]);
    }
    engine.stop().await;
}
