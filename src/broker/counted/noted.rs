//! A subscription where what the broker does not count is noted, message by message.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{
    ledger::Ledger,
    settler::{Flow, Wrap},
};
use crate::{
    broker::{
        BatchMax, BrokerError, Deliveries, KeepAlive, Subscription,
        commit::{Safe, safely},
    },
    message::now_ms,
    store::Note,
};

#[derive(Debug)]
pub(super) struct NotedSubscription {
    inner: Box<dyn Subscription>,
    ledger: Arc<Ledger>,
    wrap: Wrap,
    /// Deliveries that wait for their attempts to be on disk; kept where the caller goes away while it waits.
    begun: Option<(Deliveries, Safe)>,
}

impl NotedSubscription {
    pub(super) fn new(inner: Box<dyn Subscription>, ledger: Arc<Ledger>, is_carried: bool) -> Self {
        let wrap = Wrap::new(Arc::clone(&ledger), Arc::new(Flow::default()), is_carried);
        Self { inner, ledger, wrap, begun: None }
    }
}

#[async_trait]
impl Subscription for NotedSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        if self.begun.is_none() {
            let Some(fetched) = self.inner.next(max).await? else { return Ok(None) };
            let (answer, safe) = oneshot::channel();
            let notes =
                self.ledger.change(Some(answer), |known, changes| known.begin(fetched.as_slice(), now_ms(), changes));
            let is_noted = notes.iter().any(Option::is_some);
            let begun = self.wrap.hand_over(as_noted(fetched, notes));
            if !is_noted {
                return Ok(Some(begun));
            }
            self.begun = Some((begun, safe));
        }
        if let Some((_, safe)) = &mut self.begun {
            let written = safely(safe).await;
            let begun = self.begun.take();
            // Dropped, they go back.
            written?;
            return Ok(begun.map(|(deliveries, _)| deliveries));
        }
        Err(BrokerError::Closed)
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Deliveries with the attempts that are noted of them.
pub(super) fn as_noted(deliveries: Deliveries, notes: Vec<Option<Note>>) -> Deliveries {
    if notes.iter().all(Option::is_none) {
        return deliveries;
    }
    let mut notes = notes.into_iter();
    deliveries.edited(|delivery| {
        if let Some(note) = notes.next().flatten() {
            (delivery.attempt, delivery.failures) = (note.attempt, note.failures);
        }
    })
}
