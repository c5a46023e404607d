//! What the engine settles with.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{context::GroupContext, part::Now, retries::Retries, transaction::Transactions};
use crate::{
    broker::{BrokerError, Delivery, Settler, TransactionError},
    message::{Address, FailedAttempt, Message, Settlement},
};

/// How long a settlement waits for its commit, where it does.
const COMMIT: Duration = Duration::from_secs(5);

/// Settles the deliveries of one subscription.
#[derive(Debug)]
pub(super) struct GroupSettler {
    context: Arc<GroupContext>,
    /// Takes copies of what is to come again later; `None`: it waits here.
    retries: Option<Arc<Retries>>,
    transactions: Transactions,
}

impl GroupSettler {
    pub(super) fn new(context: Arc<GroupContext>, retries: Option<Arc<Retries>>, transactions: Transactions) -> Self {
        Self { context, retries, transactions }
    }

    fn lost(&self) -> BrokerError {
        let reading = &self.context.reading;
        let text = format!("the partition went to another member of {}, who may have handled it, too", reading.group);
        BrokerError::Lost(text)
    }
}

#[async_trait]
impl Settler for GroupSettler {
    async fn settle(&self, mut settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        if self.context.share.lock().closed {
            return Err(BrokerError::Closed);
        }
        // What ends after it has failed is committed before anybody forgets what is known of it: a process that is killed in
        // between would begin with its first attempt again.
        let ends = |(delivery, how): &(Delivery, Settlement)| match how {
            Settlement::DeadLetter { .. } => true,
            Settlement::Accept => delivery.attempt > 1,
            Settlement::Redeliver { .. } | Settlement::Release { .. } => false,
        };
        let mut is_to_be_committed = settled.iter().any(ends);
        if let Some(retries) = &self.retries {
            // A copy is confirmed before its original counts as done. One that is not waits here.
            is_to_be_committed |= retries.publish(&mut settled, |delivery| self.context.share.has(delivery)).await;
        }
        if !self.context.share.settle(settled, Now::read()) {
            return Err(self.lost());
        }
        if is_to_be_committed {
            // A server that is away has it later, with the next commit.
            timeout(COMMIT, self.context.share.ask_for_commit()).await.ok();
        }
        Ok(())
    }

    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        if self.context.share.lock().closed {
            return Err(BrokerError::Closed.into());
        }
        if settled.iter().any(|(delivery, _)| !self.context.share.has(delivery)) {
            return Err(self.lost().into());
        }
        self.transactions.run(published, settled).await
    }

    async fn count_attempt(&self, delivery: &Delivery, _: FailedAttempt) -> Result<(), BrokerError> {
        if self.context.share.has(delivery) { Ok(()) } else { Err(self.lost()) }
    }

    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        self.context.share.lost(deliveries)
    }

    fn release(&self, released: Vec<Delivery>) {
        self.context.share.release(released);
    }
}
