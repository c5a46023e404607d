//! RabbitMQ behind the seam: the only folder that names its client library.

pub mod settings;
pub mod topology;
#[allow(dead_code, reason = "what uses it comes next")]
mod transport;

pub use settings::{Credentials, Host, Settings, Tls};
