//! Kafka behind the seam: the only folder that names its client library.

mod client;
mod condition;
pub mod settings;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "used once the broker is there"))]
mod wire;

pub use settings::Settings;
