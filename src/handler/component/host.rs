//! What a guest may call: WASI 0.2 with nothing granted, its settings, the log, and the two interfaces of the contract.
//! Epochs do not interrupt a host call, so each one here is bounded by itself: by what remains of the call's time, by
//! size, or by rate.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use wasmtime::{
    Engine, StoreContextMut, UpdateDeadline,
    component::{HasData, HasSelf, Linker, Resource, ResourceTable},
};
use wasmtime_wasi::{
    WasiCtx, WasiCtxView, WasiView,
    cli::{IsTerminal, StdoutStream},
    p2::{DynPollable, OutputStream, Pollable, StreamError, bindings::sync::io::poll},
};

use super::{
    bindings::{
        helix::messaging::{delivery, publisher, types},
        wasi::{config::store, logging::logging},
    },
    budget::Budget,
    clock::Clock,
    stderr::SharedTail,
    views,
};
use crate::{
    handler::{
        LaneContext, OutletError, REPLY_TO, Terms,
        limits::{LOG_LINE_BYTES_MAX, bounded_text},
    },
    message::{Address, FailureKind, Message, MessageId, Text, header},
};

/// Random bytes a guest may ask for in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// What a guest's store holds beside the guest.
pub(super) struct State {
    pub(super) budget: Budget,
    pub(super) clock: Arc<Clock>,
    /// Of the call that runs, on [`Clock`]; and beyond which `extend` cannot move it.
    pub(super) deadline_ms: u64,
    pub(super) deadline_max_ms: u64,
    pub(super) timed_out: bool,
    /// The message in hand, for the imports; only set for guests that import what needs it.
    pub(super) current: Option<Arc<Message>>,
    /// Where many messages are in hand: the most hops that one of them has behind it.
    pub(super) batch_hops: u32,
    pub(super) shared: Arc<SharedState>,
    pub(super) lane: LaneContext,
    pub(super) stderr: SharedTail,
    table: ResourceTable,
    wasi: Option<WasiCtx>,
}

/// What all instances of one version share.
#[derive(Debug)]
pub(super) struct SharedState {
    pub(super) plugin: String,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) log_rate: LogRate,
}

/// Log lines a version may write in the current second.
#[derive(Debug, Default)]
pub(super) struct LogRate {
    second: AtomicU64,
    lines: AtomicU32,
    dropped: AtomicU64,
}

/// The call's time is over, noticed in a host call or by the epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeIsUp;

impl fmt::Display for TimeIsUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its time was up")
    }
}

impl std::error::Error for TimeIsUp {}

impl State {
    pub(super) fn new(shared: Arc<SharedState>, lane: LaneContext, clock: Arc<Clock>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(lane.terms.limits.resources_max);
        Self {
            budget: Budget::new(lane.terms.limits.memory_bytes_max),
            clock,
            deadline_ms: 0,
            deadline_max_ms: 0,
            timed_out: false,
            current: None,
            batch_hops: 0,
            shared,
            lane,
            stderr: SharedTail::default(),
            table,
            wasi: None,
        }
    }

    /// Arms the deadline, `timeout` from now. The clock is up to one tick behind, so one tick is added: never early.
    pub(super) fn arm(&mut self, timeout: Duration, extend_factor_max: u32) {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let now = self.clock.now_ms();
        self.deadline_ms = now.saturating_add(timeout_ms).saturating_add(1);
        self.deadline_max_ms =
            now.saturating_add(timeout_ms.saturating_mul(u64::from(extend_factor_max.max(1)))).saturating_add(1);
        self.timed_out = false;
        self.budget.begin_call();
        if self.wasi.is_some() {
            self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn remaining(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.saturating_sub(self.clock.now_ms()))
    }

    fn time_is_up(&mut self) -> wasmtime::Error {
        self.timed_out = true;
        TimeIsUp.into()
    }

    /// A message that the guest wants published in the middle of its call, with the address it goes to.
    fn outbound(&self, message: types::OutboundMessage) -> Result<(Address, Message), publisher::PublishError> {
        let terms = &self.lane.terms;
        let limits = &terms.limits;
        let destination = Text::from(message.destination.as_str());
        let handled = self.current.as_deref();
        let answers =
            || handled.filter(|_| terms.may_reply && destination == REPLY_TO).and_then(Message::reply_address);
        let Some(address) = terms.destinations.get(&destination).cloned().or_else(answers) else {
            return Err(publisher::PublishError::Denied(terms.denial(&destination)));
        };
        let now = crate::message::now_ms();
        let mut message = views::outbound_message(message, handled, now).map_err(publisher::PublishError::Invalid)?;
        if message.id == MessageId::default() {
            message.id = MessageId::generate(now);
        }
        if handled.is_none() {
            message.headers.append(header::HOPS, &self.batch_hops.saturating_add(1).to_string());
        }
        if message.size() > limits.message_bytes_max {
            return Err(publisher::PublishError::TooLarge(u32::try_from(limits.message_bytes_max).unwrap_or(u32::MAX)));
        }
        if let Err(error) = message.headers.check() {
            return Err(publisher::PublishError::Invalid(error.to_string()));
        }
        Ok((address, message))
    }
}

/// Called by wasmtime when an epoch has passed while guest code ran.
pub(super) fn on_epoch(mut store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data_mut();
    if state.lane.ending.is_cancelled() || state.clock.now_ms() >= state.deadline_ms {
        Err(state.time_is_up())
    } else {
        Ok(UpdateDeadline::Continue(1))
    }
}

/// Everything the engine offers, by interface.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
    // Waiting is the one thing in WASI that takes as long as the guest likes: ours takes its place.
    linker.allow_shadowing(true);
    poll::add_to_linker::<State, BoundedPoll>(&mut linker, |state| state)?;
    linker.allow_shadowing(false);
    publisher::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    delivery::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    store::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    logging::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    Ok(linker)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Made on first use: most guests link WASI and never call it.
        let ctx = self.wasi.get_or_insert_with(|| {
            let mut builder = WasiCtx::builder();
            let output = |stream, tail| {
                Output(Arc::new(Printed {
                    shared: Arc::clone(&self.shared),
                    terms: Arc::clone(&self.lane.terms),
                    stream,
                    tail,
                    line: Mutex::default(),
                }))
            };
            builder
                .stdout(output("stdout", None))
                .stderr(output("stderr", Some(Arc::clone(&self.stderr))))
                .allow_tcp(false)
                .allow_udp(false)
                .allow_ip_name_lookup(false)
                .max_random_size(RANDOM_BYTES_MAX);
            builder.build()
        });
        WasiCtxView { ctx, table: &mut self.table }
    }
}

/// What a guest prints becomes lines of the log, within the rate of all its lines. Of its standard error the end is kept,
/// too, to explain a failure.
#[derive(Clone)]
struct Output(Arc<Printed>);

struct Printed {
    shared: Arc<SharedState>,
    terms: Arc<Terms>,
    stream: &'static str,
    tail: Option<SharedTail>,
    /// What has not ended in a line break yet.
    line: Mutex<Vec<u8>>,
}

impl Printed {
    fn write(&self, bytes: &[u8]) {
        if let Some(tail) = &self.tail {
            tail.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LOG_LINE_BYTES_MAX.saturating_sub(line.len());
            line.extend_from_slice(piece.get(..room).unwrap_or(piece));
            if piece.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&line);
                log(&self.shared, &self.terms, logging::Level::Info, self.stream, text.trim_end_matches(['\r', '\n']));
                line.clear();
            }
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: bytes::Bytes) -> Result<(), StreamError> {
        self.0.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(64 << 10)
    }
}

/// `wasi:io/poll`, ended at the call's deadline.
struct BoundedPoll;

impl HasData for BoundedPoll {
    type Data<'a> = &'a mut State;
}

impl State {
    fn wait<T>(&mut self, wait: impl AsyncFnOnce(&mut ResourceTable) -> wasmtime::Result<T>) -> wasmtime::Result<T> {
        let remaining = self.remaining();
        let LaneContext { runtime, ending, .. } = self.lane.clone();
        let table = &mut self.table;
        match runtime.block_on(bounded(remaining, &ending, wait(table))) {
            Some(done) => done,
            None => Err(self.time_is_up()),
        }
    }
}

/// What it comes to, unless the call's time, or the lane's, is over before.
async fn bounded<T>(remaining: Duration, ending: &CancellationToken, wait: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = wait => Some(done),
        () = ending.cancelled() => None,
        () = tokio::time::sleep(remaining) => None,
    }
}

impl poll::Host for &mut State {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        self.wait(async |table| wasmtime_wasi_io::bindings::wasi::io::poll::Host::poll(table, pollables).await)
    }
}

impl poll::HostPollable for &mut State {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        self.wait(async |table| wasmtime_wasi_io::bindings::wasi::io::poll::HostPollable::ready(table, pollable).await)
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.wait(async |table| wasmtime_wasi_io::bindings::wasi::io::poll::HostPollable::block(table, pollable).await)
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        wasmtime_wasi_io::bindings::wasi::io::poll::HostPollable::drop(&mut self.table, pollable)
    }
}

impl publisher::Host for State {
    fn publish(&mut self, message: types::OutboundMessage) -> wasmtime::Result<Result<(), publisher::PublishError>> {
        let (address, message) = match self.outbound(message) {
            Ok(outbound) => outbound,
            Err(error) => return Ok(Err(error)),
        };
        let outlet = Arc::clone(&self.lane.outlet);
        let remaining = self.remaining();
        let lane = &self.lane;
        let published = lane.runtime.block_on(bounded(remaining, &lane.ending, outlet.publish(&address, message)));
        match published {
            Some(result) => Ok(result.map_err(publish_error)),
            None => Err(self.time_is_up()),
        }
    }

    fn request(
        &mut self,
        message: types::OutboundMessage,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<types::MessageResult, publisher::PublishError>> {
        let (address, message) = match self.outbound(message) {
            Ok(outbound) => outbound,
            Err(error) => return Ok(Err(error)),
        };
        let outlet = Arc::clone(&self.lane.outlet);
        let remaining = self.remaining();
        let timeout = remaining.min(Duration::from_millis(u64::from(timeout_ms)));
        let lane = &self.lane;
        let answered =
            lane.runtime.block_on(bounded(remaining, &lane.ending, outlet.request(&address, message, timeout)));
        match answered {
            Some(result) => Ok(result.map(|answer| views::answer(&answer)).map_err(publish_error)),
            None => Err(self.time_is_up()),
        }
    }
}

fn publish_error(error: OutletError) -> publisher::PublishError {
    match error {
        OutletError::TooLarge { max } => publisher::PublishError::TooLarge(u32::try_from(max).unwrap_or(u32::MAX)),
        OutletError::Timeout => publisher::PublishError::Timeout,
        OutletError::Unavailable(text) => publisher::PublishError::Unavailable(text),
    }
}

impl delivery::Host for State {
    fn remaining_ms(&mut self) -> wasmtime::Result<u32> {
        Ok(u32::try_from(self.remaining().as_millis()).unwrap_or(u32::MAX))
    }

    fn extend(&mut self, ms: u32) -> wasmtime::Result<Result<(), String>> {
        let wanted = self.clock.now_ms().saturating_add(u64::from(ms)).saturating_add(1);
        self.deadline_ms = self.deadline_ms.max(wanted.min(self.deadline_max_ms));
        if wanted > self.deadline_max_ms {
            let left = self.deadline_ms.saturating_sub(self.clock.now_ms());
            return Ok(Err(format!("no more than {left} ms are left: the route allows no longer")));
        }
        Ok(Ok(()))
    }

    fn traceparent(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.current.as_ref().and_then(|message| message.headers.get(header::TRACEPARENT)).map(str::to_owned))
    }
}

impl store::Host for State {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, store::Error>> {
        Ok(Ok(self.shared.settings.get(&key).cloned()))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, store::Error>> {
        Ok(Ok(self.shared.settings.iter().map(|(key, value)| (key.clone(), value.clone())).collect()))
    }
}

impl logging::Host for State {
    fn log(&mut self, level: logging::Level, context: String, message: String) -> wasmtime::Result<()> {
        log(&self.shared, &self.lane.terms, level, &context, &message);
        Ok(())
    }
}

/// Writes a line of a guest, if it is within its rate.
fn log(shared: &SharedState, terms: &Terms, level: logging::Level, context: &str, message: &str) {
    if !shared.log_rate.admit(terms.limits.log_lines_per_second_max, &shared.plugin) {
        return;
    }
    let text = bounded_text(message, LOG_LINE_BYTES_MAX, false);
    let context = bounded_text(context, 256, false);
    let (plugin, route) = (shared.plugin.as_str(), &*terms.route);
    match level {
        logging::Level::Trace => tracing::trace!(target: "helixmq::guest", plugin, route, context, "{text}"),
        logging::Level::Debug => tracing::debug!(target: "helixmq::guest", plugin, route, context, "{text}"),
        logging::Level::Info => tracing::info!(target: "helixmq::guest", plugin, route, context, "{text}"),
        logging::Level::Warn => tracing::warn!(target: "helixmq::guest", plugin, route, context, "{text}"),
        logging::Level::Error | logging::Level::Critical => {
            tracing::error!(target: "helixmq::guest", plugin, route, context, "{text}");
        }
    }
}

impl LogRate {
    /// Whether one more line fits into this second; says once a second how many did not.
    fn admit(&self, lines_max: u32, plugin: &str) -> bool {
        let second = crate::message::now_ms() / 1000;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.lines.store(0, Ordering::Relaxed);
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(
                    plugin,
                    dropped,
                    "log lines of this plugin were dropped: more than {lines_max} a second"
                );
            }
        }
        let fits = self.lines.fetch_add(1, Ordering::Relaxed) < lines_max;
        if !fits {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            crate::telemetry::metrics().log_lines_dropped.with_label_values(&[plugin]).inc();
        }
        fits
    }
}

/// How an error of a call is to be understood.
pub(super) fn failure_kind(state: &State, error: &wasmtime::Error) -> FailureKind {
    if state.timed_out || error.is::<TimeIsUp>() {
        FailureKind::Timeout
    } else if state.budget.was_refused() {
        FailureKind::OutOfMemory
    } else if error.is::<wasmtime::Trap>()
        || error.is::<wasmtime_wasi::I32Exit>()
        || error.is::<wasmtime::WasmBacktrace>()
    {
        FailureKind::Trapped
    } else {
        FailureKind::Contract
    }
}
