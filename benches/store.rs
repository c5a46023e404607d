//! The store alone, without broker and engine: what the disk, SQLite and the writer's thread allow. To be read beside
//! the engine's own figures on the same machine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints what it found, and fails by panicking"
)]

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use helixmq::{
    message::Message,
    store::{Batch, Change, LaneId, Need, Noted, Settings, Store, record},
};

/// Messages of each run.
const MESSAGES: u64 = 1_000_000;
const PAYLOAD_BYTES: usize = 300;
/// Messages published together.
const TOGETHER: u64 = 64;
/// Batches that wait for the disk at once.
const WAITING: usize = 128;

fn main() {
    let parent = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let directory = tempfile::tempdir_in(parent.unwrap_or_else(std::env::temp_dir)).unwrap();
    println!("one flush of 4 KiB, appended, median: {:?}", flush(&directory.path().join("file")));
    let store = Store::open(Settings { free_min: 0, ..Settings::new(directory.path().join("store")) }).unwrap();
    let message = Arc::new(Message::new("order.created", vec![b'x'; PAYLOAD_BYTES], 1_767_225_600_000));
    println!("one message, one at a time, median: {:?}", one_by_one(&store, &message));
    let rate = |took: Duration, changes: u64| changes as f64 / took.as_secs_f64();

    let lanes = lanes(&store, "appended");
    let begun = Instant::now();
    run(&store, |sequence| vec![put(lanes, sequence, &message)]);
    println!("append: {:.0} messages/s", rate(begun.elapsed(), MESSAGES));
    let begun = Instant::now();
    run(&store, |sequence| vec![remove(lanes, sequence)]);
    println!("remove: {:.0} messages/s", rate(begun.elapsed(), MESSAGES));

    let lanes = self::lanes(&store, "flowing");
    // Each message is removed some batches after it came, as where it is handled.
    let behind = TOGETHER * WAITING as u64 * 2;
    let begun = Instant::now();
    run(&store, |sequence| {
        let mut changes = vec![put(lanes, sequence, &message)];
        changes.extend((sequence > behind).then(|| remove(lanes, sequence - behind)));
        changes
    });
    let took = begun.elapsed();
    println!(
        "append and remove: {:.0} messages/s, {:.0} changes/s",
        rate(took, MESSAGES),
        rate(took, 2 * MESSAGES - behind)
    );
    let stats = store.stats();
    println!(
        "{:.0} changes a commit; database {} MiB, log {} MiB",
        stats.changes as f64 / stats.commits as f64,
        stats.database_bytes >> 20,
        stats.wal_bytes >> 20
    );
}

/// What one flush costs.
fn flush(path: &std::path::Path) -> Duration {
    let mut file = File::create(path).unwrap();
    median((0..200).map(|_| {
        let begun = Instant::now();
        file.write_all(&[1; 4096]).unwrap();
        file.sync_data().unwrap();
        begun.elapsed()
    }))
}

fn one_by_one(store: &Store, message: &Arc<Message>) -> Duration {
    let lanes = lanes(store, "single");
    let (sender, safe) = mpsc::sync_channel(1);
    median((1..=500).map(|sequence| {
        let begun = Instant::now();
        submit(store, vec![put(lanes, sequence, message)], &sender);
        safe.recv().unwrap();
        begun.elapsed()
    }))
}

/// All changes, some together, with as many batches on the way as there may be.
fn run(store: &Store, changes: impl Fn(u64) -> Vec<Change>) {
    let (sender, safe) = mpsc::sync_channel(WAITING);
    let mut waiting = 0;
    for first in (1..=MESSAGES).step_by(TOGETHER as usize) {
        if waiting == WAITING {
            safe.recv().unwrap();
            waiting -= 1;
        }
        submit(store, (first..first + TOGETHER).flat_map(&changes).collect(), &sender);
        waiting += 1;
    }
    (0..waiting).for_each(|_| safe.recv().unwrap());
}

fn submit(store: &Store, changes: Vec<Change>, sender: &mpsc::SyncSender<()>) {
    let sender = sender.clone();
    let then = move |result: Result<(), _>| {
        result.unwrap();
        sender.send(()).unwrap();
    };
    store.submit(Batch { changes, need: Need::MayFail, permit: None, then: Some(Box::new(then)) });
}

/// One for each priority.
fn lanes(store: &Store, queue: &str) -> [LaneId; 11] {
    let queue = store.create_queue(queue).unwrap();
    std::array::from_fn(|priority| LaneId::new(queue, priority as u8))
}

fn lane(lanes: [LaneId; 11], sequence: u64) -> LaneId {
    // Most messages have no priority of their own.
    *lanes.get(if sequence.is_multiple_of(4) { (sequence / 4 % 11) as usize } else { 5 }).unwrap()
}

fn put(lanes: [LaneId; 11], sequence: u64, message: &Arc<Message>) -> Change {
    let (key, rest) = (lane(lanes, sequence).key(sequence), record::encode(message));
    Change::Put { key, message: Arc::clone(message), rest, bytes: PAYLOAD_BYTES as u32, due: None }
}

fn remove(lanes: [LaneId; 11], sequence: u64) -> Change {
    Change::Remove { key: lane(lanes, sequence).key(sequence), bytes: PAYLOAD_BYTES as u32, noted: Noted::Nothing }
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    *times.get(times.len() / 2).unwrap()
}
