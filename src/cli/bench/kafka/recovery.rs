//! A server that goes and comes back while messages flow: how long after it answers again the engine handles the first
//! message, beside a loop over the client library that reads the same, and whether anything was lost. Start at [`run`].

use std::{
    fmt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::runtime::Handle;

use super::{Engine, Kind, Loop, PARTITIONS, Target, Topics, messages};
use crate::{
    broker::{Broker, kafka::Kafka},
    cli::{
        Context,
        bench::{Args, Plan, Scenario, ledger::Ledger, plan},
    },
    message::Address,
};

/// Messages a second.
const RATE: u64 = 1_000;
/// How long it flows before the server goes, and after it has come back.
const FLOW: Duration = Duration::from_secs(5);
/// Between two batches.
const TICK: Duration = Duration::from_millis(10);
/// How long the last message may take, and the first.
const STALLED: Duration = Duration::from_secs(60);

/// From the server's first answer until work went on, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Recovery {
    /// How long the server was away.
    away_ms: f64,
    /// Until a message was confirmed: none can be handled before it is published.
    published_ms: f64,
    /// Until the engine had settled a message.
    engine_ms: f64,
    /// Until the loop had stored an offset: what the client library itself takes.
    by_hand_ms: f64,
    messages: u64,
    lost: u64,
    /// More than once, which at least once allows: by the engine, and by hand.
    duplicated: [u64; 2],
}

/// Kills the server under traffic, by the command of `--outage`.
///
/// # Errors
/// What was missing, or did not go on.
pub(in crate::cli::bench) fn run(args: &Args, context: &Context, runtime: &Handle) -> anyhow::Result<Recovery> {
    let outage = args.kafka.outage.as_deref().context("--outage says how to restart the server")?;
    // As many as there can be until the server is back.
    let plan = Plan { messages: RATE * 300, ..plan(args, Scenario::KafkaRecovery)? };
    let target = Target::new(&args.kafka, Kind::Paced { by_hand: false }, context)?;
    let kafka = Arc::new(runtime.block_on(Kafka::connect("kafka", target.settings.clone()))?);
    let topics = Topics::new(&plan);
    runtime.block_on(topics.make(&kafka, PARTITIONS))?;
    let (engine, by_hand) = (Arc::new(Ledger::new(plan.messages)), Arc::new(Ledger::new(plan.messages)));
    let recovered = Engine::start(&plan, &target, &topics, &engine, runtime).and_then(|running| {
        running.run(|| {
            Loop::start(&plan, &target, &topics, &by_hand)?
                .run(|_| through(outage, &plan, &topics, &kafka, [&engine, &by_hand], runtime))
        })
    });
    runtime.block_on(kafka.close());
    let removed = runtime.block_on(topics.remove(&target));
    let recovered = recovered?;
    removed?;
    Ok(recovered)
}

fn through(
    outage: &str,
    plan: &Plan,
    topics: &Topics,
    kafka: &Kafka,
    ledgers: [&Ledger; 2],
    runtime: &Handle,
) -> anyhow::Result<Recovery> {
    let stop = AtomicBool::new(false);
    let confirmed = AtomicU64::new(0);
    thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(plan, topics, kafka, &confirmed, &stop, runtime));
        let counts = || [confirmed.load(Relaxed), ledgers[0].distinct(), ledgers[1].distinct()];
        let mut watched = [Watched::new(), Watched::new(), Watched::new()];
        let mut restart = None;
        let ended = loop {
            thread::sleep(Duration::from_millis(1));
            let now = Instant::now();
            watched.iter_mut().zip(counts()).for_each(|(one, count)| one.look(count, now));
            if watched.iter().any(|one| now - one.since > STALLED) {
                break Err(anyhow::anyhow!("nothing goes on any more"));
            }
            match &restart {
                None if watched.iter().all(|one| one.flows_for(now, FLOW)) => {
                    watched.iter_mut().for_each(|one| (one.longest, one.resumed) = (Duration::ZERO, None));
                    restart = Some((
                        now,
                        scope.spawn(|| -> anyhow::Result<Instant> {
                            let done = Command::new("sh").args(["-c", outage]).status()?;
                            if done.success() { Ok(Instant::now()) } else { bail!("--outage: {done}") }
                        }),
                    ));
                }
                Some((_, thread)) if thread.is_finished() && watched.iter().all(|one| one.flows_for(now, FLOW)) => {
                    break Ok(());
                }
                _ => {}
            }
        };
        stop.store(true, Relaxed);
        let published = publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
        ended?;
        let Some((gone, restart)) = restart else { bail!("the server was never restarted") };
        let up = restart.join().map_err(|_| anyhow::anyhow!("--outage: a panic"))??;
        let end = Instant::now();
        while ledgers.iter().any(|ledger| ledger.distinct() < published) && end.elapsed() < STALLED {
            thread::sleep(TICK);
        }
        let after = |one: &Watched| one.resumed.map_or(f64::NAN, |resumed| ms(resumed.saturating_duration_since(up)));
        let [first, second, third] = &watched;
        Ok(Recovery {
            away_ms: ms(up - gone),
            published_ms: after(first),
            engine_ms: after(second),
            by_hand_ms: after(third),
            messages: published,
            lost: ledgers.iter().map(|ledger| published.saturating_sub(ledger.distinct())).sum(),
            duplicated: ledgers.map(Ledger::doubled),
        })
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Publishes at a rate, each batch until it is confirmed; how many were.
fn publish(
    plan: &Plan,
    topics: &Topics,
    kafka: &Kafka,
    confirmed: &AtomicU64,
    stop: &AtomicBool,
    runtime: &Handle,
) -> anyhow::Result<u64> {
    let to = Address::topic(topics.work.as_str());
    let batch = RATE / 100;
    let mut next = 0;
    while !stop.load(Relaxed) && next + batch <= plan.messages {
        thread::sleep(TICK);
        match runtime.block_on(kafka.publish(&to, messages(plan, next..next + batch))) {
            Ok(()) => {
                next += batch;
                confirmed.store(next, Relaxed);
            }
            Err(error) => tracing::debug!("not published, and tried again: {error}"),
        }
    }
    Ok(next)
}

/// Something that counts on, and its longest pause.
struct Watched {
    last: u64,
    since: Instant,
    /// Since it flows without a pause that is worth the name.
    flows: Option<Instant>,
    longest: Duration,
    /// When the longest pause ended.
    resumed: Option<Instant>,
}

/// A pause that is none.
const HICCUP: Duration = Duration::from_millis(500);

impl Watched {
    fn new() -> Self {
        Self { last: 0, since: Instant::now(), flows: None, longest: Duration::ZERO, resumed: None }
    }

    fn look(&mut self, count: u64, now: Instant) {
        if count == self.last {
            return;
        }
        let pause = now - self.since;
        if pause > self.longest {
            (self.longest, self.resumed) = (pause, Some(now));
        }
        if pause > HICCUP || self.flows.is_none() {
            self.flows = Some(now);
        }
        (self.last, self.since) = (count, now);
    }

    fn flows_for(&self, now: Instant, time: Duration) -> bool {
        now - self.since < HICCUP && self.flows.is_some_and(|flows| now - flows > time)
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kafka-recovery: away for {:.0} ms; after its first answer, published again after {:.0} ms, settled by the engine after {:.0} ms, by hand after {:.0} ms; {} messages, lost {}, duplicated {} by the engine and {} by hand",
            self.away_ms,
            self.published_ms,
            self.engine_ms,
            self.by_hand_ms,
            self.messages,
            self.lost,
            self.duplicated[0],
            self.duplicated[1],
        )
    }
}
