//! `bench kafka` and its like: a topic of Kafka that was filled before the clock starts, read by the engine or by a loop that
//! one would write by hand, and counted.
//!
//! A message counts when it is settled, by hand when its offset is stored. Where there are results, it is asked afterwards
//! which messages they answer. Start at [`run`].

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    Plan, Report,
    flow::{self, Bench, Clocked, Counted as Counts, Flow, Work},
    ledger::{Ledger, number},
};
use crate::{
    broker::{
        BatchMax, Broker, Counted, Declaration, Hybrid, Start, Subscribe, TopicSettings,
        embedded::{self, Embedded},
        kafka::{
            Kafka, Settings,
            baseline::{self, ByHand, Handled},
        },
    },
    cli::{Context, Exit, Failure},
    config,
    message::{Address, MessageId, now_ms},
    store::{self, Store},
};

/// Messages of a run that names neither a number nor a time.
pub(super) const MESSAGES: u64 = 500_000;
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
}

/// Where a run takes place, and who reads the topic.
#[derive(Debug)]
pub(super) struct Target {
    settings: Settings,
    by_hand: bool,
}

impl Target {
    pub(super) fn new(options: &Options, by_hand: bool, context: &Context) -> anyhow::Result<Self> {
        let loaded = match &options.brokers {
            None => context.load()?,
            Some(brokers) => {
                config::load(None, &|name| (name == "KAFKA_BROKERS").then(|| brokers.clone())).map_err(|errors| {
                    Failure::new(Exit::Usage, "USAGE", "--brokers does not name servers", "correct what follows")
                        .with_details(errors.to_string(), "mistakes", &errors.mistakes())
                })?
            }
        };
        let configured = loaded.config.kafka.clone().ok_or_else(|| {
            let hint = "name one with --brokers HOST:PORT, KAFKA_BROKERS or --config";
            Failure::new(Exit::Unreachable, "BROKER_UNAVAILABLE", "no Kafka is named", hint)
        })?;
        let settings = Settings { topics: Default::default(), auto_create: false, ..configured };
        Ok(Self { settings, by_hand })
    }
}

/// The topics of one run.
struct Topics {
    work: String,
    results: Option<String>,
}

/// Runs a plan once. Its topics are removed whatever happens.
pub(super) fn run(plan: &Plan, target: &Target, runtime: &Handle) -> anyhow::Result<Report> {
    let work = format!("helixmq.bench.{}", Uuid::now_v7().simple());
    let results = (plan.work == Work::Json).then(|| format!("{work}.results"));
    let topics = Topics { work, results };
    let report = measured(plan, target, &topics, runtime);
    let all: Vec<&str> = std::iter::once(&topics.work).chain(&topics.results).map(String::as_str).collect();
    let removed = runtime.block_on(baseline::remove(&target.settings, &all));
    if report.is_ok() {
        removed.context("the topics cannot be removed")?;
    }
    report
}

fn measured(plan: &Plan, target: &Target, topics: &Topics, runtime: &Handle) -> anyhow::Result<Report> {
    let kafka = Arc::new(runtime.block_on(Kafka::connect("kafka", target.settings.clone()))?);
    let latencies = runtime.block_on(fill(plan, &kafka, topics))?;
    let ledger = Arc::new(Ledger::new(plan.messages));
    let clocked = match target.by_hand {
        false => by_engine(plan, target, topics, &ledger, runtime)?,
        true => by_hand(plan, target, topics, &ledger, runtime)?,
    };
    let far_end = match &topics.results {
        None => ledger,
        Some(results) => Arc::new(runtime.block_on(answered(plan, &kafka, results))?),
    };
    runtime.block_on(kafka.close());
    let lost = plan.messages - far_end.distinct();
    Ok(Report::new(plan, clocked.counted, clocked.elapsed, clocked.cpu, latencies, lost, far_end.doubled()))
}

/// Makes the topics and publishes every message; returns how long each batch took until it was confirmed.
async fn fill(plan: &Plan, kafka: &Kafka, topics: &Topics) -> anyhow::Result<Vec<Duration>> {
    let settings = TopicSettings { partitions: PARTITIONS, ..TopicSettings::default() };
    let all = std::iter::once(&topics.work).chain(&topics.results);
    let made: Vec<_> = all.map(|name| Declaration::Topic(name.as_str().into(), settings.clone())).collect();
    kafka.declare(&made).await.context("the topics cannot be made")?;
    let to = Address::topic(topics.work.as_str());
    let mut waits = Vec::new();
    for first in (0..plan.messages).step_by(usize::try_from(FILL_BATCH)?) {
        let now = now_ms();
        let payload = |number| match plan.work {
            Work::Json => bench_work::sample(number),
            Work::Noop => vec![b'x'; plan.payload_bytes],
        };
        let last = (first + FILL_BATCH).min(plan.messages);
        let batch = (first..last).map(|number| Arc::new(flow::message(number, now, payload(number).into()))).collect();
        let from = Instant::now();
        kafka.publish(&to, batch).await?;
        waits.push(from.elapsed());
    }
    Ok(waits)
}

/// The whole engine reads it, with the ledger of attempts in front of the broker, as `serve` has it.
fn by_engine(
    plan: &Plan,
    target: &Target,
    topics: &Topics,
    ledger: &Arc<Ledger>,
    runtime: &Handle,
) -> anyhow::Result<Clocked> {
    let directory = tempfile::tempdir_in(plan.directory.as_deref().unwrap_or_else(|| std::path::Path::new(".")))?;
    let store = Store::open(store::Settings::new(directory.path()))?;
    let kafka = Arc::new(runtime.block_on(Kafka::connect("kafka", target.settings.clone()))?);
    let queues = Embedded::new("embedded", embedded::Settings { auto_create: true, ..Default::default() })?;
    let broker: Arc<dyn Broker> = Arc::new(Hybrid::new(Arc::new(queues), Arc::new(Counted::new(kafka, store))));
    let flow = Flow {
        broker: Arc::clone(&broker),
        source: Address::topic(topics.work.as_str()),
        results: Address::topic(topics.results.as_deref().unwrap_or("none")),
        counted: Counts::Accepted,
        ledger: Arc::clone(ledger),
    };
    let clocked = Bench::start_on(plan, flow, runtime).and_then(|bench| {
        let clocked = flow::clock(ledger, plan, &|| Ok(()));
        bench.stop();
        clocked
    });
    runtime.block_on(broker.close());
    clocked
}

/// A loop over the client library reads it.
fn by_hand(plan: &Plan, target: &Target, topics: &Topics, ledger: &Arc<Ledger>, _: &Handle) -> anyhow::Result<Clocked> {
    let by_hand = Arc::new(ByHand::connect(&target.settings, &topics.work, &topics.work, topics.results.as_deref())?);
    let (consumer, noted, work) = (Arc::clone(&by_hand), Arc::clone(ledger), plan.work);
    let reading = thread::Builder::new().name("bench-by-hand".into()).spawn(move || {
        consumer.run(|id, payload| handled(work, id, payload), |numbers| noted.note(numbers.iter().copied()))
    })?;
    let has_ended = || if reading.is_finished() { bail!("the loop has ended before its work") } else { Ok(()) };
    let clocked = flow::clock(ledger, plan, &has_ended);
    by_hand.close();
    match reading.join() {
        Ok(Ok(())) => clocked,
        Ok(Err(error)) => clocked.and(Err(error.into())),
        Err(_) => bail!("the loop panicked"),
    }
}

/// What the component does, as a Rust function.
fn handled(work: Work, id: &str, payload: &[u8]) -> Handled {
    let number = number(&MessageId::parse(id)).unwrap_or(u64::MAX);
    let result = match work {
        Work::Noop => {
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
