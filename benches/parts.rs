//! What the small parts cost that every message passes: ids, headers, patterns, the decision, and JSON at the door.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use divan::{Bencher, black_box};
use helixmq::{
    codec::json,
    message::{FailureKind, Headers, Kind, MessageId, Outcome},
    route::Pattern,
    settle::{RetryPolicy, decide},
};

fn main() {
    divan::main();
}

#[divan::bench]
fn make_an_id() -> MessageId {
    MessageId::generate(black_box(1_767_225_600_000))
}

#[divan::bench]
fn derive_the_id_of_a_result(bencher: Bencher<'_, '_>) {
    let id = MessageId::generate(1_767_225_600_000);
    bencher.bench(|| black_box(&id).derive("orders", 0));
}

fn headers() -> Headers {
    [("tenant", "acme"), ("region", "eu-central-1"), ("schema", "order/7"), ("traceparent", "00-ab-cd-01")]
        .into_iter()
        .collect()
}

#[divan::bench]
fn make_four_headers() -> Headers {
    headers()
}

#[divan::bench]
fn look_for_a_header_that_is_not_there(bencher: Bencher<'_, '_>) {
    let headers = headers();
    bencher.bench(|| black_box(&headers).get("x-helix-hops").is_some());
}

#[divan::bench(args = ["order.created", "order.*", "order.#", "#.created"])]
fn match_a_type(bencher: Bencher<'_, '_>, pattern: &str) {
    let pattern: Pattern = pattern.parse().unwrap();
    bencher.bench(|| pattern.matches(black_box("order.created")));
}

#[divan::bench]
fn decide_a_failure(bencher: Bencher<'_, '_>) {
    let (outcome, policy) = (Outcome::failed(FailureKind::Trapped, "unreachable"), RetryPolicy::default());
    bencher.bench(|| decide(black_box(&outcome), 1, 4, &policy, 0, 0.5));
}

const TASK: &str = r#"{"id":"task-123","type":"completion","priority":1,"payload":{"model":"helix-ensemble","messages":[{"role":"user","content":"hello"}]},"created_at":"2026-01-16T10:00:00Z"}"#;

#[divan::bench]
fn read_a_task() -> bool {
    json::read(black_box(TASK.as_bytes()), Kind::Queue, 1_767_225_600_000, 1 << 20).is_ok()
}

#[divan::bench]
fn write_a_task(bencher: Bencher<'_, '_>) {
    let read = json::read(TASK.as_bytes(), Kind::Queue, 1_767_225_600_000, 1 << 20).unwrap();
    bencher.bench(|| json::write(black_box(&read.message), Kind::Queue).unwrap());
}
