//! `helixmq bench`: how fast it is here, with messages counted at the far end, and what that is worth against the same
//! work without a sandbox.

mod compare;
mod disk;
mod flow;
#[cfg(feature = "kafka")]
mod kafka;
mod ledger;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod reload;
mod shown;
mod spool;

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;

use super::Context;
use crate::{broker::Storage, handler::Isolation, route::Order};

pub use compare::Comparison;

/// Messages of a run that names neither a number nor a time.
const MESSAGES: u64 = 2_000_000;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A component that answers at once, on the embedded broker in memory.
    Noop,
    /// A component that reads and writes JSON and returns one result.
    Json,
    /// The same as `noop`, as a Rust function.
    NativeNoop,
    /// The same as `json`, as a Rust function.
    NativeJson,
    /// The same as `noop`, with the queue on disk.
    DiskNoop,
    /// The same as `json`, with both queues on disk.
    DiskJson,
    /// What the disk costs: the engine beside SQLite alone, latencies, a long backlog, and the size of the files.
    Disk,
    /// Opens what `disk` left, and drains it: a process of its own, so that its memory can be told.
    #[value(hide = true)]
    DiskOpen,
    /// How fast messages for a system that is away are kept on disk, and how fast they leave.
    Spool,
    /// The same as `spool`, with messages that leave for a topic of Kafka, beside what it takes straight from a publisher.
    #[cfg(feature = "kafka")]
    SpoolDrain,
    /// The same as `spool-drain`, with a quorum queue of RabbitMQ.
    #[cfg(feature = "rabbitmq")]
    SpoolDrainRabbitmq,
    /// From a plugin's file being closed to its serving, under load.
    Reload,
    /// The same as `noop`, on a quorum queue of RabbitMQ that was filled before.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq,
    /// The same work as `rabbitmq`, by a loop over the client library.
    #[cfg(feature = "rabbitmq")]
    RabbitmqNative,
    /// The same as `json`, between two quorum queues of RabbitMQ: each result is confirmed before its message is
    /// acknowledged.
    #[cfg(feature = "rabbitmq")]
    RabbitmqJson,
    /// The same work as `rabbitmq-json`, by a loop over the client library.
    #[cfg(feature = "rabbitmq")]
    RabbitmqJsonNative,
    /// The same as `noop`, on a topic of Kafka that was filled before.
    #[cfg(feature = "kafka")]
    Kafka,
    /// The same work as `kafka`, by a loop over the client library.
    #[cfg(feature = "kafka")]
    KafkaNative,
    /// The same as `json`, between two topics of Kafka: each result is confirmed before its message is settled.
    #[cfg(feature = "kafka")]
    KafkaJson,
    /// The same work as `kafka-json`, by a loop over the client library.
    #[cfg(feature = "kafka")]
    KafkaJsonNative,
    /// A handler that waits 5 ms, 100 at a time, on one partition with 100 keys, in the order of each key.
    #[cfg(feature = "kafka")]
    KafkaKey,
    /// The same as `kafka-key`, in the order of the partition.
    #[cfg(feature = "kafka")]
    KafkaPartition,
    /// The same as `kafka`, published evenly at `--rate` (10 000 a second unless told): how long each message takes from
    /// being published to being settled.
    #[cfg(feature = "kafka")]
    KafkaLatency,
    /// The same work as `kafka-latency`, by a loop over the client library.
    #[cfg(feature = "kafka")]
    KafkaLatencyNative,
    /// How long the engine, and beside it a loop over the client library, takes to go on when the server has come back.
    #[cfg(feature = "kafka")]
    KafkaRecovery,
    /// The same as `noop`, on a queue of Redis that was filled before.
    #[cfg(feature = "redis")]
    Redis,
    /// The same work as `redis`, by a loop over the client library.
    #[cfg(feature = "redis")]
    RedisNative,
    /// The same as `json`, between two queues of Redis: each result is confirmed before its message is settled.
    #[cfg(feature = "redis")]
    RedisJson,
    /// The same work as `redis-json`, by a loop over the client library.
    #[cfg(feature = "redis")]
    RedisJsonNative,
}

/// Options of `bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[arg(value_enum, required_unless_present = "compare")]
    scenario: Option<Scenario>,
    /// Alternate two scenarios and print the ratio of their rates, and of their messages for a second of CPU time.
    #[arg(long, num_args = 2, value_names = ["A", "B"], value_enum, conflicts_with = "scenario")]
    compare: Vec<Scenario>,
    /// How often each of the two runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// Messages to send, the first tenth to warm up.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    messages: Option<u64>,
    /// About how long to run instead; a short run first finds out how many messages that takes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600), conflicts_with = "messages")]
    seconds: Option<u64>,
    /// Bytes of a payload (json brings its own of about 300).
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    size: u32,
    /// The component to measure, instead of the one that was built for the scenario.
    #[arg(long)]
    handler: Option<PathBuf>,
    /// Lanes of the route: threads with an instance each. Default: the machine's cores.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: Option<u16>,
    /// Threads that publish. Default: 1, on disk 4, as each waits for the disk.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    publishers: Option<u16>,
    /// Where files of the benchmark are made, and removed. Default: the system's directory for temporary files, which
    /// may be kept in memory; on disk the current directory.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Messages of the backlog that `disk` opens and drains.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..=1_000_000_000))]
    backlog: u64,
    /// Messages a second to publish, to measure latency; 0: as many as go.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// How long an instance lives.
    #[arg(long, value_enum, default_value = "instance")]
    isolation: IsolationArg,
    #[cfg(feature = "rabbitmq")]
    #[command(flatten)]
    rabbitmq: rabbitmq::Options,
    #[cfg(feature = "kafka")]
    #[command(flatten)]
    kafka: kafka::Options,
    #[cfg(feature = "redis")]
    #[command(flatten)]
    redis: redis::Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IsolationArg {
    Message,
    Batch,
    Instance,
}

/// One run, decided.
#[derive(Clone, Debug)]
struct Plan {
    scenario: &'static str,
    work: flow::Work,
    native: bool,
    storage: Storage,
    directory: Option<PathBuf>,
    messages: u64,
    payload_bytes: usize,
    handler: Option<PathBuf>,
    lanes: usize,
    publishers: u16,
    rate: u64,
    isolation: Isolation,
    order: Order,
    /// The broker, where it is not the embedded one.
    #[cfg(feature = "rabbitmq")]
    rabbitmq: Option<std::sync::Arc<rabbitmq::Target>>,
    #[cfg(feature = "kafka")]
    kafka: Option<std::sync::Arc<kafka::Target>>,
    #[cfg(feature = "redis")]
    redis: Option<std::sync::Arc<redis::Target>>,
}

/// What a run showed. Source of the names: SPEC §12.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    messages: u64,
    seconds: f64,
    messages_per_second: f64,
    cpu_us_per_message: f64,
    latency_ms: Latency,
    lost: u64,
    duplicated: u64,
    payload_bytes: usize,
    workers: usize,
    isolation: &'static str,
    engine_version: &'static str,
    cores: usize,
    /// With a server: unacknowledged messages at most, and how they are acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefetch: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acks: Option<&'static str>,
}

/// Of publishing, until confirmed (`reload`: of a reload, until it serves; `kafka-latency`: until settled).
#[derive(Clone, Debug, Default, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

/// What `bench` prints.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Output {
    /// One scenario.
    One(Report),
    /// `reload`: twice.
    Reload(Vec<Report>),
    /// `disk`.
    Disk(Box<disk::DiskReport>),
    /// A part of `disk`.
    Drained(disk::Drained),
    /// `spool`, `spool-drain`.
    Spool(spool::SpoolReport),
    /// Two scenarios.
    Two(Comparison),
    /// `kafka-recovery`.
    #[cfg(feature = "kafka")]
    Recovery(kafka::Recovery),
}

/// Runs what the arguments ask for. Blocks until it is done.
///
/// # Errors
/// What was missing, or why a run did not end: a stall, a handler that does not load.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Output> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let handle = runtime.handle();
    let one = |scenario| one(args, scenario, context, handle);
    let output = match (args.compare.as_slice(), args.scenario) {
        ([a, b], _) => Output::Two(Comparison::run(args.pairs.into(), || one(*a), || one(*b))?),
        (_, Some(Scenario::Reload)) => {
            Output::Reload(reload::run(args.handler.clone().unwrap_or_else(|| built("bench_json")), handle)?)
        }
        (_, Some(Scenario::Spool)) => Output::Spool(spool::run(args, handle)?),
        #[cfg(feature = "kafka")]
        (_, Some(Scenario::SpoolDrain)) => Output::Spool(kafka::drain(args, context, handle)?),
        #[cfg(feature = "rabbitmq")]
        (_, Some(Scenario::SpoolDrainRabbitmq)) => Output::Spool(rabbitmq::drain(args, context, handle)?),
        (_, Some(Scenario::Disk)) => Output::Disk(Box::new(disk::run(args, handle)?)),
        (_, Some(Scenario::DiskOpen)) => Output::Drained(disk::drain(args, handle)?),
        #[cfg(feature = "kafka")]
        (_, Some(Scenario::KafkaRecovery)) => Output::Recovery(kafka::recover(args, context, handle)?),
        (_, Some(scenario)) => Output::One(one(scenario)?),
        _ => bail!("say which scenario to run"),
    };
    Ok(output)
}

fn one(args: &Args, scenario: Scenario, context: &Context, runtime: &tokio::runtime::Handle) -> anyhow::Result<Report> {
    let mut plan = plan(args, scenario)?;
    #[cfg(feature = "rabbitmq")]
    if let Some(by_hand) = by_hand(scenario) {
        let target = rabbitmq::Target::new(&args.rabbitmq, by_hand, plan.lanes, context, runtime)?;
        plan.messages = args.messages.unwrap_or(rabbitmq::MESSAGES);
        if by_hand {
            plan.lanes = 1;
        }
        plan.rabbitmq = Some(std::sync::Arc::new(target));
    }
    #[cfg(feature = "kafka")]
    if let Some(kind) = kafka::Kind::of(scenario) {
        kind.adjust(&mut plan, args);
        plan.kafka = Some(std::sync::Arc::new(kafka::Target::new(&args.kafka, kind, context)?));
    }
    #[cfg(feature = "redis")]
    if let Some(by_hand) = redis::by_hand(scenario) {
        let target = redis::Target::new(args, by_hand, &mut plan, context)?;
        plan.redis = Some(std::sync::Arc::new(target));
    }
    #[cfg(not(any(feature = "rabbitmq", feature = "kafka", feature = "redis")))]
    let _ = context;
    if let Some(seconds) = args.seconds {
        let trial = run_once(&Plan { messages: plan.messages / 10, ..plan.clone() }, runtime)?;
        plan.messages = ((trial.messages_per_second * seconds as f64) as u64).max(1000);
    }
    run_once(&plan, runtime)
}

/// Of a scenario on RabbitMQ, whether it is the loop over the client library.
#[cfg(feature = "rabbitmq")]
fn by_hand(scenario: Scenario) -> Option<bool> {
    match scenario {
        Scenario::Rabbitmq | Scenario::RabbitmqJson => Some(false),
        Scenario::RabbitmqNative | Scenario::RabbitmqJsonNative => Some(true),
        _ => None,
    }
}

fn run_once(plan: &Plan, runtime: &tokio::runtime::Handle) -> anyhow::Result<Report> {
    #[cfg(feature = "rabbitmq")]
    if let Some(target) = &plan.rabbitmq {
        return rabbitmq::run(plan, target, runtime);
    }
    #[cfg(feature = "kafka")]
    if let Some(target) = &plan.kafka {
        return kafka::run(plan, target, runtime);
    }
    #[cfg(feature = "redis")]
    if let Some(target) = &plan.redis {
        return redis::run(plan, target, runtime);
    }
    flow::run(plan, runtime)
}

fn plan(args: &Args, scenario: Scenario) -> anyhow::Result<Plan> {
    let (name, work, component) = match scenario {
        Scenario::Noop => ("noop", flow::Work::Noop, Some("bench_noop")),
        Scenario::Json => ("json", flow::Work::Json, Some("bench_json")),
        Scenario::NativeNoop => ("native-noop", flow::Work::Noop, None),
        Scenario::NativeJson => ("native-json", flow::Work::Json, None),
        Scenario::DiskNoop => ("disk-noop", flow::Work::Noop, Some("bench_noop")),
        Scenario::DiskJson => ("disk-json", flow::Work::Json, Some("bench_json")),
        #[cfg(feature = "rabbitmq")]
        Scenario::Rabbitmq => ("rabbitmq", flow::Work::Noop, Some("bench_noop")),
        #[cfg(feature = "rabbitmq")]
        Scenario::RabbitmqNative => ("rabbitmq-native", flow::Work::Noop, None),
        #[cfg(feature = "rabbitmq")]
        Scenario::RabbitmqJson => ("rabbitmq-json", flow::Work::Json, Some("bench_json")),
        #[cfg(feature = "rabbitmq")]
        Scenario::RabbitmqJsonNative => ("rabbitmq-json-native", flow::Work::Json, None),
        #[cfg(feature = "kafka")]
        Scenario::Kafka => ("kafka", flow::Work::Noop, Some("bench_noop")),
        #[cfg(feature = "kafka")]
        Scenario::KafkaNative => ("kafka-native", flow::Work::Noop, None),
        #[cfg(feature = "kafka")]
        Scenario::KafkaJson => ("kafka-json", flow::Work::Json, Some("bench_json")),
        #[cfg(feature = "kafka")]
        Scenario::KafkaJsonNative => ("kafka-json-native", flow::Work::Json, None),
        #[cfg(feature = "kafka")]
        Scenario::KafkaKey => ("kafka-key", flow::Work::Wait, None),
        #[cfg(feature = "kafka")]
        Scenario::KafkaPartition => ("kafka-partition", flow::Work::Wait, None),
        #[cfg(feature = "kafka")]
        Scenario::KafkaLatency => ("kafka-latency", flow::Work::Noop, Some("bench_noop")),
        #[cfg(feature = "kafka")]
        Scenario::KafkaLatencyNative => ("kafka-latency-native", flow::Work::Noop, None),
        #[cfg(feature = "kafka")]
        Scenario::KafkaRecovery => ("kafka-recovery", flow::Work::Noop, Some("bench_noop")),
        #[cfg(feature = "redis")]
        Scenario::Redis => ("redis", flow::Work::Noop, Some("bench_noop")),
        #[cfg(feature = "redis")]
        Scenario::RedisNative => ("redis-native", flow::Work::Noop, None),
        #[cfg(feature = "redis")]
        Scenario::RedisJson => ("redis-json", flow::Work::Json, Some("bench_json")),
        #[cfg(feature = "redis")]
        Scenario::RedisJsonNative => ("redis-json-native", flow::Work::Json, None),
        Scenario::Reload | Scenario::Disk | Scenario::DiskOpen | Scenario::Spool => {
            bail!("only scenarios with one rate can be compared")
        }
        #[cfg(feature = "kafka")]
        Scenario::SpoolDrain => bail!("only scenarios with one rate can be compared"),
        #[cfg(feature = "rabbitmq")]
        Scenario::SpoolDrainRabbitmq => bail!("only scenarios with one rate can be compared"),
    };
    let on_disk = matches!(scenario, Scenario::DiskNoop | Scenario::DiskJson);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Plan {
        scenario: name,
        work,
        native: component.is_none(),
        storage: if on_disk { Storage::Disk } else { Storage::Memory },
        directory: args.directory.clone().or_else(|| on_disk.then(|| PathBuf::from("."))),
        messages: args.messages.unwrap_or(if args.rate > 0 { args.rate * 10 } else { MESSAGES }),
        payload_bytes: args.size as usize,
        handler: args.handler.clone().or_else(|| component.map(built)),
        lanes: args.lanes.map_or(cores, usize::from),
        publishers: args.publishers.unwrap_or(if on_disk { 4 } else { 1 }),
        rate: args.rate,
        isolation: match args.isolation {
            IsolationArg::Message => Isolation::Message,
            IsolationArg::Batch => Isolation::Batch,
            IsolationArg::Instance => Isolation::Instance,
        },
        order: Order::None,
        #[cfg(feature = "rabbitmq")]
        rabbitmq: None,
        #[cfg(feature = "kafka")]
        kafka: None,
        #[cfg(feature = "redis")]
        redis: None,
    })
}

/// Where the build puts a plugin.
fn built(name: &str) -> PathBuf {
    PathBuf::from(format!("plugins/target/wasm32-wasip2/release/{name}.wasm"))
}

impl Report {
    fn new(
        plan: &Plan,
        counted: u64,
        elapsed: Duration,
        cpu: Duration,
        mut latencies: Vec<Duration>,
        lost: u64,
        duplicated: u64,
    ) -> Self {
        latencies.sort_unstable();
        #[cfg(feature = "rabbitmq")]
        let (prefetch, acks) = plan.rabbitmq.as_ref().map(|target| target.shown()).unzip();
        #[cfg(not(feature = "rabbitmq"))]
        let (prefetch, acks) = (None, None);
        let seconds = elapsed.as_secs_f64();
        Self {
            scenario: plan.scenario,
            messages: counted,
            seconds,
            messages_per_second: counted as f64 / seconds,
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / counted.max(1) as f64,
            latency_ms: Latency::of(&latencies),
            lost,
            duplicated,
            payload_bytes: if plan.work == flow::Work::Json {
                bench_work::sample(1_000_000).len()
            } else {
                plan.payload_bytes
            },
            workers: plan.lanes,
            isolation: flow::isolation_name(plan.isolation),
            engine_version: env!("CARGO_PKG_VERSION"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch,
            acks,
        }
    }

    fn line(&self) -> String {
        let server = match (self.prefetch, self.acks) {
            (Some(prefetch), Some(acks)) => format!(", prefetch {prefetch}, acknowledgements {acks}"),
            _ => String::new(),
        };
        format!(
            "{:<12} {:>10.0} msg/s  {:>6.2} us CPU/msg  publish p50 {:.3} p99 {:.3} max {:.3} ms  lost {} duplicated {}  ({} messages of {} bytes in {:.2} s, {} lanes, isolation {}, {} cores{server})",
            self.scenario,
            self.messages_per_second,
            self.cpu_us_per_message,
            self.latency_ms.p50,
            self.latency_ms.p99,
            self.latency_ms.max,
            self.lost,
            self.duplicated,
            self.messages,
            self.payload_bytes,
            self.seconds,
            self.workers,
            self.isolation,
            self.cores,
        )
    }
}

impl Latency {
    /// Of sorted times.
    fn of(sorted: &[Duration]) -> Self {
        let at = |share: f64| {
            let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
            sorted.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}
