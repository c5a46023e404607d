//! What an operator does with a store from outside: verify it, look at its sizes, copy it. Each opens the database to
//! read only, and works while an engine has it open.

mod backup;
mod check;
mod stats;

pub use self::{
    backup::{Backup, backup},
    check::{Checked, check},
    stats::{GroupFigures, QueueFigures, StoreFigures, TopicFigures, stats},
};
