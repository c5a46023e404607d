//! Joins broker, routes, handlers and settlement, and owns every task and thread. In: settings. Out: messages handled.
//! What a message costs, what becomes of it and who may run are decided elsewhere; here it is carried out.
//!
//! One message: a [`feed`] takes batches from a subscription, a [`lane`] carries each through ([`lane::Lane::deliver`]
//! is the heart of the engine), [`effects`] publishes what it caused, or [`transaction`] where that is settled in one. [`supervisor`] starts and stops them, and
//! [`watch`] tells when files change.

mod apply;
mod brake;
mod budget;
mod calls;
mod circuits;
mod client;
mod condition;
mod decided;
mod doing;
mod drain;
mod effects;
mod error;
mod exchange;
mod feed;
mod held;
mod inbox;
mod intake;
mod lane;
mod letters;
mod meters;
mod outage;
mod outlet;
mod parts;
mod places;
mod plugins;
mod pulse;
mod running;
mod supervisor;
mod sweep;
mod transaction;
mod verdict;
pub mod watch;
mod watchdog;

pub use brake::BrakeState;
pub use client::{SendError, SubscribeError};
pub use error::StartError;
pub use exchange::{Exchange, ExchangedSystem, Opening};
pub use outage::OutageSeen;
pub use running::RouteStatus;
pub use supervisor::{Hub, Settings};
