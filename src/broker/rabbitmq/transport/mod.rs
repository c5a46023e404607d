//! Opens one connection to RabbitMQ: a socket, TLS where it is asked for, and the handshake of AMQP, on one of several
//! hosts. What comes out is the client library's connection, over a stream of ours; what it is used for, and what
//! happens when it is lost, is for others.
//!
//! The stream is ours because the library's own cannot be told what to trust, and because what it cannot read has to be
//! put into another form before it sees it (`filter/`). Start at [`connect`].

mod error;
mod filter;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, util::RuntimeParts};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism},
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub(super) use error::ConnectError;
use error::{Endpoint, Stage};
pub(super) use filter::{LEVELS_MAX, table_is_readable};
use stream::{Sockets, Stream};

use super::settings::{Credentials, Host, Settings};
use crate::broker::tls::{self, HandshakeError};

/// A silent peer is asked for a sign of life after this time, and again at this interval, by the kernel: where there are
/// no heartbeats nothing else would notice.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long a server that closed a connection is listened to for the reason.
const LISTENING: Duration = Duration::from_millis(500);

/// Opens a connection on the first of the hosts that takes it, each within the time that the settings allow.
/// `purpose` is part of the name under which the server shows it.
///
/// # Errors
/// When no host took it, the most telling reason: see [`ConnectError`].
///
/// # Cancel safety
/// Nothing of a connection that is not there yet stays behind.
pub(super) async fn connect(settings: &Settings, purpose: &str) -> Result<Connection, ConnectError> {
    // Read anew each time: a certificate that was renewed is taken up by the next connection.
    let tls = match &settings.tls {
        Some(tls) => Some(tls::Connector::load(tls, "rabbitmq.tls").await?),
        None => None,
    };
    let mut errors = Vec::new();
    for host in &settings.hosts {
        match connect_to(host, settings, tls.as_ref(), purpose).await {
            Ok(connection) => return Ok(connection),
            Err(error) => errors.push(error),
        }
    }
    Err(ConnectError::most_telling(errors))
}

async fn connect_to(
    host: &Host,
    settings: &Settings,
    tls: Option<&tls::Connector>,
    purpose: &str,
) -> Result<Connection, ConnectError> {
    let endpoint = Endpoint::new(host, settings);
    let deadline = tokio::time::Instant::now() + settings.connect_timeout;
    let mut stage = Stage::Tcp;
    let steps = async {
        let socket = socket(host, &endpoint, settings.connect_timeout).await?;
        let stream = match tls {
            Some(tls) => {
                stage = Stage::Tls;
                Stream::tls(handshake(tls, host, &endpoint, socket).await?, mechanism(&settings.credentials))
            }
            None => Stream::plain(socket, mechanism(&settings.credentials)),
        };
        stage = Stage::Amqp;
        match (greet(stream, host, &endpoint, settings, purpose).await, tls) {
            (Err(error @ ConnectError::Unreachable { .. }), Some(tls)) => {
                Err(verdict(tls, host, &endpoint, settings).await.unwrap_or(error))
            }
            (result, _) => result,
        }
    };
    // What the library has begun runs on a thread of its own: the stream's guard ends it when these steps are dropped.
    match tokio::time::timeout_at(deadline, steps).await {
        Ok(result) => result,
        Err(_) => Err(endpoint.timed_out(stage)),
    }
}

/// Speaks TLS on a socket.
async fn handshake(
    tls: &tls::Connector,
    host: &Host,
    endpoint: &Endpoint,
    socket: TcpStream,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    tls.handshake(&host.name, socket).await.map_err(|error| match error {
        HandshakeError::Unusable(error) => error.into(),
        HandshakeError::Io(error) => endpoint.not_secured(error),
    })
}

/// A connected socket. A name with several addresses has them tried in turn, each for its share of the time, so that
/// one which never answers does not use up all of it.
async fn socket(host: &Host, endpoint: &Endpoint, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let until = Instant::now() + timeout;
    let found = tokio::net::lookup_host((host.name.as_str(), host.port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| endpoint.unknown_name(error))?.collect();
    let mut last = None;
    for (place, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - place).unwrap_or(u32::MAX);
        let share = until.saturating_duration_since(Instant::now()) / left;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                prepare(&socket).map_err(|error| endpoint.no_socket(error))?;
                return Ok(socket);
            }
            Ok(Err(error)) => last = Some(endpoint.no_socket(error)),
            Err(_) => last = Some(endpoint.timed_out(Stage::Tcp)),
        }
    }
    Err(last.unwrap_or_else(|| endpoint.unknown_name(std::io::ErrorKind::NotFound.into())))
}

fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE)?;
    Ok(())
}

/// The handshake of AMQP.
async fn greet(
    stream: Stream,
    host: &Host,
    endpoint: &Endpoint,
    settings: &Settings,
    purpose: &str,
) -> Result<Connection, ConnectError> {
    let kit = Tokio::current();
    let runtime = Runtime::new(RuntimeParts::new(kit.clone(), Sockets(kit)));
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("helixmq {purpose}").into())
        .with_client_property("product".into(), "helixmq".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let guard = stream.guard();
    // The library asks for the stream once; there is no second one, because connecting again is not its business.
    let stream = Mutex::new(Some(stream));
    let take = async move |_, _| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        stream.map(AsyncTcpStream::Plain).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected).into())
    };
    let connection = Connection::connector(uri(host, settings), runtime, take, properties).await;
    let connection = connection.map_err(|error| endpoint.not_greeted(error))?;
    guard.disarm();
    Ok(connection)
}

/// Why a server with TLS 1.3 closed the connection, if it is for the client's certificate: it judges that when the
/// client's handshake has ended, and what it says is lost if the client has written meanwhile. So it is asked again, by
/// a client that listens.
async fn verdict(tls: &tls::Connector, host: &Host, endpoint: &Endpoint, settings: &Settings) -> Option<ConnectError> {
    let socket = socket(host, endpoint, settings.connect_timeout).await.ok()?;
    let mut stream = handshake(tls, host, endpoint, socket).await.ok()?;
    let answer = tokio::time::timeout(LISTENING, tokio::io::AsyncReadExt::read_u8(&mut stream)).await.ok()?;
    answer.err().map(|error| endpoint.not_secured(error)).filter(|error| matches!(error, ConnectError::Refused { .. }))
}

/// What the library is told: by now only who connects, to which virtual host, with which heartbeat.
pub(super) fn uri(host: &Host, settings: &Settings) -> AMQPUri {
    let (username, password, auth_mechanism) = match &settings.credentials {
        Credentials::Plain { user, password } => (user.clone(), password.reveal().to_owned(), SASLMechanism::Plain),
        Credentials::External => (String::new(), String::new(), SASLMechanism::External),
    };
    AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username, password },
            host: host.name.clone(),
            port: host.port,
        },
        vhost: settings.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            auth_mechanism: Some(auth_mechanism),
            ..AMQPQueryString::default()
        },
    }
}

/// The name of the way to say who one is. Source: RabbitMQ, "Access Control", section "SASL Authentication Mechanisms".
fn mechanism(credentials: &Credentials) -> &'static str {
    match credentials {
        Credentials::Plain { .. } => "PLAIN",
        Credentials::External => "EXTERNAL",
    }
}
