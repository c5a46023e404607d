//! Kafka behind the seam: the only folder that names its client library.

mod client;
mod condition;
#[cfg(all(test, feature = "real-brokers"))]
mod live;
#[cfg_attr(not(test), expect(dead_code, reason = "used once the broker is there"))]
mod metadata;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "used once the broker is there"))]
mod publisher;
pub mod settings;
#[cfg_attr(not(test), expect(dead_code, reason = "used once the broker is there"))]
pub mod topology;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "used once the broker is there"))]
mod wire;

pub use settings::Settings;
