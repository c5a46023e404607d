//! How long a plugin's new version takes from its file being closed to its serving, compiled anew and from the cache,
//! and whether anything is lost or doubled meanwhile.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    Latency, Plan, Report,
    flow::{self, Bench},
};
use crate::{broker::Storage, handler::Isolation};

/// Reloads of each kind.
const RELOADS: usize = 20;
/// Messages a second that flow meanwhile.
const RATE: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(handler: PathBuf, runtime: &tokio::runtime::Handle) -> anyhow::Result<Vec<Report>> {
    let original = fs::read(&handler).with_context(|| {
        format!(
            "{} cannot be read; build it with `cargo xtask plugins`, or name another with --handler",
            handler.display()
        )
    })?;
    let plan = |scenario| Plan {
        scenario,
        work: flow::Work::Json,
        native: false,
        storage: Storage::Memory,
        directory: None,
        messages: RATE * 3600,
        payload_bytes: original.len(),
        handler: Some(handler.clone()),
        lanes: std::thread::available_parallelism().map_or(1, usize::from),
        publishers: 1,
        rate: RATE,
        isolation: Isolation::Instance,
        order: crate::route::Order::None,
        #[cfg(feature = "rabbitmq")]
        rabbitmq: None,
        #[cfg(feature = "kafka")]
        kafka: None,
        #[cfg(feature = "redis")]
        redis: None,
    };
    let compiled = one(&plan("reload-compiled"), &original, runtime, |reload| u64::try_from(reload).unwrap_or(0) + 1)?;
    // Two versions that take turns: after the first turn of each, their code is in the cache.
    let cached =
        one(&plan("reload-cached"), &original, runtime, |reload| 1_000_000 + u64::try_from(reload % 2).unwrap_or(0))?;
    Ok(vec![compiled, cached])
}

fn one(
    plan: &Plan,
    original: &[u8],
    runtime: &tokio::runtime::Handle,
    variant: impl Fn(usize) -> u64,
) -> anyhow::Result<Report> {
    let bench = Bench::start(plan, runtime)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flowing = bench.flow(plan, &stop)?;
    let began = Instant::now();
    let mut times = Vec::new();
    let warm = if plan.scenario == "reload-cached" { 2 } else { 0 };
    for reload in 0..RELOADS + warm {
        let took = reload_once(&bench, &versioned(original, variant(reload)))?;
        if reload >= warm {
            times.push(took);
        }
    }
    let elapsed = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let published = flowing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    let until = Instant::now() + PATIENCE;
    while bench.ledger.distinct() < published && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
    times.sort_unstable();
    let counted = bench.ledger.distinct();
    let mut report =
        Report::new(plan, counted, elapsed, Duration::ZERO, Vec::new(), published - counted, bench.ledger.doubled());
    report.messages = u64::try_from(times.len()).unwrap_or(0);
    report.latency_ms = Latency::of(&times);
    bench.stop();
    Ok(report)
}

/// Writes a version beside the plugin's file, closes it and renames it into place: from there the time counts.
fn reload_once(bench: &Bench, wasm: &[u8]) -> anyhow::Result<Duration> {
    let slot = bench.hub.registry().slot("bench");
    let before = slot.serving().map_or(0, |version| version.generation);
    let file: &Path = &bench.plugin;
    let part = file.with_extension("part");
    fs::write(&part, wasm)?;
    fs::rename(&part, file)?;
    let closed = Instant::now();
    loop {
        if slot.serving().is_some_and(|version| version.generation != before) {
            return Ok(closed.elapsed());
        }
        if closed.elapsed() > PATIENCE {
            bail!("the new version does not serve: {:?}", slot.receipts().last());
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// The same component with another digest: a custom section is appended.
fn versioned(original: &[u8], number: u64) -> Vec<u8> {
    let mut wasm = original.to_vec();
    // Section 0, its length, the length of its name, its name, the number.
    wasm.extend_from_slice(&[0, 14, 5]);
    wasm.extend_from_slice(b"bench");
    wasm.extend_from_slice(&number.to_le_bytes());
    wasm
}
