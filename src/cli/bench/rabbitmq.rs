//! `bench rabbitmq` and its like: a queue of RabbitMQ that was filled before the clock starts, emptied by the engine or by a
//! loop that one would write by hand, and counted.
//!
//! A message counts when its acknowledgement is on its way. What comes of that is asked of the server afterwards: that
//! nothing is left in the queue, and, where there are results, which messages they answer. Start at [`run`].

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::ValueEnum;
use tokio::{runtime::Handle, task::JoinSet};
use uuid::Uuid;

use super::{
    Args, Plan, Report,
    flow::{self, Bench, Clocked, Counted, Flow, Work},
    ledger::{Ledger, number, numbered},
    spool::{self, SpoolReport},
};
use crate::{
    broker::{
        Broker, BrokerError,
        rabbitmq::{
            RabbitMq, Settings,
            baseline::{Acks, ByHand, Ground, Handled, Task},
            topology::{QueueKind, Topology},
        },
    },
    cli::{Context, Exit, Failure},
    config,
    message::{Address, Headers, Message, MessageId, now_ms},
};

/// Messages of a run that names neither a number nor a time.
pub(super) const MESSAGES: u64 = 200_000;
/// Messages published at a time, and how often that at once, while a queue is filled.
const FILL_BATCH: u64 = 256;
const FILL_UNDER_WAY: usize = 8;
/// How long a consumer stays after its last acknowledgement. A server makes them part of a quorum queue in its own time, and
/// not all of those that it had read when the connection ends at once: 100 of 60 000 messages came back (3.10, measured).
const STAY: Duration = Duration::from_millis(500);
/// How long a queue may take to be empty once its consumer is gone.
const EMPTY: Duration = Duration::from_secs(10);

/// Options of these scenarios.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// Of the rabbitmq scenarios, the server [default: RABBITMQ_URL, else that of the configuration]
    #[arg(long, value_name = "amqp://USER:PASSWORD@HOST:PORT/VHOST")]
    url: Option<String>,
    /// Of rabbitmq-native and rabbitmq-json-native: 64 acknowledgements in flight, or one for each 100 messages.
    #[arg(long, value_enum, default_value = "batched")]
    acks: AcksArg,
    /// Unacknowledged messages that the server hands out at most.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AcksArg {
    InFlight,
    Batched,
}

/// Where a run takes place, and who empties the queue.
#[derive(Debug)]
pub(super) struct Target {
    settings: Settings,
    by_hand: Option<Acks>,
    prefetch: u16,
    interrupt: Interrupt,
}

impl Target {
    pub(super) fn new(
        options: &Options,
        by_hand: bool,
        lanes: usize,
        context: &Context,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let configured = configured(options, context)?;
        // The engine asks for so many for each lane.
        let lanes = u16::try_from(lanes).unwrap_or(u16::MAX).max(1);
        let prefetch_count = (options.prefetch / lanes).max(1);
        let settings = Settings {
            prefetch_count,
            publisher_confirm: true,
            topology: Topology::default(),
            exchange: None,
            queue_kind: QueueKind::Quorum,
            auto_create: false,
            ..configured
        };
        let by_hand = by_hand.then_some(match options.acks {
            AcksArg::InFlight => Acks::InFlight,
            AcksArg::Batched => Acks::Batched,
        });
        let prefetch = prefetch_count.saturating_mul(lanes);
        Ok(Self { settings, by_hand, prefetch, interrupt: Interrupt::new(runtime) })
    }

    /// How it is shown beside a report.
    pub(super) fn shown(&self) -> (u16, &'static str) {
        let acks = match self.by_hand {
            None => "as the engine does",
            Some(Acks::InFlight) => "64 in flight",
            Some(Acks::Batched) => "one for 100",
        };
        (self.prefetch, acks)
    }
}

/// The server's settings as they were given.
fn configured(options: &Options, context: &Context) -> Result<Settings, Failure> {
    let loaded = match &options.url {
        None => context.load()?,
        Some(url) => {
            config::load(None, &|name| (name == "RABBITMQ_URL").then(|| url.clone())).map_err(|errors| {
                Failure::new(Exit::Usage, "USAGE", "--url is not one of a RabbitMQ", "correct what follows")
                    .with_details(errors.to_string(), "mistakes", &errors.mistakes())
            })?
        }
    };
    loaded.config.rabbitmq_in_use().map(|settings| Settings::clone(settings)).ok_or_else(|| {
        Failure::new(
            Exit::Unreachable,
            "BROKER_UNAVAILABLE",
            "no RabbitMQ is named",
            "name one with --url amqp://USER:PASSWORD@HOST:PORT/VHOST, RABBITMQ_URL or --config",
        )
    })
}

/// The queues of one run.
struct Queues {
    work: String,
    results: Option<String>,
}

impl Queues {
    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.work).chain(&self.results)
    }
}

/// Runs a plan once. Its queues are removed whatever happens.
pub(super) fn run(plan: &Plan, target: &Target, runtime: &Handle) -> anyhow::Result<Report> {
    let ground = runtime.block_on(Ground::connect(&target.settings)).map_err(|error| away(&error))?;
    let work = format!("helixmq.bench.{}", Uuid::now_v7().simple());
    let results = (plan.work == Work::Json).then(|| format!("{work}.results"));
    let queues = Queues { work, results };
    let report = queues
        .all()
        .try_for_each(|queue| runtime.block_on(ground.make(queue)))
        .context("the queues cannot be made")
        .and_then(|()| measured(plan, target, &ground, &queues, runtime));
    for queue in queues.all() {
        if let Err(error) = runtime.block_on(ground.remove(queue))
            && report.is_ok()
        {
            return Err(error).with_context(|| format!("the queue {queue} cannot be removed"));
        }
    }
    runtime.block_on(ground.close());
    report
}

/// `bench spool-drain-rabbitmq`: a spool that drains to a queue of its own, which is removed whatever happens.
pub(super) fn drain(args: &Args, context: &Context, runtime: &Handle) -> anyhow::Result<SpoolReport> {
    let target = Target::new(&args.rabbitmq, false, 1, context, runtime)?;
    let ground = runtime.block_on(Ground::connect(&target.settings)).map_err(|error| away(&error))?;
    let queue = format!("helixmq.bench.{}", Uuid::now_v7().simple());
    let measured = runtime.block_on(ground.make(&queue)).context("the queue cannot be made").and_then(|()| {
        let rabbitmq = Arc::new(runtime.block_on(RabbitMq::connect("rabbitmq", target.settings.clone()))?);
        let to = Address::queue(queue.as_str());
        let measured = spool::run_on(args, Arc::clone(&rabbitmq) as Arc<dyn Broker>, &to, runtime);
        runtime.block_on(rabbitmq.close());
        measured
    });
    let removed = runtime.block_on(ground.remove(&queue));
    runtime.block_on(ground.close());
    let measured = measured?;
    removed.with_context(|| format!("the queue {queue} cannot be removed"))?;
    Ok(measured)
}

/// There is no server, or it will not have us.
fn away(error: &BrokerError) -> Failure {
    let (exit, hint) = match error {
        BrokerError::Refused { .. } => (Exit::NotAllowed, "give --url what it takes"),
        _ => (Exit::Unreachable, "name another with --url, or start one: `scripts/brokers up`"),
    };
    // What the cause says has the address in it.
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Failure::new(exit, error.code().as_str(), text, hint)
}

fn measured(
    plan: &Plan,
    target: &Target,
    ground: &Ground,
    queues: &Queues,
    runtime: &Handle,
) -> anyhow::Result<Report> {
    let latencies = runtime.block_on(fill(plan, target, &queues.work))?;
    let ledger = Arc::new(Ledger::new(plan.messages));
    let clocked = match target.by_hand {
        None => by_engine(plan, target, queues, &ledger, runtime)?,
        Some(acks) => by_hand(plan, target, acks, queues, &ledger, runtime)?,
    };
    empty(ground, &queues.work, runtime)?;
    let far_end = match &queues.results {
        None => ledger,
        Some(results) => {
            let answered = Ledger::new(plan.messages);
            runtime.block_on(ground.drain(results, |id| {
                answered.note(std::iter::once(number(&MessageId::parse(id)).unwrap_or(u64::MAX)));
            }))?;
            Arc::new(answered)
        }
    };
    let lost = plan.messages - far_end.distinct();
    Ok(Report::new(plan, clocked.counted, clocked.elapsed, clocked.cpu, latencies, lost, far_end.doubled()))
}

/// Publishes every message, and returns how long each batch took until it was confirmed.
async fn fill(plan: &Plan, target: &Target, queue: &str) -> anyhow::Result<Vec<Duration>> {
    let broker = Arc::new(RabbitMq::connect("rabbitmq", target.settings.clone()).await?);
    let filled = async {
        let mut waits = Vec::new();
        let mut under_way: JoinSet<anyhow::Result<Duration>> = JoinSet::new();
        for first in (0..plan.messages).step_by(usize::try_from(FILL_BATCH)?) {
            target.interrupt.check()?;
            let now = now_ms();
            let last = (first + FILL_BATCH).min(plan.messages);
            let batch = (first..last).map(|number| Arc::new(message(plan, number, now))).collect();
            let (broker, to) = (Arc::clone(&broker), Address::queue(queue));
            under_way.spawn(async move {
                let from = Instant::now();
                broker.publish(&to, batch).await?;
                Ok(from.elapsed())
            });
            if under_way.len() >= FILL_UNDER_WAY
                && let Some(done) = under_way.join_next().await
            {
                waits.push(done??);
            }
        }
        while let Some(done) = under_way.join_next().await {
            waits.push(done??);
        }
        Ok(waits)
    };
    let waits = filled.await;
    broker.close().await;
    waits
}

/// What is published: two headers, and an id that says its number.
fn message(plan: &Plan, number: u64, now: u64) -> Message {
    let payload = match plan.work {
        Work::Json => bench_work::sample(number),
        Work::Noop | Work::Wait => vec![b'x'; plan.payload_bytes],
    };
    let mut headers = Headers::with_capacity(32);
    headers.append("tenant", "acme-europe");
    headers.append("schema", "order/7");
    let mut message = Message::new("order.created", Bytes::from(payload), now);
    message.id = numbered(number);
    message.headers = headers;
    message
}

/// The whole engine empties the queue.
fn by_engine(
    plan: &Plan,
    target: &Target,
    queues: &Queues,
    ledger: &Arc<Ledger>,
    runtime: &Handle,
) -> anyhow::Result<Clocked> {
    let rabbitmq = Arc::new(runtime.block_on(RabbitMq::connect("rabbitmq", target.settings.clone()))?);
    let flow = Flow {
        broker: Arc::clone(&rabbitmq) as Arc<dyn Broker>,
        source: Address::queue(queues.work.as_str()),
        results: Address::queue(queues.results.as_deref().unwrap_or("none")),
        counted: Counted::Accepted,
        ledger: Arc::clone(ledger),
    };
    let clocked = Bench::start_on(plan, flow, runtime).and_then(|bench| {
        let clocked = flow::clock(ledger, plan, &|| target.interrupt.check());
        thread::sleep(STAY);
        bench.stop();
        clocked
    });
    runtime.block_on(rabbitmq.close());
    clocked
}

/// A loop over the client library empties it.
fn by_hand(
    plan: &Plan,
    target: &Target,
    acks: Acks,
    queues: &Queues,
    ledger: &Arc<Ledger>,
    runtime: &Handle,
) -> anyhow::Result<Clocked> {
    let task = Task {
        queue: queues.work.clone(),
        results: queues.results.clone(),
        prefetch: target.prefetch,
        acks,
        messages: plan.messages,
    };
    let by_hand = Arc::new(runtime.block_on(ByHand::connect(&target.settings, task))?);
    let (consumer, noted, work, of) = (Arc::clone(&by_hand), Arc::clone(ledger), plan.work, runtime.clone());
    // As `#[tokio::main]` has it: the loop on a thread of its own, everything else on the runtime's.
    let reading = thread::Builder::new().name("bench-by-hand".into()).spawn(move || {
        of.block_on(
            consumer.run(|id, payload| handled(work, id, payload), |numbers| noted.note(numbers.iter().copied())),
        )
    })?;
    let has_ended = || {
        target.interrupt.check()?;
        if reading.is_finished() {
            bail!("the loop has ended before its work");
        }
        Ok(())
    };
    let clocked = flow::clock(ledger, plan, &has_ended);
    thread::sleep(STAY);
    runtime.block_on(by_hand.close());
    match reading.join() {
        Ok(Ok(())) => clocked,
        // What it says is why there is nothing to tell.
        Ok(Err(error)) => clocked.and(Err(error.into())),
        Err(_) => bail!("the loop panicked"),
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

/// Waits until nothing is left: what was acknowledged is gone for good.
fn empty(ground: &Ground, queue: &str, runtime: &Handle) -> anyhow::Result<()> {
    let until = Instant::now() + EMPTY;
    loop {
        let (messages, consumers) = runtime.block_on(ground.left(queue))?;
        if (messages, consumers) == (0, 0) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("all messages were acknowledged, and {messages} are in the queue with {consumers} consumers");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Notices Ctrl-C, so that the queues are removed.
struct Interrupt {
    came: Arc<AtomicBool>,
    _waiting: JoinSet<()>,
}

impl Interrupt {
    fn new(runtime: &Handle) -> Self {
        let came = Arc::new(AtomicBool::new(false));
        let mut waiting = JoinSet::new();
        let notice = Arc::clone(&came);
        let wait = async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                notice.store(true, Ordering::Relaxed);
            }
        };
        waiting.spawn_on(wait, runtime);
        Self { came, _waiting: waiting }
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.came.load(Ordering::Relaxed) {
            let hint = "its queues are removed";
            return Err(Failure::new(Exit::Interrupted, "INTERRUPTED", "the benchmark was interrupted", hint).into());
        }
        Ok(())
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").field("came", &self.came).finish_non_exhaustive()
    }
}
