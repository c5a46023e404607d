//! One message of a queue, and what the disk has noted of it.

use std::sync::Arc;

use crate::{
    broker::embedded::{disk::suspects, tries::Tries},
    message::{Message, UnixMs},
    store::{Change, Note, Noted, QueueKey, StoredMessage},
};

/// A message that is in memory, ready or out.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) message: Arc<Message>,
    pub(super) key: QueueKey,
    pub(super) bytes: u32,
    pub(super) tries: Tries,
    /// How often the process ended while it was out.
    pub(super) crashes: u32,
    /// The time that is noted with it; stays noted when it has passed, so that it is found by it after a crash.
    pub(super) due: Option<UnixMs>,
    /// Whether the disk has a note.
    pub(super) has_note: bool,
}

impl Item {
    /// From the disk. `handed`: up to which sequence its lane had been handed over when the process before this ended.
    pub(super) fn restored(stored: StoredMessage, handed: u64, now: UnixMs) -> Self {
        let StoredMessage { key, message, bytes, note } = stored;
        let has_note = note.is_some();
        let note = note.unwrap_or_else(|| Note { attempt: 1, out: key.sequence() <= handed, ..Note::default() });
        let due = note.due;
        let (tries, crashes) = suspects::restored(note, now);
        Self { message, key, bytes, tries, crashes, due, has_note }
    }

    /// Whether handing it over is told by the mark of its lane alone: nothing else is to be remembered.
    pub(super) fn is_fresh(&self) -> bool {
        !self.has_note && self.crashes == 0 && self.tries.attempt() == 1
    }

    /// What to remember now.
    pub(super) fn note(&mut self, out: bool) -> Change {
        let noted = self.noted();
        self.has_note = true;
        let note = Note {
            attempt: self.tries.attempt(),
            out,
            crashes: self.crashes,
            due: self.due,
            failures: self.tries.failures(),
        };
        Change::Note { key: self.key, note, noted }
    }

    /// Sets the time before which it is not delivered, and what to remember of that.
    pub(super) fn wait(&mut self, due: UnixMs) -> Change {
        let noted = self.noted();
        self.due = Some(due);
        match self.note(false) {
            Change::Note { key, note, .. } => Change::Note { key, note, noted },
            other => other,
        }
    }

    pub(super) fn remove(&self) -> Change {
        Change::Remove { key: self.key, bytes: self.bytes, noted: self.noted() }
    }

    fn noted(&self) -> Noted {
        match (self.has_note, self.due) {
            (true, Some(_)) => Noted::Later,
            (true, None) => Noted::Something,
            (false, _) => Noted::Nothing,
        }
    }
}
