//! Bytes to values and back. No I/O.

pub mod bytes;
pub mod json;
pub mod time;
