//! Redis' side of `topology`: its queues and topics.

use std::sync::Arc;

use super::{
    super::{Exit, Failure, store::sentence},
    Apply, Line,
};
use crate::{
    broker::{
        BrokerError,
        redis::{
            Settings,
            topology::{Compared, State, at_server, commands},
        },
    },
    message::{Kind, ReasonCode},
};

/// What the server has of it.
pub(super) async fn compare(system: &Arc<str>, settings: &Settings, apply: Apply) -> Result<Vec<Line>, Failure> {
    let compared = at_server(settings, apply != Apply::Nothing).await.map_err(|error| not_compared(&error))?;
    Ok(compared.into_iter().map(|one| line(system, one)).collect())
}

fn line(system: &Arc<str>, Compared { address, state }: Compared) -> Line {
    let (state, differences) = match state {
        State::Same => ("same", Vec::new()),
        State::Made => ("made", Vec::new()),
        State::Missing => ("missing", Vec::new()),
        State::Differs(differences) => ("differs", differences),
    };
    let what = match address.kind {
        Kind::Queue => "queue",
        Kind::Topic => "topic",
    };
    Line { system: Arc::clone(system), what, name: address.name.to_string(), state, differences }
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

/// Commands that make all of it, for redis-cli, and how much it is. Without a Redis in the configuration, those of every
/// installation.
pub(super) fn file(settings: Option<&Settings>) -> (String, String) {
    let settings = settings.cloned().unwrap_or_else(crate::config::standard_redis);
    let quoted = |word: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !word.is_empty() && word.chars().all(plain) { word.clone() } else { format!("{word:?}") }
    };
    let lines =
        commands(&settings).into_iter().map(|words| words.iter().map(quoted).collect::<Vec<_>>().join(" ") + "\n");
    (lines.collect(), format!("{} queues, {} topics", settings.queues.len(), settings.topics.len()))
}
