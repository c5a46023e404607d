//! Where a group goes on: at what it has committed, where it was told to begin, or where somebody has to decide. Topics lose
//! what nobody has read, go, come back and grow meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use helixmq::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerStatus, Deliveries, Start, Subscribe, Subscription,
        kafka::settings::OffsetReset,
    },
    message::Settlement,
};

use crate::{
    raw::Record,
    server::Server,
    site::Site,
    support::{degraded, eventually, soon},
};

const ALL: BatchMax = BatchMax { count: 1000, bytes: usize::MAX };
/// Longer than any test: nothing is committed by the clock.
const NEVER: Duration = Duration::from_secs(3600);

/// A topic, and whoever reads it as one group.
struct Scene {
    site: Site,
    broker: Arc<dyn Broker>,
    reader: Box<dyn Subscription>,
}

impl Scene {
    async fn begin(site: Site, start: Start) -> Self {
        let broker = site.broker().await;
        let reader = subscribe(&site, &broker, start).await;
        Self { site, broker, reader }
    }

    /// Somebody who knows nothing but what the group has committed.
    async fn next(self, start: Start) -> Self {
        self.broker.close().await;
        let site = self.site.elsewhere().await;
        Self::begin(site, start).await
    }

    async fn publish(&self, partition: i32, values: impl IntoIterator<Item = i32>) {
        publish(&self.site, partition, values).await;
    }

    /// Takes so many.
    async fn take(&mut self, count: usize) -> Deliveries {
        let mut taken = Deliveries::none();
        while taken.len() < count {
            let more = soon("messages", self.reader.next(ALL)).await.unwrap().unwrap();
            taken.append(more).expect("of the same subscription");
        }
        taken
    }

    /// Takes all of these, whatever their order across partitions, and settles them.
    async fn handles(&mut self, values: impl IntoIterator<Item = i32>) {
        let mut wanted: Vec<_> = values.into_iter().collect();
        wanted.sort_unstable();
        let mut found = Vec::new();
        while found.len() < wanted.len() {
            let taken = self.take(1).await;
            found.extend(values_of(&taken));
            let how = vec![Settlement::Accept; taken.len()];
            taken.settle(how).await.unwrap();
        }
        found.sort_unstable();
        assert_eq!(found, wanted);
    }

    /// Where the group will go on.
    async fn committed(&self) -> BTreeMap<i32, i64> {
        let committed = self.site.raw().committed(&self.site.group, &self.site.work.name).await;
        committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect()
    }

    async fn commits(&self, wanted: &[(i32, i64)]) {
        let wanted: BTreeMap<_, _> = wanted.iter().copied().collect();
        eventually(&format!("{wanted:?} is committed"), async || (self.committed().await == wanted).then_some(()))
            .await;
    }

    fn stats(&self) -> AddressStats {
        let all = self.broker.stats().into_iter();
        all.into_iter().find(|stats| stats.address == self.site.work).expect("the topic is known")
    }
}

async fn site(partitions: i32) -> Site {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    site.settings.commit_interval = Duration::from_millis(100);
    site.raw().topic(&site.work.name, partitions).await;
    site
}

async fn publish(site: &Site, partition: i32, values: impl IntoIterator<Item = i32>) {
    let records = values.into_iter().map(|value| Record::new(value.to_string()).on(partition)).collect();
    site.raw().publish(&site.work.name, records).await;
}

async fn subscribe(site: &Site, broker: &Arc<dyn Broker>, start: Start) -> Box<dyn Subscription> {
    let request = Subscribe {
        from: site.work.clone(),
        group: site.group.as_str().into(),
        start,
        prefetch: 1000,
        workers: 1,
        aside: Default::default(),
    };
    broker.subscribe(request).await.unwrap()
}

fn values_of(deliveries: &Deliveries) -> Vec<i32> {
    let value = |payload: &[u8]| std::str::from_utf8(payload).unwrap().parse().unwrap();
    deliveries.as_slice().iter().map(|delivery| value(&delivery.message.payload)).collect()
}

/// A group that has read 4 of 10, of which the first 7 are not kept any more.
async fn expired(reset: OffsetReset) -> Scene {
    let mut site = site(1).await;
    site.settings.offset_reset = reset;
    publish(&site, 0, 0..10).await;
    let mut scene = Scene::begin(site, Start::Earliest).await;
    let mut taken = scene.take(10).await;
    taken.take_front(4).settle(vec![Settlement::Accept; 4]).await.unwrap();
    scene.commits(&[(0, 4)]).await;
    scene.broker.close().await;
    scene.site.raw().delete_records(&scene.site.work.name, 0, 7).await;
    scene.next(Start::Earliest).await
}

#[tokio::test]
async fn what_is_kept_is_read_where_the_place_of_the_group_is_not() {
    let mut scene = expired(OffsetReset::Earliest).await;
    scene.handles(7..10).await;
    eventually("what is lost is counted", async || (scene.stats().dropped == 3).then_some(())).await;
    scene.commits(&[(0, 10)]).await;
    assert_eq!(scene.broker.status(), BrokerStatus::Ready);
    scene.broker.close().await;
}

#[tokio::test]
async fn what_comes_is_read_where_the_place_of_the_group_is_gone_and_that_was_asked_for() {
    let mut scene = expired(OffsetReset::Latest).await;
    // Nobody says when it waits at the end: from some message on it reads all.
    let mut next = 10;
    let first = loop {
        scene.publish(0, [next]).await;
        next += 1;
        match tokio::time::timeout(Duration::from_millis(100), scene.reader.next(ALL)).await {
            Ok(first) => break first.unwrap().unwrap(),
            Err(_) => assert!(next < 100, "nothing comes"),
        }
    };
    let values = values_of(&first);
    assert!(values[0] >= 10, "{values:?}");
    first.settle(vec![Settlement::Accept; values.len()]).await.unwrap();
    scene.handles(values[0] + values.len() as i32..next).await;
    eventually("what is lost is counted", async || (scene.stats().dropped >= 3).then_some(())).await;
    scene.commits(&[(0, next.into())]).await;
    scene.broker.close().await;
}

#[tokio::test]
async fn nothing_is_read_until_somebody_decides_where_that_was_asked_for() {
    let mut scene = expired(OffsetReset::None).await;
    scene.publish(0, 10..12).await;
    let reason = degraded(&scene.broker).await;
    assert!(reason.contains("is not kept any more, and kafka.offset_reset is none: set it"), "{reason}");
    // It is said as long as it holds, over many looks, and nothing comes.
    let asked = std::cell::Cell::new(0);
    let stays = async || {
        assert!(matches!(scene.broker.status(), BrokerStatus::Degraded { reason: now } if now == reason));
        asked.set(asked.get() + 1);
        (asked.get() > 200).then_some(())
    };
    tokio::select! {
        () = eventually("it stays", stays) => {}
        came = scene.reader.next(ALL) => panic!("{came:?}"),
    }
    // Somebody decides, and it begins anew.
    scene.broker.close().await;
    let Scene { mut site, .. } = scene;
    site.settings.offset_reset = OffsetReset::Earliest;
    let mut scene = Scene::begin(site, Start::Earliest).await;
    scene.handles(7..12).await;
    assert_eq!(scene.broker.status(), BrokerStatus::Ready);
    scene.broker.close().await;
}

#[tokio::test]
async fn what_has_a_place_goes_on_beside_it_and_a_reset_decides() {
    let mut scene = expired(OffsetReset::None).await;
    degraded(&scene.broker).await;
    // Partitions that have a place go on beside it.
    scene.site.raw().grow(&scene.site.work.name, 2).await;
    scene.publish(1, 20..22).await;
    scene.handles(20..22).await;
    degraded(&scene.broker).await;
    scene.broker.close().await;
    // As `kafka-consumer-groups --reset-offsets` does, while nobody is there.
    scene.site.raw().commit(&scene.site.group, &scene.site.work.name, 0, 8, "").await;
    let mut scene = scene.next(Start::Earliest).await;
    scene.handles(8..10).await;
    scene.broker.close().await;
}

#[tokio::test]
async fn a_new_group_begins_where_it_was_told_to() {
    let at = |second: i64| 1_700_000_000_000 + 1000 * second;
    for (start, first) in [(Start::Latest, 10), (Start::Time(at(6).cast_unsigned()), 6), (Start::Offset(8), 8)] {
        let site = site(2).await;
        let timed = |value: i32| Record { timestamp: Some(at(value.into())), ..Record::new(value.to_string()) }.on(0);
        site.raw().publish(&site.work.name, (0..10).map(timed).collect()).await;
        let mut scene = Scene::begin(site, start).await;
        // From here on it has begun, though the group has given out nothing yet.
        scene.publish(0, 10..13).await;
        scene.handles(first..13).await;
        scene.commits(&[(0, 13), (1, 0)]).await;
        // Whoever comes later goes on there, whatever it was told.
        let mut scene = scene.next(Start::Earliest).await;
        scene.publish(1, 20..22).await;
        scene.handles(20..22).await;
        scene.broker.close().await;
    }
}

/// Whoever is killed before the first commit of its progress has committed where it began.
#[tokio::test]
async fn where_a_new_group_began_is_kept_before_anything_is_done() {
    let mut site = site(2).await;
    site.settings.commit_interval = NEVER;
    publish(&site, 0, 0..10).await;
    publish(&site, 1, 0..3).await;
    let mut scene = Scene::begin(site, Start::Latest).await;
    scene.commits(&[(0, 10), (1, 3)]).await;
    scene.publish(0, 10..12).await;
    scene.publish(1, 12..14).await;
    let taken = scene.take(4).await;
    // Nothing is settled; what comes next knows nothing of it.
    drop(taken);
    let mut scene = scene.next(Start::Latest).await;
    scene.handles(10..14).await;
    scene.broker.close().await;
}

#[tokio::test]
async fn a_topic_that_is_gone_is_said_and_read_again_once_it_is_back() {
    let site = site(2).await;
    let mut scene = Scene::begin(site, Start::Earliest).await;
    scene.publish(0, 0..5).await;
    scene.handles(0..5).await;
    let raw = scene.site.raw();
    raw.delete(&scene.site.work.name).await;
    let reason = degraded(&scene.broker).await;
    assert!(reason.contains(&format!("Kafka has no {} (any more): make it", scene.site.work.name)), "{reason}");
    raw.topic(&scene.site.work.name, 2).await;
    scene.publish(0, 5..7).await;
    scene.publish(1, 7..8).await;
    scene.handles(5..8).await;
    let is_well = async || (scene.broker.status() == BrokerStatus::Ready).then_some(());
    eventually("nothing is wrong any more", is_well).await;
    scene.commits(&[(0, 2), (1, 1)]).await;
    scene.broker.close().await;
}

/// Quicker than anybody looks for it: its places are another topic's.
#[tokio::test]
async fn a_topic_that_was_made_anew_is_read_from_its_beginning() {
    let mut site = site(1).await;
    site.settings.metadata_interval = Duration::from_secs(300);
    let mut scene = Scene::begin(site, Start::Earliest).await;
    scene.publish(0, 0..10).await;
    scene.handles(0..10).await;
    scene.commits(&[(0, 10)]).await;
    let raw = scene.site.raw();
    raw.delete(&scene.site.work.name).await;
    raw.topic(&scene.site.work.name, 1).await;
    scene.publish(0, 10..13).await;
    scene.handles(10..13).await;
    scene.commits(&[(0, 3)]).await;
    scene.broker.close().await;
}

#[tokio::test]
async fn partitions_that_are_added_are_read_from_their_beginning() {
    let site = site(1).await;
    publish(&site, 0, 0..3).await;
    let mut scene = Scene::begin(site, Start::Latest).await;
    scene.publish(0, 3..5).await;
    scene.handles(3..5).await;
    scene.site.raw().grow(&scene.site.work.name, 3).await;
    // Before anybody has noticed.
    scene.publish(1, 5..8).await;
    scene.publish(2, 8..10).await;
    scene.publish(0, 10..11).await;
    scene.handles(5..11).await;
    scene.commits(&[(0, 6), (1, 3), (2, 2)]).await;
    scene.broker.close().await;
}

/// An engine with another store knows it from what is committed beside the place.
#[tokio::test]
async fn what_was_done_above_a_gap_is_not_done_again() {
    let site = site(1).await;
    publish(&site, 0, 0..12).await;
    let mut scene = Scene::begin(site, Start::Earliest).await;
    let mut open = Vec::new();
    for (place, one) in scene.take(12).await.into_each().enumerate() {
        // 3, 4 and 9 are still at work.
        if matches!(place, 3 | 4 | 9) {
            open.push(one);
        } else {
            one.settle(vec![Settlement::Accept]).await.unwrap();
        }
    }
    scene.commits(&[(0, 3)]).await;
    let has_all = async || {
        let noted = scene.site.raw().committed(&scene.site.group, &scene.site.work.name).await;
        let stats = scene.stats();
        (noted[&0].1.starts_with("h1:") && stats.lag.iter().all(|(_, lag)| *lag == 3)).then_some(())
    };
    eventually("what is done is noted", has_all).await;
    let mut scene = scene.next(Start::Earliest).await;
    drop(open);
    scene.handles([3, 4, 9]).await;
    scene.commits(&[(0, 12)]).await;
    scene.publish(0, 12..13).await;
    scene.handles(12..13).await;
    scene.broker.close().await;
}

#[tokio::test]
async fn what_others_note_beside_a_place_says_nothing() {
    for noted in ["somebody was here", "h1:!!!", "h1:gICAgICAgICAgIA", "h2:AwI"] {
        let site = site(1).await;
        publish(&site, 0, 0..10).await;
        site.raw().commit(&site.group, &site.work.name, 0, 3, noted).await;
        let mut scene = Scene::begin(site, Start::Earliest).await;
        scene.handles(3..10).await;
        scene.broker.close().await;
    }
}

#[tokio::test]
async fn commits_go_on_and_never_back_when_each_message_is_one() {
    let mut site = site(1).await;
    (site.settings.commit_interval, site.settings.commit_messages_max) = (NEVER, 1);
    publish(&site, 0, 0..60).await;
    let mut scene = Scene::begin(site, Start::Earliest).await;
    let taken = scene.take(60).await;
    let mut all: Vec<_> = taken.into_each().map(Some).collect();
    let raw = scene.site.raw();
    let mut before = 0;
    // In an order that leaves gaps, and closes them.
    for step in 0..60 {
        let one = all[(step * 7 + 5) % 60].take().unwrap();
        one.settle(vec![Settlement::Accept]).await.unwrap();
        if step % 6 == 0 {
            let committed = raw.committed(&scene.site.group, &scene.site.work.name).await;
            let offset = committed.get(&0).map_or(0, |(offset, _)| *offset);
            assert!(offset >= before, "{before} was committed, then {offset}");
            before = offset;
        }
    }
    scene.commits(&[(0, 60)]).await;
    scene.broker.close().await;
}
