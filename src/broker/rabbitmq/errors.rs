//! What the client library says, as the seam says it.

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

use super::settings::Settings;
use crate::{
    broker::BrokerError,
    message::{Address, ReasonCode},
};

/// An error about one queue or topic.
pub(super) fn seam(settings: &Settings, address: &Address, error: &lapin::Error) -> BrokerError {
    let ErrorKind::ProtocolError(said) = error.kind() else { return away(settings, error) };
    match said.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => BrokerError::NotFound(address.clone()),
        // Source: RabbitMQ, `rabbit_channel`, "queue '..' in vhost '..' in exclusive use".
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if said.get_message().as_str().contains("exclusive use") => {
            BrokerError::Lost(format!("another consumer has {address} for itself ({})", said.get_message()))
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => BrokerError::Refused {
            reason: format!(
                "RabbitMQ does not allow it for {address} ({}); give the user the permission, or use another queue",
                said.get_message()
            ),
            code: ReasonCode::AuthenticationFailed,
        },
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => BrokerError::Refused {
            reason: format!("{address} belongs to another connection alone ({})", said.get_message()),
            code: ReasonCode::SubscribeFailed,
        },
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED | AMQPHardError::NOTIMPLEMENTED) => BrokerError::Refused {
            reason: format!("RabbitMQ refuses what was asked of {address}: {}", said.get_message()),
            code: ReasonCode::InvalidConfig,
        },
        _ => away(settings, error),
    }
}

/// The server cannot be asked now.
pub(super) fn away(settings: &Settings, error: &lapin::Error) -> BrokerError {
    let endpoint = settings.endpoint();
    BrokerError::Unreachable { endpoint, timeout: settings.connect_timeout, cause: error.to_string().into() }
}
