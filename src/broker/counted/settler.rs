//! Settles with the broker, and in the ledger.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot};

use super::{
    known::{Identity, Known, Spot, failed, fresh},
    ledger::Ledger,
};
use crate::{
    broker::{BrokerError, Deliveries, Delivery, Settler, Tag, TransactionError, commit::safely},
    message::{Address, FailedAttempt, Message, Settlement, now_ms},
    store::{Change, Mark, Note},
};

/// For how long nothing else is handed over beside what may have ended the process before this one: one whose handler is
/// away would hold up all the others for ever.
pub(super) const ISOLATION: Duration = Duration::from_secs(5);

/// What a subscription has out.
#[derive(Debug, Default)]
pub(super) struct Flow {
    inner: Mutex<Out>,
    /// Something has ended, or came back.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Out {
    count: usize,
    /// The one that nothing else is to be out beside, until it has ended or was answered.
    alone: Option<Tag>,
    /// When something was last handed over.
    handed: Option<Instant>,
    /// Something came back to be handed over at once, ahead of what is behind it.
    recalled: bool,
}

impl Flow {
    /// Whether nothing is out.
    pub(super) fn is_idle(&self) -> bool {
        let out = self.lock();
        out.count == 0 || out.is_old()
    }

    pub(super) fn is_isolated(&self) -> bool {
        let out = self.lock();
        out.alone.is_some() && !out.is_old()
    }

    /// Nothing is to be handed over beside this one.
    pub(super) fn isolate(&self, tag: Option<Tag>) {
        self.lock().alone = tag;
    }

    /// Whether something came back since this was asked last.
    pub(super) fn was_recalled(&self) -> bool {
        std::mem::take(&mut self.lock().recalled)
    }

    fn handed_over(&self, count: usize) {
        let mut out = self.lock();
        out.count += count;
        out.handed = Some(Instant::now());
    }

    fn ended<'a>(&self, deliveries: impl Iterator<Item = &'a Delivery>, is_recalled: bool) {
        let mut out = self.lock();
        for delivery in deliveries {
            out.count = out.count.saturating_sub(1);
            out.alone = out.alone.filter(|tag| *tag != delivery.tag);
        }
        out.recalled |= is_recalled;
        drop(out);
        self.changed.notify_one();
    }

    /// The process did not end with it.
    fn answered(&self, delivery: &Delivery) {
        let mut out = self.lock();
        out.alone = out.alone.filter(|tag| *tag != delivery.tag);
        drop(out);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Out {
    /// Whether all that is out was handed over long ago: it waits for a handler, and what waits ends no process.
    fn is_old(&self) -> bool {
        self.handed.is_some_and(|handed| handed.elapsed() >= ISOLATION)
    }
}

/// Makes the settlers of one subscription.
#[derive(Debug)]
pub(super) struct Wrap {
    ledger: Arc<Ledger>,
    flow: Arc<Flow>,
    is_carried: bool,
    settler: Option<Arc<CountingSettler>>,
}

impl Wrap {
    /// `is_carried`: the broker itself keeps attempt and failures of what it is to deliver later.
    pub(super) fn new(ledger: Arc<Ledger>, flow: Arc<Flow>, is_carried: bool) -> Self {
        Self { ledger, flow, is_carried, settler: None }
    }

    /// From here on they are out.
    pub(super) fn hand_over(&mut self, deliveries: Deliveries) -> Deliveries {
        let noted = self.ledger.change(None, |known, _| known.hand_over(deliveries.as_slice()));
        self.flow.handed_over(deliveries.len());
        deliveries.settled_by(|items, inner| {
            // One for each of the broker's own, as deliveries of one can be joined.
            let same = self.settler.take().filter(|settler| Arc::ptr_eq(&settler.inner, &inner));
            let settler = same.unwrap_or_else(|| {
                let (ledger, flow) = (Arc::clone(&self.ledger), Arc::clone(&self.flow));
                Arc::new(CountingSettler { inner, ledger, flow, is_carried: self.is_carried, out: Mutex::default() })
            });
            let tags = noted.into_iter().filter_map(|(identity, place)| Some((identity, items.get(place)?.tag)));
            settler.lock().extend(tags);
            self.settler = Some(Arc::clone(&settler));
            settler
        })
    }
}

#[derive(Debug)]
pub(super) struct CountingSettler {
    inner: Arc<dyn Settler>,
    ledger: Arc<Ledger>,
    flow: Arc<Flow>,
    is_carried: bool,
    /// The latest delivery of each message that is noted and out. What is said of an earlier one comes too late, for the
    /// broker as well.
    out: Mutex<HashMap<Identity, Tag>>,
}

/// How a message was noted before, to undo what was noted since.
struct Before {
    message: Identity,
    note: Option<Note>,
    tag: Option<Tag>,
}

/// What is to be forgotten once the broker has it.
#[derive(Default)]
struct Ending {
    runs: Vec<(Spot, Mark)>,
    noted: Vec<Identity>,
}

impl CountingSettler {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Tag>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another delivery of the message is out.
    fn is_late(&self, message: &Identity, delivery: &Delivery) -> bool {
        self.lock().get(message).is_some_and(|tag| *tag != delivery.tag)
    }

    /// Whether it will be delivered again, and the ledger is to say as what.
    fn comes_back(&self, how: &Settlement) -> bool {
        match how {
            Settlement::Accept | Settlement::DeadLetter { .. } => false,
            // The broker says with the copy what it is.
            Settlement::Redeliver { after, .. } => !self.is_carried || after.is_zero(),
            Settlement::Release { .. } => true,
        }
    }

    /// Notes what comes back before the broker may deliver it again, so that no attempt is ever uncounted. Gives how it
    /// was noted before.
    fn note_back<'a>(&self, settled: impl Iterator<Item = (&'a Delivery, &'a Settlement)>) -> Vec<Before> {
        let mut back = settled.filter(|(_, how)| self.comes_back(how)).peekable();
        if back.peek().is_none() {
            return Vec::new();
        }
        self.ledger.change(None, |known, changes| {
            let (mut before, mut untried) = (Vec::new(), Vec::new());
            for (delivery, how) in back {
                let failure = match how {
                    Settlement::Redeliver { failure, after } => Some((&**failure, *after)),
                    _ => None,
                };
                match self.back(known, delivery, failure, changes) {
                    Some(was) => before.push(was),
                    None => untried.push(delivery),
                }
            }
            known.give_back(&known.runs(untried.into_iter()), changes);
            before
        })
    }

    /// Notes that a message comes back; `None` where there is nothing to note of it.
    fn back(
        &self,
        known: &mut Known,
        delivery: &Delivery,
        failure: Option<(&FailedAttempt, Duration)>,
        changes: &mut Vec<Change>,
    ) -> Option<Before> {
        if known.is_blank() && failure.is_none() {
            return None;
        }
        let message = Identity::of(delivery);
        if self.is_late(&message, delivery) {
            return None;
        }
        let tag = self.lock().remove(&message);
        let before = known.note(&message).cloned();
        let mut note = before.clone().unwrap_or_else(|| fresh(delivery));
        match failure {
            Some((failure, after)) => {
                failed(&mut note, failure.clone());
                // It was tried to its end: the process would not have ended with it.
                note.crashes = 0;
                let due = now_ms().saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                note.due = (known.is_log() && !after.is_zero()).then_some(due);
            }
            // The same attempt again, which the broker counts.
            None if tag.is_none() => return None,
            None => note.out = false,
        }
        known.leave(&known.runs(std::iter::once(delivery)));
        known.write(message.clone(), Some(note), changes);
        Some(Before { message, note: before, tag })
    }

    /// It was not settled after all.
    fn undo(&self, before: Vec<Before>) {
        if before.is_empty() {
            return;
        }
        self.ledger.change(None, |known, changes| {
            for Before { message, note, tag } in before {
                self.lock().extend(tag.map(|tag| (message.clone(), tag)));
                // What was only marked stays noted, as out: its mark may have gone on.
                let note = note.unwrap_or(Note { attempt: 1, out: true, ..Note::default() });
                known.write(message, Some(note), changes);
            }
        });
    }

    /// What is to be forgotten of those that do not come back.
    fn ending<'a>(&self, settled: impl Iterator<Item = (&'a Delivery, &'a Settlement)>) -> Ending {
        let ended: Vec<_> = settled.filter(|(_, how)| !self.comes_back(how)).map(|(delivery, _)| delivery).collect();
        self.ledger.look(|known| {
            let runs = known.runs(ended.iter().copied());
            if known.is_blank() {
                return Ending { runs, noted: Vec::new() };
            }
            let of_note = |delivery: &&Delivery| {
                let message = Identity::of(delivery);
                (known.note(&message).is_some() && !self.is_late(&message, delivery)).then_some(message)
            };
            Ending { runs, noted: ended.iter().filter_map(of_note).collect() }
        })
    }

    /// The broker has it: what has ended is forgotten.
    fn end(&self, Ending { runs, noted }: Ending) {
        self.ledger.change(None, |known, changes| {
            known.leave(&runs);
            for message in noted {
                self.lock().remove(&message);
                known.write(message, None, changes);
            }
        });
    }
}

/// Whether it is to come again at once, ahead of what is behind it.
fn is_recalled(how: &Settlement) -> bool {
    match how {
        Settlement::Redeliver { after, .. } | Settlement::Release { after } => after.is_zero(),
        Settlement::Accept | Settlement::DeadLetter { .. } => false,
    }
}

#[async_trait]
impl Settler for CountingSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let each = || settled.iter().map(|(delivery, how)| (delivery, how));
        self.note_back(each());
        let ending = self.ending(each());
        self.flow.ended(each().map(|(delivery, _)| delivery), each().any(|(_, how)| is_recalled(how)));
        self.inner.settle(settled).await?;
        // Forgotten after the broker has it.
        self.end(ending);
        Ok(())
    }

    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        let each = || settled.iter().copied();
        let before = self.note_back(each());
        let ending = self.ending(each());
        if let Err(error) = self.inner.transact(published, settled).await {
            self.undo(before);
            return Err(error);
        }
        self.end(ending);
        self.flow.ended(each().map(|(delivery, _)| delivery), each().any(|(_, how)| is_recalled(how)));
        Ok(())
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let message = Identity::of(delivery);
        if !self.is_late(&message, delivery) {
            self.lock().insert(message.clone(), delivery.tag);
            let (answer, safe) = oneshot::channel();
            self.ledger.change(Some(answer), |known, changes| {
                let mut note = known.note(&message).cloned().unwrap_or_else(|| fresh(delivery));
                failed(&mut note, failure.clone());
                (note.out, note.crashes) = (true, 0);
                known.leave(&known.runs(std::iter::once(delivery)));
                known.write(message, Some(note), changes);
            });
            safely(safe).await?;
            self.flow.answered(delivery);
        }
        self.inner.count_attempt(delivery, failure).await
    }

    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        self.inner.lost(deliveries)
    }

    fn release(&self, released: Vec<Delivery>) {
        let how = Settlement::Release { after: Duration::ZERO };
        self.note_back(released.iter().map(|delivery| (delivery, &how)));
        self.flow.ended(released.iter(), true);
        self.inner.release(released);
    }
}
