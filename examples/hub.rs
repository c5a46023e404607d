//! The hub in a program of your own: tasks and events in and out, with Rust functions as handlers. Run it with
//! `cargo run --example hub`; it needs nothing else.
//!
//! The broker here is the embedded one, in memory. `helixmq::broker::rabbitmq::RabbitMq::connect`, `kafka::Kafka::connect` and
//! `redis::Redis::connect` give others, and `helixmq::broker::Joined` makes one of several.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever runs it")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use helixmq::{
    broker::embedded::{Embedded, Settings as Memory},
    handler::Call,
    hub::{Hub, Settings},
    message::{Message, Outcome, now_ms},
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let broker = Arc::new(Embedded::new("embedded", Memory { auto_create: true, ..Memory::default() })?);
    // This program compiles no plugins: the last argument is who would.
    let hub = Hub::start(broker, Settings::default(), Vec::new(), std::env::current_exe()?).await?;

    let done = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&done);
    hub.subscribe_tasks("invoices", move |call: &Call<'_>| {
        println!("task {}, attempt {}", String::from_utf8_lossy(&call.message.payload), call.attempt);
        if call.attempt == 1 {
            return Outcome::Retry { reason: "not yet".to_owned(), delay: Some(Duration::from_millis(20)) };
        }
        count.fetch_add(1, Ordering::Relaxed);
        Outcome::Done(Vec::new())
    })
    .await?;
    let count = Arc::clone(&done);
    hub.subscribe_events("payments", "accounting", move |call: &Call<'_>| {
        println!("event {} at {:?}", String::from_utf8_lossy(&call.message.payload), call.position);
        count.fetch_add(1, Ordering::Relaxed);
        Outcome::Done(Vec::new())
    })
    .await?;

    // Each returns once it is confirmed.
    hub.publish_task("invoices", Message::new("invoice.send", "no. 7", now_ms())).await?;
    hub.publish_event("payments", Message::new("payment.received", "19.90", now_ms())).await?;
    while done.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for route in hub.routes() {
        println!("{} were read from {}", route.route, route.source);
    }
    hub.stop().await;
    Ok(())
}
