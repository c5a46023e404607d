//! Bytes to values and back. No I/O.

pub mod bytes;
pub mod cloud_events;
pub mod extra;
pub mod json;
pub mod time;
