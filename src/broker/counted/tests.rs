//! The process is killed at any moment, and what it left on disk says which attempts were used up.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*};

use super::known::{Identity, Known, failed};
use crate::{
    broker::{Count, Delivery},
    message::{FailedAttempt, Message, Position, ReasonCode},
    store::{Change, LedgerKey, Mark, MarkKey, Note},
};

/// What is on disk: changes as the store makes them.
#[derive(Clone, Default)]
struct Disk {
    notes: HashMap<LedgerKey, Note>,
    marks: HashMap<MarkKey, Mark>,
}

impl Disk {
    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Attempts { of, note: Some(note) } => drop(self.notes.insert(of, note)),
                Change::Attempts { of, note: None } => drop(self.notes.remove(&of)),
                Change::Mark { of, mark: Some(mark) } => drop(self.marks.insert(of, mark)),
                Change::Mark { of, mark: None } => drop(self.marks.remove(&of)),
                other => panic!("{other:?} is none of its changes"),
            }
        }
    }

    fn open(&self) -> Known {
        let notes = self.notes.iter().map(|(key, note)| (key.message.clone(), note.clone())).collect();
        let marks = self.marks.iter().map(|(key, mark)| (key.clone(), *mark)).collect();
        Known::new("kafka/topic:t/g".into(), true, notes, marks, 0)
    }
}

/// Offset in the one of two topics.
type Place = (bool, u64);

fn delivery((topic, offset): Place) -> Delivery {
    Delivery {
        message: Arc::new(Message::new("test", "", 0)),
        tag: offset,
        attempt: 1,
        topic: Some(if topic { "one" } else { "other" }.into()),
        position: Some(Position { partition: 3, offset }),
        count: Count::AtLeast,
        failures: Vec::new(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many of one topic are fetched and marked.
    Mark(bool, u64),
    /// Some of those are handed over.
    HandOver(usize),
    /// One that is out ends, fails, or comes back untried.
    Settle(usize),
    Fail(usize),
    Release(usize),
    /// What is marked and not handed over goes back.
    TakeBack,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<bool>(), 1_u64..9).prop_map(|(topic, count)| Step::Mark(topic, count)),
        3 => (1_usize..9).prop_map(Step::HandOver),
        4 => any::<usize>().prop_map(Step::Settle),
        2 => any::<usize>().prop_map(Step::Fail),
        2 => any::<usize>().prop_map(Step::Release),
        1 => Just(Step::TakeBack),
        1 => Just(Step::Kill),
    ]
}

/// What a log and its reader really did.
#[derive(Default)]
struct Truth {
    /// By topic, the next to fetch in order.
    waiting: BTreeSet<Place>,
    next: [u64; 2],
    marked: Vec<Place>,
    out: BTreeMap<Place, u32>,
    /// The attempt that comes next, of those that were handed over before: at least this.
    attempts: BTreeMap<Place, u32>,
    /// May have been counted once too often, each time they were marked when the process ended.
    lenient: BTreeMap<Place, u32>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_was_out_has_used_up_its_attempt_and_nothing_else_has(steps in vec(step(), 1..80)) {
        let (mut disk, mut truth) = (Disk::default(), Truth::default());
        let mut known = disk.open();
        for step in steps {
            let mut changes = Vec::new();
            match step {
                Step::Mark(topic, count) => {
                    let here: Vec<Place> = truth.waiting.iter().filter(|place| place.0 == topic).copied().collect();
                    let next = &mut truth.next[usize::from(topic)];
                    let new = (*next..*next + count).map(|offset| (topic, offset));
                    let fetched: Vec<Place> = here.into_iter().chain(new).take(count as usize).collect();
                    *next = fetched.iter().map(|place| place.1 + 1).max().unwrap_or(0).max(*next);
                    truth.waiting.retain(|place| !fetched.contains(place));
                    let mut rest: Vec<Delivery> = fetched.iter().copied().map(delivery).collect();
                    let mut places = fetched.into_iter();
                    while !rest.is_empty() {
                        let innocent = known.innocent(&rest);
                        let behind = rest.split_off(innocent.clamp(1, rest.len()));
                        let notes = known.begin(&rest, 0, &mut changes);
                        for (note, place) in notes.iter().zip(places.by_ref()) {
                            let attempt = note.as_ref().map_or(1, |note| note.attempt);
                            let due = truth.attempts.get(&place).copied().unwrap_or(1);
                            let too_many = truth.lenient.get(&place).copied().unwrap_or(0);
                            prop_assert!(
                                (due..=due + too_many).contains(&attempt),
                                "{:?} comes as {}, is {} and at most {} more", place, attempt, due, too_many
                            );
                            // From here on as it was counted.
                            truth.attempts.insert(place, attempt);
                            truth.lenient.remove(&place);
                            truth.marked.push(place);
                        }
                        rest = behind;
                    }
                }
                Step::HandOver(count) => {
                    let handed: Vec<Place> = truth.marked.drain(..count.min(truth.marked.len())).collect();
                    known.hand_over(&handed.iter().copied().map(delivery).collect::<Vec<_>>());
                    truth.out.extend(handed.into_iter().map(|place| (place, truth.attempts[&place])));
                }
                Step::Settle(which) => {
                    let Some(place) = truth.pick(which) else { continue };
                    known.leave(&known.runs([delivery(place)].iter()));
                    let message = Identity::of(&delivery(place));
                    if known.note(&message).is_some() {
                        known.write(message, None, &mut changes);
                    }
                    truth.attempts.remove(&place);
                }
                Step::Fail(which) => {
                    let Some(place) = truth.pick(which) else { continue };
                    let message = Identity::of(&delivery(place));
                    let attempt = truth.attempts[&place];
                    let mut note = known.note(&message).cloned().unwrap_or(Note { attempt, ..Note::default() });
                    let (code, text) = (ReasonCode::Timeout, String::new());
                    failed(&mut note, FailedAttempt { attempt, at: 0, code, text });
                    note.crashes = 0;
                    known.leave(&known.runs([delivery(place)].iter()));
                    known.write(message, Some(note), &mut changes);
                    truth.attempts.insert(place, attempt + 1);
                    truth.waiting.insert(place);
                }
                Step::Release(which) => {
                    let Some(place) = truth.pick(which) else { continue };
                    let message = Identity::of(&delivery(place));
                    match known.note(&message).cloned() {
                        Some(note) => known.write(message, Some(Note { out: false, ..note }), &mut changes),
                        None => known.give_back(&known.runs([delivery(place)].iter()), &mut changes),
                    }
                    truth.waiting.insert(place);
                }
                Step::TakeBack => {
                    let back: Vec<Place> = truth.marked.drain(..).collect();
                    known.take_back(&back.iter().copied().map(delivery).collect::<Vec<_>>(), &mut changes);
                    truth.waiting.extend(back);
                }
                Step::Kill => {
                    known = disk.open();
                    for place in std::mem::take(&mut truth.out).into_keys() {
                        *truth.attempts.entry(place).or_default() += 1;
                        truth.waiting.insert(place);
                    }
                    for place in std::mem::take(&mut truth.marked) {
                        *truth.lenient.entry(place).or_default() += 1;
                        truth.waiting.insert(place);
                    }
                }
            }
            disk.write(changes);
        }
    }
}

impl Truth {
    /// One of those that are out, which is not any more.
    fn pick(&mut self, which: usize) -> Option<Place> {
        let place = *self.out.keys().nth(which.checked_rem(self.out.len())?)?;
        self.out.remove(&place);
        Some(place)
    }
}

#[test]
fn names_of_messages_read_back_as_they_were_written() {
    let mut changes = Vec::new();
    let mut known = Disk::default().open();
    for topic in [None, Some("events"), Some("a.b-c_d")] {
        known.write(Identity::At(topic.map(Into::into), 7, 1 << 60), Some(Note::default()), &mut changes);
    }
    let mut disk = Disk::default();
    disk.write(changes);
    let again = disk.open();
    for topic in [None, Some("events"), Some("a.b-c_d")] {
        assert!(again.note(&Identity::At(topic.map(Into::into), 7, 1 << 60)).is_some(), "{topic:?}");
    }
}
