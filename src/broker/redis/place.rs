//! A queue or topic as it is used here: its keys on the server, and what is counted of it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::settings::Settings;
use crate::{
    broker::AddressStats,
    message::{Address, Kind, PRIORITY_MAX},
};

/// The group that reads queues.
pub(super) const GROUP: &str = "helixmq";
/// How often what is seen on the server may be passed over, because it was changed from here meanwhile.
const PASSED_OVER_MAX: u32 = 3;

/// A queue or topic as it is used here.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) address: Address,
    /// Key of its settings; how the names of its other keys begin.
    pub(super) base: String,
    known: Mutex<Known>,
    counts: Mutex<Counts>,
    /// Something is there for readers, or is due earlier than they know.
    changed: watch::Sender<u64>,
    dead_lettered: AtomicU64,
}

/// What is known of its settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) priority_max: u8,
    pub(super) ttl: Option<Duration>,
    /// Whether its bytes are limited, and so counted one by one.
    pub(super) counts_bytes: bool,
    pub(super) lease: Duration,
}

/// What is counted. What others do is known as of the last look at the server.
#[derive(Clone, Debug, Default)]
struct Counts {
    total: i64,
    /// As of that time of the server's, in microseconds.
    delayed: i64,
    delayed_at: i64,
    elsewhere: i64,
    out: i64,
    dropped: u64,
    /// Bytes of a message, on average.
    message_bytes: f64,
    /// Bytes, where they are counted one by one.
    bytes: Option<i64>,
    lag: Vec<(Arc<str>, u64)>,
    /// How often it was changed from here.
    changes: u64,
    /// What was asked of the server, and may change more than is counted yet.
    changing: u32,
    passed_over: u32,
}

/// What one look at the server showed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) total: i64,
    pub(super) elsewhere: i64,
    /// Messages and bytes since the beginning.
    pub(super) published: (f64, f64),
    pub(super) lag: Vec<(Arc<str>, u64)>,
}

/// Held until what the server made of it is counted.
pub(super) struct Changing(Arc<Place>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.counts().changing -= 1;
    }
}

impl Place {
    pub(super) fn new(address: &Address, settings: &Settings) -> Self {
        let known = Known { priority_max: PRIORITY_MAX, ttl: None, counts_bytes: false, lease: settings.lease };
        Self {
            base: format!("{}{}:{{{}}}", settings.key_prefix, address.kind, address.name),
            address: address.clone(),
            known: Mutex::new(known),
            counts: Mutex::default(),
            changed: watch::Sender::new(0),
            dead_lettered: AtomicU64::new(0),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its settings, as the server has them.
    pub(super) fn learn(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Names of its streams, in the order in which they are read; of each level first what is new, then what was delayed.
    pub(super) fn streams(&self) -> Vec<String> {
        match self.address.kind {
            Kind::Topic => vec!["log".to_owned()],
            Kind::Queue => (0..=self.known().priority_max)
                .rev()
                .flat_map(|level| [format!("p{level}"), format!("d{level}")])
                .collect(),
        }
    }

    /// A key of it.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.base)
    }

    /// Whoever reads here looks again.
    pub(super) fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Hears of changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes what is counted.
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts();
        counts.changes += 1;
        change(&mut counts);
    }

    /// Something is asked of the server that changes what is there: what is seen meanwhile may have it, or not.
    pub(super) fn changing(self: &Arc<Self>) -> Changing {
        self.counts().changing += 1;
        Changing(Arc::clone(self))
    }

    /// So many were published; others had to go.
    pub(super) fn published(&self, count: usize, dropped: u64) {
        self.count(|counts| {
            counts.total += signed(count) - i64::try_from(dropped).unwrap_or(0);
            counts.dropped += dropped;
        });
    }

    /// So many were handed out.
    pub(super) fn out(&self, count: usize) {
        self.count(|counts| counts.out += signed(count));
    }

    /// So many are not out any more.
    pub(super) fn back(&self, count: usize) {
        self.count(|counts| counts.out -= signed(count));
    }

    /// So many are gone.
    pub(super) fn forgotten(&self, count: usize) {
        self.count(|counts| counts.total -= signed(count));
    }

    /// So many wait for their time, as the server says at that time of its own: answers may overtake each other.
    pub(super) fn delayed(&self, delayed: i64, at: i64) {
        let mut counts = self.counts();
        if at >= counts.delayed_at {
            (counts.delayed, counts.delayed_at) = (delayed, at);
        }
    }

    pub(super) fn dead_lettered(&self, count: u64) {
        self.dead_lettered.fetch_add(count, Relaxed);
    }

    /// How often it was changed from here: said again with what was seen meanwhile.
    pub(super) fn version(&self) -> u64 {
        self.counts().changes
    }

    /// What the server says; passed over where something was changed from here meanwhile, as nobody knows which came first.
    pub(super) fn seen(&self, seen: Seen, version: u64) {
        let mut counts = self.counts();
        if (counts.changes != version || counts.changing > 0) && counts.passed_over < PASSED_OVER_MAX {
            counts.passed_over += 1;
            return;
        }
        counts.passed_over = 0;
        (counts.total, counts.elsewhere) = (seen.total, seen.elsewhere);
        counts.lag = seen.lag;
        let (messages, bytes) = seen.published;
        counts.message_bytes = if messages > 0.0 { bytes / messages } else { 0.0 };
        counts.bytes = self.known().counts_bytes.then_some(bytes as i64);
    }

    /// What is there, as far as it is known.
    pub(super) fn stats(&self) -> AddressStats {
        let counts = self.counts().clone();
        let of = |count: i64| u64::try_from(count).unwrap_or(0);
        let ready = match self.address.kind {
            Kind::Queue => of(counts.total - counts.delayed - counts.elsewhere - counts.out),
            Kind::Topic => of(counts.total),
        };
        let bytes = counts.bytes.unwrap_or((counts.total as f64 * counts.message_bytes) as i64);
        AddressStats {
            address: self.address.clone(),
            ready,
            delayed: of(counts.delayed),
            unsettled: of(counts.out + counts.elsewhere),
            bytes: of(bytes),
            lag: counts.lag,
            dropped: counts.dropped,
            dead_lettered: self.dead_lettered.load(Relaxed),
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
