//! The deadline clock: one thread that, while any call runs, moves a coarse clock and wasmtime's epoch once a
//! millisecond. Reading it costs one atomic load, so that a call needs no system call to know its deadline.
//!
//! Counting ticks would be wrong on a busy machine (late ticks were measured to double a timeout); each tick stores the
//! time that has really passed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use wasmtime::Engine;

const TICK: Duration = Duration::from_millis(1);

/// Milliseconds since the engine began, as of the last tick.
#[derive(Debug)]
pub(super) struct Clock {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    now_ms: AtomicU64,
    running: AtomicUsize,
    stop: AtomicBool,
}

/// While one of these lives, the clock moves.
#[derive(Debug)]
pub(super) struct Running {
    shared: Arc<Shared>,
}

impl Clock {
    pub(super) fn start(engine: Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            now_ms: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mine = Arc::clone(&shared);
        let ticker = thread::Builder::new().name("helixmq-clock".into()).spawn(move || tick(&mine, &engine))?;
        Ok(Self { shared, ticker: Some(ticker) })
    }

    /// The last tick.
    pub(super) fn now_ms(&self) -> u64 {
        self.shared.now_ms.load(Ordering::Relaxed)
    }

    /// Makes the clock move, and brings it up to date: calls may be timed from now on.
    pub(super) fn run(&self) -> Running {
        self.shared.update();
        // AcqRel: whoever raises the count from 0 must be seen by the ticker before it parks (see `tick`).
        if self.shared.running.fetch_add(1, Ordering::AcqRel) == 0
            && let Some(ticker) = &self.ticker
        {
            ticker.thread().unpark();
        }
        Running { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(ticker) = self.ticker.take() {
            ticker.thread().unpark();
            // A ticker that panicked has nothing left to clean up.
            drop(ticker.join());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn update(&self) {
        let ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.now_ms.fetch_max(ms, Ordering::Relaxed);
    }
}

fn tick(shared: &Shared, engine: &Engine) {
    while !shared.stop.load(Ordering::Acquire) {
        if shared.running.load(Ordering::Acquire) == 0 {
            // An unpark between the load and here makes this return at once: nobody waits for a clock that stands still.
            thread::park();
            continue;
        }
        thread::sleep(TICK);
        shared.update();
        engine.increment_epoch();
    }
}
