//! Why an engine could not be started, or not be changed.

use std::sync::Arc;

use crate::{
    broker::{Broker, BrokerError},
    message::Address,
};

/// The engine could not be started, or not be changed: nothing was.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See the broker's own error.
    #[error("the {broker} broker: {error}")]
    Broker {
        /// Which.
        broker: String,
        /// What it said.
        #[source]
        error: BrokerError,
    },
    /// Queues or topics that routes read are not there: all of them are named.
    #[error("{}", missing(.0))]
    Missing(
        /// Which, and the routes that read it. Never empty.
        Vec<(Address, Vec<Arc<str>>)>,
    ),
    /// The machine refuses address space or threads.
    #[error("WebAssembly cannot be run here: {0}")]
    Engine(String),
    /// The hub has stopped.
    #[error("the engine is stopping")]
    Stopping,
}

impl StartError {
    /// What a broker said about that address, or about the one in the error: with several systems, which of them it was.
    pub(super) fn of(broker: &dyn Broker, about: Option<&Address>, error: BrokerError) -> Self {
        let about = match &error {
            BrokerError::Mismatch { address, .. } | BrokerError::NotFound(address) => Some(address),
            _ => about,
        };
        Self::Broker {
            broker: about.map_or_else(|| broker.name().to_owned(), |about| broker.name_of(about).to_string()),
            error,
        }
    }
}

fn missing(all: &[(Address, Vec<Arc<str>>)]) -> String {
    let each = all.iter().map(|(address, routes)| {
        let routes: Vec<String> = routes.iter().map(|route| format!("`{route}`")).collect();
        let (noun, verb) = if routes.len() == 1 { ("route", "reads") } else { ("routes", "read") };
        format!("there is no {address}, which {noun} {} {verb}", routes.join(", "))
    });
    let each: Vec<String> = each.collect();
    let them = if all.len() == 1 { "it" } else { "them" };
    format!("{}; declare {them} in the configuration, let the engine make {them}, or correct `source`", each.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_everything_that_is_missing_with_its_routes() {
        let one = (Address::topic("events"), vec!["audit".into(), "index".into()]);
        let other = (Address::queue("tasks"), vec!["work".into()]);
        assert_eq!(
            StartError::Missing(vec![one, other.clone()]).to_string(),
            "there is no topic:events, which routes `audit`, `index` read; there is no queue:tasks, which route `work` \
             reads; declare them in the configuration, let the engine make them, or correct `source`"
        );
        let text = StartError::Missing(vec![other]).to_string();
        assert!(
            text.ends_with("declare it in the configuration, let the engine make it, or correct `source`"),
            "{text}"
        );
    }
}
