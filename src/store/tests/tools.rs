//! What an operator does from outside, while the engine runs.

use std::{fs, os::unix::fs::PermissionsExt};

use rusqlite::Connection;

use super::support::{commit, message, open, put, texts};
use crate::store::{Change, LaneId, Noted, Store, StoreError, backup, check, record, stats};

fn filled(store: &Store) -> LaneId {
    let lane = LaneId::new(store.create_queue("orders").unwrap(), 5);
    let (topic, partitions) = store.create_topic("events", 2).unwrap();
    let group = store.create_group(topic, "readers").unwrap();
    let mut changes: Vec<_> =
        (1..=10).map(|sequence| put(lane.key(sequence), &message(&sequence.to_string()))).collect();
    for offset in 0..5 {
        let message = message("event");
        let (partition, rest) = (partitions[1], record::encode(&message));
        changes.push(Change::Append { partition, offset, message, rest, bytes: 5, appended: 1 });
    }
    changes.push(Change::Progress { group, partition: partitions[1], handed: 2, settled: Vec::new() });
    changes.push(Change::Handed(lane.key(3)));
    commit(store, changes);
    lane
}

#[test]
fn numbers_are_told_while_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    filled(&store);
    let figures = stats(directory.path()).unwrap();
    let queue = &figures.queues[0];
    assert_eq!((&*queue.name, queue.messages, queue.bytes, queue.waiting), ("orders", 10, 11, 0));
    assert_eq!(queue.oldest, Some(1_767_225_600_000));
    let topic = &figures.topics[0];
    assert_eq!((&*topic.name, topic.partitions, topic.messages, topic.bytes), ("events", 2, 5, 25));
    assert_eq!((&*topic.groups[0].name, topic.groups[0].lag, topic.groups[0].retries), ("readers", 3, 0));
    assert!(figures.database_bytes > 0 && figures.wal_bytes > 0 && figures.failed.is_none());
    let nothing = tempfile::tempdir().unwrap();
    assert!(stats(nothing.path()).unwrap_err().to_string().contains("holds no store"));
}

#[test]
fn a_backup_of_a_store_that_runs_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = filled(&store);
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join("store.db");
    let made = backup(directory.path(), &copy).unwrap();
    assert_eq!(made.bytes, fs::metadata(&copy).unwrap().len());
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1, "nothing else is left");
    commit(&store, vec![Change::Remove { key: lane.key(1), bytes: 1, noted: Noted::Nothing }]);
    let error = backup(directory.path(), &copy).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(check(other.path()).unwrap().findings, [""; 0]);
    let copied = open(other.path());
    assert_eq!(texts(&copied, lane, 0).len(), 10);
    assert_eq!(copied.catalog().unwrap().groups.len(), 1);
}

#[test]
fn what_contradicts_itself_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = filled(&store);
    let checked = check(directory.path()).unwrap();
    assert_eq!((checked.findings, checked.messages), (Vec::new(), 15));
    drop(store);
    let broken = [
        ("UPDATE lane SET count = 9", "lane 5 of queue orders says 9 messages of 11 bytes and has 10 of 11"),
        ("DELETE FROM lane", "10 messages are in the queues and their lanes say 0"),
        ("UPDATE lane SET waiting = 1", "lane 5 of queue 1 says 1 messages wait, and 0 do"),
        ("UPDATE place SET kind = 'topic' WHERE place = 1", "lane 5 belongs to place 1, which is no queue"),
        ("UPDATE place SET sequence_next = 10", "queue orders has used sequence 10 and says that the next is 10"),
        ("INSERT INTO attempt VALUES (7, 1, 0, 0, NULL, NULL)", "message 7 of queue 0 is noted and is not there"),
        (
            "UPDATE partition SET start = 1",
            "partition 1 of topic events has room for 4 messages, of 25 bytes, and has 4 of 20",
        ),
        ("UPDATE partition SET next = 4", "partition 2 has a message at 4 and ends at 4"),
        ("DELETE FROM partition WHERE number = 1", "5 messages belong to partition 2, which does not exist"),
        ("UPDATE progress SET handed = 6", "group 1 is at 6 of partition 2, which ends at 5"),
        (
            "INSERT INTO retry VALUES (1, 9, 1, 0, 0, NULL, NULL)",
            "offset 9 of partition 0 is noted for group 1 and is not there",
        ),
        ("DELETE FROM consumer_group", "group 1 is noted somewhere and does not exist"),
    ];
    assert_eq!(lane.lane(), 5);
    for (mistake, wanted) in broken {
        let other = tempfile::tempdir().unwrap();
        backup(directory.path(), &other.path().join("store.db")).unwrap();
        Connection::open(other.path().join("store.db")).unwrap().execute_batch(mistake).unwrap();
        let findings = check(other.path()).unwrap().findings;
        assert!(findings.iter().any(|finding| finding == wanted), "{mistake}: {findings:?}");
    }
}

#[test]
fn every_message_is_read_and_those_that_cannot_be_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let lane = filled(&store);
    commit(&store, (11..=40).map(|sequence| put(lane.key(sequence), &message("x"))).collect());
    drop(store);
    let findings = |mistake: &str| {
        let other = tempfile::tempdir().unwrap();
        backup(directory.path(), &other.path().join("store.db")).unwrap();
        Connection::open(other.path().join("store.db")).unwrap().execute_batch(mistake).unwrap();
        check(other.path()).unwrap().findings
    };
    let only = |mistake| {
        let [finding] = &findings(mistake)[..] else { panic!("{mistake}: {:?}", findings(mistake)) };
        finding.clone()
    };
    let changed = only("UPDATE message SET payload = CAST('8' AS BLOB) WHERE key & 140737488355327 = 7");
    assert!(changed.starts_with("message 7 of queue orders: the message "), "{changed}");
    assert!(changed.ends_with("cannot be read: its bytes are not those that were written"), "{changed}");
    let cut = only("UPDATE log SET rest = x'01' WHERE key & 8796093022207 = 3");
    assert!(cut.starts_with("offset 3 of partition 1 of topic events: "), "{cut}");
    let all = findings("UPDATE message SET rest = zeroblob(12)");
    assert_eq!((all.len(), all.last().map(|last| &**last)), (21, Some("20 more cannot be read")));
}

#[test]
fn an_offset_that_was_never_used_is_no_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (_, partitions) = store.create_topic("events", 1).unwrap();
    for offset in [0, 1, 5] {
        let message = message("event");
        let (partition, rest) = (partitions[0], record::encode(&message));
        commit(&store, vec![Change::Append { partition, offset, message, rest, bytes: 5, appended: 1 }]);
    }
    let checked = check(directory.path()).unwrap();
    assert_eq!((checked.findings, checked.messages), (Vec::new(), 3));
}

#[test]
fn what_operators_are_told_to_ask_has_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    filled(&store);
    let page = fs::read_to_string("docs/storage.md").unwrap();
    let database = Connection::open(directory.path().join("store.db")).unwrap();
    let questions = page.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let questions: Vec<_> = questions.flat_map(|block| block.split_inclusive(";\n")).collect();
    assert_eq!(questions.len(), 6);
    for question in questions.iter().map(|question| question.trim()).filter(|question| !question.is_empty()) {
        database.prepare(question).unwrap().query([]).unwrap().next().unwrap();
    }
    let mut names = database.prepare("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')").unwrap();
    for name in names.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap) {
        assert!(page.contains(&format!("| `{name}` |")), "docs/storage.md does not say what {name} is");
    }
    let oldest = database.query_row(questions[1], [], |row| row.get::<_, String>(1)).unwrap();
    assert_eq!(oldest, "2026-01-01 00:00:00");
    let lag = database.query_row("SELECT sum(lag) FROM groups", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(lag, 3);
    let state = |sequence: i64| {
        let sql = "SELECT state, id FROM queue_messages WHERE sequence = ?1";
        database.query_row(sql, [sequence], |row| Ok((row.get(0)?, row.get::<_, String>(1)?.len()))).unwrap()
    };
    assert_eq!([state(3), state(4)], [("out".to_owned(), 36), ("ready".to_owned(), 36)]);
}
