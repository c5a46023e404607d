//! `bench disk`: what it costs to keep messages. The engine beside SQLite alone and a bare fsync on the same machine in
//! the same run; publishing at a steady rate; a long backlog, opened and drained by a process of its own; the size of
//! the files after a churn.

use std::{
    fmt,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Args, Latency, Report, Scenario, flow, plan};
use crate::{
    broker::{BatchMax, Broker, Start, Storage, Subscribe, Subscription},
    message::{Address, Message, Settlement, now_ms},
    store,
};

/// Messages of the run that SQLite does alone.
const BARE_MESSAGES: u64 = 1_000_000;
/// Messages a second of the run that measures latency.
const PACED: u64 = 100_000;
/// Publishes that are measured one at a time.
const SINGLE: usize = 2000;
/// Messages that stay, and those that come and go, of the churn.
const CHURN_LIVE: u64 = 100_000;
const CHURN: u64 = 2_000_000;
const BATCH: u64 = 1000;
/// Batches under way while a backlog is made.
const UNDER_WAY: usize = 8;

/// What `bench disk` found.
#[derive(Clone, Debug, Serialize)]
pub struct DiskReport {
    /// SQLite alone: messages a second, each one row in and out, committed in batches as the store does.
    bare_per_second: f64,
    /// The engine with a handler, as fast as it goes.
    engine: Report,
    /// The engine's rate by SQLite's.
    ratio: f64,
    /// The engine at a steady rate.
    paced: Report,
    /// One fsync of 4 KiB that were added to a file.
    fsync_ms: Latency,
    /// One message published at a time, until confirmed.
    single_ms: Latency,
    /// Median of the one by the other.
    single_by_fsync: f64,
    /// How fast a backlog was made, in messages a second.
    filled_per_second: f64,
    backlog: Drained,
    churn: Churn,
}

/// A backlog that was found and drained.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drained {
    messages: u64,
    open_ms: f64,
    /// Of the whole process: with the store open, and at its highest.
    rss_open_bytes: u64,
    rss_max_bytes: u64,
    file_bytes: u64,
    drained_per_second: f64,
}

/// What is left on disk after messages came and went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Churn {
    messages: u64,
    live_messages: u64,
    /// Payload and headers of those.
    live_bytes: u64,
    file_bytes: u64,
    ratio: f64,
}

/// Measures everything, one after the other.
pub(super) fn run(args: &Args, runtime: &tokio::runtime::Handle) -> anyhow::Result<DiskReport> {
    let parent = args.directory.clone().unwrap_or_else(|| PathBuf::from("."));
    let directory =
        tempfile::tempdir_in(&parent).with_context(|| format!("no directory can be made in {}", parent.display()))?;
    let path = |name: &str| directory.path().join(name);
    let bare_per_second = store::bare(&path("bare"), BARE_MESSAGES, args.size as usize)?;
    let engine = flow::run(&plan(args, Scenario::DiskNoop)?, runtime)?;
    let paced =
        flow::run(&super::Plan { rate: PACED, messages: PACED * 10, ..plan(args, Scenario::DiskNoop)? }, runtime)?;
    let (fsync_ms, single_ms) = singles(directory.path(), args.size as usize, runtime)?;
    let (filled_per_second, backlog) = backlog(args, &path("backlog"), runtime)?;
    let churn = churn(args, &path("churn"), runtime)?;
    Ok(DiskReport {
        bare_per_second,
        ratio: engine.messages_per_second / bare_per_second,
        engine,
        paced,
        single_by_fsync: single_ms.p50 / fsync_ms.p50,
        fsync_ms,
        single_ms,
        filled_per_second,
        backlog,
        churn,
    })
}

/// Opens what is in the directory and drains it.
pub(super) fn drain(args: &Args, runtime: &tokio::runtime::Handle) -> anyhow::Result<Drained> {
    let directory = args.directory.as_ref().context("--directory is needed")?;
    let file_bytes = size_of(directory)?;
    let from = Instant::now();
    let broker = flow::broker(Storage::Disk, directory)?;
    let open_ms = from.elapsed().as_secs_f64() * 1e3;
    let messages = broker.stats().iter().map(|stats| stats.ready).sum();
    let rss_open_bytes = memory("VmRSS")?;
    let mut reader = reader(&broker, runtime)?;
    let from = Instant::now();
    take(&mut *reader, messages, runtime)?;
    let drained_per_second = messages as f64 / from.elapsed().as_secs_f64();
    drop(reader);
    runtime.block_on(broker.close());
    Ok(Drained { messages, open_ms, rss_open_bytes, rss_max_bytes: memory("VmHWM")?, file_bytes, drained_per_second })
}

/// A bare fsync and one publish, in turns.
fn singles(directory: &Path, size: usize, runtime: &tokio::runtime::Handle) -> anyhow::Result<(Latency, Latency)> {
    let mut file = File::create(directory.join("fsync"))?;
    let broker = flow::broker(Storage::Disk, &directory.join("single"))?;
    let (mut syncs, mut publishes) = (Vec::new(), Vec::new());
    for number in 0..SINGLE {
        let from = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        syncs.push(from.elapsed());
        let message = Arc::new(message(number as u64, size));
        let from = Instant::now();
        runtime.block_on(broker.publish(&place(), vec![message]))?;
        publishes.push(from.elapsed());
    }
    runtime.block_on(broker.close());
    syncs.sort_unstable();
    publishes.sort_unstable();
    Ok((Latency::of(&syncs), Latency::of(&publishes)))
}

fn backlog(args: &Args, directory: &Path, runtime: &tokio::runtime::Handle) -> anyhow::Result<(f64, Drained)> {
    let broker = Arc::new(flow::broker(Storage::Disk, directory)?);
    let from = Instant::now();
    fill(&broker, 0, args.backlog, args.size as usize, runtime)?;
    let filled_per_second = args.backlog as f64 / from.elapsed().as_secs_f64();
    runtime.block_on(broker.close());
    drop(broker);
    let child = std::process::Command::new(std::env::current_exe()?)
        .args(["--json", "bench", "disk-open", "--directory"])
        .arg(directory)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !child.status.success() {
        bail!("the backlog could not be drained: {}", String::from_utf8_lossy(&child.stdout));
    }
    let drained: Drained = serde_json::from_slice(&child.stdout)?;
    if drained.messages != args.backlog {
        bail!("{} messages were published, and {} were found again", args.backlog, drained.messages);
    }
    Ok((filled_per_second, drained))
}

fn churn(args: &Args, directory: &Path, runtime: &tokio::runtime::Handle) -> anyhow::Result<Churn> {
    let broker = Arc::new(flow::broker(Storage::Disk, directory)?);
    let size = args.size as usize;
    // More than will stay, so that there is something to give back.
    let peak = CHURN_LIVE * 5;
    fill(&broker, 0, peak, size, runtime)?;
    let mut reader = reader(&*broker, runtime)?;
    take(&mut *reader, peak - CHURN_LIVE, runtime)?;
    let mut next = peak;
    while next < peak + CHURN {
        fill(&broker, next, next + 8 * BATCH, size, runtime)?;
        take(&mut *reader, 8 * BATCH, runtime)?;
        next += 8 * BATCH;
    }
    drop(reader);
    let live_bytes = broker.stats().iter().map(|stats| stats.bytes).sum();
    // What is idle gives back what it does not need, a piece at a time.
    let (mut file_bytes, mut since) = (size_of(directory)?, Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
        let now = size_of(directory)?;
        if now != file_bytes {
            (file_bytes, since) = (now, Instant::now());
        }
    }
    runtime.block_on(broker.close());
    let ratio = file_bytes as f64 / live_bytes as f64;
    Ok(Churn { messages: next, live_messages: CHURN_LIVE, live_bytes, file_bytes, ratio })
}

fn place() -> Address {
    Address::queue("bench.work")
}

fn message(number: u64, size: usize) -> Message {
    flow::message(number, now_ms(), Bytes::from(vec![b'x'; size]))
}

/// Publishes the messages of these numbers, several batches at a time.
fn fill(
    broker: &Arc<impl Broker + 'static>,
    from: u64,
    to: u64,
    size: usize,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<()> {
    runtime.block_on(async {
        let mut under_way = tokio::task::JoinSet::new();
        for first in (from..to).step_by(usize::try_from(BATCH)?) {
            let batch = (first..(first + BATCH).min(to)).map(|number| Arc::new(message(number, size))).collect();
            let broker = Arc::clone(broker);
            under_way.spawn(async move { broker.publish(&place(), batch).await });
            if under_way.len() >= UNDER_WAY
                && let Some(done) = under_way.join_next().await
            {
                done??;
            }
        }
        while let Some(done) = under_way.join_next().await {
            done??;
        }
        Ok(())
    })
}

fn reader(broker: &dyn Broker, runtime: &tokio::runtime::Handle) -> anyhow::Result<Box<dyn Subscription>> {
    let request = Subscribe {
        from: place(),
        group: "".into(),
        start: Start::Earliest,
        prefetch: 16 * 1024,
        workers: 1,
        aside: Default::default(),
    };
    Ok(runtime.block_on(broker.subscribe(request))?)
}

/// Takes and accepts so many.
fn take(reader: &mut dyn Subscription, count: u64, runtime: &tokio::runtime::Handle) -> anyhow::Result<()> {
    runtime.block_on(async {
        let mut left = count;
        while left > 0 {
            let max = BatchMax { count: usize::try_from(left.min(256))?, bytes: 8 << 20 };
            let next = tokio::time::timeout(Duration::from_secs(20), reader.next(max)).await;
            let Some(batch) = next.context("nothing came for 20 s")?? else { bail!("the subscription ended") };
            left -= batch.len() as u64;
            let accepted = vec![Settlement::Accept; batch.len()];
            batch.settle(accepted).await?;
        }
        Ok(())
    })
}

/// Bytes of the files in a directory.
fn size_of(directory: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for file in std::fs::read_dir(directory)? {
        sum += file?.metadata()?.len();
    }
    Ok(sum)
}

/// A line of `/proc/self/status`, in bytes. Source: proc_pid_status(5).
fn memory(name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {name} in /proc/self/status"))? * 1024)
}

impl fmt::Display for DiskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SQLite alone           {:>10.0} msg/s in and out", self.bare_per_second)?;
        writeln!(
            f,
            "engine, with a handler {:>10.0} msg/s, {:.2} of that",
            self.engine.messages_per_second, self.ratio
        )?;
        writeln!(f, "  {}", self.engine.line())?;
        writeln!(
            f,
            "at {PACED} msg/s      publish p50 {:.2} p99 {:.2} max {:.2} ms",
            self.paced.latency_ms.p50, self.paced.latency_ms.p99, self.paced.latency_ms.max
        )?;
        writeln!(
            f,
            "one at a time          publish p50 {:.3} p99 {:.3} ms, fsync p50 {:.3} p99 {:.3} ms: {:.2} of one fsync",
            self.single_ms.p50, self.single_ms.p99, self.fsync_ms.p50, self.fsync_ms.p99, self.single_by_fsync
        )?;
        writeln!(f, "backlog                filled at {:.0} msg/s", self.filled_per_second)?;
        writeln!(f, "  {}", self.backlog)?;
        write!(
            f,
            "churn                  {} of {} messages stay: {:.1} MB on disk for {:.1} MB of them, {:.2} times",
            self.churn.live_messages,
            self.churn.messages,
            megabytes(self.churn.file_bytes),
            megabytes(self.churn.live_bytes),
            self.churn.ratio
        )
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} messages ({:.0} MB): opened in {:.1} ms with {:.0} MB of memory; drained at {:.0} msg/s with at most {:.0} MB",
            self.messages,
            megabytes(self.file_bytes),
            self.open_ms,
            megabytes(self.rss_open_bytes),
            self.drained_per_second,
            megabytes(self.rss_max_bytes)
        )
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
