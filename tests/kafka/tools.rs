//! The tools themselves: servers, the raw client, the way through the proxy.

use tokio::net::TcpStream;

use crate::{
    raw::{Raw, Record},
    server::{Listener, Server},
    support::{eventually, proxy::Cut, soon},
};

fn values(read: &[crate::raw::Read]) -> Vec<&[u8]> {
    read.iter().map(|one| one.value.as_deref().unwrap_or(b"(none)")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_and_reads_records_of_every_form() {
    let server = Server::shared();
    let (raw, topic) = (Raw::new(&server), server.name("forms"));
    raw.topic(&topic, 2).await;
    let tombstone = Record { value: None, timestamp: Some(7), ..Record::default() }.key("k").on(1);
    let mut headed = Record::new("headed").on(0).header("a", "1").header("a", "2");
    headed.headers.push(("null".to_owned(), None));
    let places = raw.publish(&topic, vec![headed.clone(), tombstone, Record::new("").on(1)]).await;
    assert_eq!(places, [(0, 0), (1, 0), (1, 1)]);
    let read = raw.read(&topic).await;
    assert_eq!(values(&read), [&b"headed"[..], b"(none)", b""]);
    assert_eq!(read[0].headers, headed.headers);
    assert_eq!((read[1].key.as_deref(), read[1].timestamp), (Some(&b"k"[..]), Some(7)));
    assert_eq!(raw.ends(&topic).await.into_values().collect::<Vec<_>>(), [(0, 1), (0, 2)]);
    assert!(raw.committed(&server.name("group"), &topic).await.is_empty());

    raw.delete_records(&topic, 1, 1).await;
    assert_eq!(values(&raw.read(&topic).await), [&b"headed"[..], b""]);
    raw.grow(&topic, 3).await;
    assert_eq!(raw.ends(&topic).await[&2], (0, 0));
    raw.delete(&topic).await;
    assert_eq!(raw.partitions(&topic).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_kills_stops_and_starts_again_a_server_of_its_own() {
    let server = Server::own_with("message.max.bytes=1000").await;
    let directory = server.certificate("ca.pem").parent().unwrap().parent().unwrap().to_owned();
    let raw = Raw::new(&server);
    raw.topic("t", 1).await;
    raw.publish("t", vec![Record::new("first")]).await;
    server.kill().await;
    server.up().await;
    raw.publish("t", vec![Record::new("second")]).await;
    server.stop().await;
    server.up().await;
    assert_eq!(values(&raw.read("t").await), [&b"first"[..], b"second"]);
    let address = server.address(Listener::Plaintext);
    drop(server);
    assert!(!directory.exists());
    soon("nobody listens", TcpStream::connect(address)).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_proxy_know_no_other_way() {
    let server = Server::shared();
    let mut proxy = server.proxy().await;
    let topic = server.name("proxied");
    Raw::new(&server).topic(&topic, 1).await;
    assert_eq!(proxy.accepted(), 0);
    let raw = Raw::with(&[("bootstrap.servers", &proxy.address().to_string())]);
    raw.publish(&topic, vec![Record::new("through")]).await;
    // To begin with, and to the server that it was told of.
    assert!(proxy.accepted() >= 2, "{} connections", proxy.accepted());
    proxy.refuse().await;
    proxy.cut(Cut::Reset);
    eventually("all are closed", async || (proxy.open() == 0).then_some(())).await;
    proxy.accept().await;
    assert_eq!(values(&raw.read(&topic).await), [b"through"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_clients_in_every_way_to_connect() {
    let server = Server::shared();
    let certificate = |file: &str| server.certificate(file).display().to_string();
    let ca = [("ssl.ca.location", certificate("ca.pem"))];
    let client =
        [("ssl.certificate.location", certificate("client.pem")), ("ssl.key.location", certificate("client.key"))];
    let user = |mechanism: &str| {
        [("sasl.mechanism", mechanism), ("sasl.username", "test"), ("sasl.password", "secret")]
            .map(|(name, value)| (name, value.to_owned()))
    };
    let topic = server.name("ways");
    Raw::new(&server).topic(&topic, 1).await;
    let mut ways = vec![
        (Listener::Tls, "ssl", ca.to_vec()),
        (Listener::Tls, "ssl", [&ca[..], &client].concat()),
        (Listener::Mutual, "ssl", [&ca[..], &client].concat()),
    ];
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        ways.push((Listener::Sasl, "sasl_plaintext", user(mechanism).to_vec()));
        ways.push((Listener::SaslTls, "sasl_ssl", [&ca[..], &user(mechanism)].concat()));
    }
    for (listener, protocol, mut settings) in ways {
        let address = server.address(listener).to_string();
        settings.extend([("bootstrap.servers", address), ("security.protocol", protocol.to_owned())]);
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let found = Raw::with(&settings).partitions(&topic).await;
        assert_eq!(found, Some(1), "{listener:?} {settings:?}");
    }
}
