//! Runs one version of a component on one lane: an instance made when it is needed, reused as the terms say, and
//! dropped with its store after any failure (a store that was interrupted must never be used again:
//! CVE-2026-104855).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    time::Duration,
};

use wasmtime::{Store, component::Instance};

use super::{
    bindings::exports::helix::messaging::{event_batch_handler, event_handler, lifecycle, task_handler},
    clock::Running,
    host::{self, State},
    stderr::StderrTail,
    version::Component,
    views,
};
use crate::{
    handler::{
        Call, Isolation, LaneContext, Runner,
        limits::{TRAP_BYTES_MAX, bounded_text},
        native::panic_text,
    },
    message::{FailureKind, Kind, Outcome, UnixMs, now_ms},
};

/// Events that one call of a batch handler takes. Source: DESIGN, "What a message may cost".
const BATCH_MAX: usize = 256;
/// Time for `shutdown`. Source: wit/handlers.wit.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A guest, alive.
struct Guest {
    store: Store<State>,
    entry: Entry,
    lifecycle: Option<lifecycle::Guest>,
    calls_left: u32,
}

enum Entry {
    Task(task_handler::Guest),
    Event(event_handler::Guest),
    Batch(event_batch_handler::Guest),
}

pub(super) struct ComponentRunner {
    component: Arc<Component>,
    lane: LaneContext,
    kind: Kind,
    guest: Option<Guest>,
    running: Option<Running>,
    /// Of the batch.
    now: UnixMs,
}

/// Why there is no instance.
pub(super) struct StartError {
    pub(super) kind: FailureKind,
    pub(super) text: String,
}

impl ComponentRunner {
    pub(super) fn new(component: Arc<Component>, lane: LaneContext, kind: Kind) -> Self {
        Self { component, lane, kind, guest: None, running: None, now: 0 }
    }

    /// Makes an instance and calls `init`, or says why there is none. Also the last check of a version that is loaded.
    pub(super) fn start(&mut self) -> Result<(), StartError> {
        let guest = catch_unwind(AssertUnwindSafe(|| self.make_guest()))
            .unwrap_or_else(|panic| Err(StartError { kind: FailureKind::Unavailable, text: panic_text(&*panic) }))?;
        self.guest = Some(guest);
        Ok(())
    }

    fn make_guest(&self) -> Result<Guest, StartError> {
        let component = &self.component;
        let state = State::new(Arc::clone(&component.shared), self.lane.clone(), Arc::clone(&component.engine.clock));
        let mut store = Store::new(&component.engine.engine, state);
        store.limiter(|state| &mut state.budget);
        store.epoch_deadline_callback(host::on_epoch);
        store.set_epoch_deadline(1);
        store.set_hostcall_fuel(self.lane.terms.limits.results_bytes_max.saturating_mul(2).saturating_add(1 << 20));
        // Armed before instantiation: a start function is guest code, too.
        store.data_mut().arm(component.init_timeout, 1);
        let started = self.instantiate(&mut store).and_then(|(instance, entry)| {
            let lifecycle = match &component.exports.lifecycle {
                Some(lifecycle) => Some(lifecycle.load(&mut store, &instance)?),
                None => None,
            };
            Ok((entry, lifecycle))
        });
        let (entry, lifecycle) = started.map_err(|error| {
            let kind = host::failure_kind(store.data(), &error);
            let what = if kind == FailureKind::OutOfMemory {
                format!("it wants more than the {} bytes of memory that are allowed", store.data().budget.bytes_max())
            } else {
                chain(&error)
            };
            StartError { kind: FailureKind::Unavailable, text: format!("no instance could be made: {what}") }
        })?;
        if let Some(lifecycle) = &lifecycle {
            init(&mut store, lifecycle)?;
        }
        let calls_left = match self.lane.terms.isolation {
            Isolation::Message => 1,
            Isolation::Batch => u32::MAX,
            Isolation::Instance => self.lane.terms.limits.instance_messages_max.max(1),
        };
        Ok(Guest { store, entry, lifecycle, calls_left })
    }

    fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<(Instance, Entry)> {
        let component = &self.component;
        let instance = component.pre.instantiate(&mut *store)?;
        let exports = &component.exports;
        let entry = match (self.kind, &exports.task, &exports.event, &exports.batch) {
            (Kind::Queue, Some(task), _, _) => Entry::Task(task.load(&mut *store, &instance)?),
            (Kind::Topic, _, _, Some(batch)) => Entry::Batch(batch.load(&mut *store, &instance)?),
            (Kind::Topic, _, Some(event), None) => Entry::Event(event.load(&mut *store, &instance)?),
            _ => return Err(wasmtime::Error::msg(format!("it does not handle messages from a {}", self.kind))),
        };
        Ok((instance, entry))
    }

    /// One call on a living guest, whose life ends with any failure.
    fn call<T>(&mut self, messages: usize, call: impl FnOnce(&mut Guest) -> wasmtime::Result<T>) -> Result<T, Outcome> {
        if self.guest.is_none()
            && let Err(error) = self.start()
        {
            return Err(views::failure(error.kind, &error.text, None));
        }
        let Some(mut guest) = self.guest.take() else {
            return Err(Outcome::failed(FailureKind::Unavailable, "no instance could be made"));
        };
        let limits = &self.lane.terms.limits;
        guest.store.data_mut().arm(limits.timeout, limits.extend_factor_max);
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut guest)));
        match called {
            Ok(Ok(answer)) => {
                guest.calls_left = guest.calls_left.saturating_sub(u32::try_from(messages).unwrap_or(u32::MAX));
                if guest.calls_left > 0 {
                    self.guest = Some(guest);
                } else {
                    guest.retire();
                }
                Ok(answer)
            }
            // The store goes with `guest`, here and below.
            Ok(Err(error)) => Err(describe(&guest.store, &error, &self.lane)),
            Err(panic) => Err(views::failure(FailureKind::Trapped, &panic_text(&*panic), None)),
        }
    }
}

impl Runner for ComponentRunner {
    fn begin(&mut self) {
        self.now = now_ms();
        self.running = Some(self.component.engine.clock.run());
    }

    fn handle(&mut self, call: &Call<'_>) -> Outcome {
        let current = self.component.needs_current.then(|| Arc::clone(call.message));
        let answer = self.call(1, |guest| {
            guest.store.data_mut().current = current;
            let store = &mut guest.store;
            match &guest.entry {
                Entry::Task(entry) => views::with_task(call, |task| entry.call_handle(store, task)),
                Entry::Event(entry) => views::with_event(call, |event| entry.call_handle(store, event)),
                Entry::Batch(entry) => {
                    let mut answers = views::with_event(call, |event| entry.call_handle_batch(store, &[event]))?;
                    match (answers.pop(), answers.len()) {
                        (Some(answer), 0) => Ok(answer),
                        (_, rest) => Err(wasmtime::Error::msg(wrong_length(rest + 1, 1))),
                    }
                }
            }
        });
        match answer {
            Ok(answer) => views::outcome(answer, call.message, &self.lane.terms, self.now),
            Err(failed) => failed,
        }
    }

    fn calls_take(&self) -> usize {
        if self.kind == Kind::Topic && self.component.exports.batch.is_some() { BATCH_MAX } else { 1 }
    }

    fn handle_batch(&mut self, calls: &[Call<'_>]) -> Option<Vec<Outcome>> {
        let [_, _, ..] = calls else { return Some(calls.iter().map(|call| self.handle(call)).collect()) };
        let hops = calls.iter().map(|call| call.message.hops()).max().unwrap_or(0);
        let answers = self.call(calls.len(), |guest| {
            let Entry::Batch(entry) = &guest.entry else {
                return Err(wasmtime::Error::msg("it does not take batches"));
            };
            let state = guest.store.data_mut();
            state.current = None;
            state.batch_hops = hops;
            let answers = views::with_events(calls, |events| entry.call_handle_batch(&mut guest.store, events))?;
            if answers.len() == calls.len() {
                Ok(answers)
            } else {
                Err(wasmtime::Error::msg(wrong_length(answers.len(), calls.len())))
            }
        });
        match answers {
            Ok(answers) => {
                let outcome =
                    |(answer, call): (_, &Call<'_>)| views::outcome(answer, call.message, &self.lane.terms, self.now);
                Some(answers.into_iter().zip(calls).map(outcome).collect())
            }
            Err(Outcome::Failed(failure)) if failure.kind.is_crash() => None,
            Err(failed) => Some(calls.iter().map(|_| failed.clone()).collect()),
        }
    }

    fn end(&mut self) {
        if self.lane.terms.isolation == Isolation::Batch
            && let Some(guest) = self.guest.take()
        {
            guest.retire();
        }
        self.running = None;
    }
}

impl Drop for ComponentRunner {
    fn drop(&mut self) {
        if let Some(guest) = self.guest.take() {
            let _running = self.component.engine.clock.run();
            guest.retire();
        }
    }
}

impl Guest {
    /// Gives it up in good order.
    fn retire(mut self) {
        let Some(lifecycle) = &self.lifecycle else { return };
        self.store.data_mut().arm(SHUTDOWN_TIMEOUT, 1);
        if let Err(error) = lifecycle.call_shutdown(&mut self.store) {
            tracing::debug!(plugin = self.store.data().shared.plugin, "shutdown failed: {}", chain(&error));
        }
    }
}

fn init(store: &mut Store<State>, lifecycle: &lifecycle::Guest) -> Result<(), StartError> {
    match lifecycle.call_init(&mut *store) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(text)) => Err(StartError {
            kind: FailureKind::Unavailable,
            text: format!("init refused: {}", bounded_text(&text, crate::handler::limits::REASON_BYTES_MAX, false)),
        }),
        Err(error) => {
            let text = match host::failure_kind(store.data(), &error) {
                FailureKind::Timeout => "init took too long".to_owned(),
                _ => with_last_words(format!("init failed: {}", chain(&error)), store.data()),
            };
            Err(StartError { kind: FailureKind::Unavailable, text })
        }
    }
}

fn wrong_length(got: usize, wanted: usize) -> String {
    format!("answered {got} of {wanted} events; an answer is owed to each")
}

/// A failure in words, with what the guest last wrote to its standard error (where Rust puts a panic's message).
fn describe(store: &Store<State>, error: &wasmtime::Error, lane: &LaneContext) -> Outcome {
    let state = store.data();
    let kind = host::failure_kind(state, error);
    let mut text = match kind {
        FailureKind::Timeout => format!("did not answer within {} ms", lane.terms.limits.timeout.as_millis()),
        FailureKind::OutOfMemory => format!(
            "ran out of memory: {} of {} bytes were taken when more was refused",
            state.budget.bytes(),
            state.budget.bytes_max()
        ),
        FailureKind::Trapped => match error.downcast_ref::<wasmtime_wasi::I32Exit>() {
            Some(exit) => format!("called exit({}); that is never a success", exit.0),
            None => error.downcast_ref::<wasmtime::Trap>().map_or_else(|| chain(error), ToString::to_string),
        },
        _ => chain(error),
    };
    text = with_last_words(text, state);
    let backtrace = error
        .downcast_ref::<wasmtime::WasmBacktrace>()
        .map(|trace| bounded_text(&trace.to_string(), TRAP_BYTES_MAX, true));
    views::failure(kind, &text, backtrace)
}

/// A failure with what the guest last wrote to its standard error.
fn with_last_words(text: String, state: &State) -> String {
    let said = state.stderr.lock().unwrap_or_else(PoisonError::into_inner).text();
    if said.is_empty() { text } else { format!("{text}: {}", bounded_text(&said, StderrTail::BYTES_MAX, false)) }
}

/// An error with its causes, without the backtrace.
pub(super) fn chain(error: &wasmtime::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !text.starts_with("error while executing at wasm backtrace") && parts.last() != Some(&text) {
            parts.push(text);
        }
    }
    bounded_text(&parts.join(": "), TRAP_BYTES_MAX, false)
}
