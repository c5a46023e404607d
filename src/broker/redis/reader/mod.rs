//! Reads a queue, or a topic for a group. A task for each reader ([`actor`]) fetches ahead, tells the server what became of
//! deliveries, and takes what comes again, in round trips ([`round`]); [`state`] is what it holds, [`work`] what goes to and fro,
//! [`session`] what others see of it, and [`bell`] says that there is something new.

mod actor;
mod answers;
mod bell;
mod round;
mod session;
mod state;
mod told;
mod work;

pub(super) use actor::{Actor, Reading};
pub(super) use session::{RedisSubscription, Session};
