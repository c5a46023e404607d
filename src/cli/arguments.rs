//! Arguments that several verbs take, checked.

use super::{Exit, Failure};
use crate::message::{Address, Kind};

/// Which queue or topic.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Place {
    /// Name of a queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Name of a topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
}

impl Place {
    pub(super) fn address(&self) -> Result<Address, Failure> {
        let (kind, name) = match (&self.queue, &self.topic) {
            (Some(name), _) => (Kind::Queue, name.as_str()),
            (None, name) => (Kind::Topic, name.as_deref().unwrap_or_default()),
        };
        Address::checked(kind, name)
            .map_err(|error| Failure::new(Exit::Usage, "BAD_NAME", error.to_string(), "correct the name"))
    }
}

/// Reads `name=value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as name=value".to_owned()),
    }
}

/// Reads a time, and writes it in UTC.
pub(super) fn time(text: &str) -> Result<String, String> {
    let time: Result<jiff::Timestamp, _> = text.parse();
    time.map(|time| time.to_string()).map_err(|_| "write a time such as 2026-01-31T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pairs_and_times() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("a").is_err() && pair("=a").is_err());
        assert_eq!(time("2026-01-31T13:00:00+01:00"), Ok("2026-01-31T12:00:00Z".to_owned()));
        assert!(time("yesterday").is_err());
    }
}
