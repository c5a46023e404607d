//! `serve --check`: everything that a start would check, and nothing of what it would start.

use crate::cli::{Context, Exit, Failure};

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    context.load_with_warnings()?;
    Ok(Exit::Done)
}
