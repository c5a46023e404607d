//! The threads that read, so that whoever closes the broker waits for them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long leaving groups in good order may take.
pub(super) const LEAVE: Duration = Duration::from_secs(10);

/// Something that a thread works for.
pub(super) trait Ends: Send + Sync + std::fmt::Debug {
    /// Nothing holds any more.
    fn close(&self);
}

/// Threads, and what they work for.
#[derive(Debug, Default)]
pub(super) struct Threads(Mutex<Vec<Working>>);

type Working = (JoinHandle<()>, Arc<dyn Ends>);

impl Threads {
    /// Keeps one, and forgets those that have ended.
    pub(super) fn keep(&self, thread: JoinHandle<()>, works_for: Arc<dyn Ends>) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|(thread, _)| !thread.is_finished());
        threads.push((thread, works_for));
    }

    /// Ends all, and waits for them. A server that does not answer may hold up a thread; it is left to itself then.
    pub(super) async fn close(&self) {
        let threads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        threads.iter().for_each(|(_, works_for)| works_for.close());
        let until = Instant::now() + LEAVE;
        let mut say = Instant::now() + Duration::from_secs(1);
        let mut left = threads.len();
        for (thread, _) in threads {
            while !thread.is_finished() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if Instant::now() >= say {
                    say += Duration::from_secs(1);
                    tracing::info!(groups = left, "waiting for Kafka to let us leave groups");
                }
            }
            left -= 1;
            if !thread.is_finished() {
                tracing::warn!(
                    "Kafka does not let us leave a group in time; the others have our partitions once the session has run out"
                );
            } else if thread.join().is_err() {
                tracing::error!("a thread that reads from Kafka panicked, which is a defect of the engine");
            }
        }
    }
}
