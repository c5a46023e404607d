//! Redis behind the seam: the only folder that names its client library.

pub mod settings;

pub use settings::{Host, Settings, Tls};
