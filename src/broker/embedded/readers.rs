//! Who reads: the subscriptions of one queue or group, with what each has out.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::clock::{Now, Tick};

/// Names a subscription within its queue or topic; never used twice.
pub(super) type ReaderId = u32;

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) id: ReaderId,
    /// Last sign of life for everything it has out.
    pub(super) renewed: Tick,
    /// Most deliveries out at a time.
    prefetch: usize,
    out: usize,
    /// The subscription is gone; what it has out may still be settled.
    gone: bool,
    wake: Arc<Notify>,
}

/// Few: looked through, once a batch.
#[derive(Debug, Default)]
pub(super) struct Readers {
    list: Vec<Reader>,
}

impl Readers {
    pub(super) fn join(&mut self, id: ReaderId, prefetch: usize, wake: Arc<Notify>) {
        self.list.push(Reader { id, renewed: 0, prefetch: prefetch.max(1), out: 0, gone: false, wake });
    }

    /// A reader whose leases never run out, and that has room for any number.
    pub(super) fn join_for_ever(&mut self, id: ReaderId) {
        self.list.push(Reader {
            id,
            renewed: Tick::MAX,
            prefetch: usize::MAX,
            out: 0,
            gone: false,
            wake: Arc::default(),
        });
    }

    pub(super) fn leave(&mut self, id: ReaderId) {
        if let Some(reader) = self.get_mut(id) {
            reader.gone = true;
        }
        self.forget();
    }

    /// How many more deliveries it may have out.
    pub(super) fn room(&self, id: ReaderId) -> usize {
        self.get(id).map_or(0, |reader| reader.prefetch.saturating_sub(reader.out))
    }

    pub(super) fn took(&mut self, id: ReaderId, count: usize) {
        if let Some(reader) = self.get_mut(id) {
            reader.out += count;
        }
    }

    /// Deliveries of it came to an end. Gives what to wake if it had no room before.
    pub(super) fn ended(&mut self, id: ReaderId, count: usize) -> Option<Arc<Notify>> {
        let reader = self.get_mut(id)?;
        let was_full = reader.out >= reader.prefetch;
        reader.out = reader.out.saturating_sub(count);
        let wake = (was_full && count > 0 && !reader.gone).then(|| Arc::clone(&reader.wake));
        if reader.gone && reader.out == 0 {
            self.forget();
        }
        wake
    }

    /// What to wake when there is something for it; `None` while it has no room.
    pub(super) fn wake(&self, id: ReaderId) -> Option<Arc<Notify>> {
        let reader = self.get(id)?;
        (!reader.gone && reader.out < reader.prefetch).then(|| Arc::clone(&reader.wake))
    }

    pub(super) fn renew(&mut self, id: ReaderId, now: Now) {
        if let Some(reader) = self.get_mut(id) {
            reader.renewed = now.tick;
        }
    }

    pub(super) fn renewed(&self, id: ReaderId) -> Tick {
        self.get(id).map_or(0, |reader| reader.renewed)
    }

    /// Those whose subscription is there, in the order they came.
    pub(super) fn present(&self) -> impl Iterator<Item = ReaderId> {
        self.list.iter().filter(|reader| !reader.gone).map(|reader| reader.id)
    }

    /// Everything to wake, room or not.
    pub(super) fn all(&self) -> impl Iterator<Item = Arc<Notify>> {
        self.list.iter().filter(|reader| !reader.gone).map(|reader| Arc::clone(&reader.wake))
    }

    fn get(&self, id: ReaderId) -> Option<&Reader> {
        self.list.iter().find(|reader| reader.id == id)
    }

    fn get_mut(&mut self, id: ReaderId) -> Option<&mut Reader> {
        self.list.iter_mut().find(|reader| reader.id == id)
    }

    fn forget(&mut self) {
        self.list.retain(|reader| !reader.gone || reader.out > 0);
    }
}

/// Whom a change concerns. Told after the lock is released, each once.
#[derive(Debug, Default)]
pub(super) struct Wakes(Vec<Arc<Notify>>);

impl Wakes {
    pub(super) fn notify(&self) {
        self.0.iter().for_each(|wake| wake.notify_one());
    }
}

impl Extend<Arc<Notify>> for Wakes {
    fn extend<I: IntoIterator<Item = Arc<Notify>>>(&mut self, wakes: I) {
        for wake in wakes {
            if !self.0.iter().any(|other| Arc::ptr_eq(other, &wake)) {
                self.0.push(wake);
            }
        }
    }
}

/// How often to renew leases of that length: twice may fail before one runs out.
pub(super) fn renew_every(lease: Duration) -> Duration {
    lease / 3
}
