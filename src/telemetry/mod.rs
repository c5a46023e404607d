//! Names of metrics, and how logs look. Imports nothing of ours.

pub mod logs;
mod metrics;

pub use metrics::{Metrics, NAMES, metrics};
