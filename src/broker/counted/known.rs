//! What is known of the messages of one place: notes of some, marks for the others of a log. Pure: what is to be on disk
//! comes out as changes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::marks::{Marked, Standing};
use crate::{
    broker::{Count, Delivery},
    message::{FailedAttempt, MessageId, ReasonCode, UnixMs, remember},
    store::{Change, LedgerKey, Mark, MarkKey, Note},
};

/// What names a message at its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// In a log: topic, where a pattern was subscribed to, partition and offset.
    At(Option<Arc<str>>, u32, u64),
    /// Anywhere else.
    Id(MessageId),
}

impl Identity {
    pub(super) fn of(delivery: &Delivery) -> Self {
        match delivery.position {
            Some(position) => Self::At(delivery.topic.clone(), position.partition, position.offset),
            None => Self::Id(delivery.message.id.clone()),
        }
    }

    /// Out of the store.
    fn parse(text: &str, is_log: bool) -> Self {
        let at = || {
            let (before, offset) = text.rsplit_once('@')?;
            let (topic, partition) = match before.rsplit_once('/') {
                Some((topic, partition)) => (Some(topic.into()), partition),
                None => (None, before),
            };
            Some(Self::At(topic, partition.parse().ok()?, offset.parse().ok()?))
        };
        is_log.then(at).flatten().unwrap_or_else(|| Self::Id(MessageId::parse(text)))
    }

    fn text(&self) -> String {
        match self {
            Self::At(None, partition, offset) => format!("{partition}@{offset}"),
            Self::At(Some(topic), partition, offset) => format!("{topic}/{partition}@{offset}"),
            Self::Id(id) => id.to_string(),
        }
    }
}

/// Names a partition of a place.
pub(super) type Spot = (Option<Arc<str>>, u32);

/// Notes and marks of one place.
#[derive(Debug)]
pub(super) struct Known {
    place: Arc<str>,
    /// `None`: not a log, where what is not noted is not known.
    marks: Option<HashMap<Spot, Marked>>,
    notes: HashMap<Identity, Note>,
}

impl Known {
    /// As the process before left it: what was out then has used up its attempt.
    pub(super) fn new(
        place: Arc<str>,
        is_log: bool,
        notes: Vec<(String, Note)>,
        marks: Vec<(MarkKey, Mark)>,
        now: UnixMs,
    ) -> Self {
        let restored = |(message, mut note): (String, Note)| {
            if note.out {
                ended(&mut note, now);
            }
            (Identity::parse(&message, is_log), note)
        };
        let notes = notes.into_iter().map(restored).collect();
        let marked = |(of, mark): (MarkKey, Mark)| ((of.topic, of.partition), Marked::inherited(mark));
        Self { place, marks: is_log.then(|| marks.into_iter().map(marked).collect()), notes }
    }

    /// Whether nothing is noted.
    pub(super) fn is_blank(&self) -> bool {
        self.notes.is_empty()
    }

    pub(super) fn note(&self, of: &Identity) -> Option<&Note> {
        self.notes.get(of)
    }

    /// Notes something of a message; `None`: it has ended.
    pub(super) fn write(&mut self, of: Identity, note: Option<Note>, changes: &mut Vec<Change>) {
        let key = LedgerKey { place: Arc::clone(&self.place), message: of.text() };
        changes.push(Change::Attempts { of: key, note: note.clone() });
        match note {
            Some(note) => self.notes.insert(of, note),
            None => self.notes.remove(&of),
        };
    }

    /// How many of these, from the first on, may not have ended a process. The one behind them may have: it has to be
    /// alone.
    pub(super) fn innocent(&self, deliveries: &[Delivery]) -> usize {
        let mut innocent = 0;
        for group in deliveries.chunk_by(is_beside) {
            let marked = group.first().and_then(|first| self.marks.as_ref()?.get(&spot(first)?));
            let inherited = marked.filter(|marked| marked.is_inherited());
            let is_suspect = |delivery: &Delivery| match (self.noted(delivery), inherited, delivery.position) {
                (Some(note), ..) => note.crashes > 0,
                (None, Some(marked), Some(at)) => marked.standing(at.offset) == Standing::Inherited,
                _ => false,
            };
            if (!self.is_blank() || inherited.is_some())
                && let Some(place) = group.iter().position(is_suspect)
            {
                return innocent + place;
            }
            innocent += group.len();
        }
        innocent
    }

    /// What is noted of a delivery; as cheap as can be where nothing is noted at all.
    fn noted(&self, delivery: &Delivery) -> Option<&Note> {
        (!self.is_blank()).then(|| self.notes.get(&Identity::of(delivery))).flatten()
    }

    /// How long a delivery has to wait yet for its next attempt, where the broker did not know that.
    pub(super) fn wait(&self, delivery: &Delivery, now: UnixMs) -> Duration {
        let due = self.noted(delivery).and_then(|note| note.due).unwrap_or_default();
        Duration::from_millis(due.saturating_sub(now))
    }

    /// Whether these are messages of a log, whose broker forgets what was to come later when it is restarted.
    pub(super) fn is_log(&self) -> bool {
        self.marks.is_some()
    }

    /// They are about to be handed over. Gives what is noted of each: `None` where the broker's own count, or a mark, is
    /// enough. None of them may be handed over before the changes are on disk, if there are any.
    pub(super) fn begin(
        &mut self,
        deliveries: &[Delivery],
        now: UnixMs,
        changes: &mut Vec<Change>,
    ) -> Vec<Option<Note>> {
        let mut begun = Vec::with_capacity(deliveries.len());
        for group in deliveries.chunk_by(is_beside) {
            let spot = group.first().and_then(spot);
            // Taken out meanwhile.
            let mut marked = spot.as_ref().and_then(|spot| Some(self.marks.as_mut()?.remove(spot).unwrap_or_default()));
            let first = begun.len();
            for delivery in group {
                let note = self.begin_one(delivery, now, marked.as_ref(), changes);
                if let (Some(_), Some(marked), Some(at)) = (&note, &mut marked, delivery.position) {
                    marked.noted(at.offset);
                }
                begun.push(note);
            }
            let is_marked =
                |(delivery, note): &(&Delivery, &Option<Note>)| note.is_none() && delivery.count == Count::AtLeast;
            if let (Some(mut marked), Some(spot)) = (marked, spot) {
                let unnoted = group.iter().zip(begun.iter().skip(first)).filter(is_marked);
                for (_, run) in runs(unnoted.map(|(delivery, _)| delivery)) {
                    marked.queue(run);
                }
                self.write_mark(&spot, &mut marked, changes);
                self.marks.iter_mut().for_each(|marks| drop(marks.insert(spot.clone(), std::mem::take(&mut marked))));
            }
        }
        begun
    }

    fn begin_one(
        &mut self,
        delivery: &Delivery,
        now: UnixMs,
        marked: Option<&Marked>,
        changes: &mut Vec<Change>,
    ) -> Option<Note> {
        let noted = self.noted(delivery).cloned();
        let is_exact = delivery.count == Count::Exact;
        if is_exact && noted.is_none() {
            return None;
        }
        // What comes as a later attempt is noted always: its place in the log does not say which attempt it is.
        let marked = marked.filter(|_| !is_exact && delivery.attempt <= 1);
        let mut note = match noted {
            Some(note) if marked.is_some() && note == untried() => {
                self.write(Identity::of(delivery), None, changes);
                return None;
            }
            Some(mut note) => {
                if note.out {
                    again(&mut note, now);
                }
                note
            }
            None => {
                let mut note = fresh(delivery);
                match marked.zip(delivery.position).map(|(marked, at)| marked.standing(at.offset)) {
                    Some(Standing::First) => return None,
                    Some(Standing::Again) => again(&mut note, now),
                    Some(Standing::Inherited) => ended(&mut note, now),
                    None => {}
                }
                note
            }
        };
        note.attempt = note.attempt.max(delivery.attempt);
        (note.out, note.due) = (true, None);
        self.write(Identity::of(delivery), Some(note.clone()), changes);
        Some(note)
    }

    /// They are handed over. Gives those of which something is noted, by their place.
    pub(super) fn hand_over(&mut self, deliveries: &[Delivery]) -> Vec<(Identity, usize)> {
        for (spot, run) in self.runs(deliveries.iter()) {
            self.marked(&spot, |marked| marked.hand_over(run));
        }
        let noted = deliveries.iter().enumerate().filter(|(_, delivery)| self.noted(delivery).is_some());
        noted.map(|(place, delivery)| (Identity::of(delivery), place)).collect()
    }

    /// Where these lie, for [`Self::leave`]; nothing where there are no marks.
    pub(super) fn runs<'a>(&self, deliveries: impl Iterator<Item = &'a Delivery>) -> Vec<(Spot, Mark)> {
        if self.marks.is_some() { runs(deliveries) } else { Vec::new() }
    }

    /// They have ended: no mark needs to include them any more.
    pub(super) fn leave(&mut self, runs: &[(Spot, Mark)]) {
        for (spot, run) in runs {
            self.marked(spot, |marked| marked.leave(*run));
        }
    }

    /// They were begun and not handed over.
    pub(super) fn take_back(&mut self, deliveries: &[Delivery], changes: &mut Vec<Change>) {
        let runs = self.runs(deliveries.iter());
        // All of them first: what is between two of them is within no mark then.
        let mut back = Vec::new();
        for (spot, run) in &runs {
            self.marked(spot, |marked| marked.take_back(*run));
        }
        for (spot, run) in runs {
            back.extend(self.marked(&spot, |marked| marked.still_within(vec![run])).map(|within| (spot, within)));
        }
        for (spot, within) in back {
            for offset in within.into_iter().flat_map(|run| run.low..=run.high) {
                let message = Identity::At(spot.0.clone(), spot.1, offset);
                if !self.notes.contains_key(&message) {
                    self.write(message, Some(untried()), changes);
                }
            }
        }
        for delivery in deliveries {
            if let Some(note) = self.noted(delivery).cloned() {
                self.write(Identity::of(delivery), Some(Note { out: false, ..note }), changes);
            }
        }
        self.write_marks(changes);
    }

    /// They were handed over, and come back untried; nothing was noted of them.
    pub(super) fn give_back(&mut self, runs: &[(Spot, Mark)], changes: &mut Vec<Change>) {
        for (spot, run) in runs {
            let within = self.marked(spot, |marked| marked.give_back(*run)).unwrap_or_default();
            for offset in within.into_iter().flat_map(|run| run.low..=run.high) {
                self.write(Identity::At(spot.0.clone(), spot.1, offset), Some(untried()), changes);
            }
        }
        self.write_marks(changes);
    }

    /// The marks as they are now, where they differ from what is on disk.
    pub(super) fn write_marks(&mut self, changes: &mut Vec<Change>) {
        let Some(mut marks) = self.marks.take() else { return };
        marks.iter_mut().for_each(|(spot, marked)| self.write_mark(spot, marked, changes));
        self.marks = Some(marks);
    }

    fn write_mark(&self, spot: &Spot, marked: &mut Marked, changes: &mut Vec<Change>) {
        if let Some(mark) = marked.unwritten() {
            let (topic, partition) = spot.clone();
            changes.push(Change::Mark { of: MarkKey { place: Arc::clone(&self.place), topic, partition }, mark });
        }
    }

    fn marked<T>(&mut self, spot: &Spot, what: impl FnOnce(&mut Marked) -> T) -> Option<T> {
        self.marks.as_mut()?.get_mut(spot).map(what)
    }
}

/// Deliveries that lie beside each other, together.
fn runs<'a>(deliveries: impl Iterator<Item = &'a Delivery>) -> Vec<(Spot, Mark)> {
    let mut runs: Vec<(Spot, Mark)> = Vec::new();
    for delivery in deliveries {
        let Some(at) = delivery.position else { continue };
        match runs.last_mut() {
            Some(((topic, partition), run))
                if *partition == at.partition
                    && run.high.checked_add(1) == Some(at.offset)
                    && *topic == delivery.topic =>
            {
                run.high = at.offset;
            }
            _ => {
                let run = Mark { low: at.offset, high: at.offset };
                runs.push(((delivery.topic.clone(), at.partition), run));
            }
        }
    }
    runs
}

fn spot(delivery: &Delivery) -> Option<Spot> {
    delivery.position.map(|position| (delivery.topic.clone(), position.partition))
}

/// Whether they are of one partition, or both of none.
fn is_beside(one: &Delivery, other: &Delivery) -> bool {
    let partition = |delivery: &Delivery| delivery.position.map(|position| position.partition);
    partition(one) == partition(other) && one.topic == other.topic
}

/// The first note of a delivery.
pub(super) fn fresh(delivery: &Delivery) -> Note {
    Note { attempt: delivery.attempt, failures: delivery.failures.clone(), ..Note::default() }
}

/// Of what was handed over and came back as it was.
fn untried() -> Note {
    Note { attempt: 1, ..Note::default() }
}

/// The attempt did not succeed: the next one begins.
pub(super) fn failed(note: &mut Note, failure: FailedAttempt) {
    remember(&mut note.failures, failure);
    note.attempt = note.attempt.saturating_add(1);
    note.out = false;
}

/// It came again while this process had it out.
fn again(note: &mut Note, now: UnixMs) {
    canceled(note, now, "it came again unsettled: its connection, lease or partition was lost while it was out");
}

/// The process before this one ended while it had it out, and may have ended of it.
fn ended(note: &mut Note, now: UnixMs) {
    note.crashes = note.crashes.saturating_add(1);
    canceled(note, now, "it came again unsettled: the engine ended while it was out");
}

fn canceled(note: &mut Note, now: UnixMs, why: &str) {
    let (attempt, code) = (note.attempt, ReasonCode::OperationCanceled);
    failed(note, FailedAttempt { attempt, at: now, code, text: why.to_owned() });
}
