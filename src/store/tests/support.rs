//! Short words for what the tests do often.

use std::{path::Path, sync::Arc};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::{
    message::Message,
    store::{Batch, Change, LaneId, Need, Purpose, QueueKey, Reader, Settings, Store, StoreError, record},
};

pub(super) fn open(directory: &Path) -> Arc<Store> {
    Store::open(Settings::new(directory)).unwrap()
}

/// What became of changes.
pub(super) type Answer = oneshot::Receiver<Result<(), Arc<StoreError>>>;

pub(super) fn submit(store: &Store, need: Need, changes: Vec<Change>) -> Answer {
    let (sender, receiver) = oneshot::channel();
    let then = move |result| drop(sender.send(result));
    store.submit(Batch { changes, need, permit: None, then: Some(Box::new(then)) });
    receiver
}

/// Makes changes, and waits until they are safe.
pub(super) fn commit(store: &Store, changes: Vec<Change>) {
    submit(store, Need::MustHappen, changes).blocking_recv().unwrap().unwrap();
}

/// Asks a question, and waits for its answer.
pub(super) fn ask<T: Send + 'static>(
    store: &Store,
    job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
) -> T {
    let (sender, receiver) = oneshot::channel();
    store.read(job, move |result| drop(sender.send(result)));
    receiver.blocking_recv().unwrap().unwrap()
}

pub(super) fn flush(store: &Store) -> Result<(), StoreError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.flush())
}

/// What `admit` says without waiting.
pub(super) fn admitted(store: &Store) -> Result<(), StoreError> {
    store.admit(1, 100, Purpose::Publish).now_or_never().unwrap().map(drop)
}

/// What it says of a result.
pub(super) fn follows(store: &Store) -> Result<(), StoreError> {
    store.admit(1, 100, Purpose::FollowUp).now_or_never().unwrap().map(drop)
}

/// A message that says where it lies.
pub(super) fn message(text: &str) -> Arc<Message> {
    Arc::new(Message::new("order.created", text.to_owned(), 1_767_225_600_000))
}

pub(super) fn put(key: QueueKey, message: &Arc<Message>) -> Change {
    let (rest, bytes) = (record::encode(message), message.size() as u32);
    Change::Put { key, message: Arc::clone(message), rest, bytes, due: None }
}

/// Messages of a lane as texts.
pub(super) fn texts(store: &Store, lane: LaneId, after: u64) -> Vec<String> {
    let page = ask(store, move |reader| reader.queue_page(lane, after, 100, usize::MAX).map(|page| page.messages));
    page.into_iter().map(|stored| String::from_utf8(stored.message.payload.to_vec()).unwrap()).collect()
}
