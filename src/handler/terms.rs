//! The terms a route makes with its handler: what it may cost, how long an instance lives, where it may publish.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::limits::{Limits, bounded_text};
use crate::message::{Address, FailureKind, Outbound, Outcome, Text};

/// What a handler may do on one route.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Terms {
    /// Name of the route, for what is told to people.
    pub route: Arc<str>,
    /// How long an instance lives.
    pub isolation: Isolation,
    /// What one call may cost.
    pub limits: Limits,
    /// Where the handler may publish: its own name for it, and what that means.
    pub destinations: BTreeMap<Text, Address>,
    /// Whether it may answer: publish to `reply-to`, which means where the handled message expects its answer.
    pub may_reply: bool,
}

/// The destination that means where the handled message expects its answer.
pub const REPLY_TO: &str = "reply-to";

/// How long an instance of a component lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A fresh one for each message: nothing leaks from one to the next. Costs 5 to 10 microseconds.
    Message,
    /// A fresh one for each batch.
    Batch,
    /// Reused, and replaced every 256 messages and after any failure.
    #[default]
    Instance,
}

impl Terms {
    /// The results of one call, if the terms allow them: all or nothing, the same walls for components and Rust
    /// functions.
    ///
    /// # Errors
    /// An [`Outcome::Failed`] that says which limit was broken.
    pub fn accept(&self, results: Vec<Outbound>) -> Result<Vec<Outbound>, Outcome> {
        let limits = &self.limits;
        let breach = |text: String| Err(Outcome::failed(FailureKind::Contract, text));
        if results.len() > limits.results_max {
            return breach(format!("returned {} messages; at most {} are allowed", results.len(), limits.results_max));
        }
        let mut bytes = 0;
        for result in &results {
            if !(self.destinations.contains_key(&result.destination)
                || self.may_reply && result.destination == REPLY_TO)
            {
                return Err(Outcome::failed(FailureKind::Denied, self.denial(&result.destination)));
            }
            let size = result.message.size();
            if size > limits.message_bytes_max {
                let text =
                    format!("returned a message of {size} bytes; at most {} are allowed", limits.message_bytes_max);
                return Err(Outcome::failed(FailureKind::TooLarge, text));
            }
            if let Err(error) = result.message.headers.check() {
                return breach(format!("returned a message with {error}"));
            }
            bytes += size;
        }
        if bytes > limits.results_bytes_max {
            return breach(format!("returned {bytes} bytes in all; at most {} are allowed", limits.results_bytes_max));
        }
        Ok(results)
    }

    /// What to tell whoever reached for a destination that is not granted.
    #[must_use]
    pub fn denial(&self, destination: &str) -> String {
        let named = bounded_text(destination, 256, false);
        let granted: Vec<_> = self.destinations.keys().map(Text::as_str).collect();
        let granted = if granted.is_empty() { "none".to_owned() } else { granted.join(", ") };
        format!("wants to publish to {named:?}; route {:?} grants {granted}", self.route)
    }
}
