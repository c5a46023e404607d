//! `bench kafka` and its like: a topic of Kafka that was filled before the clock starts, read by the engine or by a loop that
//! one would write by hand, and counted.
//!
//! A message counts when it is settled, by hand when its offset is stored. Where there are results, it is asked afterwards
//! which messages they answer. What is published while it is read, for its latency: [`pace`]. With a server that goes and
//! comes back: [`recovery`]. Start at [`run`].

mod pace;
mod recovery;
mod spool;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    Args, Plan, Report, Scenario,
    flow::{self, Bench, Clocked, Counted as Counts, Flow, Work},
    ledger::{Ledger, number},
};
use crate::{
    broker::{
        BatchMax, Broker, BrokerError, Counted, Declaration, Joined, Start, Subscribe, TopicSettings,
        embedded::{self, Embedded},
        kafka::{
            Kafka, Settings,
            baseline::{self, ByHand, Handled},
        },
    },
    cli::{Context, Exit, Failure},
    config,
    message::{Address, Message, MessageId, now_ms},
    route::Order,
    store::{self, Store},
};

pub(super) use recovery::{Recovery, run as recover};
pub(super) use spool::drain;

/// Messages of a run that names neither a number nor a time.
const MESSAGES: u64 = 500_000;
/// The same where the handler waits: some seconds' work in the order of a key, and of a partition.
const MESSAGES_KEY: u64 = 40_000;
const MESSAGES_PARTITION: u64 = 2_000;
/// Keys, and lanes, of those.
const KEYS: u64 = 100;
/// Messages a second where latency is measured.
const RATE: u64 = 10_000;
/// Messages published at a time while a topic is filled.
const FILL_BATCH: u64 = 4096;
/// Partitions of both topics.
const PARTITIONS: u32 = 8;
/// How long nothing comes before a topic counts as read to its end.
const DRAINED: Duration = Duration::from_secs(2);

/// Options of these scenarios.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "kafka")]
pub(super) struct Options {
    /// Of the kafka scenarios, the servers [default: KAFKA_BROKERS, else those of the configuration]
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: Option<String>,
    /// Of kafka-recovery: kills the server, starts it again and returns once it answers. It is run by `sh -c`.
    #[arg(long, value_name = "COMMAND")]
    outage: Option<String>,
}

/// What a run is about, and who reads the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As fast as it goes.
    Filled { by_hand: bool },
    /// In order, on one partition.
    Ordered(Order),
    /// At a rate.
    Paced { by_hand: bool },
}

impl Kind {
    pub(super) fn of(scenario: Scenario) -> Option<Self> {
        Some(match scenario {
            Scenario::Kafka | Scenario::KafkaJson => Self::Filled { by_hand: false },
            Scenario::KafkaNative | Scenario::KafkaJsonNative => Self::Filled { by_hand: true },
            Scenario::KafkaKey => Self::Ordered(Order::Key),
            Scenario::KafkaPartition => Self::Ordered(Order::Partition),
            Scenario::KafkaLatency => Self::Paced { by_hand: false },
            Scenario::KafkaLatencyNative => Self::Paced { by_hand: true },
            _ => return None,
        })
    }

    /// What it has of its own where the arguments leave it open.
    pub(super) fn adjust(self, plan: &mut Plan, args: &Args) {
        let messages = match self {
            Self::Filled { .. } => MESSAGES,
            Self::Ordered(order) => {
                plan.order = order;
                plan.lanes = args.lanes.map_or(usize::try_from(KEYS).unwrap_or(1), usize::from);
                if order == Order::Key { MESSAGES_KEY } else { MESSAGES_PARTITION }
            }
            Self::Paced { .. } => {
                plan.rate = if args.rate > 0 { args.rate } else { RATE };
                plan.rate * 10
            }
        };
        plan.messages = args.messages.unwrap_or(messages);
        if self.is_by_hand() {
            plan.lanes = 1;
        }
    }

    fn is_by_hand(self) -> bool {
        matches!(self, Self::Filled { by_hand: true } | Self::Paced { by_hand: true })
    }
}

/// Where a run takes place.
#[derive(Debug)]
pub(super) struct Target {
    settings: Settings,
    kind: Kind,
}

impl Target {
    pub(super) fn new(options: &Options, kind: Kind, context: &Context) -> anyhow::Result<Self> {
        let loaded = match &options.brokers {
            None => context.load()?,
            Some(brokers) => {
                config::load(None, &|name| (name == "KAFKA_BROKERS").then(|| brokers.clone())).map_err(|errors| {
                    Failure::new(Exit::Usage, "USAGE", "--brokers does not name servers", "correct what follows")
                        .with_details(errors.to_string(), "mistakes", &errors.mistakes())
                })?
            }
        };
        let configured = loaded.config.kafka.as_deref().cloned().ok_or_else(|| {
            let hint = "name one with --brokers HOST:PORT, KAFKA_BROKERS or --config";
            Failure::new(Exit::Unreachable, "BROKER_UNAVAILABLE", "no Kafka is named", hint)
        })?;
        let settings = Settings { topics: Default::default(), auto_create: false, ..configured };
        Ok(Self { settings, kind })
    }
}

/// The topics of one run.
struct Topics {
    work: String,
    results: Option<String>,
}

impl Topics {
    fn new(plan: &Plan) -> Self {
        let work = format!("helixmq.bench.{}", Uuid::now_v7().simple());
        let results = (plan.work == Work::Json).then(|| format!("{work}.results"));
        Self { work, results }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.work).chain(&self.results).map(String::as_str)
    }

    async fn make(&self, kafka: &Kafka, partitions: u32) -> anyhow::Result<()> {
        let settings = TopicSettings { partitions, ..TopicSettings::default() };
        let made: Vec<_> = self.all().map(|name| Declaration::Topic(name.into(), settings.clone())).collect();
        kafka.declare(&made).await.context("the topics cannot be made")
    }

    async fn remove(&self, target: &Target) -> anyhow::Result<()> {
        let all: Vec<&str> = self.all().collect();
        baseline::remove(&target.settings, &all).await.context("the topics cannot be removed")
    }
}

/// Runs a plan once. Its topics are removed whatever happens.
pub(super) fn run(plan: &Plan, target: &Target, runtime: &Handle) -> anyhow::Result<Report> {
    let topics = Topics::new(plan);
    let report = measured(plan, target, &topics, runtime);
    let removed = runtime.block_on(topics.remove(target));
    if report.is_ok() {
        removed?;
    }
    report
}

fn measured(plan: &Plan, target: &Target, topics: &Topics, runtime: &Handle) -> anyhow::Result<Report> {
    let kafka = Arc::new(runtime.block_on(Kafka::connect("kafka", target.settings.clone()))?);
    let partitions = if matches!(target.kind, Kind::Ordered(_)) { 1 } else { PARTITIONS };
    runtime.block_on(topics.make(&kafka, partitions))?;
    let report = match target.kind {
        Kind::Paced { .. } => pace::measured(plan, target, topics, &kafka, runtime),
        _ => filled(plan, target, topics, &kafka, runtime),
    };
    runtime.block_on(kafka.close());
    report
}

fn filled(plan: &Plan, target: &Target, topics: &Topics, kafka: &Kafka, runtime: &Handle) -> anyhow::Result<Report> {
    let latencies = runtime.block_on(fill(plan, kafka, topics))?;
    let ledger = Arc::new(Ledger::new(plan.messages));
    let clocked = read(plan, target, topics, &ledger, runtime)?;
    let far_end = match &topics.results {
        None => ledger,
        Some(results) => Arc::new(runtime.block_on(answered(plan, kafka, results))?),
    };
    let lost = plan.messages - far_end.distinct();
    Ok(Report::new(plan, clocked.counted, clocked.elapsed, clocked.cpu, latencies, lost, far_end.doubled()))
}

/// Publishes every message; returns how long each batch took until it was confirmed.
async fn fill(plan: &Plan, kafka: &Kafka, topics: &Topics) -> anyhow::Result<Vec<Duration>> {
    let to = Address::topic(topics.work.as_str());
    let mut waits = Vec::new();
    for first in (0..plan.messages).step_by(usize::try_from(FILL_BATCH)?) {
        let last = (first + FILL_BATCH).min(plan.messages);
        let batch = messages(plan, first..last);
        let from = Instant::now();
        kafka.publish(&to, batch).await?;
        waits.push(from.elapsed());
    }
    Ok(waits)
}

/// What is published.
fn messages(plan: &Plan, numbers: std::ops::Range<u64>) -> Vec<Arc<Message>> {
    let now = now_ms();
    let one = |number| {
        let payload = match plan.work {
            Work::Json => bench_work::sample(number),
            Work::Noop | Work::Wait => vec![b'x'; plan.payload_bytes],
        };
        let mut message = flow::message(number, now, payload.into());
        if plan.order != Order::None {
            message.key = Some(format!("key-{}", number % KEYS).into());
        }
        Arc::new(message)
    };
    numbers.map(one).collect()
}

/// Reads all, and counts in the ledger.
fn read(
    plan: &Plan,
    target: &Target,
    topics: &Topics,
    ledger: &Arc<Ledger>,
    runtime: &Handle,
) -> anyhow::Result<Clocked> {
    let until_all = || flow::clock(ledger, plan, &|| Ok(()));
    match target.kind.is_by_hand() {
        false => Engine::start(plan, target, topics, ledger, runtime)?.run(until_all),
        true => Loop::start(plan, target, topics, ledger)?.run(|reading| {
            flow::clock(ledger, plan, &|| {
                if reading.is_finished() { bail!("the loop has ended before its work") } else { Ok(()) }
            })
        }),
    }
}

/// The whole engine, with the ledger of attempts in front of the broker, as `serve` has it.
struct Engine {
    bench: Bench,
    broker: Arc<dyn Broker>,
    runtime: Handle,
    /// Removed when the engine has stopped.
    _directory: tempfile::TempDir,
}

impl Engine {
    fn start(
        plan: &Plan,
        target: &Target,
        topics: &Topics,
        ledger: &Arc<Ledger>,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir_in(plan.directory.as_deref().unwrap_or_else(|| std::path::Path::new(".")))?;
        let store = Store::open(store::Settings::new(directory.path()))?;
        let kafka = Arc::new(runtime.block_on(Kafka::connect("kafka", target.settings.clone()))?);
        let queues = Embedded::new("embedded", embedded::Settings { auto_create: true, ..Default::default() })?;
        let broker: Arc<dyn Broker> = Arc::new(Joined::pair(Arc::new(queues), Arc::new(Counted::new(kafka, store))));
        let flow = Flow {
            broker: Arc::clone(&broker),
            source: Address::topic(topics.work.as_str()),
            results: Address::topic(topics.results.as_deref().unwrap_or("none")),
            counted: Counts::Accepted,
            ledger: Arc::clone(ledger),
        };
        match Bench::start_on(plan, flow, runtime) {
            Ok(bench) => Ok(Self { bench, broker, runtime: runtime.clone(), _directory: directory }),
            Err(error) => {
                runtime.block_on(broker.close());
                Err(error)
            }
        }
    }

    /// Stops it when `until` returns.
    fn run<T>(self, until: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let ended = until();
        self.bench.stop();
        self.runtime.block_on(self.broker.close());
        ended
    }
}

/// A loop over the client library, on a thread of its own.
struct Loop {
    by_hand: Arc<ByHand>,
    reading: thread::JoinHandle<Result<(), BrokerError>>,
}

impl Loop {
    fn start(plan: &Plan, target: &Target, topics: &Topics, ledger: &Arc<Ledger>) -> anyhow::Result<Self> {
        let group = format!("{}.by-hand", topics.work);
        let by_hand = ByHand::connect(&target.settings, &topics.work, &group, topics.results.as_deref())?;
        let by_hand = Arc::new(by_hand);
        let (consumer, noted, work) = (Arc::clone(&by_hand), Arc::clone(ledger), plan.work);
        let reading = thread::Builder::new().name("bench-by-hand".into()).spawn(move || {
            consumer.run(|id, payload| handled(work, id, payload), |numbers| noted.note(numbers.iter().copied()))
        })?;
        Ok(Self { by_hand, reading })
    }

    /// Stops it when `until` returns.
    fn run<T>(
        self,
        until: impl FnOnce(&thread::JoinHandle<Result<(), BrokerError>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let ended = until(&self.reading);
        self.by_hand.close();
        match self.reading.join() {
            Ok(Ok(())) => ended,
            // What it says is why there is nothing to tell.
            Ok(Err(error)) => ended.and(Err(error.into())),
            Err(_) => bail!("the loop panicked"),
        }
    }
}

/// What the component does, as a Rust function.
fn handled(work: Work, id: &str, payload: &[u8]) -> Handled {
    let number = number(&MessageId::parse(id)).unwrap_or(u64::MAX);
    let result = match work {
        Work::Noop | Work::Wait => {
            std::hint::black_box(payload);
            None
        }
        // One that is no order has no result, and shows as lost.
        Work::Json => bench_work::price_order(payload).ok(),
    };
    Handled { number, result }
}

/// Which messages are answered: by their correlation, by hand by their key.
async fn answered(plan: &Plan, kafka: &Kafka, results: &str) -> anyhow::Result<Ledger> {
    let answered = Ledger::new(plan.messages);
    let request = Subscribe {
        from: Address::topic(results),
        group: "".into(),
        start: Start::Earliest,
        prefetch: 10_000,
        workers: 1,
        aside: Default::default(),
    };
    let mut subscription = kafka.subscribe(request).await?;
    let max = BatchMax { count: 1000, bytes: 8 << 20 };
    while let Ok(next) = tokio::time::timeout(DRAINED, subscription.next(max)).await {
        let Some(batch) = next? else { break };
        let ids = batch.as_slice().iter().map(|delivery| {
            let key = || String::from_utf8_lossy(delivery.message.key.as_deref().unwrap_or_default()).into_owned();
            let id = delivery.message.correlation_id.as_deref().map_or_else(key, str::to_owned);
            number(&MessageId::parse(&id)).unwrap_or(u64::MAX)
        });
        answered.note(ids);
        let accepted = batch.as_slice().iter().map(|_| crate::message::Settlement::Accept).collect();
        batch.settle(accepted).await?;
    }
    Ok(answered)
}
