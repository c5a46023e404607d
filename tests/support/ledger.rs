//! An account of messages that knows nothing of the engine: what was sent, what handlers were called with, what lies in
//! queues and topics. The sum must hold: *sent = handled ∪ dead ∪ pending*.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use helixmq::{
    broker::{Broker, PublishFailures},
    handler::Call,
    message::{Address, Message, now_ms},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

/// Longer than any publish may take, whatever happens to the server meanwhile.
const PUBLISH_MAX: Duration = Duration::from_secs(15);
/// Longer than any fault of these tests lasts.
const OUTAGE_MAX: Duration = Duration::from_secs(30);

/// What handlers were called with.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    calls: Mutex<BTreeMap<String, Vec<u32>>>,
    handled: Mutex<BTreeSet<String>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// A call begins. Gives the attempt.
    pub(crate) fn begin(&self, call: &Call<'_>) -> u32 {
        lock(&self.calls).entry(call.message.id.to_string()).or_default().push(call.attempt);
        call.attempt
    }

    /// The call ends well.
    pub(crate) fn handle(&self, call: &Call<'_>) {
        lock(&self.handled).insert(call.message.id.to_string());
    }

    /// Messages that were handled.
    pub(crate) fn handled(&self) -> BTreeSet<String> {
        lock(&self.handled).clone()
    }

    /// The attempts of each message, in the order of the calls.
    pub(crate) fn calls(&self) -> BTreeMap<String, Vec<u32>> {
        lock(&self.calls).clone()
    }

    /// The highest attempt that there was.
    pub(crate) fn attempt_max(&self) -> u32 {
        lock(&self.calls).values().flatten().copied().max().unwrap_or(0)
    }

    /// Waits until all of these were handled, as long as an outage may last. Gives those that were not.
    pub(crate) async fn handles(&self, sent: &BTreeSet<String>) -> BTreeSet<String> {
        let begin = Instant::now();
        loop {
            let missing: BTreeSet<_> = sent.difference(&lock(&self.handled)).cloned().collect();
            if missing.is_empty() || begin.elapsed() > OUTAGE_MAX {
                return missing;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A message that says which it is.
pub(crate) fn message(number: usize) -> Message {
    Message::new("test.message", format!("{{\"number\":{number}}}"), now_ms())
}

/// Messages on their way to a queue or topic, from several publishers at once. Each publishes what was not confirmed again, under
/// the same id, until it is: what a careful client does.
#[derive(Debug)]
pub(crate) struct Publishing {
    tasks: JoinSet<BTreeSet<String>>,
    confirmed: Arc<Mutex<usize>>,
}

impl Publishing {
    /// `publishers` with `batches` each, of `count` messages.
    pub(crate) fn start(
        broker: &Arc<dyn Broker>,
        to: &Address,
        publishers: usize,
        batches: usize,
        count: usize,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let confirmed = Arc::new(Mutex::new(0));
        for _ in 0..publishers {
            let (broker, to, confirmed) = (Arc::clone(broker), to.clone(), Arc::clone(&confirmed));
            tasks.spawn(async move {
                let mut sent = BTreeSet::new();
                for _ in 0..batches {
                    let batch: Vec<_> = (0..count).map(message).map(Arc::new).collect();
                    sent.extend(batch.iter().map(|message| message.id.to_string()));
                    publish(&broker, &to, batch).await;
                    *lock(&confirmed) += count;
                }
                sent
            });
        }
        Self { tasks, confirmed }
    }

    /// How many are confirmed by now.
    pub(crate) fn confirmed(&self) -> usize {
        *lock(&self.confirmed)
    }

    /// The ids of all, when all are confirmed.
    pub(crate) async fn end(mut self) -> BTreeSet<String> {
        let mut sent = BTreeSet::new();
        while let Some(one) = timeout(OUTAGE_MAX, self.tasks.join_next()).await.expect("all are confirmed in the end") {
            sent.extend(one.expect("a publisher that does not panic"));
        }
        sent
    }
}

/// Publishes until all are confirmed.
pub(crate) async fn publish(broker: &Arc<dyn Broker>, to: &Address, mut batch: Vec<Arc<Message>>) {
    while !batch.is_empty() {
        let tried = timeout(PUBLISH_MAX, broker.publish(to, batch.clone())).await;
        let Err(PublishFailures(failures)) = tried.expect("a publish that ends, one way or the other") else { return };
        let mut again = Vec::new();
        for (place, error) in failures {
            assert!(error.is_retryable(), "an outage is no reason to give up: {error}");
            again.push(Arc::clone(&batch[place]));
        }
        batch = again;
        // Whoever is told at once that nothing is taken waits a moment, as everybody does.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Publishes so many, all of them confirmed at once.
pub(crate) async fn send(broker: &Arc<dyn Broker>, to: &Address, count: usize) -> BTreeSet<String> {
    Publishing::start(broker, to, 1, 1, count).end().await
}
