//! What can be seen of a feed from outside: how much it has fetched, and whether it only waits.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use tokio::sync::Notify;

/// Signs of life of one feed. What is read may be a moment old.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    fetched: AtomicU64,
    /// Lanes that wait for messages, and hold none.
    idle: AtomicUsize,
    /// The leader waits for its subscription.
    listening: AtomicBool,
    give_up: Notify,
}

/// A lane waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Idle<'a>(&'a AtomicUsize);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The leader waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Listening<'a>(&'a AtomicBool);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl Pulse {
    pub(super) fn idle(&self) -> Idle<'_> {
        self.idle.fetch_add(1, Relaxed);
        Idle(&self.idle)
    }

    /// There is one leader at a time.
    pub(super) fn listening(&self) -> Listening<'_> {
        self.listening.store(true, Relaxed);
        Listening(&self.listening)
    }

    pub(super) fn fetched(&self, deliveries: usize) {
        self.fetched.fetch_add(deliveries as u64, Relaxed);
    }

    /// How many deliveries have come in all.
    pub(super) fn count(&self) -> u64 {
        self.fetched.load(Relaxed)
    }

    /// Whether each of so many lanes does nothing but wait for the subscription.
    pub(super) fn only_waits(&self, lanes: usize) -> bool {
        self.listening.load(Relaxed) && self.idle.load(Relaxed) >= lanes
    }

    /// Lets the leader begin a new subscription, if it waits for this one.
    pub(super) fn give_up(&self) {
        self.give_up.notify_waiters();
    }

    /// Waits until the subscription is given up.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn given_up(&self) {
        self.give_up.notified().await;
    }
}
