//! Names of metrics, and how logs look. Imports nothing of ours.

mod metrics;

pub use metrics::{Metrics, NAMES, metrics};
