//! Reads a queue, or a topic for a group. A task for each reader ([`actor`]) fetches ahead, tells the server what became of
//! deliveries, and takes what comes again; [`state`] is what it holds, [`session`] what others see of it.

mod actor;
mod answers;
mod session;
mod state;
mod told;

pub(super) use actor::{Actor, Reading};
pub(super) use session::{RedisSubscription, Session};
