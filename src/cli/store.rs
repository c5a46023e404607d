//! `store`: what lies on disk, looked at from outside. The files are opened to be read only, so that all of it works
//! while an engine runs, and without one.

use std::{
    error::Error,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde_json::json;

use super::{
    Context, Exit, Failure,
    shown::{age, bytes},
};
use crate::{
    message::now_ms,
    store::{self, StoreError, StoreFigures},
};

/// What can be asked of the store.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Verify every page, and that the tables agree with each other
    Check(Place),
    /// Show queues, topics and groups with their sizes and oldest messages
    Stats(Place),
    /// Copy it to one file, of one moment, while the engine goes on
    Backup {
        /// Where to; it must not be there yet
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
}

/// Which store.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The store's directory [default: embedded.disk.directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Place {
    fn directory(&self, context: &Context) -> Result<PathBuf, Failure> {
        match &self.directory {
            Some(directory) => Ok(directory.clone()),
            // Its warnings are about other things.
            None => Ok(context.load()?.config.embedded.disk.directory),
        }
    }
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Check(place) => check(&place.directory(context)?, context),
        Command::Stats(place) => stats(&place.directory(context)?, context),
        Command::Backup { file, place } => backup(&place.directory(context)?, file, context),
    }
}

fn check(directory: &Path, context: &Context) -> Result<Exit, Failure> {
    let checked = store::check(directory).map_err(|error| refused(&error))?;
    if let Some(failed) = &checked.failed {
        context.output.note(format_args!(
            "warning: the disk failed in an earlier run ({failed}): see to it; the next start verifies the store first"
        ));
    }
    if !checked.findings.is_empty() {
        let count = checked.findings.len();
        let findings = if count == 1 { "a finding".to_owned() } else { format!("{count} findings") };
        let message = format!("the store {} is damaged, with {findings}", directory.display());
        let hint = "stop the engine, keep a copy of the directory, and put a backup in its place as store.db";
        let details = checked.findings.join("\n");
        let failure = Failure::new(Exit::Failed, "STORE_DAMAGED", message, hint);
        return Err(failure.with_details(details, "findings", &checked.findings));
    }
    if context.output.json() {
        let value =
            json!({ "directory": directory, "whole": true, "messages": checked.messages, "failed": checked.failed });
        context.output.value(&value)?;
    } else {
        let (directory, messages) = (directory.display(), checked.messages);
        context
            .output
            .line(format_args!("{directory} is whole: every page, and what is noted of {messages} messages"))?;
    }
    Ok(Exit::Done)
}

fn stats(directory: &Path, context: &Context) -> Result<Exit, Failure> {
    let figures = store::stats(directory).map_err(|error| refused(&error))?;
    if context.output.json() {
        context.output.value(&figures)?;
        return Ok(Exit::Done);
    }
    context.output.fields(&about(directory, &figures))?;
    let now = now_ms();
    if !figures.queues.is_empty() {
        let rows: Vec<_> = figures
            .queues
            .iter()
            .map(|queue| {
                let numbers = [queue.messages, queue.waiting].map(|number| number.to_string());
                let [messages, waiting] = numbers;
                [queue.name.clone(), messages, waiting, bytes(queue.bytes), age(queue.oldest, now)]
            })
            .collect();
        context.output.line("")?;
        context.output.table(["QUEUE", "MESSAGES", "WAITING", "SIZE", "OLDEST"], &rows)?;
    }
    if !figures.topics.is_empty() {
        let rows: Vec<_> = figures
            .topics
            .iter()
            .map(|topic| {
                let (partitions, messages) = (topic.partitions.to_string(), topic.messages.to_string());
                [topic.name.clone(), partitions, messages, bytes(topic.bytes), age(topic.oldest, now)]
            })
            .collect();
        context.output.line("")?;
        context.output.table(["TOPIC", "PARTITIONS", "MESSAGES", "SIZE", "OLDEST"], &rows)?;
    }
    let groups: Vec<_> = figures
        .topics
        .iter()
        .flat_map(|topic| topic.groups.iter().map(move |group| (topic, group)))
        .map(|(topic, group)| {
            [group.name.clone(), topic.name.clone(), group.lag.to_string(), group.retries.to_string()]
        })
        .collect();
    if !groups.is_empty() {
        context.output.line("")?;
        context.output.table(["GROUP", "TOPIC", "NOT HANDED OVER", "TRIED AGAIN"], &groups)?;
    }
    Ok(Exit::Done)
}

fn about(directory: &Path, figures: &StoreFigures) -> Vec<[String; 2]> {
    let mut database = bytes(figures.database_bytes);
    if figures.database_free_bytes > 0 {
        // Writing to a text does not fail.
        write!(database, ", {} of it free for reuse", bytes(figures.database_free_bytes)).ok();
    }
    let rows = [
        ("store", directory.display().to_string()),
        ("layout", figures.layout.to_string()),
        ("database", database),
        ("write-ahead log", bytes(figures.wal_bytes)),
    ];
    let failed = figures.failed.iter().map(|failed| ("failed", format!("{failed}; the next start verifies it")));
    rows.into_iter().chain(failed).map(|(name, value)| [name.to_owned(), value]).collect()
}

fn backup(directory: &Path, file: &Path, context: &Context) -> Result<Exit, Failure> {
    let made = store::backup(directory, file).map_err(|error| refused(&error))?;
    if context.output.json() {
        context.output.value(&made)?;
    } else {
        let (file, size) = (made.file.display(), bytes(made.bytes));
        context.output.line(format_args!("{file}: {size}; it is a store again as store.db in an empty directory"))?;
    }
    Ok(Exit::Done)
}

/// By what can be done about it.
fn refused(error: &StoreError) -> Failure {
    let (message, hint) = sentence(error);
    let (exit, code) = match error {
        StoreError::Foreign { path, what } => {
            let message = format!("{} {what}", path.display());
            let hint = "name the directory of a store with --directory, or in embedded.disk.directory";
            return Failure::new(Exit::NotFound, "NO_STORE", message, hint);
        }
        StoreError::Newer { .. } => (Exit::Refused, "STORE_NEWER"),
        StoreError::NoPermission { .. } => (Exit::NotAllowed, "STORE_NOT_ALLOWED"),
        StoreError::Damaged { .. } => (Exit::Failed, "STORE_DAMAGED"),
        StoreError::Exists { .. } => (Exit::Failed, "FILE_EXISTS"),
        _ => (Exit::Failed, "STORE_FAILED"),
    };
    Failure::new(exit, code, message, hint)
}

/// What happened, with its causes, and what to do, as far as it says so itself.
pub(super) fn sentence(error: &dyn Error) -> (String, String) {
    let text = error.to_string();
    let (message, hint) = text.rsplit_once("; ").unwrap_or((&text, "see `helixmq doctor`"));
    let mut message = message.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(message, ": {error}").ok();
        cause = error.source();
    }
    (message, hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_cause_and_what_to_do() {
        let cause = std::sync::Arc::new(std::io::Error::other("bad sector"));
        let error = StoreError::NoPermission { path: "store".into(), cause };
        let failure = refused(&error);
        assert_eq!(failure.exit(), Exit::NotAllowed);
        assert!(failure.message().ends_with("by this user: bad sector"), "{failure}");
        assert!(failure.hint().starts_with("give the directory"), "{failure}");
        assert_eq!(sentence(&StoreError::Closed).1, "see `helixmq doctor`");
    }
}
