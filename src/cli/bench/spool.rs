//! `bench spool` and `bench spool-drain`: how fast messages for a system that is away are kept on disk, and how fast they
//! leave when it is back, beside what the same system takes from a publisher. Start at [`run`].

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use tokio::{runtime::Handle, task::JoinSet};

use super::{Args, flow};
use crate::{
    broker::{
        AddressStats, Broker, BrokerError, Browse, Capabilities, ConnectionState, Declaration, GuardSettings, Guarded,
        Page, PublishFailures, Storage, Subscribe, Subscription,
        guarded::{Fallback, SpoolSettings},
    },
    message::{Address, Message, now_ms},
};

/// Messages that are kept, and drained.
const MESSAGES: u64 = 1_000_000;
/// What a publisher brings at a time, and how many of those are under way.
const BATCH: u64 = 1000;
const UNDER_WAY: usize = 8;
/// How long nothing may leave.
const STALLED: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct SpoolReport {
    messages: u64,
    payload_bytes: usize,
    /// Messages a second: straight to the system, into the spool, and out of it to the system.
    direct_per_second: f64,
    accepted_per_second: f64,
    drained_per_second: f64,
    /// The last by the first.
    ratio: f64,
    /// From the system's return until the first message had left.
    return_ms: f64,
    /// Messages that the system confirmed twice.
    duplicated: i64,
}

/// Measures with a system that takes everything at once.
pub(super) fn run(args: &Args, runtime: &Handle) -> anyhow::Result<SpoolReport> {
    let nothing = Arc::new(flow::broker(Storage::Memory, &PathBuf::new())?);
    measure(args, Gate::new(nothing, true), &Address::queue("bench.work"), runtime)
}

/// Measures with a system that is there.
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
pub(super) fn run_on(
    args: &Args,
    system: Arc<dyn Broker>,
    to: &Address,
    runtime: &Handle,
) -> anyhow::Result<SpoolReport> {
    measure(args, Gate::new(system, false), to, runtime)
}

fn measure(args: &Args, gate: Arc<Gate>, to: &Address, runtime: &Handle) -> anyhow::Result<SpoolReport> {
    let parent = args.directory.clone().unwrap_or_else(|| PathBuf::from("."));
    let directory =
        tempfile::tempdir_in(&parent).with_context(|| format!("no directory can be made in {}", parent.display()))?;
    let embedded = Arc::new(flow::broker(Storage::Disk, directory.path())?);
    let (messages, size) = (args.messages.unwrap_or(MESSAGES), args.size as usize);
    let spool = SpoolSettings { bytes_max: u64::MAX, messages_max: u64::MAX, ..SpoolSettings::default() };
    let settings = GuardSettings { fallback: Fallback::Spool, spool, ..GuardSettings::default() };
    let measured = runtime.block_on(async {
        let guarded = Arc::new(Guarded::new(Arc::clone(&gate) as Arc<dyn Broker>, Arc::clone(&embedded), settings));
        let direct_per_second = publish(&guarded, to, messages, size).await?;
        gate.is_open.store(false, Relaxed);
        wait("the guard sees that the system is away", || guarded.connection() == ConnectionState::Away).await?;
        // One look of the guard's patrol later nobody publishes directly any more.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = gate.taken.load(Relaxed);
        let accepted_per_second = publish(&guarded, to, messages, size).await?;
        if gate.taken.load(Relaxed) != before {
            bail!("the system got messages while it was away");
        }
        gate.is_open.store(true, Relaxed);
        let from = Instant::now();
        wait("the first message leaves", || gate.taken.load(Relaxed) > before).await?;
        let return_ms = from.elapsed().as_secs_f64() * 1e3;
        let mut last = (0, Instant::now());
        loop {
            let left = guarded.systems().first().and_then(|system| system.spool.clone()).unwrap_or_default().messages;
            if left == 0 {
                break;
            }
            if left != last.0 {
                last = (left, Instant::now());
            } else if last.1.elapsed() > STALLED {
                bail!("{left} messages stay in the spool");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let drained_per_second = messages as f64 / from.elapsed().as_secs_f64();
        guarded.close().await;
        let taken = i64::try_from(gate.taken.load(Relaxed) - before)?;
        Ok(SpoolReport {
            messages,
            payload_bytes: size,
            direct_per_second,
            accepted_per_second,
            drained_per_second,
            ratio: drained_per_second / direct_per_second,
            return_ms,
            duplicated: taken - i64::try_from(messages)?,
        })
    });
    runtime.block_on(embedded.close());
    measured
}

/// Publishes so many, several batches at a time. Gives messages a second.
async fn publish(guarded: &Arc<Guarded>, to: &Address, messages: u64, size: usize) -> anyhow::Result<f64> {
    let from = Instant::now();
    let payload = Bytes::from(vec![b'x'; size]);
    let mut under_way = JoinSet::new();
    for first in (0..messages).step_by(usize::try_from(BATCH)?) {
        let now = now_ms();
        let one = |number| Arc::new(flow::message(number, now, payload.clone()));
        let batch = (first..(first + BATCH).min(messages)).map(one).collect();
        let (guarded, to) = (Arc::clone(guarded), to.clone());
        under_way.spawn(async move { guarded.publish(&to, batch).await });
        if under_way.len() >= UNDER_WAY
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(messages as f64 / from.elapsed().as_secs_f64())
}

async fn wait(what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let from = Instant::now();
    while !is_so() {
        if from.elapsed() > STALLED {
            bail!("waited in vain until {what}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// A system that is away when it is to be.
#[derive(Debug)]
struct Gate {
    system: Arc<dyn Broker>,
    is_open: AtomicBool,
    /// What comes goes nowhere, and is confirmed at once.
    is_void: bool,
    taken: AtomicU64,
}

impl Gate {
    fn new(system: Arc<dyn Broker>, is_void: bool) -> Arc<Self> {
        Arc::new(Self { system, is_open: AtomicBool::new(true), is_void, taken: AtomicU64::new(0) })
    }
}

#[async_trait]
impl Broker for Gate {
    fn name(&self) -> &str {
        "bench"
    }

    fn capabilities(&self) -> Capabilities {
        self.system.capabilities()
    }

    fn connection(&self) -> ConnectionState {
        if self.is_open.load(Relaxed) { ConnectionState::Ready } else { ConnectionState::Away }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let count = messages.len() as u64;
        if !self.is_void {
            self.system.publish(to, messages).await?;
        }
        self.taken.fetch_add(count, Relaxed);
        Ok(())
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.system.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        self.system.subscribe(request).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.system.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.system.stats()
    }

    async fn close(&self) {}
}

impl fmt::Display for SpoolReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} messages of {} bytes", self.messages, self.payload_bytes)?;
        writeln!(f, "straight to the system {:>10.0} msg/s", self.direct_per_second)?;
        writeln!(f, "into the spool         {:>10.0} msg/s", self.accepted_per_second)?;
        writeln!(f, "out of it              {:>10.0} msg/s, {:.2} of the first", self.drained_per_second, self.ratio)?;
        write!(
            f,
            "the first left after   {:>10.1} ms, with {} of them confirmed twice",
            self.return_ms, self.duplicated
        )
    }
}
