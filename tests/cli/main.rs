//! The command line as people and programs meet it: the built binary, its exit codes, and what it prints where.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it has to say"
)]

mod configuration;
mod documented;
mod engine;
mod help;
mod messages;
mod plugins;
mod sandbox;
mod usage;
