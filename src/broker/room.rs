//! How many bytes of messages may be on their way to one system: who comes beyond waits for room, so that a system that is
//! slow holds up those who publish to it, and nobody else.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{PublishError, PublishFailures};
use crate::{message::Message, telemetry::metrics};

/// How long somebody waits for room.
const WAIT: Duration = Duration::from_secs(10);

/// Room for what is on its way to one system.
#[derive(Debug)]
pub(super) struct Room {
    kib: Semaphore,
    /// All of it.
    max: u32,
    /// As it was asked for.
    bytes: usize,
}

/// Room that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    permit: SemaphorePermit<'a>,
}

impl Room {
    /// For so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let max = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, MAX_KIB);
        metrics().memory_budget.with_label_values(&["publishing", "limit"]).add(i64::from(max) << 10);
        Self { kib: Semaphore::new(max as usize), max, bytes }
    }

    /// For how many bytes it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Waits until there is room for these messages. What is larger than all of it takes all, and goes alone.
    ///
    /// # Errors
    /// There was none in time: [`PublishError::Unavailable`] for each.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn take(&self, name: &str, messages: &[Arc<Message>]) -> Result<Taken<'_>, PublishFailures> {
        let bytes: usize = messages.iter().map(|message| message.size()).sum();
        let wanted = u32::try_from(bytes.div_ceil(1024)).unwrap_or(self.max).min(self.max);
        match timeout(WAIT, self.kib.acquire_many(wanted)).await {
            Ok(Ok(permit)) => {
                metrics().memory_budget.with_label_values(&["publishing", "used"]).add(used(&permit));
                Ok(Taken { permit })
            }
            // It is never closed.
            Ok(Err(_)) | Err(_) => {
                let limit = self.max >> 10;
                let why =
                    format!("{limit} MiB are on their way to {name} already, which takes too long to confirm them");
                let refused = |place| (place, PublishError::Unavailable(why.clone()));
                Err(PublishFailures((0..messages.len()).map(refused).collect()))
            }
        }
    }
}

/// Source: tokio's `Semaphore::MAX_PERMITS` on 32-bit machines, which is less than that of a `u32`.
const MAX_KIB: u32 = u32::MAX >> 3;

fn used(permit: &SemaphorePermit<'_>) -> i64 {
    i64::try_from(permit.num_permits()).unwrap_or(i64::MAX >> 10) << 10
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        metrics().memory_budget.with_label_values(&["publishing", "used"]).sub(used(&self.permit));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        metrics().memory_budget.with_label_values(&["publishing", "limit"]).sub(i64::from(self.max) << 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: usize) -> Vec<Arc<Message>> {
        vec![Arc::new(Message::new("", vec![0_u8; bytes], 0))]
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_beyond_waits_and_is_told_in_the_end() {
        let room = Room::new(10 << 10);
        let first = room.take("a", &of(8 << 10)).await.expect("room");
        let failures = room.take("a", &of(4 << 10)).await.expect_err("no room");
        assert!(matches!(&failures.0[..], [(0, PublishError::Unavailable(why))] if why.contains("on their way to a")));
        drop(first);
        assert!(room.take("a", &of(4 << 10)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_all_goes_alone() {
        let room = Room::new(10 << 10);
        let large = room.take("a", &of(1 << 20)).await.expect("room");
        assert!(room.take("a", &of(1)).await.is_err());
        drop(large);
        assert!(room.take("a", &of(1)).await.is_ok());
    }
}
