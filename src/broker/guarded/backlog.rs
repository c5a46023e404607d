//! What waits for one queue or topic, as far as publishers must know it: whether anything does, how much, and since when.
//! Pure: what happens to the messages is done elsewhere and told here, under one lock.
//!
//! From the first message that is spooled until the last has left, everything goes behind it: `drains` says so. It is set
//! before a message is written, and only the end of the drain takes it back, once nothing is there and nothing is on its
//! way. Whoever was told that a message is kept publishes the next one after that, and so behind it.

use super::ages::Ages;
use crate::{broker::embedded::Held, message::UnixMs};

/// What waits for one queue or topic.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// A task drains it, or will; publishers go behind.
    drains: bool,
    /// Batches that are on their way in.
    entering: u32,
    /// Messages and their bytes, those on their way in among them.
    load: Load,
    /// One that was on its way in was given up by whoever brought it: it may be there or not.
    is_unsure: bool,
    ages: Ages,
    /// Messages that have left since the drain began.
    left: u64,
    /// How many must have, before whoever came last goes on.
    owed: u64,
    /// How it goes with what is in front.
    pub(super) front: Front,
}

/// How it goes with what is in front of a backlog.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Front {
    /// It leaves, as far as is known.
    #[default]
    Moves,
    /// The system did not answer.
    Waits,
    /// The system is there and does not take it, and why.
    Refused(String),
}

/// Messages, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Backlog {
    /// With what was found of an earlier run.
    pub(super) fn found(held: Held, now: UnixMs) -> Self {
        let mut backlog = Self { drains: true, ..Self::default() };
        backlog.load = Load { messages: held.messages, bytes: held.bytes };
        backlog.ages.came(held.messages, now);
        backlog
    }

    /// Whether publishers go straight to the system.
    pub(super) fn is_clear(&self) -> bool {
        !self.drains
    }

    /// Messages that have left since the drain began.
    pub(super) fn gone(&self) -> u64 {
        self.left
    }

    /// How many must have left before a publisher of so many goes on: twice what all of them brought since it moves. However
    /// many they are and however fast, what waits becomes less, and in the end they all wait for it to be gone.
    pub(super) fn owes(&mut self, messages: u64) -> u64 {
        let owed = self.owed.max(self.left) + 2 * messages;
        if self.front == Front::Moves {
            self.owed = owed;
        }
        owed
    }

    pub(super) fn load(&self) -> Load {
        self.load
    }

    pub(super) fn oldest(&self) -> Option<UnixMs> {
        self.ages.oldest()
    }

    /// What is in front came before this process did.
    pub(super) fn is_since(&mut self, at: UnixMs) {
        self.ages.since(at);
    }

    /// These are about to be written; owed [`Backlog::entered`] or [`Backlog::given_up`]. Gives whether nobody drains it
    /// yet: whoever asks does so.
    #[must_use]
    pub(super) fn enter(&mut self, load: Load) -> bool {
        self.entering += 1;
        self.load.messages += load.messages;
        self.load.bytes += load.bytes;
        !std::mem::replace(&mut self.drains, true)
    }

    /// They are there, but for some that were refused.
    pub(super) fn entered(&mut self, load: Load, refused: Load, now: UnixMs) {
        self.entering = self.entering.saturating_sub(1);
        self.take_off(refused);
        self.ages.came(load.messages.saturating_sub(refused.messages), now);
    }

    /// Nobody knows what became of them.
    pub(super) fn given_up(&mut self) {
        self.entering = self.entering.saturating_sub(1);
        self.is_unsure = true;
    }

    /// These were confirmed by the system, and are settled.
    pub(super) fn left(&mut self, load: Load) {
        self.take_off(load);
        self.left += load.messages;
        self.ages.left(load.messages);
    }

    /// Compares with what is really there, and tells whether that is nothing.
    pub(super) fn is_empty(&mut self, held: Held, now: UnixMs) -> bool {
        if self.entering > 0 || held.arriving > 0 {
            return false;
        }
        if std::mem::take(&mut self.is_unsure) || self.load.messages != held.messages {
            self.load = Load { messages: held.messages, bytes: held.bytes };
            self.ages.are(held.messages, now);
        }
        self.load.messages == 0
    }

    /// The drain ends, if nothing is there: publishers go straight to the system again.
    pub(super) fn end(&mut self, held: Held, now: UnixMs) -> bool {
        let is_empty = self.is_empty(held, now);
        if is_empty {
            *self = Self::default();
        }
        is_empty
    }

    fn take_off(&mut self, load: Load) {
        self.load.messages = self.load.messages.saturating_sub(load.messages);
        self.load.bytes = self.load.bytes.saturating_sub(load.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The queue as the embedded broker has it.
    #[derive(Default)]
    struct Queue {
        safe: u64,
        arriving: u64,
    }

    impl Queue {
        fn held(&self) -> Held {
            Held { messages: self.safe, bytes: (self.safe + self.arriving) * 10, arriving: self.arriving }
        }
    }

    /// A batch of a publisher on its way in.
    struct Writing {
        messages: u64,
        submitted: bool,
        /// Its publisher still waits.
        waits: bool,
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A publisher comes with so many.
        Publish(u64),
        /// One of those on their way is submitted, ends (some of it refused), or is given up.
        Submit(usize),
        End(usize, bool),
        GiveUp(usize),
        /// The system confirms so many.
        Drain(u64),
        /// The drain looks whether it is done.
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u64..5).prop_map(Step::Publish),
            5 => any::<usize>().prop_map(Step::Submit),
            5 => (any::<usize>(), any::<bool>()).prop_map(|(which, is_safe)| Step::End(which, is_safe)),
            2 => any::<usize>().prop_map(Step::GiveUp),
            5 => (1_u64..9).prop_map(Step::Drain),
            4 => Just(Step::Look),
        ]
    }

    fn load(messages: u64) -> Load {
        Load { messages, bytes: messages * 10 }
    }

    /// Each of them comes with the next as soon as it may.
    #[test]
    fn publishers_let_it_end_however_many_they_are() {
        const PUBLISHERS: u64 = 8;
        let (mut backlog, mut waiting) = (Backlog::default(), Vec::new());
        assert!(backlog.enter(load(10_000)));
        backlog.entered(load(10_000), Load::default(), 0);
        let (mut rounds, mut came) = (0, 0);
        while backlog.load() != Load::default() {
            while waiting.len() < PUBLISHERS as usize {
                assert!(!backlog.enter(load(100)));
                backlog.entered(load(100), Load::default(), 0);
                waiting.push(backlog.owes(100));
                came += 100;
            }
            // A batch leaves.
            backlog.left(load(backlog.load().messages.min(256)));
            waiting.retain(|owed| backlog.gone() < *owed);
            rounds += 1;
            assert!(rounds < 100, "{:?} wait, and {came} came", backlog.load());
        }
        assert!(came > 2_000, "they hardly came: {came}");
    }

    proptest! {
        #[test]
        fn nobody_passes_what_waits(steps in vec(step(), 1..200)) {
            let (mut backlog, mut queue, mut writing) = (Backlog::default(), Queue::default(), Vec::<Writing>::new());
            let (mut drainers, mut outage) = (0, true);
            for step in steps {
                match step {
                    Step::Publish(messages) => {
                        let told = writing.iter().any(|batch| batch.waits);
                        if backlog.is_clear() {
                            prop_assert_eq!((queue.safe, queue.arriving, told), (0, 0, false), "published past what waits");
                            outage = !outage;
                        }
                        if !backlog.is_clear() || outage {
                            drainers += u32::from(backlog.enter(load(messages)));
                            writing.push(Writing { messages, submitted: false, waits: true });
                        }
                    }
                    Step::Submit(which) if !writing.is_empty() => {
                        let count = writing.len();
                        let batch = &mut writing[which % count];
                        if !std::mem::replace(&mut batch.submitted, true) {
                            queue.arriving += batch.messages;
                        }
                    }
                    Step::End(which, is_safe) if !writing.is_empty() => {
                        let count = writing.len();
                        if !writing[which % count].submitted {
                            continue;
                        }
                        let batch = writing.remove(which % count);
                        queue.arriving -= batch.messages;
                        queue.safe += if is_safe { batch.messages } else { 0 };
                        if batch.waits {
                            let refused = if is_safe { Load::default() } else { load(batch.messages) };
                            backlog.entered(load(batch.messages), refused, 0);
                        }
                    }
                    Step::GiveUp(which) if !writing.is_empty() => {
                        let place = which % writing.len();
                        if std::mem::replace(&mut writing[place].waits, false) {
                            backlog.given_up();
                            if !writing[place].submitted {
                                writing.remove(place);
                            }
                        }
                    }
                    Step::Drain(messages) => {
                        let gone = messages.min(queue.safe);
                        queue.safe -= gone;
                        backlog.left(load(gone));
                    }
                    Step::Look if drainers > 0 => drainers -= u32::from(backlog.end(queue.held(), 0)),
                    _ => {}
                }
                prop_assert_eq!(drainers, u32::from(!backlog.is_clear()), "one drain, as long as something waits");
                if !backlog.is_unsure && writing.iter().all(|batch| batch.waits) {
                    let on_their_way: u64 = writing.iter().map(|batch| batch.messages).sum();
                    prop_assert_eq!(backlog.load(), load(queue.safe + on_their_way), "what is counted is what is there");
                }
            }
            // Everything comes to its end, and the way is free.
            for batch in writing {
                queue.safe += batch.messages;
                if batch.waits {
                    backlog.entered(load(batch.messages), Load::default(), 0);
                }
            }
            queue.arriving = 0;
            if drainers > 0 {
                backlog.left(load(queue.safe));
                prop_assert!(backlog.end(Queue::default().held(), 0));
            }
            prop_assert!(backlog.is_clear() && backlog.load() == Load::default() && backlog.oldest().is_none());
        }
    }
}
