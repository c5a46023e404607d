use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rdkafka::message::OwnedHeaders;

use super::{publisher, settings, topic, topics, unique};
use crate::{
    broker::{
        Aside, BatchMax, BrokerError, Browse, BrowseAt, Deliveries, Page, Start, Subscribe, Subscription,
        kafka::{
            condition::Condition,
            group::Common,
            reader::{AssignedSubscription, page},
            threads::Threads,
            topology::{How, compare},
            wire::Record,
        },
    },
    message::{Address, FailedAttempt, ReasonCode, Settlement, now_ms},
};

const ALL: BatchMax = BatchMax { count: 1000, bytes: 1 << 30 };

fn record(partition: i32, timestamp: i64, text: &str) -> Record {
    let value = Some(bytes::Bytes::copy_from_slice(text.as_bytes()));
    Record { key: None, value, headers: OwnedHeaders::new(), timestamp, partition: Some(partition) }
}

async fn publish(topic: &str, records: Vec<Record>) {
    let publisher = publisher(settings());
    publisher.publish(topic, &Address::topic(topic), records).await.unwrap();
    publisher.close().await;
}

async fn show(topic: &str, at: BrowseAt, limit: usize) -> Result<Page, BrokerError> {
    let settings = Arc::new(settings());
    page(&settings, &topics(&settings), &Browse { from: Address::topic(topic), at, limit }).await
}

fn texts(page: &Page) -> Vec<&str> {
    page.items.iter().map(|item| std::str::from_utf8(&item.message.payload).unwrap()).collect()
}

#[tokio::test]
async fn partitions_are_shown_together_in_the_order_of_time_page_by_page() {
    let topic = topic("pages", 3, &[]).await;
    let now = i64::try_from(now_ms()).unwrap();
    // Partition 0 has the even ones, 1 the odd ones, 2 none.
    let records = (0..600).map(|n| record(n % 2, now + i64::from(n), &n.to_string())).collect();
    publish(&topic, records).await;
    let (mut shown, mut at) = (Vec::new(), BrowseAt::Start(Start::Earliest));
    for expected in [250, 250, 100, 0] {
        let page = show(&topic, at, 250).await.unwrap();
        assert_eq!((page.items.len(), page.total), (expected, 600));
        shown.extend(texts(&page).iter().map(|text| text.parse::<i32>().unwrap()));
        at = BrowseAt::Cursor(page.next);
    }
    assert_eq!(shown, (0..600).collect::<Vec<_>>());
    assert_eq!(at, BrowseAt::Cursor("300.300.0".to_owned()));
    publish(&topic, vec![record(2, now, "late")]).await;
    assert_eq!(texts(&show(&topic, at, 10).await.unwrap()), ["late"]);
    for (start, first) in [
        (Start::Time(now_ms() + 1_000_000), None),
        (Start::Latest, None),
        (Start::Time((now + 500) as u64), Some("500")),
        (Start::Offset(299), Some("598")),
    ] {
        let page = show(&topic, BrowseAt::Start(start), 1).await.unwrap();
        assert_eq!(texts(&page).first().copied(), first, "{start:?}");
    }
}

#[tokio::test]
async fn a_page_of_nothing_of_no_topic_and_of_no_cursor() {
    let topic = topic("empty", 2, &[]).await;
    let empty = show(&topic, BrowseAt::Start(Start::Earliest), 10).await.unwrap();
    assert_eq!((empty.items.len(), empty.next.as_str(), empty.total), (0, "0.0", 0));
    for cursor in ["", "x", "1.-1", "0.0.0"] {
        let refused = show(&topic, BrowseAt::Cursor(cursor.to_owned()), 1).await;
        assert!(matches!(refused, Err(BrokerError::Invalid(_))), "{cursor}: {refused:?}");
    }
    for missing in [unique("missing"), "live.*".to_owned()] {
        let refused = show(&missing, BrowseAt::Start(Start::Earliest), 1).await;
        assert!(matches!(refused, Err(BrokerError::NotFound(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn what_compaction_and_transactions_leave_out_ends_a_page_all_the_same() {
    use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
    let topic = topic("holes", 1, &[]).await;
    let (brokers, name) = (settings().brokers.join(","), topic.clone());
    let transacted = tokio::task::spawn_blocking(move || {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("transactional.id", &name);
        let producer: ThreadedProducer<_> = config.create().unwrap();
        let wait = Duration::from_secs(10);
        producer.init_transactions(wait).unwrap();
        for (text, is_kept) in [("kept", true), ("aborted", false)] {
            producer.begin_transaction().unwrap();
            producer.send(BaseRecord::<(), str>::to(&name).payload(text)).unwrap();
            producer.flush(wait).unwrap();
            if is_kept { producer.commit_transaction(wait) } else { producer.abort_transaction(wait) }.unwrap();
        }
    });
    transacted.await.unwrap();
    let page = show(&topic, BrowseAt::Start(Start::Earliest), 10).await.unwrap();
    assert_eq!((texts(&page), page.next.as_str()), (vec!["kept"], "4"));
}

struct Looking {
    subscription: AssignedSubscription,
    threads: Threads,
}

impl Looking {
    async fn at(place: &str, start: Start, prefetch: usize) -> Result<Self, BrokerError> {
        let settings =
            Arc::new(crate::broker::kafka::Settings { metadata_interval: Duration::from_millis(300), ..settings() });
        let (topics, threads) = (topics(&settings), Threads::default());
        let condition = Arc::new(Condition::new(&settings.brokers));
        let common = Common { settings, condition, places: Arc::default() };
        let request = Subscribe {
            from: Address::topic(place),
            group: "".into(),
            start,
            prefetch,
            workers: 1,
            aside: Aside::Local,
        };
        let subscription = AssignedSubscription::begin(&common, &topics, &request, &threads).await?;
        Ok(Self { subscription, threads })
    }

    async fn next(&mut self) -> Deliveries {
        let next = tokio::time::timeout(Duration::from_secs(10), self.subscription.next(ALL));
        next.await.expect("nothing came").unwrap().expect("it has ended")
    }

    async fn take(&mut self, count: usize) -> Deliveries {
        let mut taken = Deliveries::none();
        while taken.len() < count {
            taken.append(self.next().await).unwrap();
        }
        taken
    }
}

fn names(deliveries: &Deliveries) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    deliveries.as_slice().iter().map(|delivery| text(&delivery.message.payload)).collect()
}

fn numbered(numbers: std::ops::Range<i32>) -> Vec<Record> {
    numbers.map(|n| record(0, 1_000 + i64::from(n), &n.to_string())).collect()
}

#[tokio::test]
async fn without_a_group_it_begins_where_it_is_asked_to_and_shares_with_nobody() {
    let topic = topic("alone", 1, &[]).await;
    publish(&topic, numbered(0..10)).await;
    for (start, first) in [
        (Start::Earliest, 0),
        (Start::Offset(4), 4),
        (Start::Offset(500), 10),
        (Start::Time(1_007), 7),
        (Start::Time(u64::MAX), 10),
        (Start::Latest, 10),
    ] {
        let mut reader = Looking::at(&topic, start, 100).await.unwrap();
        if first == 10 {
            publish(&topic, numbered(10..11)).await;
        }
        let taken = reader.next().await;
        let number: i32 = names(&taken)[0].parse().unwrap();
        assert!(number == first || (first == 10 && number >= 10), "{start:?}: {number}");
        assert_eq!(taken.as_slice()[0].position.map(|at| at.partition), Some(0));
    }
    let missing = Looking::at(&unique("missing"), Start::Earliest, 1).await;
    assert!(matches!(missing.map(|_| ()), Err(BrokerError::NotFound(_))));
}

#[tokio::test]
async fn what_is_given_back_comes_again_and_no_more_than_may_be_out() {
    let topic = topic("back", 1, &[]).await;
    publish(&topic, numbered(0..6)).await;
    let mut reader = Looking::at(&topic, Start::Earliest, 3).await.unwrap();
    let mut out = reader.take(3).await;
    assert_eq!(names(&out), ["0", "1", "2"]);
    let more = tokio::time::timeout(Duration::from_millis(200), reader.subscription.next(ALL)).await;
    assert!(more.is_err(), "{more:?}");
    drop(out.take_front(1));
    assert_eq!(names(&reader.take(1).await), ["0"]);
    let failure = FailedAttempt { attempt: 1, at: 0, code: ReasonCode::Timeout, text: "slow".to_owned() };
    let later = Settlement::Redeliver { after: Duration::from_millis(300), failure: Box::new(failure.clone()) };
    out.settle(vec![later, Settlement::Accept]).await.unwrap();
    // The one that was dropped above went back, too, and is out no more.
    let behind = reader.take(3).await;
    assert_eq!(names(&behind), ["0", "3", "4"]);
    behind.settle(vec![Settlement::Accept; 3]).await.unwrap();
    let rest = reader.take(2).await;
    let attempts: BTreeSet<_> =
        rest.as_slice().iter().map(|one| (one.attempt, one.failures.clone().len())).zip(names(&rest)).collect();
    assert_eq!(attempts, BTreeSet::from([((1, 0), "5".to_owned()), ((2, 1), "1".to_owned())]));
    // Closed, it has ended.
    let Looking { mut subscription, threads } = reader;
    threads.close().await;
    assert!(subscription.next(ALL).await.unwrap().is_none());
    rest.settle(vec![Settlement::Accept; 2]).await.unwrap();
}

#[tokio::test]
async fn topics_of_a_pattern_and_partitions_that_come_later_are_read() {
    let word = unique("many").replace('.', "-");
    let settings = settings();
    let make = async |name: String, partitions: u32| {
        let plan = crate::broker::kafka::settings::TopicPlan { partitions, ..Default::default() };
        compare(&settings, &topics(&settings), &[(name.as_str().into(), plan)], How::Grow).await.unwrap();
        name
    };
    let first = make(format!("{word}.a"), 1).await;
    let mut reader = Looking::at(&format!("{word}.*"), Start::Latest, 100).await.unwrap();
    publish(&first, numbered(0..1)).await;
    let first_taken = reader.take(1).await;
    assert_eq!(
        (names(&first_taken), first_taken.as_slice()[0].topic.as_deref()),
        (vec!["0".to_owned()], Some(first.as_str()))
    );
    let second = make(format!("{word}.b"), 1).await;
    publish(&second, numbered(1..2)).await;
    let taken = reader.take(1).await;
    assert_eq!(names(&taken), ["1"]);
    make(first.clone(), 2).await;
    publish(&first, vec![record(1, 0, "2")]).await;
    assert_eq!(names(&reader.take(1).await), ["2"]);
    drop((taken, first_taken));
}

#[tokio::test]
async fn poison_comes_as_one_whose_attempts_are_used_up() {
    let topic = topic("poison", 1, &[]).await;
    let headers = OwnedHeaders::new()
        .insert(rdkafka::message::Header { key: "content-type", value: Some("application/cloudevents+json") });
    publish(&topic, vec![Record { headers, ..record(0, 0, "{") }]).await;
    let mut reader = Looking::at(&topic, Start::Earliest, 1).await.unwrap();
    let taken = reader.take(1).await;
    let [delivery] = taken.as_slice() else { panic!("{taken:?}") };
    assert_eq!((delivery.attempt, delivery.failures[0].code), (u32::MAX, ReasonCode::MessageInvalid));
    assert_eq!(&delivery.message.payload[..], b"{");
}
