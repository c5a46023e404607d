//! Who may publish now: as much as the disk keeps up with, and nobody while there is no room.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes of publishes that wait for the disk at once.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that one permit of the semaphore stands for.
const UNIT: usize = 64;
const UNITS: usize = WAITING_BYTES_MAX / UNIT;
/// What a message takes beside its payload, headers and key.
const MESSAGE_BYTES: usize = 256;

/// What a publish is to whoever runs out of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// New work from outside: refused as soon as there is little room.
    Publish,
    /// What becomes of work that is there, results and dead letters: what caused it goes only once this is safe, so it
    /// may use the room that is kept back, and is refused when that is used up as well.
    FollowUp,
}

/// Room for a publish among what waits for the disk; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _units: OwnedSemaphorePermit,
}

/// The room.
#[derive(Debug)]
pub(super) struct Admission(Arc<Semaphore>);

impl Admission {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(UNITS)))
    }

    /// Waits for room, in order. `None`: there will be none any more. Cancel safe.
    pub(super) async fn wait(&self, messages: usize, bytes: usize) -> Option<Permit> {
        let units = bytes.saturating_add(messages.saturating_mul(MESSAGE_BYTES)).div_ceil(UNIT);
        // One that is larger than everything goes alone.
        let units = u32::try_from(units.min(UNITS)).unwrap_or(u32::MAX);
        let units = Arc::clone(&self.0).acquire_many_owned(units).await.ok()?;
        Some(Permit { _units: units })
    }

    /// Whoever waits, waits in vain.
    pub(super) fn close(&self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_that_is_larger_than_everything_goes_alone() {
        let admission = Admission::new();
        let all = admission.wait(1, usize::MAX).now_or_never().unwrap().unwrap();
        assert!(admission.wait(1, 1).now_or_never().is_none());
        drop(all);
        assert!(admission.wait(1, 1).now_or_never().unwrap().is_some());
    }

    #[tokio::test]
    async fn whoever_waits_is_told_that_it_is_over() {
        let admission = Admission::new();
        let _all = admission.wait(1, WAITING_BYTES_MAX).await.unwrap();
        let (waiting, ()) = tokio::join!(admission.wait(1, 1), async { admission.close() });
        assert!(waiting.is_none());
    }
}
