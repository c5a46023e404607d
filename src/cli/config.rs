//! `config`: what is wrong with the configuration, and what is in force.

use clap::Subcommand;
use serde_json::json;

use super::{Context, Exit, Failure};

/// What can be asked of the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Name every mistake, with its place and what would be right
    Check,
    /// Show every value in force and who named it; secrets are masked
    Show,
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Check => check(context),
        Command::Show => show(context),
    }
}

fn check(context: &Context) -> Result<Exit, Failure> {
    let loaded = context.load_with_warnings()?;
    let config = &loaded.config;
    if context.output.json() {
        context.output.value(&json!({
            "file": config.file,
            "files": loaded.files,
            "routes": config.routes.iter().count(),
            "warnings": loaded.warnings,
        }))?;
    } else {
        let name =
            config.file.as_ref().map_or("the built-in configuration".to_owned(), |file| file.display().to_string());
        let (routes, warnings) = (config.routes.iter().count(), loaded.warnings.len());
        context.output.line(format_args!("{name} is sound: {routes} routes, {warnings} warnings"))?;
    }
    Ok(Exit::Done)
}

fn show(context: &Context) -> Result<Exit, Failure> {
    let loaded = context.load_with_warnings()?;
    if context.output.json() {
        context.output.value(&json!({ "file": loaded.config.file, "values": loaded.values }))?;
    } else {
        let rows: Vec<_> = loaded
            .values
            .iter()
            .map(|shown| [shown.path.clone(), shown.value.clone(), shown.origin.to_string()])
            .collect();
        context.output.table(["VALUE", "IS", "FROM"], &rows)?;
    }
    Ok(Exit::Done)
}
