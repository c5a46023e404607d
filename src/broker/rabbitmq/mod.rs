//! RabbitMQ behind the seam: the only folder that names its client library.

pub mod settings;
pub mod topology;

pub use settings::{Credentials, Host, Settings, Tls};
