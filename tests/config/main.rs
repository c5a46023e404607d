//! The configuration as operators meet it: what is refused and in which words, what is accepted and what it then
//! means, what is documented.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod bad;
mod documented;
mod environment;
mod examples;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod kafka_routes;
mod meaning;
mod plugin_files;
mod properties;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
#[cfg(all(feature = "rabbitmq", feature = "kafka"))]
mod systems;
