//! The topology of the settings on their server, for whoever has no connection: people, before the engine runs.

use super::{
    super::{settings::Settings, transport},
    DeclareError, Entity, How, Options, Topology, declare,
};
use crate::message::ReasonCode;

/// Nothing can be said about the server's topology.
#[derive(Debug, thiserror::Error)]
pub enum AtServerError {
    /// There is no connection.
    #[error("{text}")]
    Connect {
        /// Whether it will be the same next time, until somebody changes something.
        is_refusal: bool,
        /// For programs.
        code: ReasonCode,
        /// What is wrong, and what to do.
        text: String,
    },
    /// See [`DeclareError`].
    #[error(transparent)]
    Declare(#[from] DeclareError),
}

/// As [`declare`], over a connection of its own. What belongs to one connection alone is left out: it would be gone with
/// this one.
///
/// # Errors
/// See [`AtServerError`].
pub async fn at_server(settings: &Settings, how: How) -> Result<Vec<Entity>, AtServerError> {
    let mut all: Topology = settings.topology.clone();
    all.queues.retain(|_, queue| !queue.exclusive);
    all.bindings.retain(|binding| settings.topology.queues.get(&binding.queue).is_none_or(|queue| !queue.exclusive));
    let connection = transport::connect(settings, "topology").await.map_err(|error| AtServerError::Connect {
        is_refusal: error.is_refusal(),
        code: error.code(),
        text: error.to_string(),
    })?;
    let found = declare(&connection, &all, Options { how, timeout: settings.connect_timeout }).await;
    // Whether it ends in good order makes no difference to what was found.
    tokio::time::timeout(settings.connect_timeout, connection.close(200, "done".into())).await.ok();
    Ok(found?)
}
