//! Messages published at an even rate while they are read: how long each takes until it is settled, by hand until its offset
//! is stored. Start at [`measured`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use tokio::{runtime::Handle, task::JoinSet};

use super::{Target, Topics, messages, read};
use crate::{
    broker::{Broker, PublishFailures, kafka::Kafka},
    cli::bench::{Plan, Report, ledger::Ledger},
    message::Address,
};

/// How often messages are published.
const TICK: Duration = Duration::from_millis(1);
/// Ticks that are not confirmed, at most.
const UNDER_WAY: usize = 256;
/// How long the first message may take: the group has to form.
const FIRST: Duration = Duration::from_secs(30);

/// Publishes while it is read. The first tenth warms up.
pub(super) fn measured(
    plan: &Plan,
    target: &Target,
    topics: &Topics,
    kafka: &Arc<Kafka>,
    runtime: &Handle,
) -> anyhow::Result<Report> {
    let ledger = Arc::new(Ledger::timed(plan.messages));
    let stop = AtomicBool::new(false);
    let clocked = thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(plan, topics, kafka, &ledger, &stop, runtime));
        let clocked = read(plan, target, topics, &ledger, runtime);
        stop.store(true, Ordering::Relaxed);
        match publisher.join() {
            Ok(published) => clocked.and_then(|clocked| published.map(|()| clocked)),
            Err(_) => bail!("the publisher panicked"),
        }
    })?;
    let lost = plan.messages - ledger.distinct();
    let under_way = ledger.under_way(plan.messages / 10);
    Ok(Report::new(plan, clocked.counted, clocked.elapsed, clocked.cpu, under_way, lost, ledger.doubled()))
}

/// One message until somebody reads, then all others evenly.
fn publish(
    plan: &Plan,
    topics: &Topics,
    kafka: &Arc<Kafka>,
    ledger: &Ledger,
    stop: &AtomicBool,
    runtime: &Handle,
) -> anyhow::Result<()> {
    let to = Address::topic(topics.work.as_str());
    runtime.block_on(kafka.publish(&to, messages(plan, 0..1)))?;
    let begun = Instant::now();
    while ledger.distinct() == 0 {
        if stop.load(Ordering::Relaxed) || begun.elapsed() > FIRST {
            bail!("nobody has read the first message");
        }
        thread::sleep(TICK);
    }
    let begun = Instant::now();
    let mut under_way: JoinSet<Result<(), PublishFailures>> = JoinSet::new();
    let (mut next, mut tick) = (1, 0);
    while next < plan.messages && !stop.load(Ordering::Relaxed) {
        tick += 1;
        thread::sleep((begun + TICK * tick).saturating_duration_since(Instant::now()));
        // By the clock, so that a tick that comes late publishes what it owes.
        let owed = (begun.elapsed().as_secs_f64() * plan.rate as f64) as u64 + 1;
        let numbers = next..owed.min(plan.messages);
        if numbers.is_empty() {
            continue;
        }
        next = numbers.end;
        let batch = messages(plan, numbers.clone());
        let (kafka, to) = (Arc::clone(kafka), to.clone());
        ledger.published(numbers);
        under_way.spawn_on(async move { kafka.publish(&to, batch).await }, runtime);
        while let Some(done) = under_way.try_join_next() {
            done??;
        }
        if under_way.len() >= UNDER_WAY
            && let Some(done) = runtime.block_on(under_way.join_next())
        {
            done??;
        }
    }
    while let Some(done) = runtime.block_on(under_way.join_next()) {
        done??;
    }
    Ok(())
}
