//! Kafka behind the seam: the only folder that names its client library.

mod client;
mod condition;
pub mod settings;

pub use settings::Settings;
