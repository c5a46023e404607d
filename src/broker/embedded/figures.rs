//! Metrics of the store.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    store::{Store, StoreStats},
    telemetry::metrics,
};

/// What was told of a store, so that its counts are told once.
#[derive(Debug, Default)]
pub(super) struct Figures(Mutex<StoreStats>);

impl Figures {
    /// Tells how the store is doing now. `broker` is the label.
    pub(super) fn tell(&self, broker: &str, store: &Store) {
        let now = store.stats();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (metrics, label) = (metrics(), [broker]);
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics.store_commits.with_label_values(&label).inc_by(now.commits.saturating_sub(told.commits));
        metrics.store_changes.with_label_values(&label).inc_by(now.changes.saturating_sub(told.changes));
        metrics.store_commit.with_label_values(&label).set(Duration::from_nanos(now.commit_last_ns).as_secs_f64());
        metrics.store_waiting.with_label_values(&label).set(size(now.waiting));
        metrics.store_bytes.with_label_values(&label).set(size(now.database_bytes));
        metrics.store_free_bytes.with_label_values(&label).set(size(now.database_free_bytes));
        metrics.store_wal_bytes.with_label_values(&label).set(size(now.wal_bytes));
        *told = now;
    }
}
