//! Errors as RFC 9457 has them, with the code that says the same everywhere.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    broker::{BrokerError, PublishError},
    codec::json::JsonError,
    message::{AddressError, ReasonCode},
};

/// Why a call did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
    /// Seconds after which it may work.
    retry_after: Option<u32>,
}

/// How soon to try again what may work then, in seconds.
const SOON: u32 = 1;

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None }
    }

    /// The call makes no sense.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "REQUEST_INVALID", detail)
    }

    /// There is nothing of that name.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", detail)
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ReasonCode::MessageTooLarge.as_str(), detail)
    }

    /// A mistake of ours.
    pub(super) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", detail)
    }

    pub(super) fn stopping() -> Self {
        let detail = "the engine is stopping; send it again to the one that replaces it";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ReasonCode::OperationCanceled.as_str(), detail).soon()
    }

    pub(super) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "BUSY", detail).soon()
    }

    fn soon(self) -> Self {
        Self { retry_after: Some(SOON), ..self }
    }

    /// The code as a sentence: `QUEUE_NOT_FOUND` is `Queue not found`.
    fn title(&self) -> String {
        let mut title = self.code.replace('_', " ").to_ascii_lowercase();
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        title
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:helixmq:problem:{}", self.code),
            "title": self.title(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"helixmq\""));
        }
        response
    }
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        match error.code() {
            ReasonCode::MessageTooLarge => Self::too_large(error.to_string()),
            code => Self::new(StatusCode::BAD_REQUEST, code.as_str(), error.to_string()),
        }
    }
}

impl From<AddressError> for Problem {
    fn from(error: AddressError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<&PublishError> for Problem {
    fn from(error: &PublishError) -> Self {
        let status = match error {
            PublishError::NotFound(_) | PublishError::Unroutable(_) => StatusCode::NOT_FOUND,
            PublishError::Full { .. } => StatusCode::TOO_MANY_REQUESTS,
            PublishError::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
            PublishError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            PublishError::Rejected { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            PublishError::Unavailable(_) | PublishError::Unconfirmed(_) => StatusCode::SERVICE_UNAVAILABLE,
            PublishError::Closed => return Self::stopping(),
        };
        let advice = match error {
            PublishError::NotFound(_) => "; declare it in the configuration",
            PublishError::Full { .. } => "; send it again when the queue is shorter",
            PublishError::Unconfirmed(_) => "; it may have arrived: send it again under the same id",
            PublishError::Unroutable(_) => "; bind a queue to it, or publish to another",
            PublishError::Unavailable(_) => "; send it again",
            PublishError::NoSpace { .. }
            | PublishError::TooLarge { .. }
            | PublishError::Rejected { .. }
            | PublishError::Closed => "",
        };
        let problem = Self::new(status, error.code().as_str(), format!("{error}{advice}"));
        if error.is_retryable() { problem.soon() } else { problem }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        let status = match error {
            BrokerError::NotFound(_) => StatusCode::NOT_FOUND,
            BrokerError::Unreachable { .. }
            | BrokerError::Lost(_)
            | BrokerError::Refused { .. }
            | BrokerError::Storage(_) => StatusCode::SERVICE_UNAVAILABLE,
            BrokerError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            BrokerError::Invalid(_) => return Self::invalid(error.to_string()),
            BrokerError::Mismatch { .. } => StatusCode::CONFLICT,
            BrokerError::Closed => return Self::stopping(),
        };
        let problem = Self::new(status, error.code().as_str(), error.to_string());
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.soon() } else { problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_reads_as_a_sentence() {
        assert_eq!(Problem::new(StatusCode::NOT_FOUND, "QUEUE_NOT_FOUND", "").title(), "Queue not found");
    }
}
