//! Opens one connection to Redis: a socket, TLS where it is asked for, and its protocol over it, on the first of several hosts
//! that takes writes. What happens when it is lost is for others.

use std::{error::Error, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, ServerErrorKind,
    Value,
    aio::{MultiplexedConnection, SendError},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::rustls::{self, AlertDescription as Alert};

use super::{
    client::Client,
    settings::{Host, Settings},
};
use crate::{
    broker::tls::{Connector, HandshakeError},
    message::ReasonCode,
};

/// A silent peer is asked for a sign of life after this time, and again at this interval, by the kernel.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Moves bytes as long as it is polled; ends when the connection is lost.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A socket, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why there is no connection: who, what is wrong, and what to do.
#[derive(Clone, Debug)]
pub(super) struct ConnectError {
    pub(super) text: String,
    pub(super) code: ReasonCode,
    /// Whether it will be the same next time, until somebody changes something.
    pub(super) is_refusal: bool,
}

impl ConnectError {
    fn refused(code: ReasonCode, text: String) -> Self {
        Self { text, code, is_refusal: true }
    }

    fn away(code: ReasonCode, text: String) -> Self {
        Self { text, code, is_refusal: false }
    }
}

/// Connects to the first host that takes writes, each within the time that the settings allow.
///
/// # Errors
/// The most telling of all hosts' reasons.
pub(super) async fn connect(settings: &Settings) -> Result<(Client, Driver), ConnectError> {
    first(settings, |host| async move {
        let (client, driver) = Client::over(open(settings, host).await?);
        let mut driver = Box::pin(driver);
        tokio::select! {
            begun = begin(&client, settings, host) => begun?,
            error = &mut driver => return Err(broken(host, &error)),
        }
        let driver: Driver = Box::pin(async move {
            driver.await;
        });
        Ok((client, driver))
    })
    .await
}

/// The same with the client library's own connection: what it is measured against.
///
/// # Errors
/// As [`connect`].
pub(super) async fn connect_library(settings: &Settings) -> Result<(MultiplexedConnection, Driver), ConnectError> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    begin_library(settings, &info(settings), &config).await
}

/// The client library's own connection, that hands what the server says unasked to `heard`, which must not wait.
///
/// # Errors
/// As [`connect`].
pub(super) async fn listen(
    settings: &Settings,
    heard: impl Fn(PushInfo) -> Result<(), SendError> + Clone + Send + Sync + 'static,
) -> Result<(MultiplexedConnection, Driver), ConnectError> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(heard);
    let info = info(settings).set_protocol(ProtocolVersion::RESP3);
    begin_library(settings, &info, &config).await
}

async fn begin_library(
    settings: &Settings,
    info: &RedisConnectionInfo,
    config: &AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Driver), ConnectError> {
    first(settings, |host| async move {
        let stream = open(settings, host).await?;
        let made = MultiplexedConnection::new_with_config(info, stream, config.clone()).await;
        let (mut connection, driver) = made.map_err(|error| refusal(settings, host, &error))?;
        let mut driver: Driver = Box::pin(driver);
        let asks = async {
            let answer = connection.send_packed_command(&redis::cmd("PING")).await.and_then(Value::extract_error);
            answer.map_err(|error| refusal(settings, host, &error))?;
            let role = connection.send_packed_command(&redis::cmd("ROLE")).await.and_then(Value::extract_error);
            takes_writes(role, host)
        };
        tokio::select! {
            asked = asks => asked?,
            () = &mut driver => return Err(ended(host)),
        }
        Ok((connection, driver))
    })
    .await
}

async fn first<'a, T, F: Future<Output = Result<T, ConnectError>>>(
    settings: &'a Settings,
    connect: impl Fn(&'a Host) -> F,
) -> Result<T, ConnectError> {
    let mut errors: Vec<ConnectError> = Vec::new();
    for host in &settings.hosts {
        let error = match timeout(settings.connect_timeout, connect(host)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error,
            Err(_) => {
                let within = settings.connect_timeout;
                let text = format!(
                    "Redis at {host} did not answer within {within:?}: is the address right, is it overloaded, and does a firewall let it through?"
                );
                ConnectError::away(ReasonCode::ConnectionTimeout, text)
            }
        };
        errors.push(error);
    }
    // One that may be there later is worth waiting for, whatever the others say.
    let telling = errors.iter().position(|error| !error.is_refusal).unwrap_or(0);
    let is_refusal = errors.iter().all(|error| error.is_refusal);
    let code = errors.get(telling).map_or(ReasonCode::InvalidConfig, |error| error.code);
    let text = errors.iter().map(|error| error.text.as_str()).collect::<Vec<_>>().join("; ");
    let text = if text.is_empty() { "no host is given: set redis.host".to_owned() } else { text };
    Err(ConnectError { text, code, is_refusal })
}

async fn open(settings: &Settings, host: &Host) -> Result<Box<dyn Stream>, ConnectError> {
    // Read anew each time: a certificate that was renewed is taken up by the next connection.
    let tls = match &settings.tls {
        Some(tls) => Some(Connector::load(tls, "redis.tls").await.map_err(|error| {
            ConnectError::refused(ReasonCode::InvalidConfig, format!("{}: {}", error.text, error.cause))
        })?),
        None => None,
    };
    let socket = TcpStream::connect((host.name.as_str(), host.port)).await.map_err(|error| no_socket(host, &error))?;
    prepare(&socket).map_err(|error| no_socket(host, &error))?;
    let Some(tls) = tls else { return Ok(Box::new(socket)) };
    match tls.handshake(&host.name, socket).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(HandshakeError::Unusable(error)) => {
            Err(ConnectError::refused(ReasonCode::InvalidConfig, format!("redis: {}", error.text)))
        }
        Err(HandshakeError::Io(error)) => Err(not_secured(host, &error)),
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE)?;
    Ok(())
}

fn info(settings: &Settings) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default()
        .set_db(settings.database.into())
        .set_lib_name("helixmq", env!("CARGO_PKG_VERSION"));
    if let Some(username) = &settings.username {
        info = info.set_username(username);
    }
    if let Some(password) = &settings.password {
        info = info.set_password(password.reveal());
    }
    info
}

/// Says who we are, and asks whether it answers, and takes writes.
async fn begin(client: &Client, settings: &Settings, host: &Host) -> Result<(), ConnectError> {
    let mut asked = redis::pipe();
    if let Some(password) = &settings.password {
        let mut login = redis::cmd("AUTH");
        login.arg(settings.username.as_deref()).arg(password.reveal());
        asked.add_command(login);
    }
    if settings.database > 0 {
        asked.cmd("SELECT").arg(settings.database);
    }
    asked.cmd("PING");
    let counted = asked.len();
    // What an older server does not know, or a user may not say, is left out.
    asked.cmd("ROLE");
    asked.cmd("CLIENT").arg("SETINFO").arg("LIB-NAME").arg("helixmq");
    asked.cmd("CLIENT").arg("SETINFO").arg("LIB-VER").arg(env!("CARGO_PKG_VERSION"));
    let answers = client.ask_all(&asked).await.map_err(|error| refusal(settings, host, &error))?;
    for (place, answer) in answers.iter().take(counted).enumerate() {
        if let Err(error) = answer.value() {
            let is_login = place == 0 && settings.password.is_some();
            return Err(if is_login { unknown(settings, host) } else { refusal(settings, host, &error) });
        }
    }
    answers.get(counted).map_or(Ok(()), |role| takes_writes(role.value(), host))
}

/// Whether it takes writes. A user may not be allowed to ask: then the first write tells.
fn takes_writes(role: Result<Value, RedisError>, host: &Host) -> Result<(), ConnectError> {
    let Ok(Value::Array(role)) = role else { return Ok(()) };
    match role.first() {
        Some(Value::BulkString(role)) if role != b"master" => {
            let text = format!("Redis at {host} copies another server and takes no messages: name the one it copies");
            Err(ConnectError::away(ReasonCode::ConnectionFailed, text))
        }
        _ => Ok(()),
    }
}

fn no_socket(host: &Host, error: &io::Error) -> ConnectError {
    let text = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("Redis at {host} is not there, nothing listens on that port: is it started?")
        }
        io::ErrorKind::TimedOut => {
            format!("Redis at {host} did not answer: is the address right, and does a firewall let it through?")
        }
        _ => format!("Redis at {host} cannot be reached: {error}"),
    };
    ConnectError::away(ReasonCode::ConnectionFailed, text)
}

fn not_secured(host: &Host, error: &io::Error) -> ConnectError {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(cause) => tls_refusal(host, cause),
        None => ConnectError::away(
            ReasonCode::ConnectionFailed,
            format!("Redis at {host} ended the connection during the TLS handshake: {error}"),
        ),
    }
}

/// What TLS refused, and what to do.
fn tls_refusal(host: &Host, cause: &rustls::Error) -> ConnectError {
    let rustls::Error::AlertReceived(
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::CertificateRequired,
    ) = cause
    else {
        let text = format!(
            "Redis at {host} and TLS do not go together: {cause}; is that a port with TLS, and is redis.tls.ca_file its authority?"
        );
        return ConnectError::refused(ReasonCode::ConnectionFailed, text);
    };
    let text = format!(
        "Redis at {host} does not accept the client's certificate ({cause}): set redis.tls.cert_file and key_file to one that its authority has signed"
    );
    ConnectError::refused(ReasonCode::AuthenticationFailed, text)
}

/// What TLS said against a connection, where that is why it was lost.
fn of_tls(error: &RedisError) -> Option<&rustls::Error> {
    let shared = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    shared.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

fn ended(host: &Host) -> ConnectError {
    let text = format!("Redis at {host} ended the connection at once: does it want TLS, or has it too many clients?");
    ConnectError::away(ReasonCode::ConnectionClosed, text)
}

/// What became of a connection that was lost while it began.
fn broken(host: &Host, error: &io::Error) -> ConnectError {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        // With TLS 1.3 a server judges the client's certificate when the client's handshake has already ended.
        Some(cause) => tls_refusal(host, cause),
        None => ConnectError::away(ReasonCode::ConnectionClosed, format!("{}: {error}", ended(host).text)),
    }
}

/// It does not know the user, or not with that password.
fn unknown(settings: &Settings, host: &Host) -> ConnectError {
    let who = settings.username.as_deref().unwrap_or("default");
    ConnectError::refused(
        ReasonCode::AuthenticationFailed,
        format!("Redis at {host} does not let user {who:?} in: correct redis.username and redis.password"),
    )
}

/// Why a server would not begin.
fn refusal(settings: &Settings, host: &Host, error: &RedisError) -> ConnectError {
    // With TLS 1.3 a server judges the client's certificate when the client's handshake has already ended.
    if let Some(cause) = of_tls(error) {
        return tls_refusal(host, cause);
    }
    let code = error.code().unwrap_or_default();
    let who = settings.username.as_deref().unwrap_or("default");
    match (error.kind(), code) {
        (ErrorKind::AuthenticationFailed, _) | (_, "WRONGPASS" | "NOAUTH") => unknown(settings, host),
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => ConnectError::refused(
            ReasonCode::AuthenticationFailed,
            format!("Redis at {host} allows user {who:?} too little: {error}; docs/redis.md lists what it needs"),
        ),
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => ConnectError::away(
            ReasonCode::BrokerUnavailable,
            format!("Redis at {host} is still reading its data from disk"),
        ),
        (ErrorKind::Server(ServerErrorKind::MasterDown), _) => {
            ConnectError::away(ReasonCode::BrokerUnavailable, format!("Redis at {host} copies a server that is away"))
        }
        (ErrorKind::Io, _) => {
            ConnectError::away(ReasonCode::ConnectionClosed, format!("{}: {error}", ended(host).text))
        }
        _ => ConnectError::refused(ReasonCode::ConnectionFailed, format!("Redis at {host} refuses to begin: {error}")),
    }
}
