//! The engine's side of a subscription: what there is, handed out in batches. Copies that wait in the retry topic come in
//! between, by a member of their own.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use async_trait::async_trait;

use super::{
    Common, Member, Reading, context::GroupContext, expression, join, part::Part, retries::Retries,
    settler::GroupSettler, share::Taken, transaction::Transactions,
};
use crate::{
    broker::{
        Aside, BatchMax, BrokerError, Deliveries, KeepAlive, Start, Subscription,
        kafka::{publisher::Publisher, threads::Threads},
    },
    telemetry::metrics,
};

/// A subscription of a group.
#[derive(Debug)]
pub(in crate::broker::kafka) struct GroupSubscription {
    sources: Vec<Fetched>,
    /// Which of them is asked first.
    turn: usize,
}

/// What one member fetches.
#[derive(Debug)]
struct Fetched {
    context: Arc<GroupContext>,
    settler: Arc<GroupSettler>,
}

impl GroupSubscription {
    /// Joins the group, and where retries wait in the retry topic, a group of its own there.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: the client library will not have the settings.
    pub(in crate::broker::kafka) fn begin(
        common: &Common,
        reading: Reading,
        prefetch: usize,
        aside: Aside,
        publisher: &Arc<Publisher>,
        threads: &Threads,
    ) -> Result<Self, BrokerError> {
        let reading = Arc::new(reading);
        let retries = (aside == Aside::Topic)
            .then(|| Arc::new(Retries::new(Arc::clone(publisher), Arc::clone(&common.settings), Arc::clone(&reading))));
        let topic = if reading.is_pattern { expression(&reading.place) } else { reading.place.to_string() };
        let member = join(common, Arc::clone(&reading), &[&topic], prefetch)?;
        let mut subscription = Self { sources: Vec::new(), turn: 0 };
        subscription.add(member, common, retries.clone(), publisher, threads);
        if retries.is_some() {
            let copies = Reading::copies(&reading, &common.settings);
            let topic = copies.place.to_string();
            // What has joined leaves again where this fails.
            let member = join(common, Arc::new(copies), &[&topic], prefetch)?;
            subscription.add(member, common, retries, publisher, threads);
        }
        Ok(subscription)
    }

    fn add(
        &mut self,
        member: Member,
        common: &Common,
        retries: Option<Arc<Retries>>,
        publisher: &Arc<Publisher>,
        threads: &Threads,
    ) {
        let Member { context, consumer, thread } = member;
        threads.keep(thread, Arc::clone(&context.share) as _);
        let transactions =
            Transactions::new(common, Arc::clone(&context), consumer, retries.clone(), Arc::clone(publisher));
        if let Some(end) = transactions.ender() {
            context.share.ends_unfinished(end);
        }
        let settler = Arc::new(GroupSettler::new(Arc::clone(&context), retries, transactions));
        self.sources.push(Fetched { context, settler });
    }
}

#[async_trait]
impl Subscription for GroupSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        loop {
            let now = Instant::now();
            let mut due: Option<Instant> = None;
            let mut ended = 0;
            for step in 0..self.sources.len() {
                let place = (self.turn + step) % self.sources.len();
                let Some(source) = self.sources.get(place) else { continue };
                match source.context.share.take(max, now) {
                    Taken::Some(items) => {
                        self.turn = place + 1;
                        return Ok(Some(Deliveries::new(items, Arc::clone(&source.settler) as _)));
                    }
                    Taken::Nothing(then) => due = due.into_iter().chain(then).min(),
                    Taken::Ended => ended += 1,
                    Taken::Failed(error) => {
                        let reading = &source.context.reading;
                        metrics().kafka_restarts.with_label_values(&[&*reading.place, &*reading.group, "failed"]).inc();
                        return Err(error);
                    }
                }
            }
            if ended > 0 {
                return Ok(None);
            }
            let until_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut some = self.sources.iter().map(|source| Box::pin(source.context.share.some.notified()));
            match (some.next(), some.next()) {
                (Some(first), Some(second)) => {
                    tokio::select! { () = first => {} () = second => {} () = until_due => {} }
                }
                (Some(first), None) => tokio::select! { () = first => {} () = until_due => {} },
                (None, _) => return Ok(None),
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        let sources = self.sources.iter().map(|source| Arc::downgrade(&source.context)).collect();
        Arc::new(Members { sources })
    }
}

impl Drop for GroupSubscription {
    fn drop(&mut self) {
        self.sources.iter().for_each(|source| source.context.share.stop());
    }
}

/// The client library says that we are there, by itself.
#[derive(Debug)]
pub(in crate::broker::kafka) struct NoLease;

impl KeepAlive for NoLease {
    fn renew(&self) {}

    fn every(&self) -> Option<std::time::Duration> {
        None
    }
}

/// Of a group, the same; and what waits for it.
#[derive(Debug)]
struct Members {
    sources: Vec<Weak<GroupContext>>,
}

impl KeepAlive for Members {
    fn renew(&self) {}

    fn every(&self) -> Option<std::time::Duration> {
        None
    }

    /// Only of partitions that this engine has: what other members of the group have is theirs to bring.
    fn waiting(&self) -> Option<u64> {
        let waiting = |context: Arc<GroupContext>| -> u64 {
            let state = context.share.lock();
            let behind = state.parts.iter().filter(|part| part.out == 0 && part.stuck.is_none() && part.is_behind());
            behind.map(Part::lag).sum()
        };
        Some(self.sources.iter().filter_map(Weak::upgrade).map(waiting).sum())
    }
}

impl Reading {
    /// The copies of these messages in the retry topic: read by a group of their own, from the beginning.
    fn copies(of: &Arc<Self>, settings: &crate::broker::kafka::Settings) -> Self {
        let group = format!("{}.retry.{}", of.group, of.place);
        let reading =
            Self::new(Arc::clone(&settings.retry_topic), group.into(), Start::Earliest, Some(super::Starts::new()));
        Self { copies_of: Some(Arc::clone(of)), ..reading }
    }
}
