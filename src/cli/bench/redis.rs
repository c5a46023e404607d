//! `bench redis` and its like: a queue of Redis that was filled before the clock starts, emptied by the engine or by a loop that
//! one would write by hand, and counted.
//!
//! A message counts when it is settled, by hand when it is acknowledged. What comes of that is asked of the server afterwards:
//! that nothing is left in the queue, and, where there are results, which messages they answer. Start at [`run`].

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
    flow::{self, Bench, Clocked, Counted, Flow, Work},
    ledger::{Ledger, number},
};
use crate::{
    broker::{
        BatchMax, Broker, BrokerError, Browse, BrowseAt, Declaration, QueueSettings, Start, Subscribe,
        redis::{
            Redis, Settings,
            baseline::{self, ByHand, Handled},
        },
    },
    cli::{Context, Exit, Failure},
    config,
    message::{Address, Message, MessageId, Settlement, now_ms},
};

/// Messages of a run that names neither a number nor a time.
const MESSAGES: u64 = 500_000;
/// Messages published at a time while a queue is filled.
const FILL_BATCH: u64 = 1000;
/// How long nothing comes before a queue counts as read to its end.
const DRAINED: Duration = Duration::from_secs(1);
/// How long a queue may take to be empty once everything was settled.
const EMPTY: Duration = Duration::from_secs(10);

/// Options of these scenarios.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "redis")]
pub(super) struct Options {
    /// Of the redis scenarios, the server [default: REDIS_URL, else that of the configuration]
    #[arg(long, value_name = "redis://HOST:PORT")]
    redis_url: Option<String>,
}

/// Of a scenario on Redis, whether it is the loop over the client library.
pub(super) fn by_hand(scenario: Scenario) -> Option<bool> {
    match scenario {
        Scenario::Redis | Scenario::RedisJson => Some(false),
        Scenario::RedisNative | Scenario::RedisJsonNative => Some(true),
        _ => None,
    }
}

/// Where a run takes place, and who empties the queue.
#[derive(Debug)]
pub(super) struct Target {
    settings: Settings,
    by_hand: bool,
}

impl Target {
    /// Also says in the plan what it has of its own where the arguments leave it open.
    pub(super) fn new(args: &Args, by_hand: bool, plan: &mut Plan, context: &Context) -> anyhow::Result<Self> {
        let loaded = match &args.redis.redis_url {
            None => context.load()?,
            Some(url) => config::load(None, &|name| (name == "REDIS_URL").then(|| url.clone())).map_err(|errors| {
                Failure::new(Exit::Usage, "USAGE", "--redis-url is not one of a Redis", "correct what follows")
                    .with_details(errors.to_string(), "mistakes", &errors.mistakes())
            })?,
        };
        let configured = loaded.config.redis.as_deref().cloned().ok_or_else(|| {
            let hint = "name one with --redis-url redis://HOST:PORT, REDIS_URL or --config";
            Failure::new(Exit::Unreachable, "BROKER_UNAVAILABLE", "no Redis is named", hint)
        })?;
        let (queues, topics) = Default::default();
        let settings = Settings { queues, topics, auto_create: false, ..configured };
        plan.messages = args.messages.unwrap_or(MESSAGES);
        if by_hand {
            plan.lanes = 1;
        }
        Ok(Self { settings, by_hand })
    }
}

/// The queues of one run.
struct Queues {
    work: String,
    results: Option<String>,
}

impl Queues {
    fn new(plan: &Plan) -> Self {
        let work = format!("bench.{}", Uuid::now_v7().simple());
        let results = (plan.work == Work::Json).then(|| format!("{work}.results"));
        Self { work, results }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.work).chain(&self.results).map(String::as_str)
    }
}

/// Runs a plan once. Its queues are removed whatever happens.
pub(super) fn run(plan: &Plan, target: &Target, runtime: &Handle) -> anyhow::Result<Report> {
    let queues = Queues::new(plan);
    let redis = runtime.block_on(Redis::connect("redis", target.settings.clone()));
    let redis = Arc::new(redis.map_err(|error| away(&error))?);
    let report = measured(plan, target, &queues, &redis, runtime);
    runtime.block_on(redis.close());
    let all: Vec<&str> = queues.all().collect();
    let removed = runtime.block_on(baseline::remove(&target.settings, &all));
    if report.is_ok() {
        removed.context("the queues cannot be removed")?;
    }
    report
}

/// It will not have us.
fn away(error: &BrokerError) -> Failure {
    Failure::new(Exit::NotAllowed, error.code().as_str(), error.to_string(), "give --redis-url what it takes")
}

fn measured(
    plan: &Plan,
    target: &Target,
    queues: &Queues,
    redis: &Arc<Redis>,
    runtime: &Handle,
) -> anyhow::Result<Report> {
    let made: Vec<_> = queues.all().map(|name| Declaration::Queue(name.into(), QueueSettings::default())).collect();
    runtime.block_on(redis.declare(&made)).context("the queues cannot be made")?;
    let latencies = runtime.block_on(fill(plan, redis, &queues.work))?;
    let ledger = Arc::new(Ledger::new(plan.messages));
    let until_all = |has_ended: &dyn Fn() -> bool| {
        flow::clock(&ledger, plan, &|| {
            if has_ended() { bail!("the loop has ended before its work") } else { Ok(()) }
        })
    };
    let clocked = match target.by_hand {
        false => by_engine(plan, redis, queues, &ledger, runtime, || until_all(&|| false))?,
        true => by_loop(plan, target, queues, &ledger, runtime, until_all)?,
    };
    // The engine has closed what it ran on.
    let after = runtime.block_on(Redis::connect("redis", target.settings.clone())).map_err(|error| away(&error))?;
    let looked = empty(&after, &queues.work, runtime).and_then(|()| match &queues.results {
        None => Ok(ledger),
        Some(results) => Ok(Arc::new(runtime.block_on(answered(plan, &after, results))?)),
    });
    runtime.block_on(after.close());
    let far_end = looked?;
    let lost = plan.messages - far_end.distinct();
    Ok(Report::new(plan, clocked.counted, clocked.elapsed, clocked.cpu, latencies, lost, far_end.doubled()))
}

/// Publishes every message; returns how long each batch took until it was confirmed.
async fn fill(plan: &Plan, redis: &Redis, queue: &str) -> anyhow::Result<Vec<Duration>> {
    let to = Address::queue(queue);
    let mut waits = Vec::new();
    for first in (0..plan.messages).step_by(usize::try_from(FILL_BATCH)?) {
        let now = now_ms();
        let one = |number| {
            let payload = match plan.work {
                Work::Json => bench_work::sample(number),
                Work::Noop | Work::Wait => vec![b'x'; plan.payload_bytes],
            };
            Arc::new(flow::message(number, now, payload.into()))
        };
        let batch: Vec<Arc<Message>> = (first..(first + FILL_BATCH).min(plan.messages)).map(one).collect();
        let from = Instant::now();
        redis.publish(&to, batch).await?;
        waits.push(from.elapsed());
    }
    Ok(waits)
}

/// The whole engine empties the queue, until `until` returns.
fn by_engine(
    plan: &Plan,
    redis: &Arc<Redis>,
    queues: &Queues,
    ledger: &Arc<Ledger>,
    runtime: &Handle,
    until: impl FnOnce() -> anyhow::Result<Clocked>,
) -> anyhow::Result<Clocked> {
    let flow = Flow {
        broker: Arc::clone(redis) as Arc<dyn Broker>,
        source: Address::queue(queues.work.as_str()),
        results: Address::queue(queues.results.as_deref().unwrap_or("none")),
        counted: Counted::Accepted,
        ledger: Arc::clone(ledger),
    };
    let bench = Bench::start_on(plan, flow, runtime)?;
    let clocked = until();
    bench.stop();
    clocked
}

/// A loop over the client library empties it, until `until` returns.
fn by_loop(
    plan: &Plan,
    target: &Target,
    queues: &Queues,
    ledger: &Arc<Ledger>,
    runtime: &Handle,
    until: impl FnOnce(&dyn Fn() -> bool) -> anyhow::Result<Clocked>,
) -> anyhow::Result<Clocked> {
    let by_hand = runtime.block_on(ByHand::connect(&target.settings, &queues.work, queues.results.as_deref()))?;
    let by_hand = Arc::new(by_hand);
    let (consumer, noted, work, of) = (Arc::clone(&by_hand), Arc::clone(ledger), plan.work, runtime.clone());
    // As `#[tokio::main]` has it: the loop on a thread of its own, everything else on the runtime's.
    let reading = thread::Builder::new().name("bench-by-hand".into()).spawn(move || {
        of.block_on(consumer.run(
            |id, payload, attempt| handled(work, id, payload, attempt),
            |numbers| noted.note(numbers.iter().copied()),
        ))
    })?;
    let clocked = until(&|| reading.is_finished());
    by_hand.close();
    match reading.join() {
        Ok(Ok(())) => clocked,
        // What it says is why there is nothing to tell.
        Ok(Err(error)) => clocked.and(Err(error.into())),
        Err(_) => bail!("the loop panicked"),
    }
}

/// What the component does, as a Rust function.
fn handled(work: Work, id: &str, payload: &[u8], attempt: usize) -> Handled {
    let number = number(&MessageId::parse(id)).unwrap_or(u64::MAX);
    let result = match work {
        Work::Noop | Work::Wait => {
            std::hint::black_box((payload, attempt));
            None
        }
        // One that is no order has no result, and shows as lost.
        Work::Json => bench_work::price_order(payload).ok(),
    };
    Handled { number, result }
}

/// Waits until nothing is left: what was settled is gone for good.
fn empty(redis: &Redis, queue: &str, runtime: &Handle) -> anyhow::Result<()> {
    let until = Instant::now() + EMPTY;
    loop {
        let browse = Browse { from: Address::queue(queue), at: BrowseAt::Start(Start::Earliest), limit: 1 };
        let left = runtime.block_on(redis.browse(browse))?.total;
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("all messages were settled, and {left} are in the queue");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Which messages are answered: by their correlation, by hand by their id.
async fn answered(plan: &Plan, redis: &Redis, results: &str) -> anyhow::Result<Ledger> {
    let answered = Ledger::new(plan.messages);
    let request = Subscribe {
        from: Address::queue(results),
        group: "".into(),
        start: Start::Earliest,
        prefetch: 10_000,
        workers: 16,
        aside: Default::default(),
    };
    let mut subscription = redis.subscribe(request).await?;
    let max = BatchMax { count: 1000, bytes: 8 << 20 };
    while let Ok(next) = tokio::time::timeout(DRAINED, subscription.next(max)).await {
        let Some(batch) = next? else { break };
        let ids = batch.as_slice().iter().map(|delivery| {
            let own = || delivery.message.id.to_string();
            let id = delivery.message.correlation_id.as_deref().map_or_else(own, str::to_owned);
            number(&MessageId::parse(&id)).unwrap_or(u64::MAX)
        });
        answered.note(ids);
        let accepted = batch.as_slice().iter().map(|_| Settlement::Accept).collect();
        batch.settle(accepted).await?;
    }
    Ok(answered)
}
