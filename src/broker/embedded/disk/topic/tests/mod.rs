//! The whole topic on a store in a directory of its own. What every broker does is in `tests/brokers`.

mod chance;
mod group;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::{
    broker::{BatchMax, Browse, BrowseAt, Deliveries, Start, Subscription},
    message::{FailedAttempt, ReasonCode, Settlement, now_ms},
    store::Settings,
};

const ALL: BatchMax = BatchMax { count: usize::MAX, bytes: usize::MAX };
const EARLIEST: BrowseAt = BrowseAt::Start(Start::Earliest);

struct Opened {
    store: Arc<Store>,
    topic: Arc<DiskTopic>,
    directory: PathBuf,
}

fn settings() -> TopicSettings {
    TopicSettings { partitions: 1, retention: None, lease: Duration::from_secs(600), ..TopicSettings::default() }
}

/// The topic of a directory, made if it is not there.
fn open(directory: &Path, settings: TopicSettings) -> Opened {
    let store = Store::open(Settings { free_min: 0, ..Settings::new(directory) }).unwrap();
    store.create_topic("topic", settings.partitions).unwrap();
    let catalog = store.catalog().unwrap();
    let topic = DiskTopic::open(Arc::clone(&store), &catalog.topics[0], &catalog.groups, settings, Clock::new());
    Opened { store, topic, directory: directory.to_owned() }
}

impl Opened {
    /// As a process finds it after this one was killed: what it wrote, the system keeps.
    async fn killed(&self, settings: TopicSettings) -> (TempDir, Opened) {
        self.store.flush().await.unwrap();
        let copy = TempDir::new().unwrap();
        for file in std::fs::read_dir(&self.directory).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        let opened = open(copy.path(), settings);
        (copy, opened)
    }

    async fn publish(&self, numbers: std::ops::Range<u64>) {
        let message = |n: u64| Message { timestamp: n, ..Message::new("test", format!("{n:0100}"), now_ms()) };
        let messages = numbers.map(message).map(Arc::new).collect();
        assert_eq!(self.topic.publish(messages, usize::MAX).await, []);
    }

    async fn read(&self, group: &str, start: Start) -> DiskTopicSubscription {
        let from = self.topic.address.clone();
        self.topic
            .subscribe(&Subscribe {
                from,
                group: group.into(),
                start,
                prefetch: 100_000,
                workers: 1,
                aside: Default::default(),
            })
            .await
            .unwrap()
    }

    fn lag(&self) -> u64 {
        self.topic.stats().lag[0].1
    }
}

async fn take(reader: &mut DiskTopicSubscription, count: usize) -> Deliveries {
    let mut taken = Deliveries::none();
    while taken.len() < count {
        let more = reader.next(BatchMax { count: count - taken.len(), ..ALL }).await.unwrap().unwrap();
        taken.append(more).unwrap();
    }
    taken
}

async fn accept(deliveries: Deliveries) {
    let count = deliveries.len();
    deliveries.settle(vec![Settlement::Accept; count]).await.unwrap();
}

fn redeliver(attempt: u32, after: Duration) -> Settlement {
    let failure = FailedAttempt { attempt, at: 0, code: ReasonCode::HandlerTrapped, text: String::new() };
    Settlement::Redeliver { after, failure: Box::new(failure) }
}

/// Offset and attempt.
fn tried(deliveries: &Deliveries) -> Vec<(u64, u32)> {
    let tried = |delivery: &crate::broker::Delivery| (delivery.position.unwrap().offset, delivery.attempt);
    deliveries.as_slice().iter().map(tried).collect()
}

/// Looks again until it is so: the disk takes its time.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain until {what}");
}

#[tokio::test]
async fn every_group_goes_on_where_it_was_killed() {
    let directory = TempDir::new().unwrap();
    let before = open(directory.path(), settings());
    before.publish(0..20).await;
    let mut reader = before.read("group", Start::Earliest).await;
    let mut taken = take(&mut reader, 10).await;
    accept(taken.take_front(3)).await;
    taken.take_front(1).settle(vec![redeliver(1, Duration::ZERO)]).await.unwrap();
    taken.take_front(1).settle(vec![redeliver(1, Duration::from_secs(3600))]).await.unwrap();
    // The sixth goes back untried, the seventh is tried twice.
    drop(taken.take_front(1));
    let failure = FailedAttempt { attempt: 1, at: 0, code: ReasonCode::HandlerTrapped, text: String::new() };
    taken.count_attempt(failure).await.unwrap();
    let late = before.read("late", Start::Latest).await;
    let (_copy, after) = before.killed(settings()).await;
    let mut reader = after.read("group", Start::Latest).await;
    assert_eq!(after.topic.stats().delayed, 1);
    let ahead = take(&mut reader, 2).await;
    assert_eq!(tried(&ahead), [(3, 2), (5, 1)]);
    accept(ahead).await;
    for offset in 6..10 {
        let one = take(&mut reader, 1).await;
        assert_eq!(tried(&one), [(offset, if offset == 6 { 3 } else { 2 })], "alone");
        assert_eq!(one.as_slice()[0].failures.last().unwrap().code, ReasonCode::OperationCanceled);
        accept(one).await;
    }
    let rest = take(&mut reader, 10).await;
    assert!(tried(&rest).into_iter().eq((10..20).map(|offset| (offset, 1))));
    accept(rest).await;
    assert_eq!(after.lag(), 1, "the one that waits");
    after.publish(20..21).await;
    let mut late_again = after.read("late", Start::Earliest).await;
    assert_eq!(tried(&take(&mut late_again, 1).await), [(20, 1)], "where it began");
    drop(late);
}

#[tokio::test]
async fn thousands_that_are_settled_one_by_one_out_of_order_survive() {
    let directory = TempDir::new().unwrap();
    let before = open(directory.path(), settings());
    before.publish(0..3000).await;
    let mut reader = before.read("group", Start::Earliest).await;
    let mut kept = Vec::new();
    for one in take(&mut reader, 3000).await.into_each() {
        if tried(&one)[0].0.is_multiple_of(2) {
            kept.push(one);
        } else {
            accept(one).await;
        }
    }
    eventually("all of it was submitted", || !before.topic.lock().groups[0].1.flushing).await;
    let (_copy, after) = before.killed(settings()).await;
    assert_eq!(after.lag(), 1500);
    let mut reader = after.read("group", Start::Earliest).await;
    let mut out = Vec::new();
    for n in 0..3 {
        let next = reader.next(ALL).await.unwrap().unwrap();
        assert_eq!(tried(&next), [(2 * n, 2)]);
        out.push(next);
    }
}

#[tokio::test]
async fn what_is_out_when_it_closes_comes_again_as_the_same_attempt() {
    let directory = TempDir::new().unwrap();
    let before = open(directory.path(), settings());
    before.publish(0..5000).await;
    let mut reader = before.read("group", Start::Earliest).await;
    let mut taken = take(&mut reader, 5000).await;
    accept(taken.take_front(4990)).await;
    before.topic.close();
    before.store.close();
    drop((taken, reader, before));
    let after = open(directory.path(), settings());
    let mut reader = after.read("group", Start::Earliest).await;
    let again = take(&mut reader, 10).await;
    assert!(tried(&again).into_iter().eq((4990..5000).map(|offset| (offset, 1))));
    assert!(again.as_slice().iter().all(|delivery| delivery.failures.is_empty()));
}

#[tokio::test]
async fn gives_up_on_disk_what_is_too_much_but_not_what_is_owed() {
    let directory = TempDir::new().unwrap();
    let before = open(directory.path(), settings());
    for chunk in 0..10 {
        before.publish(chunk * 1000..(chunk + 1) * 1000).await;
    }
    let mut reader = before.read("group", Start::Earliest).await;
    let mut taken = take(&mut reader, 6).await;
    taken.take_front(2).settle(vec![redeliver(1, Duration::from_millis(1)); 2]).await.unwrap();
    // Most of what goes lies on disk only.
    before.topic.adopt(TopicSettings { retention_bytes: Some(300_000), ..settings() });
    eventually("the oldest are gone", || before.topic.stats().ready == 3000).await;
    let stats = before.topic.stats();
    assert_eq!((stats.bytes, stats.dropped, stats.lag[0].1), (300_000, 6994, 3006));
    let again = take(&mut reader, 3).await;
    assert_eq!(tried(&again), [(0, 2), (1, 2), (7000, 1)], "read from disk, though it was given up");
    let mut taken = Some(taken);
    let (_copy, after) = before.killed(settings()).await;
    accept(taken.take().unwrap()).await;
    accept(again).await;
    before.store.flush().await.unwrap();
    let id = before.topic.lock().logs[0].id;
    let kept = before.store.read_async(move |reader| reader.log_page(id, 0, 10_000, 10_000, usize::MAX)).await;
    assert_eq!(kept.unwrap().first().map(|record| record.offset), Some(7000), "nobody needs the others any more");
    let stats = after.topic.stats();
    assert_eq!((stats.ready, stats.bytes), (3000, 300_000));
    let mut reader = after.read("group", Start::Earliest).await;
    let mut seen = Vec::new();
    for _ in 0..7 {
        let one = take(&mut reader, 1).await;
        seen.extend(tried(&one));
        accept(one).await;
    }
    assert_eq!(seen, [(0, 3), (1, 3), (2, 2), (3, 2), (4, 2), (5, 2), (7000, 2)]);
    // Perhaps it had been handed over ahead.
    assert_eq!(tried(&take(&mut reader, 1).await)[0].0, 7001);
}

#[tokio::test]
async fn gives_up_what_is_too_old() {
    let directory = TempDir::new().unwrap();
    let opened = open(directory.path(), settings());
    opened.publish(0..5000).await;
    let retention = Some(Duration::from_millis(1));
    opened.topic.adopt(TopicSettings { retention, ..settings() });
    eventually("all are gone", || opened.topic.stats().ready == 0).await;
    let page = opened.topic.browse(&Browse { from: opened.topic.address.clone(), at: EARLIEST, limit: 10 }).await;
    assert_eq!(page.unwrap().items.len(), 0);
    assert_eq!(opened.topic.stats().bytes, 0);
}

#[tokio::test]
async fn shows_and_finds_what_lies_on_disk_only() {
    let directory = TempDir::new().unwrap();
    let before = open(directory.path(), settings());
    before.publish(0..10_000).await;
    for (start, first) in
        [(Start::Time(17), 17), (Start::Time(9_999), 9_999), (Start::Time(u64::MAX), 10_000), (Start::Offset(400), 400)]
    {
        assert_eq!(before.topic.starts(start).await.unwrap(), [first], "{start:?}");
    }
    let (mut at, mut seen) = (EARLIEST, 0);
    loop {
        let request = Browse { from: before.topic.address.clone(), at, limit: 3000 };
        let page = before.topic.browse(&request).await.unwrap();
        assert_eq!(page.total, 10_000);
        for item in &page.items {
            assert_eq!(item.position.unwrap().offset, seen);
            seen += 1;
        }
        if page.items.is_empty() {
            break;
        }
        at = BrowseAt::Cursor(page.next);
    }
    assert_eq!(seen, 10_000);
}

#[tokio::test]
async fn publishers_are_refused_where_there_is_no_room_and_leave_no_trace() {
    let directory = TempDir::new().unwrap();
    drop(open(directory.path(), settings()));
    let store = Store::open(Settings { free_min: u64::MAX, ..Settings::new(directory.path()) }).unwrap();
    let catalog = store.catalog().unwrap();
    let topic = DiskTopic::open(Arc::clone(&store), &catalog.topics[0], &[], settings(), Clock::new());
    let refused = topic.publish(vec![Arc::default(), Arc::default()], usize::MAX).await;
    assert_eq!(refused.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 1]);
    assert!(refused.iter().all(|(_, error)| error.is_retryable()), "{refused:?}");
    assert_eq!((topic.stats().ready, topic.lock().logs[0].end()), (0, 0));
}
