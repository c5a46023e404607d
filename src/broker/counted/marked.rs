//! A subscription to a log. What is fetched is marked before it is handed over: some hundred messages at a time, of which
//! the next are fetched and marked while the present ones are handed out, so that nobody waits for the disk while there
//! is much to do. Where a process ends, what was marked and not handed over yet counts an attempt too many.
//!
//! What may have ended the process is handed over alone, when nothing else is out.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::{sync::oneshot, time::timeout};

use super::{
    known::Known,
    ledger::Ledger,
    noted::as_noted,
    settler::{Flow, ISOLATION, Wrap},
};
use crate::{
    broker::{
        BatchMax, BrokerError, Deliveries, Delivery, KeepAlive, Subscription,
        commit::{Safe, safely},
    },
    message::{Settlement, now_ms},
};

/// Most messages that are marked and not handed over.
pub(super) const MARKED_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct MarkedSubscription {
    inner: Box<dyn Subscription>,
    ledger: Arc<Ledger>,
    flow: Arc<Flow>,
    wrap: Wrap,
    /// Not marked yet: the first of them is to be alone, or those before it are not handed over yet.
    fetched: Deliveries,
    /// Some of them have to wait for their time yet, which a broker that was restarted does not know.
    early: bool,
    /// Waits for the disk.
    coming: Option<Coming>,
    /// Marked.
    ready: Deliveries,
    /// How many to fetch: more, the longer there is more than that.
    chunk: usize,
    /// How the broker's subscription ended, for when everything before that is handed over.
    end: Option<Result<(), BrokerError>>,
}

#[derive(Debug)]
struct Coming {
    deliveries: Deliveries,
    safe: Safe,
    /// Nothing else is to be out beside it.
    alone: bool,
}

impl MarkedSubscription {
    pub(super) fn new(inner: Box<dyn Subscription>, ledger: Arc<Ledger>, is_carried: bool) -> Self {
        let flow = Arc::new(Flow::default());
        let wrap = Wrap::new(Arc::clone(&ledger), Arc::clone(&flow), is_carried);
        let (fetched, ready) = (Deliveries::none(), Deliveries::none());
        Self { inner, ledger, flow, wrap, fetched, early: false, coming: None, ready, chunk: 0, end: None }
    }

    /// Gives back what was not handed over: something else is to come before it, or nothing more is asked for.
    fn put_back(&mut self) {
        let begun = [std::mem::replace(&mut self.ready, Deliveries::none())];
        let begun = begun.into_iter().chain(self.coming.take().map(|coming| coming.deliveries));
        for begun in begun.filter(|begun| !begun.is_empty()) {
            self.ledger.change(None, |known, changes| known.take_back(begun.as_slice(), changes));
        }
        (self.fetched, self.early) = (Deliveries::none(), false);
    }

    /// Marks what may go next; `false`: nothing may.
    fn begin(&mut self, max: usize) -> bool {
        let innocent = self.ledger.look(|known| known.innocent(self.fetched.as_slice()));
        let alone = innocent == 0;
        if self.fetched.is_empty() || self.early || self.flow.is_isolated() || max == 0 {
            return false;
        }
        if alone && !(self.flow.is_idle() && self.ready.is_empty()) {
            return false;
        }
        let deliveries = self.fetched.take_front(innocent.clamp(1, max));
        let (answer, safe) = oneshot::channel();
        let notes =
            self.ledger.change(Some(answer), |known, changes| known.begin(deliveries.as_slice(), now_ms(), changes));
        self.coming = Some(Coming { deliveries: as_noted(deliveries, notes), safe, alone });
        true
    }

    /// Fetches and marks what is there already, while there is enough to hand out.
    fn look_ahead(&mut self, bytes: usize) {
        let count = MARKED_MAX.saturating_sub(self.ready.len());
        let is_enough = self.ready.is_empty() || count < MARKED_MAX / 2;
        if self.coming.is_some() || self.end.is_some() || is_enough {
            return;
        }
        if self.fetched.is_empty() {
            let count = self.chunk.clamp(1, count);
            match self.inner.next(BatchMax { count, bytes }).now_or_never() {
                Some(Ok(Some(fetched))) => self.fetched(fetched, count),
                Some(Ok(None)) => self.end = Some(Ok(())),
                Some(Err(error)) => self.end = Some(Err(error)),
                None => {}
            }
        }
        self.begin(count);
    }

    fn fetched(&mut self, fetched: Deliveries, count: usize) {
        self.chunk = if fetched.len() < count { 0 } else { (count * 2).min(MARKED_MAX) };
        let now = now_ms();
        let waits = |known: &Known| fetched.as_slice().iter().any(|delivery| !known.wait(delivery, now).is_zero());
        self.early = self.ledger.look(|known| !known.is_blank() && waits(known));
        self.fetched = fetched;
    }

    /// Gives back what has to wait for its time yet.
    async fn put_off(&mut self) -> Result<(), BrokerError> {
        self.early = false;
        let now = now_ms();
        let wait = |delivery: &Delivery| self.ledger.look(|known| known.wait(delivery, now));
        let mut parts = std::mem::replace(&mut self.fetched, Deliveries::none())
            .split(2, |delivery| usize::from(!wait(delivery).is_zero()))
            .into_iter();
        let (due, later) = (parts.next(), parts.next().unwrap_or_else(Deliveries::none));
        let how = later.as_slice().iter().map(|delivery| Settlement::Release { after: wait(delivery) }).collect();
        self.fetched = due.unwrap_or_else(Deliveries::none);
        later.settle(how).await
    }

    /// The next of what is marked.
    fn hand_out(&mut self, max: BatchMax) -> Deliveries {
        let mut bytes = 0_usize;
        let fits = self.ready.as_slice().iter().take(max.count.max(1)).take_while(|delivery| {
            bytes = bytes.saturating_add(delivery.message.size());
            bytes <= max.bytes
        });
        let count = fits.count().max(1);
        let piece = self.ready.take_front(count);
        self.wrap.hand_over(piece)
    }
}

#[async_trait]
impl Subscription for MarkedSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        loop {
            if self.flow.was_recalled() {
                self.put_back();
            }
            if self.early {
                self.put_off().await?;
            }
            if !self.ready.is_empty() {
                let piece = self.hand_out(max);
                self.look_ahead(max.bytes);
                return Ok(Some(piece));
            }
            if let Some(coming) = &mut self.coming {
                let written = safely(&mut coming.safe).await;
                let Some(coming) = self.coming.take() else { continue };
                // Dropped, they go back.
                written?;
                if coming.alone {
                    self.flow.isolate(coming.deliveries.as_slice().first().map(|delivery| delivery.tag));
                }
                self.ready = coming.deliveries;
            } else if self.begin(MARKED_MAX) {
            } else if !self.fetched.is_empty() {
                // Looks again in any case: what is out may have become old.
                timeout(ISOLATION, self.flow.changed.notified()).await.ok();
            } else if let Some(end) = self.end.take() {
                return end.map(|()| None);
            } else {
                let count = self.chunk.max(max.count.min(MARKED_MAX));
                match self.inner.next(BatchMax { count, bytes: max.bytes }).await? {
                    Some(fetched) => self.fetched(fetched, count),
                    None => return Ok(None),
                }
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

impl Drop for MarkedSubscription {
    fn drop(&mut self) {
        self.put_back();
    }
}
