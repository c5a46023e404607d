//! What is known of the messages of one place, in memory and on disk.

use std::sync::{Arc, Mutex, PoisonError};

use super::known::Known;
use crate::{
    broker::commit::{Answer, answering},
    store::{Batch, Change, Need, Store},
};

/// Shared by the subscriptions of one place.
#[derive(Debug)]
pub(super) struct Ledger {
    /// `None`: nothing of it is to outlive its subscription.
    store: Option<Arc<Store>>,
    known: Mutex<Known>,
}

impl Ledger {
    pub(super) fn new(known: Known, store: Option<Arc<Store>>) -> Self {
        Self { store, known: Mutex::new(known) }
    }

    /// Looks, and changes nothing.
    pub(super) fn look<T>(&self, what: impl FnOnce(&Known) -> T) -> T {
        what(&self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what is known. What of that is to be on disk is submitted in the order in which it was changed; `answer`
    /// hears when it is there, at once if there is nothing to write.
    pub(super) fn change<T>(&self, answer: Option<Answer>, what: impl FnOnce(&mut Known, &mut Vec<Change>) -> T) -> T {
        let mut changes = Vec::new();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let result = what(&mut known, &mut changes);
        match &self.store {
            Some(store) if !changes.is_empty() => {
                let then = answer.map(answering);
                store.submit(Batch { changes, need: Need::MustHappen, permit: None, then });
            }
            // Whoever waited may have gone away.
            _ => drop(answer.map(|answer| answer.send(Ok(())))),
        }
        result
    }

    /// The marks as they are now.
    pub(super) fn write_marks(&self) {
        self.change(None, Known::write_marks);
    }
}
