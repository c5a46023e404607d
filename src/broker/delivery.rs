//! Deliveries: messages that were handed over and are owed a settlement.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::{BrokerError, TransactionError};
use crate::message::{Address, FailedAttempt, Message, Position, Settlement};

/// Names one delivery to the subscription it came from; meaningless elsewhere.
pub type Tag = u64;

/// One hand-over of one message.
#[derive(Debug)]
pub struct Delivery {
    /// The message, shared with its broker.
    pub message: Arc<Message>,
    /// For the settlement.
    pub tag: Tag,
    /// Counted from 1; counts every delivery that was not released, crashes included.
    pub attempt: u32,
    /// Topics: which one, where a pattern was subscribed to.
    pub topic: Option<Arc<str>>,
    /// Topics: where it lies.
    pub position: Option<Position>,
    /// Whether that is all the broker knows.
    pub count: Count,
    /// What went wrong before, oldest first, as far as the broker keeps it.
    pub failures: Vec<FailedAttempt>,
}

/// What [`Delivery::attempt`] is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Count {
    /// The broker counted it.
    #[default]
    Exact,
    /// There was at least this: the broker knows that it was handed over before, and not how often.
    AtLeast,
}

/// What was settled, by the tags of the deliveries: for brokers that have the messages themselves.
pub(super) fn by_tag(settled: Vec<(Delivery, Settlement)>) -> Vec<(Tag, Settlement)> {
    settled.into_iter().map(|(delivery, how)| (delivery.tag, how)).collect()
}

/// The tags of some deliveries.
pub(super) fn tags(deliveries: &[Delivery]) -> Vec<Tag> {
    deliveries.iter().map(|delivery| delivery.tag).collect()
}

/// Deliveries of one subscription, owned. Those that are dropped unsettled go back (Invariant 1).
#[derive(Debug)]
pub struct Deliveries {
    items: Vec<Delivery>,
    settler: Arc<dyn Settler>,
}

/// The broker's side of a settlement. Only [`Deliveries`] calls it.
#[async_trait]
pub trait Settler: Send + Sync + Debug {
    /// Carries out the settlements, and returns when they are as safe as the broker makes them.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: some may be delivered again; the attempt count says so. [`BrokerError::Closed`]:
    /// all of them went back when the broker was closed.
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError>;

    /// Publishes these messages and carries out the settlements, all of it or nothing.
    ///
    /// # Errors
    /// [`TransactionError`]: nothing was published and nothing settled; the deliveries are still out.
    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        let _ = (published, settled);
        Err(BrokerError::Unsupported { broker: "configured", what: "publish and settle in one transaction" }.into())
    }

    /// A delivery that stayed out is tried once more: its attempt is one higher from now on, wherever it ends up.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: it was not counted.
    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError>;

    /// Which of these somebody else may have by now, by their place, in order: handled here, they would be handled twice.
    /// Answers from memory.
    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        let _ = deliveries;
        Vec::new()
    }

    /// Takes back deliveries nobody settled, as the same attempt and at once. Called from `drop`: must not block.
    fn release(&self, released: Vec<Delivery>);
}

impl Deliveries {
    /// What a broker hands over.
    #[must_use]
    pub fn new(items: Vec<Delivery>, settler: Arc<dyn Settler>) -> Self {
        Self { items, settler }
    }

    /// The deliveries, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Delivery] {
        &self.items
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Divides them: each goes to the group that `group` names. Order is kept within each group.
    #[must_use]
    pub fn split(mut self, groups: usize, mut group: impl FnMut(&Delivery) -> usize) -> Vec<Deliveries> {
        let mut parts: Vec<Deliveries> =
            (0..groups).map(|_| Deliveries::new(Vec::new(), Arc::clone(&self.settler))).collect();
        for delivery in std::mem::take(&mut self.items) {
            let wanted = group(&delivery).min(groups.saturating_sub(1));
            if let Some(part) = parts.get_mut(wanted) {
                part.items.push(delivery);
            }
        }
        parts
    }

    /// Takes the first `count` away, as deliveries of their own.
    #[must_use]
    pub fn take_front(&mut self, count: usize) -> Deliveries {
        let rest = self.items.split_off(count.min(self.items.len()));
        Deliveries::new(std::mem::replace(&mut self.items, rest), Arc::clone(&self.settler))
    }

    /// No deliveries, of no subscription.
    #[must_use]
    pub fn none() -> Self {
        Self { items: Vec::new(), settler: Arc::new(Nobody) }
    }

    /// The same deliveries, changed: for brokers that stand in front of a broker.
    #[must_use]
    pub fn edited(mut self, edit: impl FnMut(&mut Delivery)) -> Self {
        self.items.iter_mut().for_each(edit);
        self
    }

    /// The same deliveries, settled by another: for brokers that stand in front of a broker, to count or to delay.
    #[must_use]
    pub fn settled_by(mut self, wrap: impl FnOnce(&[Delivery], Arc<dyn Settler>) -> Arc<dyn Settler>) -> Deliveries {
        let items = std::mem::take(&mut self.items);
        let settler = wrap(&items, Arc::clone(&self.settler));
        Deliveries::new(items, settler)
    }

    /// Each delivery on its own, in order. Those that are not taken go back.
    pub fn into_each(mut self) -> impl Iterator<Item = Deliveries> {
        std::iter::from_fn(move || (!self.items.is_empty()).then(|| self.take_front(1)))
    }

    /// Puts others behind these.
    ///
    /// # Errors
    /// Gives `others` back when they come from another subscription.
    pub fn append(&mut self, mut others: Deliveries) -> Result<(), Deliveries> {
        if self.items.is_empty() {
            std::mem::swap(self, &mut others);
            return Ok(());
        }
        if !Arc::ptr_eq(&self.settler, &others.settler) {
            return Err(others);
        }
        self.items.append(&mut others.items);
        Ok(())
    }

    /// Gives back what somebody else may have by now: it is not to be handled here, too.
    pub fn give_back_lost(&mut self) {
        let lost = self.settler.lost(&self.items);
        if lost.is_empty() {
            return;
        }
        let (mut gone, mut kept, mut lost) = (Vec::new(), Vec::new(), lost.into_iter().peekable());
        for (place, delivery) in std::mem::take(&mut self.items).into_iter().enumerate() {
            if lost.next_if_eq(&place).is_some() { gone.push(delivery) } else { kept.push(delivery) }
        }
        self.items = kept;
        self.settler.release(gone);
    }

    /// Another attempt begins on the first of these, which was not given back in between: the broker counts it before
    /// the handler runs.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: give it back instead; it must not be tried uncounted.
    pub async fn count_attempt(&mut self, failure: FailedAttempt) -> Result<(), BrokerError> {
        let Some(first) = self.items.first_mut() else { return Ok(()) };
        self.settler.count_attempt(first, failure.clone()).await?;
        first.attempt = first.attempt.saturating_add(1);
        first.failures.push(failure);
        Ok(())
    }

    /// Tells the broker what became of each, in order, once: it takes `self`. Entries that are missing from `how`
    /// go back to the broker.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: they may be delivered again; the attempt count says so. [`BrokerError::Closed`]:
    /// they went back when the broker was closed.
    pub async fn settle(mut self, how: Vec<Settlement>) -> Result<(), BrokerError> {
        debug_assert_eq!(how.len(), self.items.len(), "one settlement a delivery");
        let mut items = std::mem::take(&mut self.items);
        if items.len() > how.len() {
            self.items = items.split_off(how.len());
        }
        self.settler.settle(items.into_iter().zip(how).collect()).await
    }

    /// Publishes what came of them and tells the broker what became of each, in one transaction: all of it or nothing.
    /// `how` has one settlement a delivery.
    ///
    /// # Errors
    /// Gives the deliveries back with the reason: nothing was published, nothing settled.
    pub async fn transact(
        mut self,
        published: &[(Address, Vec<Arc<Message>>)],
        how: &[Settlement],
    ) -> Result<(), (Self, TransactionError)> {
        debug_assert_eq!(how.len(), self.items.len(), "one settlement a delivery");
        let settled: Vec<_> = self.items.iter().zip(how).collect();
        match self.settler.transact(published, &settled).await {
            Ok(()) => {
                self.items.clear();
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

/// Where no deliveries came from.
#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Settler for Nobody {
    async fn settle(&self, _: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn count_attempt(&self, _: &Delivery, _: FailedAttempt) -> Result<(), BrokerError> {
        Ok(())
    }

    fn release(&self, _: Vec<Delivery>) {}
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            self.settler.release(std::mem::take(&mut self.items));
        }
    }
}
