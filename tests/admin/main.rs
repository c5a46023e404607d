//! Requests and replies: the HTTP interface over a real socket, in front of an engine on the embedded broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod dead_letters;
mod described;
mod guarded;
mod health;
mod look;
mod moody;
mod publish;
mod refused;
mod routes;
mod served;
mod server;
mod stalls;
mod tail;
