//! The server, or its certificate, will not have us, or we will not have it: each with a sentence that says what to do, and
//! without waiting.

use std::{path::PathBuf, sync::Arc};

use helixmq::{
    broker::{
        Broker, BrokerError, BrokerStatus,
        rabbitmq::{Credentials, Host, RabbitMq, Settings, Tls, topology::QueueKind::Quorum},
    },
    message::Secret,
};
use serde_json::json;

use crate::{
    server::{Server, Vhost},
    site::{queue, settings},
    support::{eventually, proxy::Proxy, soon},
};

/// What connecting is refused with.
async fn refusal(settings: Settings) -> String {
    let refused = soon("an answer", RabbitMq::connect("rabbitmq", settings)).await;
    let error = refused.map(|broker| broker.status()).expect_err("it is refused");
    assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains("guest1") && !text.contains("secret"), "a password in {text:?}");
    text
}

/// Connects, and does something.
async fn works(settings: Settings) {
    let broker = soon("a connection", RabbitMq::connect("rabbitmq", settings)).await.expect("a connection");
    broker.declare(&[queue("there")]).await.expect("declared");
    soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_user_or_password_is_wrong() {
    let vhost = Server::shared().vhost().await;
    for user in ["guest", "nobody"] {
        let credentials = Credentials::Plain { user: user.into(), password: Secret::new("guest1") };
        let text = refusal(Settings { credentials, ..settings(&vhost, Quorum) }).await;
        assert!(text.contains("refused user") && text.contains(user), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_there_is_no_such_virtual_host_or_no_permission_for_it() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let text = refusal(Settings { vhost: "elsewhere".into(), ..settings(&vhost, Quorum) }).await;
    assert!(text.contains("virtual host \"elsewhere\""), "{text}");

    let management = server.management();
    management.put("users/outsider", &json!({"password": "secret", "tags": ""}));
    let credentials = Credentials::Plain { user: "outsider".into(), password: Secret::new("secret") };
    let text = refusal(Settings { credentials, ..settings(&vhost, Quorum) }).await;
    management.delete("users/outsider");
    assert!(text.contains("outsider") && text.contains(vhost.name()), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_users_passwords_and_virtual_hosts_of_any_characters() {
    let server = Server::shared();
    let management = server.management();
    let (user, password, vhost) = ("ü s/e@r", "p:ä%2f@ß#?", "a/b %2f ö");
    let (user_path, vhost_path) = ("%C3%BC%20s%2Fe%40r", "a%2Fb%20%252f%20%C3%B6");
    management.put(&format!("users/{user_path}"), &json!({"password": password, "tags": ""}));
    management.put(&format!("vhosts/{vhost_path}"), &json!({}));
    management.permit(user_path, vhost_path);
    let own = server.vhost().await;
    let credentials = Credentials::Plain { user: user.into(), password: Secret::new(password) };
    works(Settings { credentials, vhost: vhost.into(), ..settings(&own, Quorum) }).await;
    management.delete(&format!("vhosts/{vhost_path}"));
    management.delete(&format!("users/{user_path}"));
}

/// TLS to the server by this name, trusting this authority.
fn secured(vhost: &Vhost, host: &str, ca: PathBuf) -> Settings {
    Settings {
        hosts: vec![Host { name: host.into(), port: vhost.server().amqps().port() }],
        tls: Some(Tls { ca_file: Some(ca), ..Tls::default() }),
        ..settings(vhost, Quorum)
    }
}

/// The same with a client's certificate.
fn with_client(mut settings: Settings, server: &Server, name: &str) -> Settings {
    let tls = settings.tls.as_mut().expect("with TLS");
    tls.cert_file = Some(server.certificate(&format!("{name}.pem")));
    tls.key_file = Some(server.certificate(&format!("{name}.key")));
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls_by_name_and_by_address_with_and_without_a_certificate_of_its_own() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    for host in ["localhost", "127.0.0.1"] {
        let settings = secured(&vhost, host, server.certificate("ca.pem"));
        works(settings.clone()).await;
        works(with_client(settings, &server, "client")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_not_trust_an_authority_that_nobody_named() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let mut settings = secured(&vhost, "localhost", server.certificate("stranger-ca.pem"));
    let text = refusal(settings.clone()).await;
    assert!(text.contains("authority") && text.contains("ca_file"), "{text}");
    // The machine's own authorities do not know it either.
    settings.tls = Some(Tls::default());
    let text = refusal(settings.clone()).await;
    assert!(text.contains("authority"), "{text}");
    settings.tls = Some(Tls { skip_verify: true, ..Tls::default() });
    works(settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_not_take_the_certificate_of_another_name() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let ca = server.certificate("ca.pem");
    let mut named = secured(&vhost, "localhost", ca.clone());
    named.tls.as_mut().expect("with TLS").server_name = Some("elsewhere.example".into());
    let text = refusal(named).await;
    assert!(text.contains("another name") && text.contains("elsewhere.example"), "{text}");

    // Really at another address than its certificate says.
    let proxy = Proxy::start_on("127.0.0.2:0".parse().expect("an address"), server.amqps()).await;
    let mut settings = secured(&vhost, "127.0.0.2", ca);
    settings.hosts[0].port = proxy.address().port();
    let text = refusal(settings.clone()).await;
    assert!(text.contains("another name") && text.contains("127.0.0.2"), "{text}");
    settings.tls.as_mut().expect("with TLS").server_name = Some("localhost".into());
    works(settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_not_take_a_certificate_that_has_expired() {
    let server = Server::strict().await;
    let vhost = server.vhost().await;
    let text = refusal(secured(&vhost, "localhost", server.certificate("ca.pem"))).await;
    assert!(text.contains("expired"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_its_own_certificate_is_not_accepted() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let settings = secured(&vhost, "localhost", server.certificate("ca.pem"));
    let text = refusal(with_client(settings, &server, "stranger")).await;
    assert!(text.contains("client's certificate"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_in_by_its_certificate() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let by_certificate = with_client(secured(&vhost, "localhost", server.certificate("ca.pem")), &server, "client");
    let by_certificate = Settings { credentials: Credentials::External, ..by_certificate };
    let text = refusal(by_certificate.clone()).await;
    assert!(text.contains("certificate as a login"), "{text}");

    let management = server.management();
    management.put("users/test-client", &json!({"password_hash": "", "tags": ""}));
    management.permit("test-client", vhost.name());
    works(by_certificate).await;
    management.delete("users/test-client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_the_port_is_for_something_else() {
    let server = Server::shared();
    let vhost = server.vhost().await;
    let plain = settings(&vhost, Quorum);
    let at = |port: u16, settings: &Settings| {
        let mut settings = settings.clone();
        settings.hosts[0].port = port;
        settings
    };
    let secured = secured(&vhost, "localhost", server.certificate("ca.pem"));
    let plain_port = server.amqp().port();
    says(at(plain_port, &secured), "TLS").await;
    says(at(server.amqps().port(), &plain), "TLS").await;
    // Closed, too, as it is spoken to in a way that is no HTTP.
    says(at(plain_port + 2, &plain), "AMQP handshake").await;
}

/// A server that closes the connection without a word may be one that is stopping: then it goes on trying, and the health
/// says what may be wrong.
async fn says(settings: Settings, word: &str) {
    let asked = format!("{:?}", settings.hosts);
    let broker = match soon("an answer", RabbitMq::connect("rabbitmq", settings)).await {
        Ok(broker) => broker,
        Err(error) => return assert!(error.to_string().contains(word), "{error}"),
    };
    let broker: Arc<dyn Broker> = Arc::new(broker);
    let said = async || match broker.status() {
        BrokerStatus::Degraded { reason } => reason.contains(word).then_some(()),
        _ => None,
    };
    eventually(&format!("at {asked} it says {word}"), said).await;
    soon("the broker closes", broker.close()).await;
}

/// Hosts are tried in turn: one that is away is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_the_next_host_when_one_is_away() {
    let vhost = Server::shared().vhost().await;
    let mut settings = settings(&vhost, Quorum);
    let mut nobody = Proxy::start(vhost.server().amqp()).await;
    nobody.refuse().await;
    let away = Host { name: nobody.address().ip().to_string(), port: nobody.address().port() };
    settings.hosts.insert(0, away);
    works(settings).await;
}
