//! One run: publishers in this process, the embedded broker, a route, a handler, and the far end counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};

use super::{
    Plan, Report,
    ledger::{Counting, Ledger, number, numbered},
};
use crate::{
    broker::{
        Aside, BatchMax, Broker, QueueSettings, Start, Storage, Subscribe, TopicSettings,
        embedded::{self, DiskSettings, Embedded},
    },
    handler::{Handler, Isolation, Limits, Loading, Terms, native::Native},
    hub::{Hub, Settings},
    message::{Address, Headers, Message, MessageId, Outbound, Outcome, Settlement, now_ms},
    route::{CrashBudget, Delivery, Match, OutageBrake, Route, RouteTable, Source, Watchdog},
    settle::RetryPolicy,
};

/// Messages published at a time where speed is what is measured.
const PUBLISH_BATCH: u64 = 256;
/// Messages published and not yet counted, at most: what a healthy system has under way.
const WINDOW: u64 = 16 * 1024;
/// The same on disk: what one commit may take of it, several times.
const WINDOW_DISK: u64 = 16 * 1024;
/// Part of the messages that warms up and is not counted.
const WARM_UP: u64 = 10;
const STALLED: Duration = Duration::from_secs(20);

/// What the handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Noop,
    Json,
    /// It waits, as for an answer from elsewhere.
    #[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "only scenarios on Kafka wait"))]
    Wait,
}

/// How long [`Work::Wait`] waits.
pub(super) const WAIT: Duration = Duration::from_millis(5);

/// An engine that runs a plan, with the far end counted.
pub(super) struct Bench {
    pub(super) hub: Hub,
    pub(super) ledger: Arc<Ledger>,
    /// The plugin's file, where the plan has one.
    pub(super) plugin: std::path::PathBuf,
    inner: Arc<dyn Broker>,
    source: Address,
    runtime: tokio::runtime::Handle,
    stop: Arc<AtomicBool>,
    collector: Option<thread::JoinHandle<()>>,
    /// Removed when the engine has stopped.
    _directory: tempfile::TempDir,
}

/// Where messages come from and go to, and which of them count.
pub(super) struct Flow {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) source: Address,
    pub(super) results: Address,
    pub(super) counted: Counted,
    pub(super) ledger: Arc<Ledger>,
}

/// What counts a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// Its broker was told that it is done.
    Accepted,
    /// Its result was read at the far end.
    Answered,
}

/// What the clock showed between the warm-up and the last message.
pub(super) struct Clocked {
    pub(super) counted: u64,
    pub(super) elapsed: Duration,
    /// Of the whole process.
    pub(super) cpu: Duration,
}

/// Runs a plan once.
pub(super) fn run(plan: &Plan, runtime: &tokio::runtime::Handle) -> anyhow::Result<Report> {
    let bench = Bench::start(plan, runtime)?;
    let report = measure(plan, &bench);
    bench.stop();
    report
}

impl Bench {
    /// On the embedded broker.
    pub(super) fn start(plan: &Plan, runtime: &tokio::runtime::Handle) -> anyhow::Result<Self> {
        let directory = directory(plan)?;
        let flow = Flow {
            broker: Arc::new(broker(plan.storage, &directory.path().join("store"))?),
            source: Address::queue("bench.work"),
            results: Address::queue("bench.results"),
            counted: match plan.work {
                Work::Noop | Work::Wait => Counted::Accepted,
                Work::Json => Counted::Answered,
            },
            ledger: Arc::new(Ledger::new(plan.messages)),
        };
        Self::start_in(plan, flow, directory, runtime)
    }

    /// On a broker that is there.
    #[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
    pub(super) fn start_on(plan: &Plan, flow: Flow, runtime: &tokio::runtime::Handle) -> anyhow::Result<Self> {
        Self::start_in(plan, flow, directory(plan)?, runtime)
    }

    fn start_in(
        plan: &Plan,
        flow: Flow,
        directory: tempfile::TempDir,
        runtime: &tokio::runtime::Handle,
    ) -> anyhow::Result<Self> {
        let Flow { broker: inner, source, results, counted, ledger } = flow;
        let broker: Arc<dyn Broker> = match counted {
            Counted::Accepted => {
                Arc::new(Counting { inner: Arc::clone(&inner), of: source.clone(), ledger: Arc::clone(&ledger) })
            }
            Counted::Answered => Arc::clone(&inner),
        };
        let (handler, natives) = handler(plan, directory.path())?;
        let settings = settings(plan, directory.path(), &source, &results, &handler)?;
        let hub = runtime.block_on(async {
            let hub = Hub::start(Arc::clone(&broker), settings, natives, std::env::current_exe()?).await?;
            hub.ready().await;
            anyhow::Ok(hub)
        })?;
        let slot = hub.registry().slot(&handler);
        if slot.serving().is_none() {
            bail!("{handler} does not serve: {:?}", slot.receipts().last().map(|receipt| &receipt.result));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let collector =
            (counted == Counted::Answered).then(|| collect(&inner, &results, &ledger, &stop, runtime)).transpose()?;
        let plugin = directory.path().join("plugins/bench.wasm");
        Ok(Self {
            hub,
            ledger,
            plugin,
            inner,
            source,
            runtime: runtime.clone(),
            stop,
            collector,
            _directory: directory,
        })
    }

    fn publisher(&self, plan: &Plan) -> Publisher {
        Publisher {
            plan: plan.clone(),
            broker: Arc::clone(&self.inner),
            source: self.source.clone(),
            ledger: Arc::clone(&self.ledger),
            next: Arc::new(AtomicU64::new(0)),
            runtime: self.runtime.clone(),
        }
    }

    /// Publishes at the plan's rate until told to stop; how many were published.
    pub(super) fn flow(
        &self,
        plan: &Plan,
        stop: &Arc<AtomicBool>,
    ) -> anyhow::Result<thread::JoinHandle<anyhow::Result<u64>>> {
        let (publisher, stop) = (self.publisher(plan), Arc::clone(stop));
        let body = move || {
            publisher.run_until(&stop)?;
            Ok(publisher.next.load(Ordering::Relaxed))
        };
        Ok(thread::Builder::new().name("bench-publisher".into()).spawn(body)?)
    }

    pub(super) fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(collector) = self.collector.take() {
            // A collector that panicked has shown as lost messages.
            collector.join().ok();
        }
        self.runtime.block_on(self.hub.stop());
    }
}

/// Where the files of a run are.
fn directory(plan: &Plan) -> anyhow::Result<tempfile::TempDir> {
    let directory = match &plan.directory {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    directory.context("no temporary directory")
}

/// An embedded broker that makes what is used, kept in memory or in a directory.
pub(super) fn broker(storage: Storage, directory: &std::path::Path) -> anyhow::Result<Embedded> {
    let settings = embedded::Settings {
        auto_create: true,
        queue: QueueSettings { storage, ..QueueSettings::default() },
        topic: TopicSettings { storage, ..TopicSettings::default() },
        disk: (storage == Storage::Disk).then(|| DiskSettings::new(directory)),
        ..embedded::Settings::default()
    };
    Ok(Embedded::new("embedded", settings)?)
}

/// The handler's name, and the Rust functions to run beside plugins.
type Named = (String, Vec<(String, Arc<dyn Handler>)>);

fn handler(plan: &Plan, directory: &std::path::Path) -> anyhow::Result<Named> {
    if plan.native {
        let handler: Arc<dyn Handler> = match plan.work {
            Work::Noop => Native::new("native", |_| Outcome::Done(Vec::new())),
            Work::Json => Native::new("native", native_json),
            Work::Wait => Native::new("native", |_| {
                thread::sleep(WAIT);
                Outcome::Done(Vec::new())
            }),
        };
        return Ok(("native".to_owned(), vec![("native".to_owned(), handler)]));
    }
    let file = plan.handler.as_ref().context("no handler file")?;
    let plugins = directory.join("plugins");
    std::fs::create_dir_all(&plugins)?;
    std::fs::copy(file, plugins.join("bench.wasm")).with_context(|| {
        format!(
            "{} cannot be read; build it with `cargo xtask plugins`, or name another with --handler",
            file.display()
        )
    })?;
    Ok(("bench".to_owned(), Vec::new()))
}

/// What the component `bench-json` does, as a Rust function.
fn native_json(call: &crate::handler::Call<'_>) -> Outcome {
    match bench_work::price_order(&call.message.payload) {
        Ok(payload) => {
            let mut message = Message::new("order.priced", payload, call.message.timestamp);
            message.id = call.message.id.derive("bench", 0);
            message.content_type = Some("application/json".into());
            message.correlation_id = Some(call.message.id.to_string().into());
            Outcome::Done(vec![Outbound { destination: "results".into(), message }])
        }
        Err(error) => Outcome::Reject { reason: error.to_string(), code: None },
    }
}

fn settings(
    plan: &Plan,
    directory: &std::path::Path,
    source: &Address,
    results: &Address,
    handler: &str,
) -> anyhow::Result<Settings> {
    let terms = Terms {
        route: "bench".into(),
        isolation: plan.isolation,
        limits: Limits::default(),
        destinations: [("results".into(), results.clone())].into_iter().collect(),
        may_reply: false,
    };
    let route = Route {
        name: "bench".into(),
        source: Source {
            address: source.clone(),
            group: "bench".into(),
            start: Start::Earliest,
            aside: Aside::default(),
        },
        matches: Match::default(),
        handler: handler.into(),
        order: plan.order,
        delivery: Delivery::default(),
        concurrency: plan.lanes,
        terms: Arc::new(terms),
        retry: RetryPolicy::default(),
        dead_letter: Address::queue("bench.dead"),
        crash_budget: CrashBudget::default(),
        outage: OutageBrake::default(),
    };
    let routes = RouteTable::new(vec![route]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    Ok(Settings {
        plugins_directory: directory.join("plugins"),
        plugins: std::collections::BTreeMap::new(),
        loading: Loading::default(),
        cache_directory: directory.join("cache"),
        declarations: Vec::new(),
        routes,
        dead_letter: Address::queue("bench.dead"),
        grace: Duration::from_secs(5),
        memory_budget: crate::config::Config::default().memory_budget,
        watchdog: Watchdog::default(),
    })
}

/// Reads the results at the far end and notes which messages they answer.
fn collect(
    broker: &Arc<dyn Broker>,
    results: &Address,
    ledger: &Arc<Ledger>,
    stop: &Arc<AtomicBool>,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<thread::JoinHandle<()>> {
    let request = Subscribe {
        from: results.clone(),
        group: "far-end".into(),
        start: Start::Earliest,
        prefetch: 4096,
        workers: 1,
        aside: Default::default(),
    };
    let mut subscription = runtime.block_on(broker.subscribe(request))?;
    let (ledger, stop, runtime) = (Arc::clone(ledger), Arc::clone(stop), runtime.clone());
    let body = move || {
        let max = BatchMax { count: 256, bytes: usize::MAX };
        while !stop.load(Ordering::Relaxed) {
            let next = runtime
                .block_on(async { tokio::time::timeout(Duration::from_millis(100), subscription.next(max)).await });
            let Ok(Ok(Some(batch))) = next else { continue };
            ledger.note(
                batch
                    .as_slice()
                    .iter()
                    .filter_map(|delivery| number(&MessageId::parse(delivery.message.correlation_id.as_deref()?))),
            );
            let accepted = batch.as_slice().iter().map(|_| Settlement::Accept).collect();
            runtime.block_on(batch.settle(accepted)).ok();
        }
    };
    Ok(thread::Builder::new().name("bench-far-end".into()).spawn(body)?)
}

fn measure(plan: &Plan, bench: &Bench) -> anyhow::Result<Report> {
    let ledger = &bench.ledger;
    let publisher = Arc::new(bench.publisher(plan));
    let never = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..plan.publishers.max(1))
        .map(|_| {
            let (publisher, never) = (Arc::clone(&publisher), Arc::clone(&never));
            thread::Builder::new().name("bench-publisher".into()).spawn(move || publisher.run_until(&never))
        })
        .collect::<Result<_, _>>()?;
    let Clocked { counted, elapsed, cpu } = clock(ledger, plan, &|| Ok(()))?;
    let mut latencies = Vec::new();
    for publisher in publishers {
        match publisher.join() {
            Ok(waits) => latencies.extend(waits?),
            Err(_) => bail!("a publisher panicked"),
        }
    }
    Ok(Report::new(plan, counted, elapsed, cpu, latencies, plan.messages - ledger.distinct(), ledger.doubled()))
}

/// Waits for all messages, and measures from the end of the warm-up. `goes_on` says whether it makes sense to wait.
pub(super) fn clock(ledger: &Ledger, plan: &Plan, goes_on: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<Clocked> {
    wait_for(ledger, plan.messages / WARM_UP, plan, goes_on)?;
    let (from, cpu_from) = (Instant::now(), cpu_time());
    let counted_from = ledger.distinct();
    wait_for(ledger, plan.messages, plan, goes_on)?;
    let (elapsed, cpu) = (from.elapsed(), cpu_time().saturating_sub(cpu_from));
    Ok(Clocked { counted: ledger.distinct() - counted_from, elapsed, cpu })
}

fn wait_for(ledger: &Ledger, wanted: u64, plan: &Plan, goes_on: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let distinct = ledger.distinct();
        if distinct >= wanted {
            return Ok(());
        }
        goes_on()?;
        if distinct != last {
            (last, since) = (distinct, Instant::now());
        } else if since.elapsed() > STALLED {
            bail!("nothing came out for {STALLED:?}: {distinct} of {} messages were counted", plan.messages);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// CPU time of the whole process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

struct Publisher {
    plan: Plan,
    broker: Arc<dyn Broker>,
    source: Address,
    ledger: Arc<Ledger>,
    next: Arc<AtomicU64>,
    runtime: tokio::runtime::Handle,
}

impl Publisher {
    /// Publishes until all are out or it is told to stop; the time each publish took until it was confirmed.
    fn run_until(&self, stop: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
        let batch = if self.plan.rate > 0 { (self.plan.rate / 10_000).max(1) } else { PUBLISH_BATCH };
        let began = Instant::now();
        let mut waits = Vec::new();
        let mut published = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(waits);
            }
            let first = self.next.fetch_add(batch, Ordering::Relaxed);
            if first >= self.plan.messages {
                return Ok(waits);
            }
            let last = (first + batch).min(self.plan.messages);
            if self.plan.rate > 0 {
                let share = self.plan.rate as f64 / self.plan.publishers.max(1) as f64;
                pace(began + Duration::from_secs_f64(published as f64 / share));
            }
            let (window, pause) = match self.plan.storage {
                Storage::Memory => (WINDOW, Duration::from_micros(100)),
                // Many wait here, and looking costs.
                Storage::Disk => (WINDOW_DISK, Duration::from_millis(1)),
            };
            while first.saturating_sub(self.ledger.distinct()) > window {
                thread::sleep(pause);
            }
            let now = now_ms();
            let messages = (first..last).map(|number| Arc::new(self.message(number, now))).collect();
            let from = Instant::now();
            self.runtime.block_on(self.broker.publish(&self.source, messages))?;
            waits.push(from.elapsed());
            published += last - first;
        }
    }

    fn message(&self, number: u64, now: u64) -> Message {
        message(
            number,
            now,
            match self.plan.work {
                Work::Json => Bytes::from(bench_work::sample(number)),
                Work::Noop | Work::Wait => Bytes::from(vec![b'x'; self.plan.payload_bytes]),
            },
        )
    }
}

/// What is published: four headers, and an id that says its number.
pub(super) fn message(number: u64, now: u64, payload: Bytes) -> Message {
    let mut headers = Headers::with_capacity(128);
    headers.append("tenant", "acme-europe");
    headers.append("region", "eu-central-1");
    headers.append("schema", "order/7");
    headers.append("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let mut message = Message::new("order.created", payload, now);
    message.id = numbered(number);
    message.headers = headers;
    message
}

fn pace(until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

/// Isolation as the report shows it.
pub(super) fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Message => "message",
        Isolation::Batch => "batch",
        Isolation::Instance => "instance",
    }
}
