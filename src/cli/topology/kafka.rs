//! Kafka's side of `topology`: its topics.

use std::sync::Arc;

use super::{
    super::{Exit, Failure, store::sentence},
    Apply, Line,
};
use crate::{
    broker::{
        BrokerError,
        kafka::{
            Settings, TopicPlan,
            topology::{Compared, How, State, at_server},
        },
    },
    message::ReasonCode,
};

/// What the servers have of it.
pub(super) async fn compare(system: &Arc<str>, settings: &Settings, apply: Apply) -> Result<Vec<Line>, Failure> {
    let how = match apply {
        Apply::Nothing => How::Look,
        Apply::Make => How::Make,
        Apply::Grow => How::Grow,
    };
    let compared = at_server(settings, how).await.map_err(|error| not_compared(&error))?;
    Ok(compared.into_iter().map(|one| line(system, one)).collect())
}

fn line(system: &Arc<str>, Compared { name, state }: Compared) -> Line {
    let (state, differences) = match state {
        State::Same => ("same", Vec::new()),
        State::Made => ("made", Vec::new()),
        State::Grown => ("grown", Vec::new()),
        State::Missing => ("missing", Vec::new()),
        State::Differs(differences) => {
            ("differs", differences.into_iter().map(|one| [one.field, one.configured, one.current]).collect())
        }
    };
    Line { system: Arc::clone(system), what: "topic", name: name.to_string(), state, differences }
}

fn not_compared(error: &BrokerError) -> Failure {
    let (message, hint) = sentence(error);
    let exit = match error {
        BrokerError::Refused { code: ReasonCode::AuthenticationFailed, .. } => Exit::NotAllowed,
        BrokerError::Refused { .. } | BrokerError::Invalid(_) => Exit::Refused,
        BrokerError::Unreachable { .. } | BrokerError::Lost(_) => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.code().as_str(), message, hint)
}

/// A file of all topics, and how many they are. Without a Kafka in the configuration, those of every installation.
pub(super) fn file(settings: Option<&Settings>, print: fn(&Settings) -> String) -> (String, String) {
    let settings = settings.cloned().unwrap_or_else(crate::config::standard_kafka);
    (print(&settings), format!("{} topics", settings.topics.len()))
}

/// Settings of a topic as Kafka names them, those of its keys first.
pub(super) fn settings_of(plan: &TopicPlan) -> Vec<(String, String)> {
    let own = [
        ("retention.ms", plan.retention.map(|time| time.as_millis().to_string())),
        ("retention.bytes", plan.retention_bytes.map(|bytes| bytes.to_string())),
        ("min.insync.replicas", plan.min_insync_replicas.map(|copies| copies.to_string())),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    own.chain(plan.config.iter().map(|(name, value)| (name.clone(), value.clone()))).collect()
}
