//! Time as the broker uses it: delays and leases on a clock that never jumps, and the wall clock beside it for what
//! messages carry. Each is read once a batch.

use std::time::Duration;

use tokio::time::Instant;

use crate::message::{UnixMs, now_ms};

/// Nanoseconds since the broker was made. Follows tokio's clock, so that paused tests pause it too.
pub(super) type Tick = u64;

/// Longer than any process lives; keeps sums of ticks far from the end of the range.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const NANOS_PER_MS: u64 = 1_000_000;

/// One reading, shared by a whole batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) tick: Tick,
    pub(super) unix: UnixMs,
    /// The wall clock as it would be had nobody set it since the broker was made: for times that are kept on disk.
    pub(super) steady: UnixMs,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: Instant,
    base_unix: UnixMs,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { base: Instant::now(), base_unix: now_ms() }
    }

    pub(super) fn now(&self) -> Now {
        let tick = nanos(self.base.elapsed());
        Now { tick, unix: now_ms(), steady: self.base_unix + tick / NANOS_PER_MS }
    }

    /// For waiting until a tick.
    pub(super) fn instant(&self, tick: Tick) -> Instant {
        self.base + Duration::from_nanos(tick).min(FOREVER)
    }
}

impl Now {
    /// When something is due that must wait this long.
    pub(super) fn after(&self, wait: Duration) -> Tick {
        self.tick.saturating_add(nanos(wait.min(FOREVER)))
    }

    /// The same as a time to keep on disk; `None`: now.
    pub(super) fn steady_after(&self, wait: Duration) -> Option<UnixMs> {
        let wait = u64::try_from(wait.min(FOREVER).as_nanos().div_ceil(u128::from(NANOS_PER_MS))).unwrap_or(u64::MAX);
        (wait > 0).then(|| self.steady.saturating_add(wait))
    }

    /// When a time that was kept on disk comes.
    pub(super) fn at_steady(&self, at: UnixMs) -> Tick {
        self.after(Duration::from_millis(at.saturating_sub(self.steady)))
    }

    /// When the wall clock will show `at`; `None` if it does already. A wall clock that is set while a message waits
    /// does not move the message.
    pub(super) fn at_unix(&self, at: UnixMs) -> Option<Tick> {
        (at > self.unix).then(|| self.after(Duration::from_millis(at - self.unix)))
    }
}

pub(super) fn nanos(duration: Duration) -> Tick {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
