//! The part of an address behind the question mark: every name is known, or the call is refused.

use std::{ops::RangeInclusive, str::FromStr};

use axum::{
    extract::{Path, Query, rejection::PathRejection},
    http::Uri,
};

use super::problem::Problem;
use crate::{
    codec::time::from_rfc3339,
    message::{Address, Kind, UnixMs},
};

/// What was asked for.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads them; each of `once` may be there once, each of `many` any number of times.
    pub(super) fn read(uri: &Uri, once: &[&str], many: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::invalid(format!("the query cannot be read: {error}")))?;
        for (place, (name, _)) in pairs.iter().enumerate() {
            if many.contains(&name.as_str()) {
                continue;
            }
            if !once.contains(&name.as_str()) {
                let known = once.iter().chain(many).copied().collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "nothing is".to_owned() } else { format!("known are {known}") };
                return Err(Problem::invalid(format!("{name:?} is not known here; {known}")));
            }
            if pairs.iter().take(place).any(|(other, _)| other == name) {
                return Err(Problem::invalid(format!("{name:?} is given twice; keep one")));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// `true` and `false`; a name without a value is `true`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(Problem::invalid(format!("{name:?} is {other:?}; write true or false"))),
        }
    }

    pub(super) fn number<T>(&self, name: &str, range: RangeInclusive<T>) -> Result<Option<T>, Problem>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (least, most) = (range.start(), range.end());
                Err(Problem::invalid(format!("{name:?} is {text:?}; write a whole number from {least} to {most}")))
            }
        }
    }

    pub(super) fn time(&self, name: &str) -> Result<Option<UnixMs>, Problem> {
        self.get(name).map(|text| time(name, text)).transpose()
    }

    /// Where to read: exactly one of `queue` and `topic`.
    pub(super) fn source(&self) -> Result<Address, Problem> {
        source(self.get("queue"), self.get("topic"))
    }
}

/// RFC 3339, or milliseconds since 1970.
pub(super) fn time(name: &str, text: &str) -> Result<UnixMs, Problem> {
    from_rfc3339(text).or_else(|| text.parse().ok()).ok_or_else(|| {
        Problem::invalid(format!(
            "{name:?} is {text:?}; write RFC 3339 such as 2026-01-16T10:00:00Z, or milliseconds since 1970"
        ))
    })
}

/// Exactly one of a queue and a topic.
pub(super) fn source(queue: Option<&str>, topic: Option<&str>) -> Result<Address, Problem> {
    match (queue, topic) {
        (Some(queue), None) => Ok(Address::checked(Kind::Queue, queue)?),
        (None, Some(topic)) => Ok(Address::checked(Kind::Topic, topic)?),
        _ => Err(Problem::invalid("say where to look: either \"queue\" or \"topic\"")),
    }
}

/// A name in the path.
pub(super) fn name(path: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    path.map(|Path(name)| name)
        .map_err(|error| Problem::invalid(format!("the path cannot be read: {}", error.body_text())))
}
