//! How Kafka is doing, from what its clients hear. Each client reports here; whoever asks gets one answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::{Statistics, error::KafkaError, types::RDKafkaErrorCode};

use crate::{broker::ConnectionState, message::ReasonCode, telemetry::metrics};

/// What is known of the servers.
#[derive(Debug)]
pub(super) struct Condition {
    /// Where they are, for people.
    endpoint: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Why they are away, once they are.
    away: Option<String>,
    /// Whether any of them has ever answered.
    was_up: bool,
    /// Why they will not have us. Told by the servers in the first tries only, and then hidden behind "all brokers down".
    refusal: Option<Refusal>,
    /// The last thing that went wrong with a connection: the cause, once all of them are gone.
    last: Option<String>,
    /// What else is not as it should be, by the name of the place.
    troubles: Vec<(Arc<str>, String)>,
}

/// Why servers will not have us.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) code: ReasonCode,
}

impl Condition {
    pub(super) fn new(brokers: &[String]) -> Self {
        Self { endpoint: brokers.join(", "), known: Mutex::default() }
    }

    /// Where the servers are.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A client reports an error of its connections.
    pub(super) fn failed(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut known = self.lock();
        match code {
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                let reason = format!(
                    "Kafka at {} refuses the user or password, or the mechanism ({reason}): correct kafka.sasl",
                    self.endpoint
                );
                known.refuse(reason);
            }
            RDKafkaErrorCode::SSL => {
                let reason = format!(
                    "no TLS with Kafka at {} ({reason}): check kafka.tls, the certificate authority and the port",
                    self.endpoint
                );
                known.refuse(reason);
            }
            // The server ends the connection with the reason, and the client library has no word of its own for that.
            _ if reason.contains("SSL alert number") => {
                let reason = format!(
                    "Kafka at {} does not take our certificate, or demands one ({reason}): correct kafka.tls.cert_file and key_file",
                    self.endpoint
                );
                known.refuse(reason);
            }
            RDKafkaErrorCode::AllBrokersDown => {
                let reason = known.why_down(&self.endpoint);
                known.is_away(reason);
            }
            _ => {
                // What is said of one connection says more than what is said of all that it was for.
                if known.last.is_none() || reason.contains("(after ") {
                    known.last = Some(reason.to_owned());
                }
                tracing::debug!("Kafka: {error}: {reason}");
            }
        }
    }

    /// A client gives its figures.
    pub(super) fn statistics(&self, statistics: &Statistics) {
        if statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.is_up();
        }
    }

    /// A server has answered.
    pub(super) fn is_up(&self) {
        let mut known = self.lock();
        if known.away.take().is_some() {
            tracing::debug!("Kafka is back");
        }
        (known.refusal, known.last, known.was_up) = (None, None, true);
        drop(known);
        metrics().kafka_up.set(1);
    }

    /// Nobody has answered, and nobody knows more than has been heard.
    pub(super) fn is_unanswered(&self) {
        let mut known = self.lock();
        let reason = known.why_down(&self.endpoint);
        known.is_away(reason);
    }

    /// Something is not as it should be at a place, and may mend by itself.
    pub(super) fn trouble(&self, place: &Arc<str>, reason: String) {
        let mut known = self.lock();
        match known.troubles.iter_mut().find(|(of, _)| of == place) {
            Some((_, before)) if *before == reason => {}
            Some((_, before)) => *before = reason,
            None => {
                tracing::warn!("{reason}");
                known.troubles.push((Arc::clone(place), reason));
            }
        }
    }

    /// All is well at a place.
    pub(super) fn well(&self, place: &Arc<str>) {
        let mut known = self.lock();
        if let Some(at) = known.troubles.iter().position(|(of, _)| of == place) {
            let (_, reason) = known.troubles.swap_remove(at);
            tracing::info!("over: {reason}");
        }
    }

    /// Why the servers will not have us.
    pub(super) fn why_refused(&self) -> Option<Refusal> {
        self.lock().refusal.clone()
    }

    /// Where the connections are, taken together: one server that answers is enough.
    pub(super) fn connection(&self) -> ConnectionState {
        let known = self.lock();
        match (&known.refusal, &known.away) {
            (Some(_), _) => ConnectionState::Refused,
            (None, Some(_)) => ConnectionState::Away,
            (None, None) if known.was_up => ConnectionState::Ready,
            (None, None) => ConnectionState::Connecting,
        }
    }

    /// Why the servers are away.
    pub(super) fn why_away(&self) -> Option<String> {
        self.lock().away.clone()
    }

    /// What is not as it should be.
    pub(super) fn troubles(&self) -> Vec<String> {
        self.lock().troubles.iter().map(|(_, reason)| reason.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn why_down(&self, endpoint: &str) -> String {
        match (&self.refusal, &self.last) {
            (Some(refusal), _) => refusal.reason.clone(),
            // So ends, too, what is cut off while it begins: not reason enough to give up.
            (None, Some(last)) if !self.was_up && last.contains("SSL_HANDSHAKE") => {
                format!(
                    "no server of {endpoint} speaks TLS with us ({last}): check the port, and whether kafka.tls belongs there"
                )
            }
            (None, Some(last)) if !self.was_up && last.contains("APIVERSION_QUERY") => {
                format!("no server of {endpoint} understands us ({last}): check the port; it may want TLS, kafka.tls")
            }
            (None, Some(last)) => format!("no server of {endpoint} answers ({last})"),
            (None, None) if self.was_up => format!("no server of {endpoint} answers any more"),
            (None, None) => {
                format!("no server of {endpoint} answers: check kafka.brokers, and whether the port wants TLS or SASL")
            }
        }
    }

    fn is_away(&mut self, reason: String) {
        if self.away.is_none() {
            tracing::debug!("Kafka is away, going on when it is back: {reason}");
            metrics().kafka_up.set(0);
        }
        self.away = Some(reason);
    }

    fn refuse(&mut self, reason: String) {
        self.refusal.get_or_insert(Refusal { reason: reason.clone(), code: ReasonCode::AuthenticationFailed });
        self.away.get_or_insert(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_its_connections_are() {
        let condition = Condition::new(&["a:9092".to_owned()]);
        assert_eq!(condition.connection(), ConnectionState::Connecting);
        condition.is_unanswered();
        assert_eq!(condition.connection(), ConnectionState::Away);
        condition.failed(&KafkaError::Global(RDKafkaErrorCode::SaslAuthenticationFailed), "bad password");
        assert_eq!(condition.connection(), ConnectionState::Refused);
        condition.is_up();
        assert_eq!(condition.connection(), ConnectionState::Ready);
        condition.failed(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(condition.connection(), ConnectionState::Away);
        assert_eq!(condition.why_away().as_deref(), Some("no server of a:9092 answers any more"));
    }
}
