//! Against servers that are a few bytes on a socket.

use amq_protocol::{
    frame::{AMQPFrame, gen_frame},
    protocol::{AMQPClass, connection},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::message::{ReasonCode, Secret};

fn settings(ports: &[u16]) -> Settings {
    Settings {
        hosts: ports.iter().map(|port| Host { name: "127.0.0.1".to_owned(), port: *port }).collect(),
        credentials: Credentials::Plain { user: "helix".to_owned(), password: Secret::new("hunter2") },
        connect_timeout: Duration::from_secs(10),
        ..Settings::default()
    }
}

fn method(method: connection::AMQPMethod) -> Vec<u8> {
    let frame = AMQPFrame::Method(0, AMQPClass::Connection(method));
    gen_frame(&frame)(Vec::new().into()).unwrap().into_inner().0
}

fn start(mechanisms: &str) -> Vec<u8> {
    method(connection::AMQPMethod::Start(connection::Start {
        version_major: 0,
        version_minor: 9,
        server_properties: lapin::types::FieldTable::default(),
        mechanisms: mechanisms.into(),
        locales: "en_US".into(),
    }))
}

fn close(code: u16, text: &str) -> Vec<u8> {
    method(connection::AMQPMethod::Close(connection::Close {
        reply_code: code,
        reply_text: text.into(),
        class_id: 0,
        method_id: 0,
    }))
}

/// What connecting comes to where the server says these things, each in answer to something.
async fn against(answers: Vec<Vec<u8>>, change: impl FnOnce(&mut Settings)) -> ConnectError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = settings(&[listener.local_addr().unwrap().port()]);
    change(&mut settings);
    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut heard = [0; 4096];
        for answer in answers {
            if socket.read(&mut heard).await.unwrap_or(0) == 0 {
                return;
            }
            socket.write_all(&answer).await.unwrap();
        }
        // Let it answer before the end of the connection says the same in another way.
        while !matches!(socket.read(&mut heard).await, Ok(0) | Err(_)) {
            if heard.starts_with(&[1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51]) {
                return;
            }
        }
    };
    let (connection, ()) = tokio::join!(connect(&settings, "test"), server);
    connection.map(drop).expect_err("no connection")
}

fn check(error: &ConnectError, refused: bool, code: ReasonCode, says: &str) {
    let text = error.to_string();
    assert!(text.contains(says), "{text}");
    assert_eq!((matches!(error, ConnectError::Refused { .. }), error.code()), (refused, code), "{text}");
    assert!(!text.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{text}");
}

#[tokio::test]
async fn says_what_refuses_and_what_to_do() {
    use ReasonCode::{AuthenticationFailed, ConnectionFailed, InvalidConfig};
    let plain = || start("PLAIN AMQPLAIN");
    let external = |settings: &mut Settings| settings.credentials = Credentials::External;
    let error = against(vec![plain(), close(403, "ACCESS_REFUSED - Login was refused")], |_| {}).await;
    check(&error, true, AuthenticationFailed, "refused user \"helix\"");
    let error = against(vec![plain()], external).await;
    check(&error, true, AuthenticationFailed, "does not offer the mechanism EXTERNAL, only PLAIN AMQPLAIN");
    let error = against(vec![b"\x15\x03\x03\x00\x02\x02\x46".to_vec()], |_| {}).await;
    check(&error, true, ConnectionFailed, "wants TLS on that port");
    let error = against(vec![b"HTTP/1.1 400 Bad Request\r\n".to_vec()], |_| {}).await;
    check(&error, true, ConnectionFailed, "answers with HTTP");
    let error = against(vec![b"AMQP\x03\x01\x00\x00".to_vec()], |_| {}).await;
    check(&error, true, ConnectionFailed, "does not speak AMQP 0-9-1");
    let tls = |settings: &mut Settings| settings.tls = Some(super::super::settings::Tls::default());
    let error = against(vec![b"AMQP\x00\x00\x09\x01".to_vec()], tls).await;
    check(&error, true, ConnectionFailed, "does not speak TLS on that port");
    let error = against(vec![plain(), close(530, "NOT_ALLOWED - vhost / not found")], |_| {}).await;
    check(&error, true, InvalidConfig, "does not let user \"helix\" into virtual host \"/\"");
    let error = against(vec![plain(), close(530, "NOT_ALLOWED - connection limit (1) is reached")], |_| {}).await;
    check(&error, false, ConnectionFailed, "connection limit (1) is reached");
}

#[tokio::test]
async fn gives_up_a_silent_server_and_leaves_nothing_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = settings(&[listener.local_addr().unwrap().port()]);
    settings.connect_timeout = Duration::from_millis(100);
    let error = connect(&settings, "test").await.map(drop).expect_err("no connection");
    check(&error, false, ReasonCode::ConnectionTimeout, "did not finish the AMQP handshake within 100ms");
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    // The library's thread has let go of the socket.
    socket.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"AMQP\x00\x00\x09\x01");
}

#[tokio::test]
async fn tells_of_all_hosts_and_first_of_the_one_that_refuses() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = against(vec![start("PLAIN"), close(403, "ACCESS_REFUSED")], |settings| {
        settings.hosts.insert(0, Host { name: "127.0.0.1".to_owned(), port: free });
    })
    .await;
    check(&error, true, ReasonCode::AuthenticationFailed, "refused user \"helix\"");
    check(&error, true, ReasonCode::AuthenticationFailed, &format!("; RabbitMQ at 127.0.0.1:{free} is not there"));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    use super::super::settings::Tls;
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let missing = directory.path().join("missing.pem");
    for (tls, says) in [
        (Tls { ca_file: Some(missing), ..Tls::default() }, "tls.ca_file"),
        (Tls { ca_file: Some(empty.clone()), ..Tls::default() }, "has no certificate"),
        (Tls { cert_file: Some(empty), ..Tls::default() }, "belong together"),
    ] {
        let mut settings = settings(&[1]);
        settings.tls = Some(tls);
        let error = connect(&settings, "test").await.map(drop).expect_err("no connection");
        check(&error, true, ReasonCode::InvalidConfig, says);
    }
}
