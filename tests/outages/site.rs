//! An engine between systems, as its own binary. Tasks come from RabbitMQ and their results are events on Kafka; events come
//! from Kafka and their results are jobs on Redis; jobs come from Redis and their results are tasks on RabbitMQ. In: servers, configuration. Out: load, faults, and
//! a verdict on every message.
//!
//! Start at [`Site::start`], [`Site::suffers`] and [`Site::ends`].

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    future::Future,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep, timeout},
};

use crate::{
    far::Reader,
    load::{Load, Sent, Target},
    support::{
        api::{Api, TOKEN},
        host::{Host, Place},
        mnesia,
    },
    verdict::Verdict,
    yard::{Fault, Server, System, lasts},
};

/// How long a server, or the engine, may take to be well again, or to handle what waits.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// Most memory that an engine may ever have had. A build for tests; its own part is what it has when it does nothing.
const MEMORY_MAX: u64 = 512 << 20;

/// Messages that go from one system through a handler to another.
#[derive(Clone, Copy, Debug)]
struct Flow {
    name: &'static str,
    from: System,
    to: System,
}

const FLOWS: [Flow; 3] = [
    Flow { name: "tasks", from: System::RabbitMq, to: System::Kafka },
    Flow { name: "events", from: System::Kafka, to: System::Redis },
    Flow { name: "jobs", from: System::Redis, to: System::RabbitMq },
];

/// What is different from one scenario to the next.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What becomes of messages for a system that is away: `none`, `memory`, `spool`.
    pub(crate) fallback: &'static str,
    /// More of the section of every system.
    pub(crate) of_systems: String,
    /// More of every queue on RabbitMQ, and of `retry` of every route.
    pub(crate) of_queues: &'static str,
    pub(crate) of_retry: &'static str,
    /// More of the section `embedded.disk`.
    pub(crate) of_disk: String,
    pub(crate) payload_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fallback: "none",
            of_systems: String::new(),
            of_queues: "",
            of_retry: "",
            of_disk: String::new(),
            payload_bytes: 300,
        }
    }
}

impl Options {
    /// What a system does not take waits on disk.
    pub(crate) fn spool() -> Self {
        Self { fallback: "spool", ..Self::default() }
    }
}

/// An engine, and all that is around it.
#[derive(Debug)]
pub(crate) struct Site {
    name: String,
    servers: BTreeMap<System, Server>,
    options: Options,
    place: Place,
    host: Option<Host>,
    load: Option<Load>,
}

impl Site {
    /// Starts an engine with queues, topics and a group of its own, waits until messages go through it, and leaves the load
    /// on. `servers`: one of each system.
    pub(crate) async fn start(servers: Vec<Server>, options: Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outage-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let servers: BTreeMap<_, _> = servers.into_iter().map(|server| (server.system, server)).collect();
        let place = Place::new(&configuration(&name, &servers, &options), &["witness", "witness-event"]);
        let mut site = Self { name, servers, options, place, host: None, load: None };
        site.run_first().await;
        site.begin();
        site.goes_on().await;
        if site.servers[&System::RabbitMq].is_own() {
            let folder = site.servers[&System::RabbitMq].running().directory().join("data");
            for queue in site.queues() {
                mnesia::remembers(&folder, "/", &queue, true).await;
            }
        }
        site
    }

    /// Starts it for the first time, a few at a time: it costs more than all that follows. The first of all compiles the
    /// plugins, and the others have them from there.
    async fn run_first(&mut self) {
        static STARTS: Semaphore = Semaphore::const_new(3);
        static COMPILED: Mutex<bool> = Mutex::const_new(false);
        let _start = STARTS.acquire().await.expect("never closed");
        let (shared, own) = (Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled"), self.place.path().join("data"));
        let mut is_compiled = COMPILED.lock().await;
        copy(&shared, &own.join("compiled"));
        if *is_compiled {
            drop(is_compiled);
            self.run().await;
        } else {
            self.run().await;
            copy(&own.join("compiled"), &shared);
            *is_compiled = true;
        }
    }

    /// Starts the engine, again where it was killed.
    pub(crate) async fn run(&mut self) {
        self.host = Some(self.place.ready().await);
    }

    /// Kills the engine.
    pub(crate) fn kill(&mut self) {
        self.host = None;
    }

    /// Begins the load.
    fn begin(&mut self) {
        let path = |flow: &Flow| match flow.from {
            System::Kafka => format!("/v1/messaging/events/kafka:{}", self.source(flow)),
            other => format!("/v1/messaging/tasks/{}:{}", other.name(), self.source(flow)),
        };
        let payload_bytes = self.options.payload_bytes;
        let target = |flow: &Flow| Target { flow: flow.name.to_owned(), path: path(flow), payload_bytes };
        let address = self.place.path().join("data/address");
        self.load = Some(Load::start(FLOWS.iter().map(target).collect(), address));
    }

    /// Something befalls these systems for so long; then waits until all is well.
    pub(crate) async fn suffers(&mut self, fault: Fault, systems: &[System], seconds: u64) {
        self.begins(fault, systems).await;
        lasts(seconds).await;
        self.ends_fault(fault, systems).await;
        self.recovers().await;
    }

    pub(crate) async fn begins(&mut self, fault: Fault, systems: &[System]) {
        for system in systems {
            self.server(*system).begin(fault).await;
        }
    }

    pub(crate) async fn ends_fault(&mut self, fault: Fault, systems: &[System]) {
        for system in systems {
            self.server(*system).end(fault).await;
        }
    }

    /// Waits until health has no complaint, and messages are taken again.
    pub(crate) async fn recovers(&self) {
        self.until("all is well", async || (self.health().await?["status"] == "ok").then_some(())).await;
        self.goes_on().await;
    }

    /// Waits until more messages are confirmed, and handled in each flow, than there are now.
    async fn goes_on(&self) {
        let load = self.load.as_ref().expect("load");
        let now = load.confirmed();
        self.until("messages are taken", async || (load.confirmed() > now + 100).then_some(())).await;
        for flow in &FLOWS {
            let before = self.handled(flow).await.unwrap_or(0.0);
            let more = async || self.handled(flow).await.filter(|handled| *handled > before);
            self.until(&format!("{} are handled", flow.name), more).await;
        }
    }

    /// How many messages of a flow were handled, since the engine started.
    async fn handled(&self, flow: &Flow) -> Option<f64> {
        let metrics = self.ask(|api| api.text("/metrics")).await?;
        let of = format!("route=\"{}\"", flow.name);
        let is_it = |line: &&str| {
            line.starts_with("helixmq_handler_outcomes_total{") && line.contains(&of) && line.contains("\"done\"")
        };
        metrics.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until a publisher is refused something.
    pub(crate) async fn refuses(&self) {
        let load = self.load.as_ref().expect("load");
        self.until("a publisher is refused", async || (load.refused() > 0).then_some(())).await;
    }

    /// How many messages wait for a system.
    pub(crate) async fn spooled(&self, system: System) -> u64 {
        let said = async || self.system(system).await?["spool"]["messages"].as_u64();
        self.until("health says what waits", said).await
    }

    /// What `GET /health` says of a system; `None`: it says nothing.
    pub(crate) async fn system(&self, system: System) -> Option<Value> {
        let health = self.health().await?;
        health["brokers"].as_array()?.iter().find(|broker| broker["name"] == system.name()).cloned()
    }

    async fn health(&self) -> Option<Value> {
        self.ask(|api| api.get("/health")).await
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(Api) -> Option<T> + Send + 'static) -> Option<T> {
        let api = self.place.api()?;
        tokio::task::spawn_blocking(move || question(api)).await.expect("no panic")
    }

    /// Asks until there is an answer; where none comes, the engine's last words are shown.
    pub(crate) async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, ask: impl Fn() -> F) -> T {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        match timeout(RECOVERY_MAX, asking).await {
            Ok(answer) => answer,
            Err(_) => panic!("{} never: {what}; {:?}\n{}", self.name, self.health().await, self.place.log()),
        }
    }

    /// As [`Site::ends`], of systems that have a fallback: no publisher was refused anything.
    pub(crate) async fn ends_unnoticed(self) {
        let name = self.name.clone();
        let refused: Vec<_> = self.ends().await.into_values().flat_map(|sent| sent.refused).collect();
        assert!(refused.is_empty(), "{name}: publishers noticed: {refused:?}");
    }

    /// Ends the load and waits until everything is handled, stops the engine, and judges: nothing is wrong.
    pub(crate) async fn ends(self) -> BTreeMap<String, Sent> {
        let name = self.name.clone();
        let (sent, verdict, log) = self.judged(RECOVERY_MAX).await;
        assert!(verdict.is_right(), "{name}: {verdict}\n{log}");
        sent
    }

    /// The same, whatever the verdict is. `patience`: how long nothing of a flow may come. Also the engine's last words.
    pub(crate) async fn judged(mut self, patience: Duration) -> (BTreeMap<String, Sent>, Verdict, String) {
        let sent = self.load.take().expect("load").end().await;
        let mut verdict = Verdict::default();
        for flow in &FLOWS {
            let sent = &sent[flow.name];
            let mut reader = Reader::new(&self.servers[&flow.to], &self.done(flow)).await;
            let mut last = Instant::now();
            while last.elapsed() < patience && !verdict.has_all(flow.name, sent) {
                if let Some(payload) = reader.next().await {
                    verdict.arrives(flow.name, sent, &payload);
                    last = Instant::now();
                }
            }
        }
        for flow in &FLOWS {
            let mut reader = Reader::new(&self.servers[&flow.from], &self.dead(flow)).await;
            while let Some(payload) = reader.next().await {
                verdict.dies(flow.name, &payload);
            }
        }
        let host = self.host.take().expect("an engine");
        let memory = host.memory_max().expect("it runs");
        let ended = host.stop().await;
        let (name, log) = (&self.name, self.place.log());
        println!("{name}: {verdict}{} MiB at most; {sent:?}", memory >> 20);
        assert!(memory <= MEMORY_MAX, "{name}: {} MiB of memory", memory >> 20);
        assert!(ended.success(), "{name}: {ended}\n{log}");
        (sent, verdict, log)
    }

    fn server(&mut self, system: System) -> &mut Server {
        self.servers.get_mut(&system).expect("one of each")
    }

    fn source(&self, flow: &Flow) -> String {
        format!("{}.{}", self.name, flow.name)
    }

    fn done(&self, flow: &Flow) -> String {
        format!("{}.{}.done", self.name, flow.name)
    }

    fn dead(&self, flow: &Flow) -> String {
        format!("{}.{}.dead", self.name, flow.name)
    }

    /// Its queues on RabbitMQ.
    fn queues(&self) -> Vec<String> {
        names(&self.name, System::RabbitMq)
    }
}

/// Copies what is in a folder, if it is there.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).into_iter().flatten() {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// What is on a system, of an engine's own.
fn names(name: &str, system: System) -> Vec<String> {
    let mut names = Vec::new();
    for flow in &FLOWS {
        let of = format!("{name}.{}", flow.name);
        names.extend((flow.to == system).then(|| format!("{of}.done")));
        names.extend((flow.from == system).then(|| format!("{of}.dead")));
        names.extend((flow.from == system).then_some(of));
    }
    names
}

fn configuration(name: &str, servers: &BTreeMap<System, Server>, options: &Options) -> String {
    let Options { fallback, of_systems, of_queues, of_retry, of_disk, .. } = options;
    let all = |system: System, of: &str| {
        let names: Vec<_> = names(name, system).iter().map(|name| format!("{name}: {{{of}}}")).collect();
        names.join(", ")
    };
    let fallback = if *fallback == "none" { String::new() } else { format!("messaging: {{fallback: {fallback}}}\n") };
    let mut text = format!(
        "http: {{listen: '127.0.0.1:0', token: {TOKEN}}}\nplugins: {{directory: plugins}}\n\
         engine: {{data_directory: data}}\ntelemetry: {{filter: info, format: json}}\n{fallback}\
         embedded: {{standard_topology: false, disk: {{directory: store{of_disk}}}}}\n\
         rabbitmq:\n  host: 127.0.0.1\n  port: {rabbitmq}\n  username: guest\n  password: guest\n  \
         heartbeat: 2s\n  connect_timeout: 3s\n  publish_timeout: 3s\n  reconnect_delay: 500ms\n  \
         queues: {{{queues}}}\n{of_systems}\
         kafka:\n  brokers: ['{kafka}']\n  standard_topology: false\n  connect_timeout: 3s\n  publish_timeout: 3s\n  \
         reconnect_delay: 500ms\n  metadata_interval: 1s\n  topics: {{{topics}}}\n  extra: {{socket.timeout.ms: 3000}}\n\
         {of_systems}redis:\n  host: 127.0.0.1\n  port: {redis}\n  engine: {name}\n  standard_topology: false\n  \
         connect_timeout: 3s\n  publish_timeout: 3s\n  reconnect_delay: 500ms\n  lease_ms: 10000\n  \
         queues: {{{jobs}}}\n{of_systems}routes:\n",
        rabbitmq = servers[&System::RabbitMq].address().port(),
        kafka = servers[&System::Kafka].address(),
        redis = servers[&System::Redis].address().port(),
        queues = all(System::RabbitMq, &format!("type: quorum{of_queues}")),
        jobs = all(System::Redis, "priority_max: 0"),
        topics = all(System::Kafka, "partitions: 3, replication_factor: 1"),
    );
    for Flow { name: flow, from, to } in FLOWS {
        let of = format!("{name}.{flow}");
        let kind = |system| if system == System::Kafka { "topic" } else { "queue" };
        let handler =
            if from == System::Kafka { format!("witness-event, group: {name}") } else { "witness".to_owned() };
        writeln!(
            text,
            "  - {{name: {flow}, {}: '{}:{of}', handler: {handler}, order: key, concurrency: 4, \
             destinations: {{out: '{}:{}:{of}.done'}}, dead_letter: '{}:{}:{of}.dead', retry: {{delay_ms: 100{of_retry}}}}}",
            kind(from),
            from.name(),
            to.name(),
            kind(to),
            from.name(),
            kind(from),
        )
        .expect("text");
    }
    text
}
