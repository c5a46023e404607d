//! How logs look and which lines are written: one subscriber for the process, to standard error.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people; with colours where a terminal shows them and `NO_COLOR` is not set.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Changes the filter while the process runs.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logs are not set up, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// Write another.
    #[error("{text:?} is not a filter")]
    Filter {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        #[source]
        cause: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already: its embedder decides about logs.
    #[error("logs are set up already")]
    SetUp,
}

/// What suits standard error: pretty on a terminal, JSON otherwise.
#[must_use]
pub fn suitable() -> Format {
    if stderr().is_terminal() { Format::Pretty } else { Format::Json }
}

/// Sends the process's logs to standard error, as `filter` says (`info,helixmq=debug`).
///
/// # Errors
/// [`LogsError`]: logs are as they were.
pub fn init(filter: &str, format: Format) -> Result<Logs, LogsError> {
    let (filter, handle) = reload::Layer::new(parsed(filter)?);
    let lines = match format {
        Format::Json => fmt::layer().json().flatten_event(true).with_writer(stderr).boxed(),
        Format::Pretty => fmt::layer().compact().with_ansi(colours()).with_writer(stderr).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LogsError::SetUp)?;
    Ok(Logs { filter: handle })
}

impl Logs {
    /// Replaces the filter.
    ///
    /// # Errors
    /// [`LogsError`]: the filter before holds.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogsError> {
        self.filter.reload(parsed(filter)?).map_err(|_| LogsError::SetUp)
    }
}

fn parsed(text: &str) -> Result<EnvFilter, LogsError> {
    // The client library of RabbitMQ logs as errors what we handle, whole messages among them. Who names it wants it.
    let quiet = if text.contains("lapin") { text.to_owned() } else { format!("{text},lapin=off") };
    EnvFilter::builder().parse(quiet).map_err(|cause| LogsError::Filter { text: text.to_owned(), cause })
}

/// Source: <https://no-color.org>.
fn colours() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
