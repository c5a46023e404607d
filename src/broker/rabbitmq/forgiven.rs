//! Deliveries that a server counted and nobody tried, for as long as the messages are there.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::{broker::Delivery, message::MessageId};

/// Most messages of a queue that are remembered: more than can be prefetched.
const MESSAGES_MAX: usize = 100_000;

/// Of one queue.
#[derive(Debug, Default)]
pub(super) struct Forgiven {
    times: Mutex<HashMap<MessageId, u32>>,
    /// Whether there is any: asked for each batch.
    any: AtomicBool,
}

impl Forgiven {
    fn lock(&self) -> MutexGuard<'_, HashMap<MessageId, u32>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These came, were not tried, and are delivered again.
    pub(super) fn add<'a>(&self, untried: impl IntoIterator<Item = &'a Delivery>) {
        let mut all = self.lock();
        for delivery in untried {
            if all.len() >= MESSAGES_MAX {
                break;
            }
            let times = all.entry(delivery.message.id.clone()).or_default();
            *times = times.saturating_add(1);
        }
        self.any.store(!all.is_empty(), Relaxed);
    }

    /// How often a message came and was not tried. Where the server `counts`, it counts all of them each time; where it has
    /// only a flag, that is forgiven once.
    pub(super) fn of(&self, message: &MessageId, counts: bool) -> u32 {
        if !self.any.load(Relaxed) {
            return 0;
        }
        let mut all = self.lock();
        let times = if counts { all.get(message).copied() } else { all.remove(message) };
        times.unwrap_or(0)
    }

    /// These have ended here: what comes under their ids is another message, or a copy that is counted anew.
    pub(super) fn forget<'a>(&self, ended: impl Iterator<Item = &'a Delivery>) {
        if !self.any.load(Relaxed) {
            return;
        }
        let mut all = self.lock();
        for delivery in ended {
            all.remove(&delivery.message.id);
        }
        self.any.store(!all.is_empty(), Relaxed);
    }
}
