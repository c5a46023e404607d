//! Engines that share a group: they come and go while messages flow, are slow, come back under their name, hold what they
//! retry. Each time it is counted who handled what, when, and how often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use helixmq::{
    broker::{
        Broker, BrokerStatus,
        kafka::settings::{Assignment, GroupProtocol, Settings},
    },
    handler::Call,
    message::{Address, Message, Outcome},
    route::Order,
    telemetry::metrics,
};
use tokio::task::JoinSet;

use crate::{
    raw::Record,
    server::Server,
    site::{Engine, PARTITIONS, Site},
    support::{
        eventually,
        ledger::{message, publish},
    },
};

/// How far publishers may be ahead of handlers.
const AHEAD_MAX: usize = 400;
const ATTEMPTS_MAX: u32 = 1000;

/// A call of a handler.
#[derive(Clone, Debug)]
struct Run {
    engine: &'static str,
    id: String,
    partition: u32,
    offset: u64,
    begin: Instant,
    end: Instant,
}

/// What handlers of all engines did.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<Vec<Run>>>);

impl Runs {
    fn lock(&self) -> MutexGuard<'_, Vec<Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the order in which they began.
    fn all(&self) -> Vec<Run> {
        let mut all = self.lock().clone();
        all.sort_by_key(|run| run.begin);
        all
    }

    fn of(&self, engine: &str) -> usize {
        self.lock().iter().filter(|run| run.engine == engine).count()
    }

    /// Waits until an engine has handled some more.
    async fn grow(&self, engine: &str) {
        let before = self.of(engine);
        eventually(&format!("{engine} handles some"), async || (self.of(engine) > before + 20).then_some(())).await;
    }

    /// Who was called with messages of each partition.
    fn owners(&self) -> BTreeMap<u32, BTreeSet<&'static str>> {
        let mut owners: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for run in self.lock().iter() {
            owners.entry(run.partition).or_default().insert(run.engine);
        }
        owners
    }

    /// How often one engine was called with what another, or itself, had been called with before.
    fn again(&self) -> BTreeMap<(&'static str, &'static str, u32), (usize, u64, u64)> {
        let (mut before, mut again) = (BTreeMap::new(), BTreeMap::new());
        for run in self.all() {
            if let Some(other) = before.insert((run.partition, run.offset), run.engine) {
                let found = again.entry((other, run.engine, run.partition)).or_insert((0, run.offset, run.offset));
                *found = (found.0 + 1, found.1.min(run.offset), found.2.max(run.offset));
            }
        }
        again
    }

    /// Nobody saw a message before those that lie in front of it, and no two messages of a partition were handled at once.
    fn assert_in_order(&self) {
        let mut before: BTreeMap<u32, Run> = BTreeMap::new();
        let mut highest: BTreeMap<u32, u64> = BTreeMap::new();
        for run in self.all() {
            if let Some(other) = before.get(&run.partition) {
                assert!(other.end <= run.begin, "at the same time: {other:?} and {run:?}");
            }
            let highest = highest.entry(run.partition).or_insert(run.offset);
            assert!(run.offset <= *highest + 1, "{} were passed over by {run:?}", run.offset - *highest - 1);
            *highest = run.offset.max(*highest);
            before.insert(run.partition, run);
        }
    }
}

/// An engine that keeps the order of partitions, with a handler that does as `ends` says.
async fn start(
    site: &Site,
    runs: &Runs,
    engine: &'static str,
    order: Order,
    ends: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
) -> Engine {
    let runs = runs.clone();
    let handle = move |call: &Call<'_>| {
        let begin = Instant::now();
        let outcome = ends(call);
        let at = call.position.expect("a place in a topic");
        let id = call.message.id.to_string();
        let (partition, offset, end) = (at.partition, at.offset, Instant::now());
        runs.lock().push(Run { engine, id, partition, offset, begin, end });
        outcome
    };
    site.engine_with(ATTEMPTS_MAX, handle, |parts| parts.routes[0].order = order).await
}

fn slowly(_: &Call<'_>) -> Outcome {
    std::thread::sleep(Duration::from_millis(1));
    Outcome::Done(Vec::new())
}

/// Publishers that go on until they are told to stop, never far ahead of the handlers.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<BTreeSet<String>>,
}

impl Load {
    fn start(broker: &Arc<dyn Broker>, to: &Address, runs: &Runs) -> Self {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (broker, to, runs) = (Arc::clone(broker), to.clone(), runs.clone());
            let (stop, published) = (Arc::clone(&stop), Arc::clone(&published));
            tasks.spawn(async move {
                let mut sent = BTreeSet::new();
                let key = |number: usize| Some(format!("key {}", number % 17).into());
                while !stop.load(Relaxed) {
                    let batch = (0..20).map(|number| Arc::new(Message { key: key(number), ..message(number) }));
                    let batch: Vec<_> = batch.collect();
                    sent.extend(batch.iter().map(|message| message.id.to_string()));
                    published.fetch_add(batch.len(), Relaxed);
                    publish(&broker, &to, batch).await;
                    let has_room = || published.load(Relaxed) < runs.lock().len() + AHEAD_MAX || stop.load(Relaxed);
                    eventually("handlers keep up", async || has_room().then_some(())).await;
                }
                sent
            });
        }
        Self { stop, tasks }
    }

    async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Relaxed);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

async fn each_is_handled_while_engines_come_and_go(change: impl Fn(&mut Settings)) {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    change(&mut site.settings);
    let (second, third) = (site.elsewhere().await, site.elsewhere().await);
    let runs = Runs::default();
    let one = start(&site, &runs, "one", Order::Partition, slowly).await;
    let publisher = site.elsewhere().await.broker().await;
    let load = Load::start(&publisher, &site.work, &runs);
    runs.grow("one").await;
    let two = start(&second, &runs, "two", Order::Partition, slowly).await;
    runs.grow("two").await;
    let three = start(&third, &runs, "three", Order::Partition, slowly).await;
    for engine in ["three", "two", "one"] {
        runs.grow(engine).await;
    }
    one.stop().await;
    runs.grow("two").await;
    runs.grow("three").await;
    let again = start(&site, &runs, "one again", Order::Partition, slowly).await;
    runs.grow("one again").await;
    two.stop().await;
    runs.grow("three").await;
    three.stop().await;
    runs.grow("one again").await;
    let sent = load.end().await;
    publisher.close().await;
    let account = site.ends(again, &sent).await;
    assert!(account.dead.is_empty(), "a hand-over is nobody's attempt: {:?}", account.dead);
    assert_eq!(account.published_twice, 0);
    // Whoever gives up a partition ends what it has begun and commits it.
    assert_eq!(account.called_again, 0, "of {}: {:#?}", sent.len(), runs.again());
    runs.assert_in_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_handled_while_engines_come_and_go_that_keep_what_they_have() {
    each_is_handled_while_engines_come_and_go(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_handled_while_engines_come_and_go_that_divide_by_range() {
    each_is_handled_while_engines_come_and_go(|settings| settings.assignment = Assignment::Range).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_handled_while_engines_come_and_go_of_the_new_protocol() {
    each_is_handled_while_engines_come_and_go(|settings| settings.group_protocol = GroupProtocol::Consumer).await;
}

fn record(id: &str, partition: u32) -> Record {
    Record::new("{}").header("x-helix-id", id).on(partition.cast_signed())
}

/// Publishes to all partitions until each of these engines was called. Gives the ids.
async fn until_all_run(site: &Site, runs: &Runs, engines: &[&str]) -> BTreeSet<String> {
    let raw = site.raw();
    let sent = Mutex::new(BTreeSet::new());
    eventually("each of them has a part", async || {
        let round = sent.lock().unwrap().len();
        let ids: Vec<_> = (0..PARTITIONS).map(|partition| format!("first.{round}.{partition}")).collect();
        let records = ids.iter().zip(0..).map(|(id, partition)| record(id, partition)).collect();
        sent.lock().unwrap().extend(ids);
        raw.publish(&site.work.name, records).await;
        engines.iter().all(|engine| runs.of(engine) > 0).then_some(())
    })
    .await;
    let sent = sent.into_inner().unwrap();
    assert!(site.ledger.handles(&sent).await.is_empty());
    sent
}

/// How often partitions were given or taken, by all engines of a group.
fn rebalances(site: &Site) -> [u64; 3] {
    ["assigned", "revoked", "lost"]
        .map(|what| metrics().kafka_rebalances.with_label_values(&[&*site.work.name, site.group.as_str(), what]).get())
}

/// Two engines, one of which gets a message that takes this long.
async fn a_slow_handler_keeps_its_partition(slow: Duration, change: impl Fn(&mut Settings)) {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    change(&mut site.settings);
    let other = site.elsewhere().await;
    let runs = Runs::default();
    let handle = move |call: &Call<'_>| {
        if call.message.id.to_string() == "slow" {
            std::thread::sleep(slow);
        }
        Outcome::Done(Vec::new())
    };
    let one = start(&site, &runs, "one", Order::Partition, handle).await;
    let two = start(&other, &runs, "two", Order::Partition, handle).await;
    let mut sent = until_all_run(&site, &runs, &["one", "two"]).await;
    let before = rebalances(&site);
    let mut records = vec![record("slow", 0)];
    records.extend((0..10).map(|number| record(&format!("behind.{number}"), 0)));
    records.extend((0..10).map(|number| record(&format!("beside.{number}"), 1 + number % 2)));
    sent.extend(records.iter().map(|one| String::from_utf8(one.headers[0].1.clone().unwrap()).unwrap()));
    site.raw().publish(&site.work.name, records).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    assert_eq!(rebalances(&site), before, "somebody came or went");
    let all = runs.all();
    let slow_one = all.iter().find(|run| run.id == "slow").unwrap();
    assert!(slow_one.end - slow_one.begin >= slow);
    for run in all.iter().filter(|run| run.id.starts_with("behind")) {
        assert_eq!(run.engine, slow_one.engine, "{run:?}");
    }
    assert!(all.iter().any(|run| run.id.starts_with("beside") && run.end < slow_one.end), "nothing went on beside it");
    two.stop().await;
    let account = site.ends(one, &sent).await;
    assert_eq!((account.called_again, account.dead.len()), (0, 0));
    runs.assert_in_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_take_longer_than_session_and_poll_interval() {
    let short = Duration::from_millis(1500);
    a_slow_handler_keeps_its_partition(short * 2, |settings| {
        (settings.session_timeout, settings.poll_interval_max) = (short, short);
    })
    .await;
}

/// Its session lasts 6 s here, as the servers say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_take_longer_than_a_session_of_the_new_protocol() {
    a_slow_handler_keeps_its_partition(Duration::from_secs(8), |settings| {
        settings.group_protocol = GroupProtocol::Consumer;
        (settings.session_timeout, settings.poll_interval_max) = (Duration::from_secs(6), Duration::from_secs(6));
    })
    .await;
}

async fn who_comes_back_in_time_gets_its_partitions_back(protocol: GroupProtocol) {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    site.settings.group_protocol = protocol;
    let mut other = site.elsewhere().await;
    (site.settings.group_instance_id, other.settings.group_instance_id) = (Some("one".into()), Some("two".into()));
    let runs = Runs::default();
    let one = start(&site, &runs, "one", Order::Partition, slowly).await;
    until_all_run(&site, &runs, &["one"]).await;
    let two = start(&other, &runs, "two", Order::Partition, slowly).await;
    let mut sent = until_all_run(&site, &runs, &["one", "two"]).await;
    let before = rebalances(&site);
    runs.lock().clear();
    one.stop().await;
    let records: Vec<_> = (0..30).map(|number| record(&format!("meanwhile.{number}"), number % PARTITIONS)).collect();
    site.raw().publish(&site.work.name, records).await;
    let meanwhile = (0..30).map(|number| format!("meanwhile.{number}")).collect();
    eventually("the other goes on", async || (runs.of("two") >= 10).then_some(())).await;
    let one = start(&site, &runs, "one", Order::Partition, slowly).await;
    assert!(site.ledger.handles(&meanwhile).await.is_empty());
    let owners = runs.owners();
    assert!(owners.values().all(|engines| engines.len() == 1), "{owners:?}");
    assert_eq!(owners.values().flatten().collect::<BTreeSet<_>>().len(), 2, "{owners:?}");
    let [assigned, ..] = rebalances(&site);
    assert_eq!(assigned - before[0], 1, "the other was disturbed");
    two.stop().await;
    sent.extend(meanwhile);
    one.stop().await;
    assert!(sent.is_subset(&site.ledger.handled()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_under_its_name_in_time_gets_its_partitions_back() {
    who_comes_back_in_time_gets_its_partitions_back(GroupProtocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_under_its_name_in_the_new_protocol_gets_its_partitions_back() {
    who_comes_back_in_time_gets_its_partitions_back(GroupProtocol::Consumer).await;
}

async fn a_name_that_is_taken_is_said(protocol: GroupProtocol) {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    site.settings.group_protocol = protocol;
    site.settings.group_instance_id = Some("the-same".into());
    let other = site.elsewhere().await;
    let runs = Runs::default();
    let one = start(&site, &runs, "one", Order::Partition, slowly).await;
    let mut sent = until_all_run(&site, &runs, &["one"]).await;
    let two = start(&other, &runs, "two", Order::Partition, slowly).await;
    let says = |engine: &Engine| match engine.broker.status() {
        BrokerStatus::Degraded { reason } => reason.contains("has the same kafka.group_instance_id: give each engine"),
        _ => false,
    };
    eventually("one of them says so", async || (says(&one) || says(&two)).then_some(())).await;
    // Alone, it goes on.
    two.stop().await;
    site.raw().publish(&site.work.name, vec![record("alone", 0), record("alone.too", 1)]).await;
    sent.extend(["alone", "alone.too"].map(str::to_owned));
    site.ends(one, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_with_the_name_of_another_is_told_so() {
    a_name_that_is_taken_is_said(GroupProtocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_with_the_name_of_another_in_the_new_protocol_is_told_so() {
    a_name_that_is_taken_is_said(GroupProtocol::Consumer).await;
}

/// One engine retries everything, again and again; another comes, and handles what it gets.
async fn what_is_retried_goes_with_its_partition(order: Order) {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    site.settings.revoke_wait = Duration::from_millis(500);
    let other = site.elsewhere().await;
    let runs = Runs::default();
    let retry = |_: &Call<'_>| Outcome::Retry { reason: "not here".into(), delay: Some(Duration::from_millis(300)) };
    let one = start(&site, &runs, "one", order, retry).await;
    let ids = (0..4 * PARTITIONS).map(|number| (format!("retried.{number}"), number % PARTITIONS));
    let sent: BTreeSet<_> = ids.clone().map(|(id, _)| id).collect();
    site.raw().publish(&site.work.name, ids.clone().map(|(id, partition)| record(&id, partition)).collect()).await;
    eventually("they are tried", async || (runs.owners().len() == PARTITIONS as usize).then_some(())).await;
    let two = start(&other, &runs, "two", order, slowly).await;
    let moved = async || {
        let handled = site.ledger.handled();
        let owners = runs.owners();
        let is_moved = |partition: &u32| owners.get(partition).is_some_and(|engines| engines.contains("two"));
        let mut of_moved = ids.clone().filter(|(_, partition)| is_moved(partition)).peekable();
        (of_moved.peek().is_some() && of_moved.all(|(id, _)| handled.contains(&id))).then_some(())
    };
    eventually("the other has what was retried", moved).await;
    // Long enough for whoever still holds something of it to try it again.
    let tried = runs.of("one");
    eventually("the rest is tried on", async || (runs.of("one") >= tried + 4).then_some(())).await;
    let all = runs.all();
    for taken in all.iter().filter(|run| run.engine == "two") {
        let late = all.iter().find(|run| run.engine == "one" && run.id == taken.id && run.end > taken.begin);
        assert!(late.is_none(), "{late:?} though it had gone with {taken:?}");
        assert_eq!(all.iter().filter(|run| run.engine == "two" && run.id == taken.id).count(), 1, "{taken:?}");
    }
    one.stop().await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    two.stop().await;
    let account = site.accounts(&sent, ATTEMPTS_MAX).await;
    assert!(account.dead.is_empty(), "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_retried_goes_with_its_partition_where_nothing_is_ordered() {
    what_is_retried_goes_with_its_partition(Order::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_retried_goes_with_its_partition_where_that_is_ordered() {
    what_is_retried_goes_with_its_partition(Order::Partition).await;
}

/// Handlers outlast what a hand-over waits for: what they were at is handled twice, what only lay with the engine is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_begun_goes_with_its_partition() {
    const COUNT: u32 = 240;
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    site.settings.revoke_wait = Duration::from_millis(10);
    let other = site.elsewhere().await;
    let runs = Runs::default();
    let very_slowly = |_: &Call<'_>| {
        std::thread::sleep(Duration::from_millis(40));
        Outcome::Done(Vec::new())
    };
    let ids: Vec<_> = (0..COUNT).map(|number| (format!("slow.{number}"), number % PARTITIONS)).collect();
    let sent: BTreeSet<_> = ids.iter().map(|(id, _)| id.clone()).collect();
    let one = start(&site, &runs, "one", Order::None, very_slowly).await;
    site.raw().publish(&site.work.name, ids.iter().map(|(id, partition)| record(id, *partition)).collect()).await;
    runs.grow("one").await;
    let two = start(&other, &runs, "two", Order::None, very_slowly).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    two.stop().await;
    let account = site.ends(one, &sent).await;
    assert!(account.dead.is_empty(), "{account:?}");
    // One for each lane of an engine, each time partitions move: when the other comes.
    assert!(account.called_again <= 4, "{} of {COUNT} again", account.called_again);
    assert!(runs.of("two") > 20, "{} of {COUNT}", runs.of("two"));
}
