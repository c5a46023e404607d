//! What becomes of a delivery: from how its handler ended to what the broker is told. Values in, values out; no I/O
//! (Invariant 5).
//!
//! Start at [`decide`].

mod backoff;
mod dead_letter;
mod decide;
mod server_death;

pub use backoff::{ATTEMPTS_MAX, DELAY_MAX, DELAY_MIN, FACTOR_MAX, RetryPolicy, RetryPolicyError};
pub use dead_letter::{DeadLetter, HEADER_CODE};
pub use decide::{Decision, decide};
