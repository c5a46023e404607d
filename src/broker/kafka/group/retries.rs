//! Copies in the retry topic of what is to come again later. A copy says which attempt it will be, when, and of what; its
//! original counts as done once the copy is confirmed.

use std::sync::Arc;

use super::Reading;
use crate::{
    broker::{
        Delivery,
        kafka::{Settings, publisher::Publisher, settings::Format, wire},
    },
    message::{Address, Position, Settlement, now_ms, remember},
};

/// Makes copies for one source.
#[derive(Debug)]
pub(super) struct Retries {
    publisher: Arc<Publisher>,
    to: Address,
    reading: Arc<Reading>,
}

impl Retries {
    pub(super) fn new(publisher: Arc<Publisher>, settings: Arc<Settings>, reading: Arc<Reading>) -> Self {
        Self { publisher, to: Address::topic(Arc::clone(&settings.retry_topic)), reading }
    }

    /// Where copies go.
    pub(super) fn address(&self) -> &Address {
        &self.to
    }

    /// The copy of a delivery that is to come again later; `None`: it has ended, or comes again at once.
    pub(super) fn copy(&self, delivery: &Delivery, how: &Settlement) -> Option<wire::Record> {
        let Settlement::Redeliver { after, failure } = how else { return None };
        if after.is_zero() {
            return None;
        }
        let source = self.reading.copies_of.as_ref().unwrap_or(&self.reading);
        let Position { partition, offset } = delivery.position?;
        let mut failures = delivery.failures.clone();
        remember(&mut failures, (**failure).clone());
        let copy = wire::Copy {
            topic: delivery.topic.clone().unwrap_or_else(|| Arc::clone(&source.place)),
            partition,
            offset,
            group: Arc::clone(&source.group),
            attempt: delivery.attempt.saturating_add(1),
            due: now_ms() + u64::try_from(after.as_millis()).unwrap_or(u64::MAX / 4),
            failures,
        };
        // As it will be read by ourselves: nothing may be lost on the way.
        Some(wire::outgoing(&delivery.message, Format::Native, Some(&copy)))
    }

    /// Publishes the copies that are due, and lets their originals be done; whether there were any. Where that fails, they
    /// wait here.
    pub(super) async fn publish(
        &self,
        settled: &mut [(Delivery, Settlement)],
        is_ours: impl Fn(&Delivery) -> bool + Send,
    ) -> bool {
        let (mut places, mut records) = (Vec::new(), Vec::new());
        for (place, (delivery, how)) in settled.iter().enumerate() {
            // Of what went to another member, that member makes the copy, if there has to be one.
            if let Some(record) = self.copy(delivery, how).filter(|_| is_ours(delivery)) {
                places.push(place);
                records.push(record);
            }
        }
        if records.is_empty() {
            return false;
        }
        let failed = match self.publisher.publish(&self.to.name, &self.to, records).await {
            Ok(()) => Vec::new(),
            Err(failures) => failures.0,
        };
        if let Some((_, error)) = failed.first() {
            tracing::warn!(to = %self.to, count = failed.len(), "messages to be tried again wait here, not in the retry topic: {error}");
        }
        let has_failed = |at: usize| failed.iter().any(|(place, _)| *place == at);
        for (at, place) in places.into_iter().enumerate() {
            if let Some((_, how)) = settled.get_mut(place).filter(|_| !has_failed(at)) {
                *how = Settlement::Accept;
            }
        }
        true
    }
}
