//! An engine from its start to its end, told what to do by files and signals.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use rustix::process::Signal;

use crate::sandbox::{ANY_PORT, Sandbox, eventually};

const ORDERS: &str =
    "routes:\n  - {name: orders, queue: orders, handler: echo, destinations: {out: 'queue:results'}}\n";

#[test]
fn ends_with_0_when_terminated_and_with_130_when_interrupted() {
    for (signal, code) in [(Signal::TERM, 0), (Signal::INT, 130)] {
        let sandbox = Sandbox::with_config(ANY_PORT);
        let engine = sandbox.serve();
        let mode = fs::metadata(sandbox.path(".helixmq/token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(fs::read_to_string(sandbox.path(".helixmq/address")).unwrap().starts_with("127.0.0.1:"));
        engine.signal(signal);
        assert_eq!(engine.end().code(), Some(code));
        assert!(!sandbox.path(".helixmq/address").exists());
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let sandbox = Sandbox::with_config(&format!(
        "{ANY_PORT}routes:\n  - {{name: orders, queue: orders, handler: spin, timeout_ms: 600000}}\nengine: {{shutdown_grace_ms: 600000}}\n"
    ));
    sandbox.plug("spin");
    let engine = sandbox.serve();
    sandbox.feed(&["publish", "--queue", "orders"], "{}\n").ended(0);
    is_out(&sandbox);
    let began = Instant::now();
    engine.signal(Signal::TERM);
    engine.says("draining");
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(1));
    assert!(began.elapsed().as_secs() < 30, "it waited for a call that does not end");
}

#[test]
fn a_drain_says_what_it_waits_for() {
    let sandbox = Sandbox::with_config(&format!(
        "{ANY_PORT}routes:\n  - {{name: orders, queue: orders, handler: spin, timeout_ms: 600000}}\nengine: {{shutdown_grace_ms: 2500}}\n"
    ));
    sandbox.plug("spin");
    let engine = sandbox.serve();
    sandbox.feed(&["publish", "--queue", "orders"], "{}\n").ended(0);
    is_out(&sandbox);
    engine.signal(Signal::TERM);
    engine.says("route orders: 1 in its handler");
    engine.says("what is running has not ended within the grace period of 2.5s");
    assert_eq!(engine.end().code(), Some(0));
}

#[test]
fn a_signal_ends_a_drain_that_a_reload_began_and_a_second_one_ends_all_of_it() {
    let config = |route: &str| {
        format!(
            "{ANY_PORT}routes:\n  - {{name: {route}, queue: orders, handler: spin, timeout_ms: 600000}}\nengine: {{shutdown_grace_ms: 600000}}\n"
        )
    };
    let sandbox = Sandbox::with_config(&config("orders"));
    sandbox.plug("spin");
    let engine = sandbox.serve();
    sandbox.feed(&["publish", "--queue", "orders"], "{}\n").ended(0);
    is_out(&sandbox);
    sandbox.write("configs/messaging.yaml", config("renamed"));
    engine.says("draining, for");
    engine.signal(Signal::TERM);
    engine.says("draining: nothing new is taken");
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(1));
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_signal_is_heard_while_the_engine_starts() {
    for (signal, code) in [(Signal::TERM, 0), (Signal::INT, 130)] {
        // It takes connections, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sandbox = Sandbox::with_config(&on_rabbitmq(&silent, "connect_timeout: 60s"));
        let engine = sandbox.begin();
        let (_connection, _) = silent.accept().unwrap();
        engine.signal(signal);
        assert_eq!(engine.end().code(), Some(code));
    }
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_required_system_that_is_away_keeps_the_engine_from_starting() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = on_rabbitmq(&nobody, "connect_timeout: 1s");
    drop(nobody);
    let sandbox = Sandbox::with_config(&format!("{config}messaging: {{require: [rabbitmq]}}\n"));
    let ran = sandbox.run(&["serve"]).ended(4);
    let said = ran.stderr.lines().last().unwrap();
    // With the cause, whichever of the connections was asked first.
    assert!(said.contains("cannot start without rabbitmq, which is away: RabbitMQ is away: "), "{said}");
    assert!(!said.contains("yet") && said.contains("nothing listens"), "{said}");
    sandbox.write("configs/messaging.yaml", config);
    let engine = sandbox.serve();
    engine.says("\"state\":\"away\"");
    engine.signal(Signal::TERM);
    assert_eq!(engine.end().code(), Some(0));
}

/// RabbitMQ is where that listens.
#[cfg(feature = "rabbitmq")]
fn on_rabbitmq(listener: &std::net::TcpListener, and: &str) -> String {
    let port = listener.local_addr().unwrap().port();
    format!("{ANY_PORT}rabbitmq: {{host: 127.0.0.1, port: {port}, username: a, password: b, {and}}}\n")
}

#[test]
fn systemd_is_told_how_the_engine_is_doing() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    let socket = std::os::unix::net::UnixDatagram::bind(sandbox.path("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut told = String::new();
    // Waits until that was told so often.
    let mut until = |wanted: &str, times: usize| {
        eventually(
            || {
                let mut buffer = [0; 4096];
                while let Ok(length) = socket.recv(&mut buffer) {
                    told.push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
                (told.lines().filter(|line| line.starts_with(wanted)).count() >= times).then_some(())
            },
            || format!("{wanted} was not told {times} times"),
        );
    };
    let socket_path = sandbox.path("notify").display().to_string();
    let engine = sandbox.begin_with(&[("NOTIFY_SOCKET", &socket_path), ("WATCHDOG_USEC", "100000")]);
    until("READY=1", 1);
    until("STATUS=ready, 0 routes", 1);
    until("WATCHDOG=1", 3);
    engine.signal(Signal::HUP);
    until("RELOADING=1", 1);
    until("MONOTONIC_USEC=", 1);
    until("READY=1", 2);
    engine.signal(Signal::TERM);
    until("STOPPING=1", 1);
    until("EXTEND_TIMEOUT_USEC=", 1);
    assert_eq!(engine.end().code(), Some(0));
}

#[test]
fn two_engines_do_not_share_a_data_directory() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    let engine = sandbox.serve();
    let second = sandbox.run(&["serve"]).ended(1);
    assert!(second.sentence().contains("another engine uses the data directory .helixmq"), "{}", second.stderr);
    assert!(sandbox.path(".helixmq/address").exists(), "the first one's is kept");
    drop(engine);
    // What was killed leaves nothing behind that keeps the next one from starting.
    let third = sandbox.serve();
    third.signal(Signal::TERM);
    assert_eq!(third.end().code(), Some(0));
}

#[test]
fn a_changed_configuration_is_applied_and_a_wrong_one_is_not() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    sandbox.plug("echo");
    let engine = sandbox.serve();
    let explained = || sandbox.run(&["route", "explain", "--queue", "orders", "--json"]);
    explained().ended(5);

    sandbox.write("configs/messaging.yaml", format!("{ANY_PORT}{ORDERS}"));
    engine.says("the configuration is in force");
    let answer = explained().ended(0).json();
    assert_eq!((answer["route"].as_str(), answer["engine"]["route"].as_str()), (Some("orders"), Some("orders")));
    assert_eq!(answer["handler"]["file_digest"], answer["engine"]["handler"]["digest"]);

    sandbox.write("configs/messaging.yaml", format!("{ANY_PORT}{ORDERS}bogus: 1\nother: 2\n"));
    engine.says("the configuration is refused");
    let log = engine.log();
    assert!(log.contains("bogus: unknown key") && log.contains("other: unknown key"), "{log}");
    let routes = metric(&sandbox, "helixmq_config_reloads_total");
    assert!(routes.contains("result=\"applied\"} 1") && routes.contains("result=\"refused\"} 1"), "{routes}");

    // A plugin's own file is configuration, too; it brings the wrong one's successor into force.
    sandbox.write("configs/messaging.yaml", ANY_PORT);
    sandbox.write("plugins-enabled/echo.toml", "[[routes]]\nname = \"own\"\nqueue = \"orders\"\n");
    eventually(|| (explained().json()["engine"]["route"] == "own").then_some(()), || engine.log());
}

/// Where the engine of a sandbox is reached.
fn address(sandbox: &Sandbox) -> String {
    format!("http://{}", fs::read_to_string(sandbox.path(".helixmq/address")).unwrap().trim())
}

/// What lies in queues and topics.
fn stats(sandbox: &Sandbox) -> serde_json::Value {
    let token = fs::read_to_string(sandbox.path(".helixmq/token")).unwrap();
    let asked = ureq::get(format!("{}/v1/messaging/stats", address(sandbox)))
        .header("authorization", format!("Bearer {}", token.trim()));
    asked.call().unwrap().into_body().read_json().unwrap()
}

/// Waits until the one message in `orders` is with its handler.
fn is_out(sandbox: &Sandbox) {
    let is_out = || {
        let stats = stats(sandbox);
        let orders = stats
            .get("queues")?
            .as_array()?
            .iter()
            .find(|queue| queue.get("name").is_some_and(|name| name == "orders"))?;
        (orders["unsettled"] == 1).then_some(())
    };
    eventually(is_out, || stats(sandbox).to_string());
}

/// Lines of a metric.
fn metric(sandbox: &Sandbox, name: &str) -> String {
    let text = ureq::get(format!("{}/metrics", address(sandbox))).call().unwrap().into_body().read_to_string().unwrap();
    text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n")
}
