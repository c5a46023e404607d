//! What one group knows of one message beside its offset, and what of that is on disk.

use std::sync::Arc;

use crate::{
    broker::embedded::{disk::suspects, tries::Tries},
    message::{Message, UnixMs},
    store::Note,
};

/// How a message fared so far.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) tries: Tries,
    /// How often the process ended while it was out, with no answer since.
    pub(super) crashes: u32,
    /// Whether the disk has a note.
    pub(super) has_note: bool,
}

/// A message that is to come again.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) trial: Trial,
    /// `None`: it is to be read first.
    pub(super) message: Option<Arc<Message>>,
}

impl Trial {
    /// Of a message that was never handed over.
    pub(super) fn first() -> Self {
        Self { tries: Tries::first(), crashes: 0, has_note: false }
    }

    /// Of a message that was handed over before the process started, from what is noted; with no note it was out on its
    /// first attempt. The time before which it is not delivered comes apart.
    pub(super) fn restored(note: Option<Note>, now: UnixMs) -> (Self, Option<UnixMs>) {
        let has_note = note.is_some();
        let note = note.unwrap_or_else(|| Note { attempt: 1, out: true, ..Note::default() });
        let due = note.due;
        let (tries, crashes) = suspects::restored(note, now);
        (Self { tries, crashes, has_note }, due)
    }

    /// What to remember from now on.
    pub(super) fn note(&mut self, out: bool, due: Option<UnixMs>) -> Note {
        self.has_note = true;
        let (attempt, failures) = (self.tries.attempt(), self.tries.failures());
        Note { attempt, out, crashes: self.crashes, due, failures }
    }
}
