//! The command line as people and programs meet it: the built binary, its exit codes, and what it prints where.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that panics has said what it has to say; clippy knows only #[test] functions"
)]

mod configuration;
mod documented;
mod engine;
mod help;
mod messages;
mod plugins;
mod sandbox;
mod store;
#[cfg(feature = "rabbitmq")]
mod topology;
mod usage;
