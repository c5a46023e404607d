//! Why there is no connection, as a sentence for whoever has to do something about it.

use std::{error::Error, fmt, io, time::Duration};

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};
use tokio_rustls::rustls::{self, AlertDescription as Alert, CertificateError, InvalidMessage};

use super::{
    super::settings::{Credentials, Host, Settings},
    filter::NoConversation,
};
use crate::{
    broker::{error::BoxError, tls::Unusable},
    message::ReasonCode,
};

/// There is no connection. The texts name the host, what is wrong and what to do; never a password.
#[derive(Debug, thiserror::Error)]
pub(in crate::broker::rabbitmq) enum ConnectError {
    /// It will be the same next time, until somebody changes something: say so.
    #[error("{text}")]
    Refused {
        /// For tables.
        code: ReasonCode,
        /// What is wrong, and what to do.
        text: String,
        /// What the library said.
        #[source]
        cause: BoxError,
    },
    /// Not now: back off and try again.
    #[error("{text}")]
    Unreachable {
        /// For tables.
        code: ReasonCode,
        /// What is wrong, and what to do.
        text: String,
        /// What the library said.
        #[source]
        cause: BoxError,
    },
}

impl From<Unusable> for ConnectError {
    fn from(error: Unusable) -> Self {
        Self::unusable(error.text, error.cause)
    }
}

impl ConnectError {
    /// The code to show for it.
    pub(in crate::broker::rabbitmq) fn code(&self) -> ReasonCode {
        match self {
            Self::Refused { code, .. } | Self::Unreachable { code, .. } => *code,
        }
    }

    /// Whether it will be the same next time.
    pub(in crate::broker::rabbitmq) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Settings that cannot be used.
    pub(super) fn unusable(text: String, cause: impl Into<BoxError>) -> Self {
        Self::Refused { code: ReasonCode::InvalidConfig, text, cause: cause.into() }
    }

    /// The one of several that says most: a refusal before one that did not answer, and the first of those. The texts
    /// of the others follow it.
    pub(super) fn most_telling(errors: Vec<Self>) -> Self {
        let refused = errors.iter().position(|error| matches!(error, Self::Refused { .. })).unwrap_or(0);
        let others: Vec<_> = errors.iter().enumerate().filter(|(place, _)| *place != refused).collect();
        let others: String = others.iter().map(|(_, error)| format!("; {error}")).collect();
        let Some(mut telling) = errors.into_iter().nth(refused) else {
            return Self::unusable("no host is given: set rabbitmq.host".to_owned(), "no host");
        };
        let (Self::Refused { text, .. } | Self::Unreachable { text, .. }) = &mut telling;
        text.push_str(&others);
        telling
    }
}

/// How far connecting came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Tcp,
    Tls,
    Amqp,
}

/// One host, and what of the settings belongs into a text about it.
pub(super) struct Endpoint {
    host: String,
    port: u16,
    user: Option<String>,
    vhost: String,
    server_name: String,
    tls: bool,
    timeout: Duration,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "RabbitMQ at [{}]:{}", self.host, self.port),
            false => write!(f, "RabbitMQ at {}:{}", self.host, self.port),
        }
    }
}

impl Endpoint {
    pub(super) fn new(host: &Host, settings: &Settings) -> Self {
        let user = match &settings.credentials {
            Credentials::Plain { user, .. } => Some(user.clone()),
            Credentials::External => None,
        };
        let server_name = settings.tls.as_ref().and_then(|tls| tls.server_name.clone());
        Self {
            host: host.name.clone(),
            port: host.port,
            user,
            vhost: settings.vhost.clone(),
            server_name: server_name.unwrap_or_else(|| host.name.clone()),
            tls: settings.tls.is_some(),
            timeout: settings.connect_timeout,
        }
    }

    fn refused(&self, code: ReasonCode, text: impl fmt::Display, cause: impl Into<BoxError>) -> ConnectError {
        ConnectError::Refused { code, text: format!("{self} {text}"), cause: cause.into() }
    }

    fn unreachable(&self, code: ReasonCode, text: impl fmt::Display, cause: impl Into<BoxError>) -> ConnectError {
        ConnectError::Unreachable { code, text: format!("{self} {text}"), cause: cause.into() }
    }

    /// The time is up.
    pub(super) fn timed_out(&self, stage: Stage) -> ConnectError {
        let timeout = self.timeout;
        let text = match stage {
            Stage::Tcp => {
                format!("did not answer within {timeout:?}: is the address right, and does a firewall let it through?")
            }
            Stage::Tls => format!("did not finish the TLS handshake within {timeout:?}: is that a port with TLS?"),
            Stage::Amqp => format!(
                "took the connection and did not finish the AMQP handshake within {timeout:?}: is it overloaded, or is something else behind that port?"
            ),
        };
        self.unreachable(ReasonCode::ConnectionTimeout, text, io::Error::from(io::ErrorKind::TimedOut))
    }

    /// No such name.
    pub(super) fn unknown_name(&self, error: io::Error) -> ConnectError {
        let text =
            format!("cannot be found, as the name {:?} has no address: correct it, or the name service", self.host);
        self.unreachable(ReasonCode::ConnectionFailed, text, error)
    }

    /// No socket.
    pub(super) fn no_socket(&self, error: io::Error) -> ConnectError {
        let text = match error.kind() {
            io::ErrorKind::ConnectionRefused => "is not there, nothing listens on that port: is it started?",
            io::ErrorKind::TimedOut => "did not answer: is the address right, and does a firewall let it through?",
            _ => "cannot be reached",
        };
        self.unreachable(ReasonCode::ConnectionFailed, text, error)
    }

    /// TLS came to nothing.
    pub(super) fn not_secured(&self, error: io::Error) -> ConnectError {
        match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
            Some(cause) => {
                let (code, text) = self.tls_refusal(cause);
                self.refused(code, text, error)
            }
            None => self.closed("TLS", error),
        }
    }

    /// AMQP came to nothing.
    pub(super) fn not_greeted(&self, error: lapin::Error) -> ConnectError {
        match error.kind() {
            ErrorKind::IOError(cause) => {
                let inner = cause.get_ref();
                if let Some(reason) = inner.and_then(|cause| cause.downcast_ref::<NoConversation>()) {
                    return self.no_conversation(reason, error.clone());
                }
                // With TLS 1.3 a server judges the client's certificate when the client's handshake has already ended.
                if let Some(cause) = inner.and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
                    let (code, text) = self.tls_refusal(cause);
                    return self.refused(code, text, error.clone());
                }
                self.closed("AMQP", error)
            }
            ErrorKind::ProtocolError(answer) => {
                let text = answer.get_message().to_string();
                match answer.kind() {
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                        self.refused(ReasonCode::AuthenticationFailed, self.who_was_refused(), error)
                    }
                    // A limit on connections is lifted when others leave.
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if !text.contains("limit") => {
                        let text = format!(
                            "does not let {} into virtual host {:?} ({text}): correct rabbitmq.vhost, or make it and give permissions on the server",
                            self.who(),
                            self.vhost
                        );
                        let code = match answer.get_message().as_str().contains("not found") {
                            true => ReasonCode::InvalidConfig,
                            false => ReasonCode::AuthenticationFailed,
                        };
                        self.refused(code, text, error)
                    }
                    _ => self.unreachable(ReasonCode::ConnectionFailed, format!("ended the connection: {text}"), error),
                }
            }
            ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => {
                self.no_conversation(&NoConversation::Unknown, error.clone())
            }
            _ => self.unreachable(ReasonCode::ConnectionFailed, "did not finish the AMQP handshake", error),
        }
    }

    fn no_conversation(&self, reason: &NoConversation, cause: lapin::Error) -> ConnectError {
        let text = match reason {
            NoConversation::Tls => {
                "wants TLS on that port: set rabbitmq.tls.enabled, or give the port without (5672)".to_owned()
            }
            NoConversation::Http => "answers with HTTP there: give the port of AMQP (5672, with TLS 5671)".to_owned(),
            NoConversation::Version => "does not speak AMQP 0-9-1 there".to_owned(),
            NoConversation::Unknown => "answers with something else than AMQP there: is the port right?".to_owned(),
            NoConversation::Mechanism { wanted, offered } => {
                let fix = match self.user {
                    Some(_) => "enable it on the server (auth_mechanisms)",
                    None => {
                        "enable the plugin rabbitmq_auth_mechanism_ssl on the server, or give a user and a password"
                    }
                };
                format!("does not offer the mechanism {wanted}, only {offered}: {fix}")
            }
        };
        let code = match reason {
            NoConversation::Mechanism { .. } => ReasonCode::AuthenticationFailed,
            _ => ReasonCode::ConnectionFailed,
        };
        self.refused(code, text, cause)
    }

    fn who(&self) -> String {
        match &self.user {
            Some(user) => format!("user {user:?}"),
            None => "the user of the client's certificate".to_owned(),
        }
    }

    fn who_was_refused(&self) -> String {
        match &self.user {
            Some(user) if user == "guest" => {
                "refused user \"guest\": correct the password; from another machine it is refused in any case, so make a user".to_owned()
            }
            Some(user) => format!("refused user {user:?}: correct the user or the password"),
            None => "refused the client's certificate as a login: make a user of the name that it has there (ssl_cert_login_from)".to_owned(),
        }
    }

    /// What TLS refused, and what to do.
    fn tls_refusal(&self, cause: &rustls::Error) -> (ReasonCode, String) {
        use CertificateError as Certificate;
        let name = &self.server_name;
        let failed = ReasonCode::ConnectionFailed;
        match cause {
            rustls::Error::InvalidCertificate(certificate) => {
                let text = match certificate {
                    Certificate::UnknownIssuer => "has a certificate of an authority that is not trusted: name the right one in rabbitmq.tls.ca_file".to_owned(),
                    Certificate::Expired | Certificate::ExpiredContext { .. } => "has a certificate that has expired: renew it on the server".to_owned(),
                    Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => "has a certificate that is not valid yet: are the clocks right?".to_owned(),
                    Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                        format!("has a certificate for another name than {name:?}: set rabbitmq.tls.server_name to one that it has, or renew it")
                    }
                    other => format!("has a certificate that is not accepted ({other}): renew it on the server"),
                };
                (failed, text)
            }
            rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::CertificateRequired),
            ) => {
                let text = format!(
                    "does not accept the client's certificate ({alert:?}): set rabbitmq.tls.cert_file and key_file to one that its authority has signed"
                );
                (ReasonCode::AuthenticationFailed, text)
            }
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => (
                failed,
                "does not speak TLS on that port: give the port with TLS (5671), or switch rabbitmq.tls.enabled off"
                    .to_owned(),
            ),
            other => (
                failed,
                format!("and the engine do not agree on TLS ({other}): which versions and ciphers does it allow?"),
            ),
        }
    }

    /// The connection went away during a handshake.
    fn closed(&self, handshake: &str, cause: impl Error + Send + Sync + 'static) -> ConnectError {
        let hint = match self.tls {
            true => "is it starting or stopping?",
            false => "is it starting or stopping, or does it want TLS on that port?",
        };
        let text = format!("closed the connection during the {handshake} handshake: {hint}");
        self.unreachable(ReasonCode::ConnectionFailed, text, cause)
    }
}
