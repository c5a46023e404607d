//! What can be changed, as data: the broker says what became of its messages, the writer makes rows of it.

use std::sync::Arc;

use super::{GroupId, PartitionId, QueueKey, StoreError, admission::Permit};
use crate::message::{FailedAttempt, Message, UnixMs};

/// Changes that are made together or not at all.
pub struct Batch {
    /// In their order.
    pub changes: Vec<Change>,
    /// Whether they may be refused.
    pub need: Need,
    /// Room that was asked for; given back once the batch is safe or refused.
    pub permit: Option<Permit>,
    /// Called on the writer's thread once they are safe, or refused; batches are called in the order of submission, but
    /// those that are refused for lack of room are told at once, while others before them wait for it. It must not block
    /// and not wait for the store; it may take the lock under which it was submitted.
    pub then: Option<Then>,
}

/// What follows a commit.
pub type Then = Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>;

/// Whether a batch may be refused where the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A publish: refused with [`StoreError::NoSpace`], and nothing of it is there.
    MayFail,
    /// What became of a delivery: kept and tried again until there is room. Fails only with the store itself.
    MustHappen,
}

/// One change.
#[derive(Clone, Debug)]
pub enum Change {
    /// A message comes into a queue.
    Put {
        /// Where. Its lane is [`super::LANE_LATER`] exactly if `due` is given.
        key: QueueKey,
        /// What.
        message: Arc<Message>,
        /// [`super::record::encode`] of it: what has no column of its own. Made by whoever publishes, not by the writer.
        rest: Vec<u8>,
        /// What it counts towards limits: [`Message::size`].
        bytes: u32,
        /// Not to be delivered before. It is noted so: [`Note::attempt`] is 1, and from then on it is
        /// [`Noted::Later`].
        due: Option<UnixMs>,
    },
    /// A message leaves its queue, and its note with it.
    Remove {
        /// Which.
        key: QueueKey,
        /// As when it was put.
        bytes: u32,
        /// What is noted of it now.
        noted: Noted,
    },
    /// What is to be remembered of a message in a queue; takes the place of an earlier note.
    Note {
        /// Which.
        key: QueueKey,
        /// What.
        note: Note,
        /// What is noted of it now.
        noted: Noted,
    },
    /// Everything of this lane up to this message has been handed over at least once. Never goes back.
    Handed(QueueKey),
    /// A message is added to a partition. Offsets are used in order; those of a publish that was refused stay
    /// unused.
    Append {
        /// Which partition.
        partition: PartitionId,
        /// At which offset.
        offset: u64,
        /// What.
        message: Arc<Message>,
        /// As in [`Change::Put`].
        rest: Vec<u8>,
        /// As in [`Change::Put`].
        bytes: u32,
        /// When: retention counts from here.
        appended: UnixMs,
    },
    /// Retention takes the oldest messages of a partition: those from its start up to `end`. Those named in `keep` stay
    /// until [`Change::Unkeep`].
    Forget {
        /// Which partition.
        partition: PartitionId,
        /// Where it begins now.
        start: u64,
        /// Where it begins from now on; at most [`FORGET_MAX`] beyond `start`.
        end: u64,
        /// What all of them count, those that are kept included: they count no more.
        bytes: u64,
        /// Offsets in between that a group still has to settle, in order.
        keep: Vec<u64>,
    },
    /// A message that outlived retention is needed no more.
    Unkeep {
        /// Which partition.
        partition: PartitionId,
        /// Which message.
        offset: u64,
    },
    /// How far a group is in a partition; takes the place of what was there. The last of a commit is what is written.
    Progress {
        /// Which group.
        group: GroupId,
        /// Which partition.
        partition: PartitionId,
        /// The first offset that was never handed over.
        handed: u64,
        /// What of those below is settled, as the broker encodes it.
        settled: Vec<u8>,
    },
    /// What is to be remembered of a message for one group; `None`: nothing any more.
    Retry {
        /// Which group.
        group: GroupId,
        /// Which partition.
        partition: PartitionId,
        /// Which message.
        offset: u64,
        /// What.
        note: Option<Note>,
    },
    /// Attempts on a message of a broker that does not count them; `None`: nothing any more.
    Attempts {
        /// Which message: broker and place as text, then what names the message there.
        of: LedgerKey,
        /// What.
        note: Option<Note>,
    },
    /// Which messages of a partition of another broker may be out; `None`: none of them.
    Mark {
        /// Which partition.
        of: MarkKey,
        /// Its first and its last.
        mark: Option<Mark>,
    },
}

/// Most offsets that one [`Change::Forget`] passes over: a commit must not take long.
pub const FORGET_MAX: u64 = 2000;

/// Names a message of another broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LedgerKey {
    /// Broker and queue or topic: `rabbitmq/queue:orders`.
    pub place: Arc<str>,
    /// The message's id, or partition and offset.
    pub message: String,
}

/// Names a partition of another broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MarkKey {
    /// As in [`LedgerKey`].
    pub place: Arc<str>,
    /// Where the place is a pattern, which topic; else `None`.
    pub topic: Option<Arc<str>>,
    /// Which partition.
    pub partition: u32,
}

/// A range of offsets, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The first.
    pub low: u64,
    /// The last.
    pub high: u64,
}

/// What is remembered of a message beside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The attempt that its next delivery is, or, where it is out, that this delivery is; counted from 1.
    pub attempt: u32,
    /// It is handed over for that attempt. Where the process ended before it was settled, the attempt is used up.
    pub out: bool,
    /// How often the process ended while it was out.
    pub crashes: u32,
    /// Not to be delivered before.
    pub due: Option<UnixMs>,
    /// What went wrong, oldest first.
    pub failures: Vec<FailedAttempt>,
}

/// What the database has noted of a message in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noted {
    /// Nothing: it was handed over if [`Change::Handed`] says so.
    #[default]
    Nothing,
    /// Something.
    Something,
    /// Something, with a time before which it is not delivered.
    Later,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("changes", &self.changes.len()).field("need", &self.need).finish_non_exhaustive()
    }
}
