//! What is changed is what is read, now and after a restart.

use std::sync::Arc;

use super::support::{ask, commit, message, open, put, texts};
use crate::{
    message::{FailedAttempt, Headers, Message, MessageId, ReasonCode},
    store::{Change, GroupId, LANE_LATER, LaneId, LedgerKey, Mark, MarkKey, Note, Noted, PartitionId, record},
};

fn append(partition: PartitionId, offset: u64, timestamp: u64, appended: u64) -> Change {
    let message = Arc::new(Message { timestamp, ..(*message(&offset.to_string())).clone() });
    let (rest, bytes) = (record::encode(&message), message.size() as u32);
    Change::Append { partition, offset, message, rest, bytes, appended }
}

fn note(attempt: u32, due: Option<u64>) -> Note {
    let failure = FailedAttempt { attempt: 1, at: 7, code: ReasonCode::HandlerTrapped, text: "it's \"gone\"".into() };
    Note { attempt, out: false, crashes: 1, due, failures: vec![failure] }
}

#[test]
fn a_message_comes_back_whole_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = LaneId::new(store.create_queue("orders").unwrap(), 5);
    let text = Message { id: MessageId::parse("order-1"), ..Message::default() };
    let whole = Message {
        headers: Headers::from_iter([("a", "1"), ("a", "2")]),
        key: Some("k".into()),
        expires_at: Some(u64::MAX),
        ..(*message("payload")).clone()
    };
    let messages = [Arc::new(text), Arc::new(whole)];
    commit(&store, vec![put(lane.key(1), &messages[0]), put(lane.key(2), &messages[1])]);
    drop(store);
    let store = open(directory.path());
    let found = ask(&store, move |reader| reader.queue_page(lane, 0, 10, usize::MAX).map(|page| page.messages));
    assert_eq!(found.iter().map(|stored| Arc::clone(&stored.message)).collect::<Vec<_>>(), messages);
    assert_eq!((found[1].key, found[1].bytes, found[1].note.clone()), (lane.key(2), 12, None));
}

#[test]
fn a_queue_is_counted_by_lanes_and_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let queue = store.create_queue("orders").unwrap();
    assert_eq!(store.create_queue("orders").unwrap(), queue, "made once");
    let (lane, later) = (LaneId::new(queue, 3), LaneId::new(queue, LANE_LATER));
    let mut changes: Vec<_> = (1..=10).map(|sequence| put(lane.key(sequence), &message("0123456789"))).collect();
    let mut waits = put(later.key(11), &message("later"));
    if let Change::Put { due, .. } = &mut waits {
        *due = Some(99);
    }
    changes.push(waits);
    changes.push(Change::Handed(lane.key(4)));
    commit(&store, changes);
    let remove = |sequence, noted| Change::Remove { key: lane.key(sequence), bytes: 10, noted };
    commit(
        &store,
        vec![
            Change::Note { key: lane.key(2), note: note(2, Some(50)), noted: Noted::Nothing },
            Change::Note { key: lane.key(9), note: note(3, None), noted: Noted::Nothing },
            remove(1, Noted::Nothing),
            remove(4, Noted::Nothing),
            remove(3, Noted::Nothing),
            remove(10, Noted::Nothing),
            remove(9, Noted::Something),
        ],
    );
    drop(store);

    let store = open(directory.path());
    let catalog = store.catalog().unwrap();
    let lanes = &catalog.queues[0].lanes;
    let sums: Vec<_> = lanes.iter().map(|lane| (lane.count, lane.bytes, lane.waiting, lane.handed)).collect();
    assert_eq!(sums, [(5, 50, 1, 4), (1, 5, 1, 0)]);
    assert!(catalog.queues[0].sequence_next > 11);
    let page = ask(&store, move |reader| reader.queue_page(lane, 0, 100, usize::MAX).map(|page| page.messages));
    let keys: Vec<_> = page.iter().map(|stored| stored.key.sequence()).collect();
    assert_eq!(keys, [5, 6, 7, 8], "what waits is not among them");
    assert_eq!(
        ask(&store, move |reader| reader.queue_page(lane, 5, 100, 15).map(|page| page.messages)).len(),
        2,
        "until the bytes are reached"
    );
    let waiting = ask(&store, move |reader| reader.queue_later(queue, None, 10));
    assert_eq!(waiting, [(50, lane.key(2)), (99, later.key(11))]);
    let rest = ask(&store, move |reader| reader.queue_later(queue, Some((50, lane.key(2))), 10));
    assert_eq!(rest, [(99, later.key(11))]);
    let keys = [later.key(11), lane.key(9), lane.key(2)];
    let found = ask(&store, move |reader| reader.queue_messages(&keys).map(|page| page.messages));
    let notes: Vec<_> = found.iter().map(|stored| stored.note.clone().unwrap()).collect();
    assert_eq!(notes, [Note { attempt: 1, due: Some(99), ..Note::default() }, note(2, Some(50))]);
    let all = ask(&store, move |reader| reader.queue_browse(queue, 5, 3));
    assert_eq!(all.iter().map(|stored| stored.key.sequence()).collect::<Vec<_>>(), [6, 7, 8]);
    assert_eq!(texts(&store, later, 0), [""; 0]);
}

#[test]
fn a_topic_keeps_what_a_group_still_needs() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (topic, partitions) = store.create_topic("events", 2).unwrap();
    assert_eq!(store.create_topic("events", 2).unwrap(), (topic, partitions.clone()));
    let (first, second) = (partitions[0], partitions[1]);
    let group = store.create_group(topic, "readers").unwrap();
    let changes = (0..3000).map(|offset| append(second, offset, 1000 + offset % 2048, 5000 + offset));
    commit(&store, changes.collect());
    let bytes = (0..100).map(|offset: u64| offset.to_string().len() as u64).sum();
    commit(
        &store,
        vec![
            Change::Forget { partition: second, start: 0, end: 100, bytes, keep: vec![0, 50, 99] },
            Change::Unkeep { partition: second, offset: 50 },
            Change::Progress { group, partition: second, handed: 7, settled: vec![1] },
            Change::Progress { group, partition: second, handed: 9, settled: vec![2, 3] },
            Change::Retry { group, partition: second, offset: 99, note: Some(note(2, None)) },
            Change::Retry { group, partition: second, offset: 98, note: Some(note(2, None)) },
            Change::Retry { group, partition: second, offset: 98, note: None },
        ],
    );
    drop(store);

    let store = open(directory.path());
    let catalog = store.catalog().unwrap();
    let found = &catalog.topics[0].partitions;
    assert_eq!((found[0].id, found[0].start, found[0].end, found[0].appended_last), (first, 0, 0, 0));
    assert_eq!((found[1].start, found[1].end, found[1].appended_last), (100, 3000, 7999));
    let left: u64 = (100..3000).map(|offset: u64| offset.to_string().len() as u64).sum();
    assert_eq!(found[1].bytes, left);
    let groups = &catalog.groups[0];
    assert_eq!((groups.id, groups.topic, &*groups.name), (group, topic, "readers"));
    assert_eq!(groups.progress, [(second, 9, vec![2, 3])]);
    assert_eq!(groups.retries, [(second, 99, note(2, None))]);
    let page = ask(&store, move |reader| reader.log_page(second, 0, 102, 100, usize::MAX));
    assert_eq!(page.iter().map(|record| record.offset).collect::<Vec<_>>(), [0, 99, 100, 101]);
    assert_eq!((&*page[3].message.payload, page[3].appended), (b"101".as_slice(), 5101));
    let since = |start, at| ask(&store, move |reader| reader.log_since(second, start, at));
    assert_eq!(since(100, 0), Some(100));
    assert_eq!(since(100, 3000), Some(2000));
    assert_eq!(since(2500, 1900), Some(2948));
    assert_eq!(since(100, 9000), None);
}

#[test]
fn ages_and_sizes_of_the_oldest_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (_, partitions) = store.create_topic("events", 1).unwrap();
    let partition = partitions[0];
    commit(&store, (0..20).map(|offset| append(partition, offset, 0, 100 + offset)).collect());
    let aged = ask(&store, move |reader| reader.log_aged(partition, 8, 111, 100));
    assert_eq!(aged, [(8, 1), (9, 1), (10, 2)]);
    let sizes = ask(&store, move |reader| reader.log_sizes(partition, 9, 2));
    assert_eq!(sizes, [(9, 1), (10, 2)]);
}

#[test]
fn the_ledger_keeps_attempts_on_messages_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let key = LedgerKey { place: "rabbitmq/queue:orders".into(), message: "m-1".into() };
    let attempts = |store: &crate::store::Store| {
        let key = key.clone();
        ask(store, move |reader| reader.attempts(&key))
    };
    commit(&store, vec![Change::Attempts { of: key.clone(), note: Some(note(2, None)) }]);
    commit(&store, vec![Change::Attempts { of: key.clone(), note: Some(note(3, Some(9))) }]);
    drop(store);
    let store = open(directory.path());
    assert_eq!(attempts(&store), Some(note(3, Some(9))));
    commit(&store, vec![Change::Attempts { of: key.clone(), note: None }]);
    assert_eq!(attempts(&store), None);
    assert_eq!(store.catalog().unwrap().groups.iter().map(|group| group.id).collect::<Vec<GroupId>>(), []);
}

#[test]
fn marks_say_what_may_be_out_of_logs_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let key = |topic: Option<&str>, partition| {
        let place = "kafka/topic:events.*/engine".into();
        MarkKey { place, topic: topic.map(Into::into), partition }
    };
    let mark = |topic, partition, low, high| Change::Mark { of: key(topic, partition), mark: Some(Mark { low, high }) };
    let marks = |store: &crate::store::Store| ask(store, |reader| reader.marks("kafka/topic:events.*/engine"));
    commit(&store, vec![mark(None, 0, 1, 5), mark(Some("a"), 0, 7, 9), mark(Some("b"), 3, 0, 1 << 60)]);
    commit(&store, vec![mark(None, 0, 5, 9), Change::Mark { of: key(Some("a"), 0), mark: None }]);
    drop(store);
    let store = open(directory.path());
    let left = vec![(key(None, 0), Mark { low: 5, high: 9 }), (key(Some("b"), 3), Mark { low: 0, high: 1 << 60 })];
    assert_eq!(marks(&store), left);
    assert_eq!(ask(&store, |reader| reader.marks("kafka/topic:other/engine")), []);
}
