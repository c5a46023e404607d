//! Redis as it is: real servers, and what happens to them. What every broker promises is in `tests/brokers`; here is what
//! only this one can be asked, and each fault with a count of every message.
//!
//! `cargo xtask test` starts a server for all tests; those that kill, freeze or starve one start their own (`server.rs`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod channels;
mod engines;
mod host;
mod killed;
mod memory;
mod network;
mod raw;
mod replicas;
mod security;
mod server;
mod site;
mod tools;
