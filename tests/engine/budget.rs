//! The memory budget: a slow destination slows the sources that feed it, and no others.

use std::sync::Arc;

use helixmq::{
    handler::Call,
    message::{Address, Message, Outbound, Outcome},
};

use crate::support::*;

/// Bytes of a payload.
const PAYLOAD: usize = 10_000;

fn passed_on(call: &Call<'_>) -> Outcome {
    let result = Message::new("result", text(call.message), 1);
    Outcome::Done(vec![Outbound { destination: "out".into(), message: result }])
}

fn large(number: usize, bytes: usize) -> Message {
    message(format!("{number} {}", "x".repeat(bytes)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_destination_stops_its_source_at_its_share_and_no_other() {
    // Half of it for two sources: a share is ten messages.
    let share = 10 * PAYLOAD;
    let (slow, fast) = (Address::queue("slow-out"), Address::queue("fast-out"));
    let engine = Plan::new()
        .native("native", passed_on)
        .route(from_queue("slow", "native").to("out", slow.clone()).lanes(8))
        .route(from_queue("fast", "native").to("out", fast.clone()).lanes(2))
        .memory_budget(4 * share)
        .start()
        .await;
    engine.broker.hang(Some(slow.clone()));
    engine.send_to_queue("slow", (0..100).map(|number| large(number, PAYLOAD))).await;
    let out = |queue: &str| engine.stats(&Address::queue(queue)).unsettled;
    eventually("the slow one has its share out", || out("slow") > 0).await;
    for round in 0..20 {
        let sent = engine.send_to_queue("fast", (0..50).map(|number| large(number, PAYLOAD))).await;
        eventually("all of the other pass", || engine.broker.published(&fast).len() == (round + 1) * sent.len()).await;
        // At most one message over its share.
        assert!(out("slow") <= 11, "{} are out", out("slow"));
    }
    engine.broker.hang(None);
    engine.queue_done("slow").await;
    assert_eq!(engine.broker.published(&slow).len(), 100);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_larger_than_a_share_passes_alone() {
    let to = Address::queue("out");
    let engine = Plan::new()
        .native("native", passed_on)
        .route(from_queue("work", "native").to("out", to.clone()).lanes(4))
        .memory_budget(2 * PAYLOAD)
        .start()
        .await;
    engine.broker.hang(Some(to.clone()));
    let sent: Vec<Arc<Message>> = engine.send_to_queue("work", (0..5).map(|number| large(number, 5 * PAYLOAD))).await;
    let work = Address::queue("work");
    eventually("one is out", || engine.stats(&work).unsettled == 1).await;
    engine.broker.hang(None);
    engine.queue_done("work").await;
    assert_eq!(engine.broker.published(&to).len(), sent.len());
    engine.stop().await;
}
