//! A topic on disk: messages stay for their retention, and each group reads all of them. This file is the lock, and the
//! way to the store and back; what happens behind the lock is in `state.rs`: partitions with their newest messages
//! (`log.rs`), groups (`group.rs`) with their progress in each (`progress.rs`), and what a group that is behind reads from
//! disk (`pages.rs`).
//!
//! A publish gets its offsets, is written, and only then can be seen. A delivery is noted as handed over, that is written,
//! and only then is it returned to its reader (`subscription.rs`). A settlement holds at once and is written soon; should
//! the process end before, the message comes back as the next attempt. Groups without a name are on disk with nothing.

mod browse;
mod effects;
mod group;
mod log;
mod pages;
mod progress;
mod retention;
mod settled;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod trial;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

pub(in crate::broker::embedded) use self::subscription::DiskTopicSubscription;
use self::{
    effects::{Batch, Effects, Follow, Found, Read},
    log::Entry,
    pages::{PAGE_BYTES_MAX, PAGE_MAX},
    progress::{Again, Wanted},
    retention::Oldest,
    state::{GroupKey, New, State},
    subscription::Member,
};
use crate::{
    broker::{AddressStats, BrokerError, PublishError, Subscribe, TopicSettings, embedded::clock::Clock},
    message::{Address, Message},
    store::{
        self, FORGET_MAX, Need, PartitionId, PlaceId, Reader, Store, StoreError, StoredGroup, StoredTopic, record,
    },
};

/// One topic of the embedded broker, on disk.
#[derive(Debug)]
pub(in crate::broker::embedded) struct DiskTopic {
    id: PlaceId,
    address: Address,
    store: Arc<Store>,
    clock: Clock,
    state: Mutex<State>,
    /// One group is made at a time.
    making: Mutex<()>,
}

impl DiskTopic {
    /// As it was found on disk.
    pub(in crate::broker::embedded) fn open(
        store: Arc<Store>,
        stored: &StoredTopic,
        groups: &[StoredGroup],
        settings: TopicSettings,
        clock: Clock,
    ) -> Arc<Self> {
        let state = State::new(stored, groups, settings, clock.now());
        let address = state.address.clone();
        Arc::new(Self { id: stored.id, address, store, clock, state: Mutex::new(state), making: Mutex::new(()) })
    }

    pub(in crate::broker::embedded) fn settings(&self) -> TopicSettings {
        self.lock().settings.clone()
    }

    /// What the configuration says holds from now on; partitions stay as they are.
    pub(in crate::broker::embedded) fn adopt(&self, settings: TopicSettings) {
        self.lock().adopt(settings);
    }

    /// Gives what was not published, by place. All others are on disk.
    pub(in crate::broker::embedded) async fn publish(
        self: &Arc<Self>,
        messages: Vec<Arc<Message>>,
        bytes_max: usize,
    ) -> Vec<(usize, PublishError)> {
        let mut failures = Vec::new();
        let mut places = Vec::with_capacity(messages.len());
        let mut new = Vec::with_capacity(messages.len());
        let mut bytes = 0;
        for (place, message) in messages.into_iter().enumerate() {
            let size = message.size();
            if size > bytes_max {
                let error = PublishError::TooLarge { address: self.address.clone(), bytes: size, max: bytes_max };
                failures.push((place, error));
                continue;
            }
            bytes += size;
            places.push(place);
            let rest = record::encode(&message);
            new.push(New { message, rest, bytes: u32::try_from(size).unwrap_or(u32::MAX) });
        }
        if let Err(error) = self.append(new, bytes).await {
            failures.extend(places.into_iter().map(|place| (place, error.clone())));
            failures.sort_unstable_by_key(|(place, _)| *place);
        }
        failures
    }

    /// Writes messages, all or none.
    async fn append(self: &Arc<Self>, messages: Vec<New>, bytes: usize) -> Result<(), PublishError> {
        if messages.is_empty() {
            return Ok(());
        }
        let refused = |error: &StoreError| super::refused(&self.address, error);
        let new = messages.iter().map(|new| &*new.message);
        let permit = super::admit(&self.store, new, bytes).await.map_err(|error| refused(&error))?;
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.closed {
                return Err(PublishError::Closed);
            }
            let (changes, entries) = state.place(messages, self.clock.now());
            let topic = Arc::clone(self);
            let then: store::Then = Box::new(move |result| {
                topic.appended(result.is_ok().then_some(entries));
                // Whoever published may have gone away.
                drop(answer.send(result));
            });
            self.store.submit(store::Batch { changes, need: Need::MayFail, permit: Some(permit), then: Some(then) });
        }
        match answered.await {
            Ok(result) => result.map_err(|error| refused(&error)),
            Err(_) => Err(PublishError::Closed),
        }
    }

    fn appended(self: &Arc<Self>, entries: Option<Vec<(usize, Entry)>>) {
        let now = self.clock.now();
        self.change(|state, effects| state.placed(entries, now, effects));
    }

    /// Joins its group, which begins as asked for if there is none of that name.
    pub(in crate::broker::embedded) async fn subscribe(
        self: &Arc<Self>,
        request: &Subscribe,
    ) -> Result<DiskTopicSubscription, BrokerError> {
        self.retain();
        let known = self.lock().group_named(&request.group);
        let group = match known {
            Some(group) => group,
            None => self.make_group(request).await?,
        };
        let wake = Arc::new(Notify::new());
        let joined =
            self.change(|state, effects| state.join(group, request.prefetch, Arc::clone(&wake), &mut effects.wakes));
        let reader = joined.ok_or(BrokerError::Closed)?;
        Ok(DiskTopicSubscription::new(Member { topic: Arc::clone(self), group, reader, wake }))
    }

    async fn make_group(self: &Arc<Self>, request: &Subscribe) -> Result<GroupKey, BrokerError> {
        let starts = self.starts(request.start).await?;
        let name = Arc::clone(&request.group);
        if name.is_empty() {
            return Ok(self.lock().add_group(&name, None, &starts));
        }
        let topic = Arc::clone(self);
        let (answer, safe) = oneshot::channel();
        // Waits for the disk.
        let made = tokio::task::spawn_blocking(move || topic.make_stored_group(&name, &starts, answer)).await;
        let (group, is_new) = made.map_err(|_| BrokerError::Closed)??;
        if is_new {
            super::safely(safe).await?;
        }
        Ok(group)
    }

    /// Blocks. Where a new group begins is on its way to the disk when this returns.
    fn make_stored_group(
        self: &Arc<Self>,
        name: &Arc<str>,
        starts: &[u64],
        answer: oneshot::Sender<Result<(), Arc<StoreError>>>,
    ) -> Result<(GroupKey, bool), BrokerError> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.lock().group_named(name);
        if let Some(group) = known {
            return Ok((group, false));
        }
        let stored = self.store.create_group(self.id, name).map_err(|error| unusable(Arc::new(error)))?;
        let group = self.change(|state, effects| {
            let group = state.add_group(name, Some(stored), starts);
            let changes = state.begin_group(group);
            effects.batches.push(Batch { changes, follow: Follow::Answer(answer) });
            group
        });
        Ok((group, true))
    }

    pub(in crate::broker::embedded) fn stats(self: &Arc<Self>) -> AddressStats {
        self.retain();
        let now = self.clock.now();
        self.lock().stats(now)
    }

    /// What is out goes back as the same attempt, and that is on its way to the disk when this returns.
    pub(in crate::broker::embedded) fn close(self: &Arc<Self>) {
        let now = self.clock.now();
        self.change(|state, effects| state.close(now, effects));
    }

    /// Applies retention, as far as what lies in memory tells; begins to read what lies on disk only.
    pub(in crate::broker::embedded) fn retain(self: &Arc<Self>) {
        let now = self.clock.now();
        self.change(|state, effects| {
            if !state.closed {
                state.retain(now, effects);
            }
        });
    }

    /// Changes what is behind the lock, hands what is to be written to the store in the order of the changes, and after
    /// that reads what is needed and tells whom it concerns.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, &mut Effects) -> T) -> T {
        let mut effects = Effects::default();
        let mut state = self.lock();
        let result = change(&mut state, &mut effects);
        effects.batches.into_iter().filter(|batch| !batch.changes.is_empty()).for_each(|batch| self.submit(batch));
        drop(state);
        effects.reads.into_iter().for_each(|read| self.read(read));
        effects.wakes.notify();
        result
    }

    fn submit(self: &Arc<Self>, batch: Batch) {
        let topic = Arc::clone(self);
        let then: Option<store::Then> = match batch.follow {
            Follow::Nothing => None,
            Follow::Answer(answer) => Some(super::answering(answer)),
            // A store that has failed takes nothing any more.
            Follow::Flushed(group) => Some(Box::new(move |result| {
                if result.is_ok() {
                    topic.change(|state, effects| state.flushed(group, effects));
                }
            })),
            Follow::Forgotten(partition) => Some(Box::new(move |result| {
                if result.is_ok() {
                    let now = topic.clock.now();
                    topic.change(|state, effects| state.forgotten(partition, now, effects));
                }
            })),
        };
        self.store.submit(store::Batch { changes: batch.changes, need: Need::MustHappen, permit: None, then });
    }

    /// Reads on a thread of the store, which brings what it found.
    fn read(self: &Arc<Self>, read: Read) {
        let topic = Arc::clone(self);
        match read {
            Read::Ahead { group, partition, id, wanted: Wanted::Page(stretch) } => self.store.read(
                move |reader| reader.log_page(id, stretch.from, stretch.end, PAGE_MAX, PAGE_BYTES_MAX),
                move |page| {
                    let page = page.map(|page| page.into_iter().map(Entry::from).collect()).map_err(Arc::new);
                    topic.change(|state, effects| state.put(group, partition, Found::Page(stretch, page), effects));
                },
            ),
            Read::Ahead { group, partition, id, wanted: Wanted::Again(offsets) } => self.store.read(
                move |reader| read_each(reader, id, offsets),
                move |found| {
                    let found = Found::Again(found.map_err(Arc::new));
                    topic.change(|state, effects| state.put(group, partition, found, effects));
                },
            ),
            Read::Oldest { partition, id, what } => {
                let limit = usize::try_from(FORGET_MAX).unwrap_or(usize::MAX);
                self.store.read(
                    move |reader| match what {
                        Oldest::Aged { start, before } => reader.log_aged(id, start, before, limit),
                        Oldest::Any { start } => reader.log_sizes(id, start, limit),
                    },
                    move |oldest| {
                        topic.change(|state, effects| state.put_oldest(partition, what, oldest.ok(), effects));
                    },
                );
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic behind the lock is a bug that was reported; the topic goes on with what it has.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader is told.
fn unusable(error: Arc<StoreError>) -> BrokerError {
    match *error {
        StoreError::Closed => BrokerError::Closed,
        _ => BrokerError::Storage(error),
    }
}

/// Messages one by one, as many of them as are not too large together; `None`: it is not there.
fn read_each(reader: &Reader<'_>, partition: PartitionId, offsets: Vec<u64>) -> Result<Vec<Again>, StoreError> {
    let mut found = Vec::with_capacity(offsets.len());
    let mut bytes = 0;
    for offset in offsets {
        let record = reader.log_page(partition, offset, offset + 1, 1, PAGE_BYTES_MAX)?.pop();
        bytes += record.as_ref().map_or(0, |record| record.bytes as usize);
        found.push((offset, record.map(|record| record.message)));
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(found)
}
