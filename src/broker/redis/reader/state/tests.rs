//! What a reader holds, without a server: what a test says came, and what the server would be told.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{BatchMax, Delivery, Entry, EntryId, FailedAttempt, Item, Settlement, State, To};
use crate::message::{Message, ReasonCode};

const LEASE: Duration = Duration::from_secs(30);
const ALL: BatchMax = BatchMax { count: usize::MAX, bytes: usize::MAX };
/// Two streams a level: what is new, and what was delayed.
const PER_LEVEL: u8 = 2;

fn entry(stream: u8, ms: u64) -> Entry {
    (stream, EntryId { ms, seq: 0 })
}

fn item(entry: Entry, count: u32) -> Item {
    let message = Arc::new(Message::new("test", vec![b'x'; 100], 0));
    Item { entry, message, count, failures: Vec::new(), has_notes: false, position: None }
}

/// A reader that holds at most `prefetch`, and was given these, each for the first time.
fn state(prefetch: usize, entries: &[Entry]) -> State {
    let mut state = State::new(prefetch, PER_LEVEL);
    entries.iter().for_each(|entry| state.arrived(item(*entry, 1)));
    state
}

fn take(state: &mut State, count: usize) -> Vec<Delivery> {
    state.take(BatchMax { count, ..ALL }, Instant::now())
}

/// What is out under these, in their order.
fn entries(state: &State, deliveries: &[Delivery]) -> Vec<Entry> {
    deliveries.iter().map(|delivery| state.entry_of(delivery.tag).unwrap().0).collect()
}

fn failed(attempt: u32) -> FailedAttempt {
    FailedAttempt { attempt, at: 0, code: ReasonCode::Timeout, text: "again".to_owned() }
}

fn redeliver(after: Duration) -> Settlement {
    Settlement::Redeliver { after, failure: Box::new(failed(1)) }
}

fn settle_all(state: &mut State, taken: Vec<Delivery>, how: impl Fn() -> Settlement) {
    state.settle(taken.into_iter().map(|delivery| (delivery, how())).collect());
}

/// The server is told all there is, and says of what comes again whether it was this reader's.
fn tell(state: &mut State, is_ours: bool) {
    let work = state.work();
    state.told(&work.done, work.back.into_iter().map(|back| (back, is_ours)).collect());
}

/// What is to come again: which, with what count, and whether for this reader.
fn back(state: &mut State) -> Vec<(Entry, u32, u32, &'static str)> {
    let to = |to: &To| match to {
        To::Me(_) => "me",
        To::Anyone => "anyone",
        To::Later(_) => "later",
    };
    state.work().back.iter().map(|back| (back.entry, back.count, back.count_then, to(&back.to))).collect()
}

#[test]
fn hands_out_higher_levels_first_and_within_one_by_arrival() {
    let (low, high, delayed, higher) = (entry(2, 1), entry(0, 3), entry(1, 2), entry(0, 1));
    let mut state = state(10, &[low, high, delayed, higher]);
    let taken = take(&mut state, 10);
    assert_eq!(entries(&state, &taken), [higher, delayed, high, low]);
    assert!(!state.has_waiting());
}

#[test]
fn hands_out_no_more_than_bytes_allow_but_always_one() {
    let mut state = state(10, &[entry(0, 1), entry(0, 2), entry(0, 3)]);
    let size = state.waiting_bytes() / 3;
    assert_eq!(state.take(BatchMax { count: 10, bytes: 1 }, Instant::now()).len(), 1);
    assert_eq!(state.take(BatchMax { count: 10, bytes: 2 * size }, Instant::now()).len(), 2);
    assert_eq!(state.waiting_bytes(), 0);
}

#[test]
fn makes_room_by_what_the_server_is_told_before_it_is_asked() {
    let mut state = state(2, &[entry(0, 1), entry(0, 2)]);
    let taken = take(&mut state, 2);
    assert_eq!(state.room(), 0);
    settle_all(&mut state, taken, || Settlement::Accept);
    assert_eq!(state.room(), 0, "nobody has told the server");
    let work = state.work();
    assert_eq!((work.done.len(), state.room()), (2, 2));
    state.untold(work);
    assert_eq!(state.room(), 0, "it was not told after all");
    assert!(state.has_work());
    tell(&mut state, true);
    assert_eq!((state.room(), state.has_work()), (2, false));
}

#[test]
fn knows_of_work_until_the_server_does() {
    let mut state = state(2, &[entry(0, 1)]);
    let taken = take(&mut state, 1);
    settle_all(&mut state, taken, || redeliver(LEASE));
    let work = state.work();
    assert!(state.has_work(), "it is on its way");
    state.told(&work.done, work.back.into_iter().map(|back| (back, true)).collect());
    assert!(!state.has_work() && state.is_empty(false));
}

#[test]
fn what_is_here_already_does_not_come_a_second_time() {
    let (one, two) = (entry(0, 1), entry(0, 2));
    let mut state = state(10, &[one, two]);
    let taken = take(&mut state, 1);
    // Their leases ran out on the server, which gives them to us once more.
    state.arrived(item(one, 2));
    state.arrived(item(two, 2));
    assert_eq!(state.entry_of(taken[0].tag), Some((one, 2)));
    let next = take(&mut state, 10);
    assert_eq!((next.len(), next[0].attempt), (1, 2));
}

#[test]
fn what_is_given_back_is_next_and_the_same_attempt() {
    let mut state = state(10, &[entry(0, 1), entry(0, 2)]);
    let taken = take(&mut state, 1);
    assert_eq!(state.give_back(taken), 1);
    let again = take(&mut state, 1);
    assert_eq!((entries(&state, &again), again[0].attempt), (vec![entry(0, 1)], 1));
    assert!(state.work().is_empty(), "the server need not know");
}

#[test]
fn what_is_given_back_after_the_end_is_for_anyone_and_was_not_tried() {
    let (one, two) = (entry(0, 1), entry(0, 2));
    let mut state = state(10, &[one, two]);
    let taken = take(&mut state, 1);
    state.end();
    assert_eq!(back(&mut state), [(two, 1, 0, "anyone")], "what waited");
    state.give_back(taken);
    assert_eq!(back(&mut state), [(one, 1, 0, "anyone")]);
    assert_eq!(state.room(), 0);
}

#[test]
fn what_is_tried_again_at_once_is_the_next_attempt_once_the_server_has_counted_it() {
    let one = entry(0, 1);
    let mut state = state(10, &[one]);
    let taken = take(&mut state, 1);
    settle_all(&mut state, taken, || redeliver(Duration::ZERO));
    assert!(take(&mut state, 1).is_empty(), "not before that");
    tell(&mut state, true);
    let again = take(&mut state, 1);
    assert_eq!((again[0].attempt, again[0].failures.len()), (2, 1));
    settle_all(&mut state, again, || redeliver(Duration::ZERO));
    tell(&mut state, false);
    assert!(take(&mut state, 1).is_empty() && state.is_empty(false), "somebody else has it");
}

#[test]
fn what_was_to_be_tried_here_is_for_anyone_where_it_ended_meanwhile() {
    let one = entry(0, 1);
    let mut state = state(10, &[one]);
    let taken = take(&mut state, 1);
    settle_all(&mut state, taken, || redeliver(Duration::ZERO));
    let work = state.work();
    state.end();
    state.told(&work.done, work.back.into_iter().map(|back| (back, true)).collect());
    assert_eq!(back(&mut state), [(one, 2, 1, "anyone")]);
}

#[test]
fn what_is_tried_later_keeps_its_count_and_what_is_only_released_loses_one() {
    let (one, two) = (entry(0, 1), entry(0, 2));
    let mut state = state(10, &[one, two]);
    let taken = take(&mut state, 1);
    settle_all(&mut state, taken, || redeliver(LEASE));
    let taken = take(&mut state, 1);
    settle_all(&mut state, taken, || Settlement::Release { after: LEASE });
    assert_eq!(back(&mut state), [(one, 1, 1, "later"), (two, 1, 0, "later")]);
}

#[test]
fn what_came_before_its_time_is_nobodys_attempt() {
    let one = entry(0, 1);
    let mut state = state(10, &[]);
    state.too_early(&item(one, 1), LEASE);
    assert!(take(&mut state, 1).is_empty());
    assert_eq!(back(&mut state), [(one, 1, 0, "later")]);
}

#[test]
fn what_is_not_for_this_group_is_done() {
    let mut state = state(10, &[]);
    state.passed_over(&item(entry(0, 1), 1));
    assert!(take(&mut state, 1).is_empty());
    assert_eq!(state.work().done.len(), 1);
}

#[test]
fn what_may_have_ended_another_process_is_out_alone() {
    let (suspect, other) = (entry(2, 2), entry(0, 1));
    let mut state = state(10, &[other, suspect]);
    state.suspects(suspect);
    assert_eq!(state.room(), 0, "nothing new comes beside it");
    let taken = take(&mut state, 10);
    assert_eq!(entries(&state, &taken), [suspect]);
    assert!(take(&mut state, 10).is_empty(), "nothing is handed out beside it");
    settle_all(&mut state, taken, || Settlement::Accept);
    assert!(take(&mut state, 10).is_empty(), "it has not ended before the server knows");
    tell(&mut state, true);
    let taken = take(&mut state, 10);
    assert_eq!(entries(&state, &taken), [other]);
}

#[test]
fn what_was_out_for_longer_than_a_lease_is_for_anyone_as_the_next_attempt() {
    let begin = Instant::now();
    let (one, two) = (entry(0, 1), entry(0, 2));
    let mut state = state(10, &[one, two]);
    let taken = state.take(ALL, begin);
    assert_eq!(state.first_end(LEASE), Some(begin + LEASE));
    assert_eq!(state.run_out(LEASE, begin + LEASE / 2), 0);
    state.renew(begin + LEASE / 2);
    assert!(state.work().renews, "the server hears of it");
    assert_eq!(state.run_out(LEASE, begin + LEASE), 0, "it showed that it is at work");
    let end = begin + LEASE * 3 / 2;
    assert_eq!(state.lost(&taken, LEASE, end), [0, 1]);
    assert_eq!(state.run_out(LEASE, end), 2);
    assert_eq!(state.lost(&taken, LEASE, begin), [0, 1]);
    let mut given = back(&mut state);
    given.sort_unstable();
    assert_eq!(given, [(one, 1, 1, "anyone"), (two, 1, 1, "anyone")]);
    assert_eq!(state.settle(taken.into_iter().map(|one| (one, Settlement::Accept)).collect()).back, 0, "too late");
}

#[test]
fn counts_dead_letters_and_what_is_not_out_any_more() {
    let mut state = state(10, &[entry(0, 1), entry(0, 2)]);
    let taken = take(&mut state, 2);
    let dead = || Settlement::DeadLetter { code: ReasonCode::Timeout };
    let came_to = state.settle(taken.into_iter().map(|delivery| (delivery, dead())).collect());
    assert_eq!((came_to.back, came_to.dead), (2, 2));
    assert_eq!(state.work().done.len(), 2);
}

#[test]
fn what_nobody_asks_for_is_put_off_as_the_same_attempt() {
    let (begin, one) = (Instant::now(), entry(0, 1));
    let mut state = state(10, &[one]);
    state.asked_at = begin;
    assert!(!state.is_left_alone(LEASE, begin));
    assert!(state.is_left_alone(LEASE, begin + LEASE));
    state.put_off();
    assert_eq!(back(&mut state), [(one, 1, 0, "anyone")]);
    assert_eq!((state.waiting_bytes(), state.is_wanted()), (0, false));
}

#[test]
fn what_somebody_else_has_does_not_wait_here_and_what_is_out_stays_out() {
    let (one, two) = (entry(0, 1), entry(0, 2));
    let mut state = state(10, &[one, two]);
    let taken = take(&mut state, 1);
    state.gone(&[one, two]);
    assert_eq!(entries(&state, &taken), [one]);
    assert_eq!((state.has_waiting(), state.waiting_bytes()), (false, 0));
    assert_eq!(state.leased(true), [one]);
    assert!(state.leased(false).is_empty());
}

#[test]
fn an_attempt_that_was_counted_where_it_is_shows_when_it_goes_back() {
    let one = entry(0, 1);
    let mut state = state(10, &[one]);
    let taken = take(&mut state, 1);
    state.counted(taken[0].tag);
    state.end();
    state.give_back(taken);
    assert_eq!(back(&mut state), [(one, 2, 1, "anyone")]);
}

#[test]
fn holds_nothing_once_it_is_closed() {
    let mut state = state(10, &[entry(0, 1), entry(0, 2)]);
    let taken = take(&mut state, 1);
    assert_eq!(state.close(), 1);
    assert_eq!(state.settle(taken.into_iter().map(|one| (one, Settlement::Accept)).collect()).back, 0);
    assert!(take(&mut state, 1).is_empty() && state.work().is_empty());
}

/// Something that happens to a reader.
#[derive(Clone, Debug)]
enum Event {
    Arrives(Entry),
    Taken(usize),
    Settled(usize, u8),
    Released(usize),
    Asked,
    Answered { ours: bool },
    Lost,
    RunsOut,
    PutOff,
    Gone(Entry),
}

fn event() -> impl Strategy<Value = Event> {
    let some_entry = || (0..4_u8, 0..8_u64).prop_map(|(stream, ms)| entry(stream, ms));
    prop_oneof![
        4 => some_entry().prop_map(Event::Arrives),
        3 => (1..4_usize).prop_map(Event::Taken),
        3 => (0..4_usize, 0..5_u8).prop_map(|(place, how)| Event::Settled(place, how)),
        1 => (0..4_usize).prop_map(Event::Released),
        2 => Just(Event::Asked),
        2 => any::<bool>().prop_map(|ours| Event::Answered { ours }),
        1 => Just(Event::Lost),
        1 => Just(Event::RunsOut),
        1 => Just(Event::PutOff),
        1 => some_entry().prop_map(Event::Gone),
    ]
}

proptest! {
    /// Whatever happens, everything that is held is in one place: it waits, is out, or the server is told of it; and nothing is
    /// out twice.
    #[test]
    fn each_is_in_one_place(events in proptest::collection::vec(event(), 1..80)) {
        let begin = Instant::now();
        let mut state = State::new(6, PER_LEVEL);
        let (mut out, mut asked) = (Vec::<Delivery>::new(), std::collections::VecDeque::new());
        for event in events {
            match event {
                Event::Arrives(entry) => state.arrived(item(entry, 1)),
                Event::Taken(count) => out.extend(state.take(BatchMax { count, ..ALL }, begin)),
                Event::Settled(place, how) if place < out.len() => {
                    let how = match how {
                        0 => Settlement::Accept,
                        1 => redeliver(Duration::ZERO),
                        2 => redeliver(LEASE),
                        3 => Settlement::Release { after: Duration::ZERO },
                        _ => Settlement::Release { after: LEASE },
                    };
                    state.settle(vec![(out.swap_remove(place), how)]);
                }
                Event::Released(place) if place < out.len() => {
                    state.give_back(vec![out.swap_remove(place)]);
                }
                Event::Settled(..) | Event::Released(_) => {}
                Event::Asked => asked.push_back(state.work()),
                Event::Answered { ours } => if let Some(work) = asked.pop_front() {
                    state.told(&work.done, work.back.into_iter().map(|back| (back, ours)).collect());
                },
                Event::Lost => if let Some(work) = asked.pop_front() {
                    state.untold(work);
                },
                Event::RunsOut => {
                    state.run_out(LEASE, begin + LEASE);
                    out.clear();
                }
                Event::PutOff => state.put_off(),
                Event::Gone(entry) => state.gone(&[entry]),
            }
            let telling = asked.iter().chain([&state.work]);
            let told: usize = telling.map(|work| work.done.len() + work.back.len()).sum();
            prop_assert_eq!(state.held.len(), state.waiting.len() + state.out.len() + told);
            prop_assert_eq!(out.len(), state.out.len());
            prop_assert!(state.out.len() <= 6);
            let mut all: Vec<Entry> = entries(&state, &out);
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), out.len(), "one is out twice");
            let bytes: usize = state.waiting.values().map(|item| item.message.size()).sum();
            prop_assert_eq!(state.waiting_bytes(), bytes);
        }
    }
}
