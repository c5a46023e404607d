//! `plugin`: what serves, whether a file would, and how to begin a new one.

mod check;
mod list;
pub(super) mod load;
mod new;

use clap::Subcommand;

use super::{Context, Exit, Failure};

/// What can be asked about plugins.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what the running engine has loaded
    List,
    /// Check whether a file would serve: look at it, compile it, start it
    Check(check::Args),
    /// Write a new plugin to begin with
    New(new::Args),
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::List => list::run(context),
        Command::Check(args) => check::run(args, context),
        Command::New(args) => new::run(args, context),
    }
}
