//! Every way to connect, and every way to be turned away: by the server, or by us, because of its certificate. Each refusal
//! is a sentence that says what to do, without waiting.

use std::sync::Arc;

use helixmq::{
    broker::{
        Broker as _, BrokerError,
        redis::{Redis, Settings, Tls, durability},
    },
    message::{Address, Outcome, ReasonCode, Secret},
};
use redis::Value;

use crate::{
    raw::Raw,
    server::Server,
    site::{Site, WORK, host, settings},
    support::{degraded, eventually, ledger::send, ready, soon},
};

/// What docs/redis.md says that a user needs.
fn rights(prefix: &str) -> String {
    let page = std::fs::read_to_string("docs/redis.md").expect("docs/redis.md");
    let rules = page.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER helixmq "));
    let rules = rules.expect("docs/redis.md shows the rights of a user");
    assert!(rules.contains("~helixmq:*") && rules.contains(">SECRET"), "{rules}");
    rules.replace("helixmq:*", &format!("{prefix}*")).replace(">SECRET", ">hidden")
}

/// What connecting is refused with.
async fn refusal(settings: Settings) -> String {
    let refused = soon("an answer", Redis::connect("redis", settings)).await;
    let error = refused.map(|broker| format!("connected: {:?}", broker.status())).expect_err("it is refused");
    let codes = [ReasonCode::AuthenticationFailed, ReasonCode::ConnectionFailed];
    assert!(matches!(&error, BrokerError::Refused { code, .. } if codes.contains(code)), "{error:?}");
    let text = error.to_string();
    assert!(
        !text.contains("secret") && !text.contains("hidden") && !text.contains("wrong-one"),
        "a password in {text:?}"
    );
    text
}

/// Connects, makes queues, publishes, and is given back what it published; some of it later.
async fn works(server: &Server, settings: Settings) {
    let mut site = Site::new(server);
    site.settings = settings;
    let twice = |call: &helixmq::handler::Call<'_>| {
        if call.attempt == 1 {
            return Outcome::Retry { reason: "once more".into(), delay: None };
        }
        Outcome::Done(Vec::new())
    };
    let engine = site.engine(3, twice).await;
    let sent = send(&engine.broker, &Address::queue(WORK), 20).await;
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty());
    assert!(site.ids(WORK).await.is_empty(), "what was handled is gone");
}

fn as_user(settings: Settings, user: &str, password: &str) -> Settings {
    Settings { username: Some(user.into()), password: Some(Secret::new(password)), ..settings }
}

/// TLS, trusting this authority.
fn with_tls(settings: Settings, server: &Server, authority: &str) -> Settings {
    let tls = Tls { ca_file: Some(server.certificate(authority)), ..Tls::default() };
    Settings { hosts: vec![host(server.tls())], tls: Some(tls), ..settings }
}

/// The same with a client's certificate.
fn with_client(mut settings: Settings, server: &Server, name: &str) -> Settings {
    let tls = settings.tls.as_mut().expect("with TLS");
    tls.cert_file = Some(server.certificate(&format!("{name}.pem")));
    tls.key_file = Some(server.certificate(&format!("{name}.key")));
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_in_as_a_user_with_and_without_tls() {
    let server = Server::shared();
    works(&server, as_user(settings(&server), "test", "secret")).await;
    works(&server, as_user(with_tls(settings(&server), &server, "ca.pem"), "test", "secret")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls_by_name_and_by_address_with_and_without_a_certificate_of_its_own() {
    let server = Server::shared();
    let tls = with_tls(settings(&server), &server, "ca.pem");
    works(&server, tls.clone()).await;
    works(&server, with_client(tls.clone(), &server, "client")).await;
    let mut by_name = tls;
    by_name.hosts[0].name = "localhost".into();
    works(&server, by_name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_that_user_or_password_is_wrong() {
    let server = Server::own_with("requirepass secret").await;
    let base = settings(&server);
    for wrong in [
        as_user(base.clone(), "test", "wrong-one"),
        as_user(base.clone(), "nobody", "secret"),
        Settings { password: Some(Secret::new("wrong-one")), ..base.clone() },
    ] {
        let text = refusal(wrong).await;
        assert!(text.contains("password") || text.contains("user"), "{text}");
    }
    let text = refusal(base.clone()).await;
    assert!(text.contains("password"), "{text}");
    let right = Settings { password: Some(Secret::new("secret")), ..base };
    let broker = soon("a connection", Redis::connect("redis", right)).await.expect("it is let in");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_what_is_wrong_with_a_certificate() {
    let server = Server::own().await;
    let base = settings(&server);
    let text = refusal(with_tls(base.clone(), &server, "stranger-ca.pem")).await;
    assert!(text.contains("certificate") && text.contains("ca_file"), "{text}");
    let raw = Raw::connect(&server).await;
    let _: Value = raw.ask("CONFIG SET tls-auth-clients yes").await;
    // Servers say so when the handshake is over for us.
    let without = with_tls(base.clone(), &server, "ca.pem");
    for wrong in [without.clone(), with_client(without, &server, "stranger")] {
        let text = durability::ask(&wrong).await.expect_err("it is turned away");
        assert!(text.contains("alert"), "{text}");
    }
    works(&server, with_client(with_tls(base, &server, "ca.pem"), &server, "client")).await;
}

/// A user with the rights that docs/redis.md names, and no others, is enough for all that the engine does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_in_the_documentation_are_enough() {
    let server = Server::shared();
    let raw = Raw::connect(&server).await;
    let base = settings(&server);
    let name = base.key_prefix.trim_end_matches(':').to_owned();
    raw.user(&name, &rights(&base.key_prefix)).await;
    let limited = as_user(base.clone(), &name, "hidden");
    works(&server, limited.clone()).await;
    let mut site = Site::new(&server);
    site.settings = limited;
    let broker = site.broker_with_queues().await;
    let failed = broker.declare(&[site.queue("other")]).await;
    failed.expect("it may make queues");
    broker.close().await;
    // None of its keys is out of reach, and nobody else's is in it.
    let mut foreign = settings(&server);
    foreign.username = Some(name.clone());
    foreign.password = Some(Secret::new("hidden"));
    site.settings = foreign;
    let broker = site.broker().await;
    let refused = broker.declare(&[site.queue(WORK)]).await.expect_err("these keys are not its own");
    assert!(refused.to_string().contains("docs/redis.md"), "{refused}");
    soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_which_right_a_user_lacks() {
    let server = Server::shared();
    let raw = Raw::connect(&server).await;
    let base = settings(&server);
    let name = base.key_prefix.trim_end_matches(':').to_owned();
    raw.user(&name, "on >hidden ~* &* +ping +hello +auth +client +info +select").await;
    let refused = Redis::connect("redis", as_user(base, &name, "hidden")).await;
    let text = match refused {
        Err(error) => error.to_string(),
        Ok(broker) => {
            let broker: Arc<dyn helixmq::broker::Broker> = Arc::new(broker);
            let text = degraded(&broker).await;
            broker.close().await;
            text
        }
    };
    assert!(text.contains(&name) && text.contains("docs/redis.md"), "{text}");
}

/// The password changes while the engine runs, and every connection is ended: it says so, and goes on when it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_when_it_is_let_in_again() {
    let server = Server::own().await;
    let raw = Raw::connect(&server).await;
    let mut site = Site::new(&server);
    site.settings = as_user(site.settings, "test", "secret");
    let engine = site.handling().await;
    let mut sent = send(&engine.broker, &Address::queue(WORK), 10).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    raw.user("test", "resetpass >another").await;
    raw.end_all_others().await;
    let reason = async || Some(degraded(&engine.broker).await).filter(|reason| reason.contains("password"));
    eventually("it says that it is not let in", reason).await;
    raw.user("test", "resetpass >secret").await;
    ready(&engine.broker).await;
    sent.extend(send(&engine.broker, &Address::queue(WORK), 10).await);
    site.ends(engine, &sent).await;
}
