//! The tools themselves, and those of the command line that look at a server: what it has, what it may lose.

use std::{
    fs::{self, File},
    process::Command,
};

use helixmq::{
    broker::redis::{
        Settings, durability,
        topology::{State, at_server},
    },
    message::Address,
};
use redis::Value;
use tokio::net::TcpStream;

use crate::{
    raw::Raw,
    server::Server,
    site::{Site, settings},
    support::{eventually, host::Place, soon},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_kills_and_starts_again_a_server_of_its_own() {
    let server = Server::own_with("maxclients 100").await;
    let directory = server.directory().to_owned();
    let raw = Raw::connect(&server).await;
    let _: Value = raw.ask("XADD kept * payload there").await;
    server.kill().await;
    server.up().await;
    let raw = Raw::connect(&server).await;
    assert_eq!(raw.ask::<u64>("XLEN kept").await, 1);
    assert_eq!(raw.info("maxclients").await, "100");
    let address = server.plain();
    drop(server);
    assert!(!directory.exists());
    soon("nobody listens", TcpStream::connect(address)).await.unwrap_err();
}

/// What the server says of its append-only file is what the broker says of itself, from one connection to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_durable_where_the_server_keeps_what_it_confirms() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let broker = site.broker().await;
    let is_durable = || (broker.capabilities().durable, broker.systems()[0].is_durable);
    assert_eq!(is_durable(), (true, true));
    let raw = Raw::connect(&server).await;
    for (file, durable) in [("no", false), ("yes", true)] {
        let _: Value = raw.ask(&format!("CONFIG SET appendonly {file}")).await;
        raw.end_all_others().await;
        eventually("it is known", async || (is_durable() == (durable, durable)).then_some(())).await;
    }
    soon("the broker closes", broker.close()).await;
}

/// What is compared, by name.
async fn compared(settings: &Settings, makes: bool) -> Vec<(Address, State)> {
    let all = soon("an answer", at_server(settings, makes)).await.expect("compared");
    all.into_iter().map(|one| (one.address, one.state)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shows_what_is_missing_makes_it_and_says_what_differs() {
    let server = Server::shared();
    let mut settings = settings(&server);
    settings.queues.insert("a".into(), Default::default());
    settings.topics.insert("b".into(), Default::default());
    let (a, b) = (Address::queue("a"), Address::topic("b"));
    let of = |state: State| vec![(a.clone(), state.clone()), (b.clone(), state)];
    assert_eq!(compared(&settings, false).await, of(State::Missing));
    assert!(Raw::connect(&server).await.keys(&settings.key_prefix).await.is_empty(), "a look makes nothing");
    assert_eq!(compared(&settings, true).await, of(State::Made));
    assert_eq!(compared(&settings, true).await, of(State::Same));
    settings.queues.values_mut().for_each(|queue| queue.length_max = Some(7));
    let wanted = State::Differs(vec![["length_max", "7", "none"].map(str::to_owned)]);
    assert_eq!(compared(&settings, true).await, [(a, wanted), (b, State::Same)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_what_a_server_may_lose() {
    let server = Server::own().await;
    let (raw, settings) = (Raw::connect(&server).await, settings(&server));
    let asked = async || soon("an answer", durability::ask(&settings)).await.expect("asked");
    let said = asked().await;
    assert_eq!(said.kept, "appendonly yes, appendfsync always, noeviction");
    assert_eq!(said.worries, []);
    assert_eq!(said.version, raw.info("redis_version").await);
    for (change, words) in [
        ("CONFIG SET appendfsync everysec", "the last 2 s"),
        ("CONFIG SET maxmemory-policy allkeys-lru", "throws whole queues away"),
        ("CONFIG SET appendonly no", "keeps nothing on disk"),
    ] {
        let _: Value = raw.ask(change).await;
        let found: Vec<_> = asked().await.worries.into_iter().map(|(found, _)| found).collect();
        assert!(found.iter().any(|found| found.contains(words)), "{change}: {found:?}");
    }
    server.kill().await;
    let error = soon("an answer", durability::ask(&settings)).await.expect_err("it is away");
    assert!(error.contains("is it started?"), "{error}");
}

fn command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_helixmq"));
    command.args(["--config", "messaging.yaml"]).args(arguments).current_dir(place.path()).env_clear();
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

/// The same as people see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_and_topology_look_at_the_server() {
    let server = Server::shared();
    let (port, prefix) = (server.plain().port(), Server::prefix());
    let config = format!(
        "http: {{listen: '127.0.0.1:0'}}\nplugins: {{directory: plugins}}\nengine: {{data_directory: data}}\n\
         redis: {{host: 127.0.0.1, port: {port}, key_prefix: '{prefix}', standard_topology: false, topics: {{seen: {{}}}}}}\n"
    );
    let place = Place::new(&config, &[]);
    let run_in = |place: &Place, arguments: &[&str]| {
        let output = command(place, arguments).output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let run = |arguments: &[&str]| run_in(&place, arguments);
    let doctor = run(&["doctor"]).1;
    let address = format!("127.0.0.1:{port} answers");
    assert!(doctor.contains(&address) && doctor.contains("appendfsync is everysec"), "{doctor}");
    let state = |said: &(Option<i32>, String), name: &str| {
        let line = said.1.lines().find(|line| line.contains(name)).unwrap_or_default();
        (said.0, line.split_whitespace().nth(3).unwrap_or_default().to_owned())
    };
    assert_eq!(state(&run(&["topology", "plan"]), "seen"), (Some(1), "missing".to_owned()));
    assert_eq!(state(&run(&["topology", "apply"]), "seen"), (Some(0), "made".to_owned()));
    assert_eq!(state(&run(&["topology", "plan"]), "seen"), (Some(0), "same".to_owned()));
    // One of several, by its own name.
    let aside = format!(
        "connections: {{aside: {{kind: redis, host: 127.0.0.1, port: {port}, key_prefix: '{}', topics: {{apart: {{}}}}}}}}",
        Server::prefix()
    );
    let several = Place::new(&format!("{config}{aside}\n"), &[]);
    let run_there = |arguments: &[&str]| run_in(&several, arguments);
    let doctor = run_there(&["doctor"]).1;
    assert!(doctor.contains(&format!("redis: {address}")) && doctor.contains(&format!("aside: {address}")), "{doctor}");
    let plan = run_there(&["topology", "plan"]).1;
    let rows: Vec<Vec<&str>> = plan.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    assert!(rows.contains(&vec!["redis", "topic", "seen", "same"]), "{plan}");
    assert!(rows.contains(&vec!["aside", "topic", "apart", "missing"]), "{plan}");
    assert_eq!(state(&run_there(&["topology", "apply", "--system", "aside"]), "apart"), (Some(0), "made".to_owned()));
    // What is exported makes the same elsewhere.
    let commands = run(&["topology", "export"]).1;
    let raw = Raw::connect(&server).await;
    let elsewhere = Server::prefix();
    for line in commands.replace(&prefix, &elsewhere).lines() {
        let _: Value = raw.ask(&line.replace('"', "")).await;
    }
    let mut settings = settings(&server);
    settings.key_prefix = elsewhere;
    settings.topics.insert("seen".into(), Default::default());
    settings.lease = std::time::Duration::from_secs(30);
    assert_eq!(compared(&settings, false).await, [(Address::topic("seen"), State::Same)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_says_that_the_server_is_gone_and_goes_on_when_it_is_back() {
    let server = Server::own().await;
    let config = format!(
        "http: {{listen: '127.0.0.1:0'}}\nplugins: {{directory: plugins}}\nengine: {{data_directory: data}}\n\
         redis: {{host: 127.0.0.1, port: {}, reconnect_delay: 200ms, standard_topology: false, topics: {{seen: {{}}}}}}\n",
        server.plain().port()
    );
    let place = Place::new(&config, &[]);
    let host = place.start();
    fs::write(place.path().join("line"), "{}\n").expect("written");
    let publish = ["publish", "--topic", "seen", "--raw", "--file", "line"];
    // Also where the server is not there yet.
    let published = async || command(&place, &publish).output().expect("run").status.success().then_some(());
    place.eventually("it is published", published).await;
    let mut follow = command(&place, &["tail", "--topic", "seen", "--follow", "--from", "beginning"]);
    let file = |name: &str| File::create(place.path().join(name)).expect("a file");
    let mut following = follow.stdout(file("seen")).stderr(file("said")).spawn().expect("run");
    let lines = async |name: &str, count: usize| {
        let text = fs::read_to_string(place.path().join(name)).expect("read");
        (text.lines().count() >= count).then_some(text)
    };
    place.eventually("the first is seen", async || lines("seen", 1).await).await;
    server.kill().await;
    let said = place.eventually("it says that it is gone", async || lines("said", 1).await).await;
    assert!(said.contains("topic:seen cannot be read, going on once it can: "), "{said}");
    server.up().await;
    let said = place.eventually("it says that it is back", async || lines("said", 2).await).await;
    assert!(said.contains("topic:seen can be read again"), "{said}");
    place.eventually("it is published", published).await;
    place.eventually("the second is seen", async || lines("seen", 2).await).await;
    drop(host);
    let ended = following.wait().expect("ended");
    assert_eq!(ended.code(), Some(4), "it ends with the engine, and says so");
}
