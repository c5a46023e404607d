//! What the client library says, in the seam's words.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::settings::Settings;
use crate::{
    broker::{BrokerError, PublishError},
    message::{Address, ReasonCode},
};

/// The server has forgotten a script: it was restarted, or told to.
pub(super) fn is_forgotten_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// The server copies another one now.
pub(super) fn is_demoted(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
        || text(error).contains("READONLY")
}

/// The server has too little memory for more messages.
pub(super) fn is_full(error: &RedisError) -> bool {
    error.code() == Some("OOM") || text(error).contains("OOM command not allowed")
}

/// The server answered, and what it said is about what was asked.
fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// The queue or topic is not there: the server was emptied, or lost what it knew.
pub(super) fn is_missing(error: &RedisError) -> bool {
    error.code() == Some("NOGROUP") || text(error).contains("NOGROUP")
}

fn text(error: &RedisError) -> String {
    error.to_string()
}

/// What is wrong with a server that answers, and what to do.
fn said(settings: &Settings, error: &RedisError) -> String {
    let endpoint = settings.endpoint();
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot) => format!(
            "Redis at {endpoint} is one of a cluster, and this key is another's ({error}): name a server that is not part of a cluster, or a proxy in front of it"
        ),
        ErrorKind::Server(ServerErrorKind::ClusterDown) => {
            format!("the cluster of Redis at {endpoint} is down: {error}")
        }
        ErrorKind::Server(ServerErrorKind::NoPerm) => {
            let who = settings.username.as_deref().unwrap_or("default");
            format!("Redis at {endpoint} allows user {who:?} too little: {error}; docs/redis.md lists what it needs")
        }
        ErrorKind::Server(ServerErrorKind::BusyLoading) => {
            format!("Redis at {endpoint} is still reading its data from disk")
        }
        _ if is_demoted(error) => format!("Redis at {endpoint} copies another server now and takes no messages"),
        _ if is_full(error) => full(settings),
        _ => format!("Redis at {endpoint} said: {error}"),
    }
}

/// It has no memory left, and what to do.
pub(super) fn full(settings: &Settings) -> String {
    format!("Redis at {} has no memory left: raise its maxmemory, or consume faster", settings.endpoint())
}

/// For whoever asked something of the server.
pub(super) fn seam(settings: &Settings, error: &RedisError) -> BrokerError {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) => {
            BrokerError::Refused { reason: said(settings, error), code: ReasonCode::AuthenticationFailed }
        }
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot) => {
            BrokerError::Refused { reason: said(settings, error), code: ReasonCode::InvalidConfig }
        }
        _ => BrokerError::Unreachable {
            endpoint: settings.endpoint(),
            timeout: settings.publish_timeout,
            cause: if is_answer(error) { said(settings, error).into() } else { Box::new(error.clone()) },
        },
    }
}

/// For whoever published something that was sent.
pub(super) fn unpublished(settings: &Settings, to: &Address, error: &RedisError) -> PublishError {
    if is_full(error) {
        return PublishError::Full {
            address: to.clone(),
            limit: format!("{}; its messages are kept", said(settings, error)),
        };
    }
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::NoPerm | ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
        ) => PublishError::Rejected { address: to.clone(), reason: said(settings, error) },
        // It said so instead of doing it.
        _ if is_answer(error) => PublishError::Unavailable(said(settings, error)),
        _ => PublishError::Unconfirmed(format!("the connection to Redis at {} was lost: {error}", settings.endpoint())),
    }
}

/// The error in an answer to one of several commands. None is hidden deeper: only transactions answer so.
pub(super) fn of(answer: redis::Value) -> Result<redis::Value, RedisError> {
    match answer {
        redis::Value::ServerError(error) => Err(error.into()),
        answer => Ok(answer),
    }
}
