//! The whole engine on the embedded broker: plugins, routes, hub. What it promises, each promise a sentence and a test,
//! and each checked by a ledger that knows nothing of the engine.
//!
//! The plugins are built by a task before the tests, never by them: a missing one says how.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod attempts;
mod brake;
mod budget;
mod circuits;
mod draining;
mod fairness;
mod instances;
mod loading;
mod logs;
mod misbehaving;
mod order;
mod outage;
mod places;
mod quakes;
mod reload;
mod results;
mod routes;
mod support;
mod sweep;
mod systems;
mod transactions;
