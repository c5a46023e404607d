//! A group, without a disk: what is to be written when, and who takes what.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::super::{
    group::Group,
    log::{
        Entry, Log,
        tests::{entry, log_of},
    },
    progress::Progress,
    settled::Settled,
};
use crate::{
    broker::{
        BatchMax, Delivery,
        embedded::{clock::Now, readers::Wakes},
    },
    message::{FailedAttempt, Message, ReasonCode, Settlement},
    store::{Change, GroupId, Note, PartitionId},
};

const NOW: Now = Now { tick: 0, unix: 0, steady: 0 };
const ALL: BatchMax = BatchMax { count: usize::MAX, bytes: usize::MAX };

/// A group of one partition that was killed with so many out for the first time, and that has a reader.
fn killed(log: &mut Log, out: u64, notes: BTreeMap<u64, Note>) -> Group {
    group_of(vec![restored(log, out, notes)])
}

fn restored(log: &mut Log, out: u64, notes: BTreeMap<u64, Note>) -> Progress {
    Progress::restored(out, &Settled::below(0).encode(), notes, log, NOW)
}

fn group_of(progress: Vec<Progress>) -> Group {
    let mut group = Group::new("group".into(), Some(GroupId(1)), progress, Duration::from_secs(60));
    group.readers.join(1, 1000, Arc::new(Notify::new()));
    group.share_out(&mut Wakes::default());
    group
}

fn take(group: &mut Group, log: &Log, ahead: bool) -> Vec<Delivery> {
    group.take(1, ahead, std::slice::from_ref(log), ALL, NOW, &mut Wakes::default()).0
}

fn settle(group: &mut Group, log: &mut Log, taken: &[Delivery], how: &Settlement) {
    let settled = taken.iter().map(|delivery| (delivery.tag, how.clone()));
    group.settle(1, settled, std::slice::from_mut(log), NOW, &mut Wakes::default());
}

fn tried(taken: &[Delivery]) -> Vec<(u64, u32)> {
    taken.iter().map(|delivery| (delivery.position.unwrap().offset, delivery.attempt)).collect()
}

fn places(taken: &[Delivery]) -> Vec<(u32, u64)> {
    let position = |delivery: &Delivery| delivery.position.unwrap();
    taken.iter().map(position).map(|position| (position.partition, position.offset)).collect()
}

fn retry(offset: u64, note: Option<Note>) -> Change {
    Change::Retry { group: GroupId(1), partition: PartitionId(1), offset, note }
}

fn progress(handed: u64, settled: &Settled) -> Change {
    Change::Progress { group: GroupId(1), partition: PartitionId(1), handed, settled: settled.encode() }
}

/// Changes have no equality of their own.
fn shown(changes: &[Change]) -> String {
    format!("{changes:?}")
}

#[test]
fn each_attempt_is_to_be_written_before_it_begins_and_each_end_after_it() {
    let mut log = log_of(3);
    let mut group = killed(&mut log, 0, BTreeMap::new());
    let taken = take(&mut group, &log, false);
    let none = Settled::below(0);
    assert_eq!(shown(&group.take_changes(std::slice::from_ref(&log))), shown(&[progress(3, &none)]));
    settle(&mut group, &mut log, &taken[1..2], &Settlement::Accept);
    settle(&mut group, &mut log, &taken[..1], &Settlement::Release { after: Duration::ZERO });
    let note = |out| Note { attempt: 1, out, ..Note::default() };
    let mut settled = none;
    settled.insert(1);
    let expected = [retry(0, Some(note(false))), progress(3, &settled)];
    assert_eq!(shown(&group.take_changes(std::slice::from_ref(&log))), shown(&expected));
    let again = take(&mut group, &log, false);
    assert_eq!(shown(&group.take_changes(std::slice::from_ref(&log))), shown(&[retry(0, Some(note(true)))]));
    settle(&mut group, &mut log, &again, &Settlement::Accept);
    settled.insert(0);
    let expected = [retry(0, None), progress(3, &settled)];
    assert_eq!(shown(&group.take_changes(std::slice::from_ref(&log))), shown(&expected));
}

#[test]
fn what_may_have_ended_the_process_is_handed_over_alone_and_never_ahead() {
    let mut log = log_of(6);
    let note = Note { attempt: 2, out: true, crashes: 1, ..Note::default() };
    let twice = BTreeMap::from([(1, note.clone()), (2, note)]);
    let mut group = killed(&mut log, 4, twice);
    assert!(take(&mut group, &log, true).is_empty(), "nor what comes behind it");
    let [zero, one] = [(); 2].map(|()| take(&mut group, &log, false));
    assert_eq!([&zero, &one].map(|taken| tried(taken)), [[(0, 2)], [(1, 3)]]);
    assert!(take(&mut group, &log, false).is_empty(), "one at a time, and nothing overtakes it");
    // It came to an end, and the process did not.
    let failure = Box::new(FailedAttempt { attempt: 3, at: 0, code: ReasonCode::HandlerTrapped, text: String::new() });
    settle(&mut group, &mut log, &one, &Settlement::Redeliver { after: Duration::ZERO, failure });
    assert_eq!(tried(&take(&mut group, &log, false)), [(1, 4)]);
    let [two, three, rest] = [(); 3].map(|()| take(&mut group, &log, false));
    assert_eq!([tried(&two), tried(&three), tried(&rest)], [vec![(2, 3)], vec![(3, 2)], vec![(4, 1), (5, 1)]]);
}

#[test]
fn what_waits_to_be_out_alone_holds_up_what_is_behind_it_in_its_partition() {
    let mut logs = [3, 4, 2].map(log_of);
    let note = |out| Note { attempt: 2, out, crashes: u32::from(out), ..Note::default() };
    let known = [(1, vec![(0, note(true))]), (3, vec![(0, note(false)), (1, note(true))]), (0, vec![])];
    let progress = logs.iter_mut().zip(known);
    let progress = progress.map(|(log, (out, notes))| restored(log, out, notes.into_iter().collect()));
    let mut group = group_of(progress.collect());
    let next = |logs: &[Log], group: &mut Group| group.take(1, false, logs, ALL, NOW, &mut Wakes::default()).0;
    let first = next(&logs, &mut group);
    assert_eq!(places(&first), [(0, 0)]);
    let others = next(&logs, &mut group);
    assert_eq!(places(&others), [(1, 0), (2, 0), (2, 1), (0, 1), (0, 2)], "what is ahead of it, and other partitions");
    assert!(next(&logs, &mut group).is_empty());
    let accepted = first.iter().map(|delivery| (delivery.tag, Settlement::Accept));
    group.settle(1, accepted, &mut logs, NOW, &mut Wakes::default());
    assert_eq!(
        [next(&logs, &mut group), next(&logs, &mut group), next(&logs, &mut group)].map(|taken| places(&taken)),
        [vec![(1, 1)], vec![(1, 2)], vec![(1, 3)]]
    );
}

#[test]
fn looks_again_when_what_it_set_aside_is_due() {
    let mut log = log_of(0);
    let mut group = killed(&mut log, 0, BTreeMap::new());
    let message = Message { not_before: Some(3), ..Message::default() };
    log.append(Entry { message: Arc::new(message), waits: true, ..entry(0) });
    let (found, until) = group.take(1, false, std::slice::from_ref(&log), ALL, NOW, &mut Wakes::default());
    assert!(found.is_empty());
    assert_eq!(until, NOW.after(Duration::from_millis(3)));
    let note = Note { attempt: 1, due: Some(3), ..Note::default() };
    let expected = [retry(0, Some(note)), progress(1, &Settled::below(0))];
    assert_eq!(shown(&group.take_changes(std::slice::from_ref(&log))), shown(&expected));
}

#[test]
fn who_may_not_take_what_is_due_does_not_look_for_it_again_and_again() {
    let mut log = log_of(1);
    let mut group = killed(&mut log, 0, BTreeMap::new());
    group.readers.join(2, 10, Arc::new(Notify::new()));
    let taken = take(&mut group, &log, false);
    settle(&mut group, &mut log, &taken, &Settlement::Release { after: Duration::from_nanos(5) });
    let later = Now { tick: 10, ..NOW };
    let (found, until) = group.take(2, false, &[log], ALL, later, &mut Wakes::default());
    assert!(found.is_empty() && until > later.tick);
}
