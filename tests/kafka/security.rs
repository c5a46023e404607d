//! Every way to connect, and every way to be turned away: by the server, or by us, because of its certificate. Each refusal
//! is a sentence that says what to do, without waiting.

use std::{collections::BTreeSet, sync::Arc};

use helixmq::{
    broker::{
        Broker as _, BrokerError,
        kafka::{
            Kafka, Settings,
            settings::{Mechanism, Sasl, Tls},
        },
    },
    message::{Address, ReasonCode, Secret},
};

use crate::{
    raw::Raw,
    server::{Listener, Server},
    site::{Site, settings, topic},
    support::{ledger::send, soon},
};

const MECHANISMS: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];

/// What connecting is refused with.
async fn refusal(settings: Settings) -> String {
    let refused = soon("an answer", Kafka::connect("kafka", settings)).await;
    let error = refused.map(|broker| format!("connected: {:?}", broker.status())).expect_err("it is refused");
    assert!(matches!(error, BrokerError::Refused { code: ReasonCode::AuthenticationFailed, .. }), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains("secret") && !text.contains("wrong"), "a password in {text:?}");
    text
}

/// Connects, makes a topic, publishes, and is given back what it published, by a group.
async fn works(server: &Server, settings: Settings) {
    let mut site = Site::new(server).await;
    site.settings = settings;
    let engine = site.handling().await;
    let sent = send(&engine.broker, &site.work, 20).await;
    let account = site.ends(engine, &sent).await;
    assert_eq!((account.published_twice, account.called_again), (0, 0));
    assert_eq!(site.raw().ids(&site.work.name).await, (sent, 20));
}

fn with_sasl(settings: Settings, mechanism: Mechanism, user: &str, password: &str) -> Settings {
    let sasl = Sasl { mechanism, user: user.into(), password: Secret::new(password) };
    Settings { sasl: Some(sasl), ..settings }
}

/// TLS, trusting this authority.
fn with_tls(settings: Settings, server: &Server, authority: &str) -> Settings {
    let tls = Tls { ca_file: Some(server.certificate(authority)), ..Tls::default() };
    Settings { tls: Some(tls), ..settings }
}

/// The same with a client's certificate.
fn with_client(mut settings: Settings, server: &Server, name: &str) -> Settings {
    let tls = settings.tls.as_mut().expect("with TLS");
    tls.cert_file = Some(server.certificate(&format!("{name}.pem")));
    tls.key_file = Some(server.certificate(&format!("{name}.key")));
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_in_by_each_mechanism_with_and_without_tls() {
    let server = Server::shared();
    for mechanism in MECHANISMS {
        works(&server, with_sasl(settings(&server, Listener::Sasl), mechanism, "test", "secret")).await;
        let both = with_sasl(settings(&server, Listener::SaslTls), mechanism, "test", "secret");
        works(&server, with_tls(both, &server, "ca.pem")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls_by_name_and_by_address_with_and_without_a_certificate_of_its_own() {
    let server = Server::shared();
    let tls = with_tls(settings(&server, Listener::Tls), &server, "ca.pem");
    works(&server, tls.clone()).await;
    works(&server, with_client(tls.clone(), &server, "client")).await;
    let by_name = vec![format!("localhost:{}", server.address(Listener::Tls).port())];
    works(&server, Settings { brokers: by_name, ..tls }).await;
    let mutual = with_tls(settings(&server, Listener::Mutual), &server, "ca.pem");
    works(&server, with_client(mutual, &server, "client")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_user_or_password_is_wrong() {
    let server = Server::shared();
    for mechanism in MECHANISMS {
        for (user, password) in [("test", "wrong"), ("nobody", "wrong")] {
            let refused = with_sasl(settings(&server, Listener::Sasl), mechanism, user, password);
            let text = refusal(refused).await;
            assert!(text.contains("user or password") && text.contains("kafka.sasl"), "{mechanism:?} {user}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_not_trust_an_authority_that_nobody_named() {
    let server = Server::shared();
    let mut settings = with_tls(settings(&server, Listener::Tls), &server, "stranger-ca.pem");
    let text = refusal(settings.clone()).await;
    assert!(text.contains("authority") && text.contains("kafka.tls"), "{text}");
    // The machine's own authorities do not know it either.
    settings.tls = Some(Tls::default());
    let text = refusal(settings.clone()).await;
    assert!(text.contains("authority"), "{text}");
    settings.tls = Some(Tls { skip_verify: true, ..Tls::default() });
    works(&server, settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_its_own_certificate_is_missing_or_not_accepted() {
    let server = Server::shared();
    let settings = with_tls(settings(&server, Listener::Mutual), &server, "ca.pem");
    for settings in [settings.clone(), with_client(settings, &server, "stranger")] {
        let text = refusal(settings).await;
        assert!(text.contains("certificate") && text.contains("kafka.tls"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_not_take_a_certificate_that_has_expired() {
    let server = Server::own_with("ssl.keystore.location={certs}/expired-bundle.pem").await;
    let text = refusal(with_tls(settings(&server, Listener::Tls), &server, "ca.pem")).await;
    assert!(text.contains("certificate"), "{text}");
}

/// A user that the server knows, and lets do nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_a_user_may_not_use_a_topic() {
    let lines = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 super.users=User:ANONYMOUS";
    let server = Server::own_with(lines).await;
    let there = Address::topic(server.name("there"));
    Raw::new(&server).topic(&there.name, 1).await;
    let outsider = with_sasl(settings(&server, Listener::Sasl), Mechanism::ScramSha512, "test", "secret");
    let broker = soon("a connection", Kafka::connect("kafka", outsider)).await.expect("it is let in");
    let declared = broker.declare(&[topic(&Address::topic("other"), 1)]).await.expect_err("it may not");
    let message = Arc::new(crate::support::ledger::message(1));
    let failures = broker.publish(&there, vec![message]).await.expect_err("it may not").0;
    soon("the broker closes", broker.close()).await;
    let said: BTreeSet<_> = failures.iter().map(|(_, error)| error.to_string()).chain([declared.to_string()]).collect();
    assert!(said.iter().all(|text| text.contains("may not") && text.contains("give it the right")), "{said:?}");
    assert_eq!(Raw::new(&server).ids(&there.name).await.1, 0);
}
