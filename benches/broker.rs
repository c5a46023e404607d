//! What the embedded broker costs a message: published, delivered and settled, in batches.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::sync::Arc;

use divan::{Bencher, counter::ItemsCount};
use helixmq::{
    broker::{
        BatchMax, Broker, Start, Subscribe,
        embedded::{Embedded, Settings},
    },
    message::{Address, Message, Settlement, now_ms},
};

const BATCH: usize = 256;

fn main() {
    divan::main();
}

/// 300 bytes and 4 headers.
fn message(number: usize, now: u64) -> Arc<Message> {
    let mut message = Message::new("bench.message", vec![b'x'; 300], now);
    for name in ["source", "tenant", "traceparent", "x-helix-attempt"] {
        message.headers.append(name, "0123456789abcdef");
    }
    message.key = number.is_multiple_of(4).then(|| bytes::Bytes::from_static(b"key"));
    Arc::new(message)
}

fn round_trip(bencher: Bencher<'_, '_>, place: &Address, ready_made: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let broker = Embedded::new("bench", Settings { auto_create: true, ..Settings::default() }).unwrap();
    let request = Subscribe {
        from: place.clone(),
        group: "bench".into(),
        start: Start::Earliest,
        prefetch: 4096,
        workers: 1,
        aside: Default::default(),
    };
    let mut reader = runtime.block_on(broker.subscribe(request)).unwrap();
    let kept: Vec<Arc<Message>> = (0..BATCH).map(|number| message(number, now_ms())).collect();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        runtime.block_on(async {
            let batch = if ready_made {
                kept.clone()
            } else {
                let now = now_ms();
                (0..BATCH).map(|number| message(number, now)).collect()
            };
            broker.publish(place, batch).await.unwrap();
            let mut left = BATCH;
            while left > 0 {
                let taken = reader.next(BatchMax { count: BATCH, bytes: 1 << 20 }).await.unwrap().unwrap();
                left -= taken.len();
                let how = vec![Settlement::Accept; taken.len()];
                taken.settle(how).await.unwrap();
            }
        });
    });
}

/// The broker alone: the messages are there already.
#[divan::bench]
fn queue(bencher: Bencher<'_, '_>) {
    round_trip(bencher, &Address::queue("bench"), true);
}

/// The same with making and freeing the messages.
#[divan::bench]
fn queue_with_new_messages(bencher: Bencher<'_, '_>) {
    round_trip(bencher, &Address::queue("bench"), false);
}

/// The broker alone, on a topic that keeps what was read.
#[divan::bench]
fn topic(bencher: Bencher<'_, '_>) {
    round_trip(bencher, &Address::topic("bench"), true);
}
