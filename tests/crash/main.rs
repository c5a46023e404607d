//! What survives: the engine killed at any moment, the power cut at any moment, files damaged, disks full.
//!
//! [`kills`] runs the real binary, kills it again and again under traffic, and counts what was confirmed against what was
//! handled, is a dead letter or still waits; `cargo xtask crash` is its long form. [`killer`] has a message that takes the
//! whole process down with it. [`power`] rebuilds the disk as it may look after the power failed, at many moments.
//! [`damage`] breaks what lies there. Whatever is random comes from a seed that is printed: [`random`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it has to say"
)]

#[path = "../support/api.rs"]
mod api;
mod damage;
mod killer;
mod kills;
mod ledger;
mod power;
mod random;
mod site;
