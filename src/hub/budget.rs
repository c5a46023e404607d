//! How much memory messages may take that have been fetched and are not settled: they wait for a lane, are being handled, or
//! their results are on their way to a broker that is slow. Each source may have its share of the budget, and waits before it
//! fetches more. So a slow destination slows the sources that feed it, and only those.
//!
//! The rule is [`fetch`]; an [`Account`] keeps the sum of one source, counted where its deliveries are settled or go back.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::{
    broker::{BatchMax, BrokerError, Deliveries, Delivery, Settler, TransactionError},
    message::{Address, FailedAttempt, Message, Settlement},
    telemetry::metrics,
};

/// Of the budget, what is for messages that are fetched. The other half is for what is on its way to systems, and for what
/// their clients fetch ahead: whoever connects them shares that out.
const PART: usize = 2;

/// How many bytes a source may fetch now, that has so many out of its share; `None`: it waits. With nothing out it always may,
/// and one message always fits, so that one that is larger than a share passes alone.
fn fetch(share: usize, out: usize) -> Option<usize> {
    match share.saturating_sub(out) {
        0 if out > 0 => None,
        left => Some(left.max(1)),
    }
}

/// What all sources have together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// In bytes; 0: no limit.
    total: AtomicUsize,
    sources: AtomicUsize,
}

impl Budget {
    /// With so many bytes for everything that is in the budget; 0: no limit.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let budget = Self::default();
        budget.set(bytes);
        Arc::new(budget)
    }

    /// From now on.
    pub(super) fn set(&self, bytes: usize) {
        self.total.store(bytes, Relaxed);
        metrics().memory_budget.with_label_values(&["handling", "limit"]).set(gauge(bytes / PART));
    }

    /// What each source may have out; without a limit, everything.
    fn share(&self) -> usize {
        match self.total.load(Relaxed) {
            0 => usize::MAX,
            total => total / PART / self.sources.load(Relaxed).max(1),
        }
    }
}

/// What one source has out.
#[derive(Debug)]
pub(super) struct Account {
    budget: Arc<Budget>,
    out: AtomicUsize,
    freed: Notify,
}

impl Account {
    /// One more source shares the budget, until this is dropped.
    pub(super) fn open(budget: &Arc<Budget>) -> Arc<Self> {
        budget.sources.fetch_add(1, Relaxed);
        Arc::new(Self { budget: Arc::clone(budget), out: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Waits until the source may fetch, and says how much.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn may_fetch(&self, max: BatchMax) -> BatchMax {
        loop {
            let freed = self.freed.notified();
            if let Some(bytes) = fetch(self.budget.share(), self.out.load(Relaxed)) {
                return BatchMax { bytes: max.bytes.min(bytes), ..max };
            }
            freed.await;
        }
    }

    fn add(&self, bytes: usize) {
        self.out.fetch_add(bytes, Relaxed);
        metrics().memory_budget.with_label_values(&["handling", "used"]).add(gauge(bytes));
    }

    fn sub(&self, bytes: usize) {
        self.out.fetch_sub(bytes, Relaxed);
        metrics().memory_budget.with_label_values(&["handling", "used"]).sub(gauge(bytes));
        // One leads, and nobody else fetches; a permit is kept for whoever is about to.
        self.freed.notify_one();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.sources.fetch_sub(1, Relaxed);
        metrics().memory_budget.with_label_values(&["handling", "used"]).sub(gauge(self.out.load(Relaxed)));
    }
}

/// Counts the deliveries of one subscription.
#[derive(Debug, Default)]
pub(super) struct Counting(OnceLock<Arc<CountedSettler>>);

impl Counting {
    /// The same deliveries, in the books until they are settled or go back.
    pub(super) fn count(&mut self, account: &Arc<Account>, deliveries: Deliveries) -> Deliveries {
        deliveries.settled_by(|items, inner| {
            account.add(items.iter().map(size).sum());
            // One for each of the broker's own, as deliveries of one can be joined.
            match self.0.get().filter(|settler| Arc::ptr_eq(&settler.inner, &inner)) {
                Some(settler) => Arc::clone(settler) as _,
                None => {
                    let settler = Arc::new(CountedSettler { inner, account: Arc::clone(account) });
                    self.0 = OnceLock::from(Arc::clone(&settler));
                    settler
                }
            }
        })
    }
}

#[derive(Debug)]
struct CountedSettler {
    inner: Arc<dyn Settler>,
    account: Arc<Account>,
}

#[async_trait]
impl Settler for CountedSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let bytes = settled.iter().map(|(delivery, _)| size(delivery)).sum();
        let done = self.inner.settle(settled).await;
        self.account.sub(bytes);
        done
    }

    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        self.inner.transact(published, settled).await?;
        self.account.sub(settled.iter().map(|(delivery, _)| size(delivery)).sum());
        Ok(())
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        self.inner.count_attempt(delivery, failure).await
    }

    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        self.inner.lost(deliveries)
    }

    fn release(&self, released: Vec<Delivery>) {
        let bytes = released.iter().map(size).sum();
        self.inner.release(released);
        self.account.sub(bytes);
    }
}

fn size(delivery: &Delivery) -> usize {
    delivery.message.size()
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nobody_fetches_beyond_a_share_and_nobody_starves(
            share in 0_usize..10_000,
            steps in proptest::collection::vec((0_usize..3_000, any::<bool>()), 1..200),
        ) {
            let (mut out, mut largest) = (Vec::<usize>::new(), 0);
            for (message, settles) in steps {
                if settles && !out.is_empty() {
                    out.remove(0);
                }
                let sum: usize = out.iter().sum();
                match fetch(share, sum) {
                    Some(bytes) => {
                        prop_assert!(bytes >= 1 && (out.is_empty() || sum < share));
                        // A broker brings what fits, and one message in any case.
                        largest = largest.max(message);
                        out.push(message);
                    }
                    None => prop_assert!(sum >= share && sum > 0, "waits for what is settled"),
                }
                prop_assert!(out.iter().sum::<usize>() <= share + largest);
            }
        }
    }

    #[test]
    fn a_share_is_what_is_left_for_each() {
        let budget = Budget::new(800);
        assert_eq!(budget.share(), 400);
        let (one, other) = (Account::open(&budget), Account::open(&budget));
        assert_eq!(budget.share(), 200);
        drop(one);
        assert_eq!(budget.share(), 400);
        budget.set(0);
        assert_eq!(budget.share(), usize::MAX);
        drop(other);
    }
}
