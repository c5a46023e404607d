//! What must hold when readers are cancelled, leave, or the broker closes, and when all of that happens at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use helixmq::{
    broker::{BatchMax, BrokerError, BrowseAt, PublishError, QueueSettings, Start, TopicSettings},
    message::{Address, Message, MessageId, Settlement, now_ms},
};
use tokio::{task::JoinSet, time::timeout};

use crate::system::*;

pub(crate) async fn loses_nothing_when_waiting_is_cancelled(system: &dyn System) {
    const COUNT: usize = 2000;
    let at = At::new(system).await;
    let mut dice = Dice::new(7);
    for place in at.one_of_each(Duration::from_secs(600)).await {
        let (mut one, mut two) = (at.read_at_most(&place, 5).await, at.read_at_most(&place, 5).await);
        let mut seen = Vec::new();
        let (mut published, mut cancelled) = (0, 0);
        // Publishing is not to be cancelled: it goes on while what came is accepted.
        let mut publishing = None;
        while seen.len() < COUNT {
            let publish = publishing.get_or_insert_with(|| {
                let (yields, numbers) = ((dice.roll(4), dice.roll(4)), published..(published + 5).min(COUNT));
                published = numbers.end;
                let (at, place) = (&at, &place);
                Box::pin(async move {
                    yields_for(yields.0).await;
                    at.publish(place, numbered(numbers)).await;
                    yields_for(yields.1).await;
                })
            });
            let max = BatchMax { count: 3, ..ALL };
            let next = tokio::select! {
                biased;
                next = one.0.next(max) => next,
                next = two.0.next(max) => next,
                () = publish => {
                    (publishing, cancelled) = (None, cancelled + 1);
                    continue;
                }
            };
            let taken = next.unwrap().unwrap();
            seen.extend(names(&taken));
            accept(taken).await;
        }
        seen.sort_unstable();
        let mut expected = number_names(0..COUNT);
        expected.sort_unstable();
        assert_eq!(seen, expected, "{place}");
        assert!(cancelled > 50, "{place}: only {cancelled} were cancelled");
    }

    async fn yields_for(count: u64) {
        for _ in 0..count {
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) async fn passes_a_wake_up_on_when_the_woken_is_cancelled(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(600)).await {
        let (mut cancelled, mut waits) = (at.read(&place).await, at.read(&place).await);
        let publish = async {
            tokio::task::yield_now().await;
            at.publish(&place, numbered(0..1)).await;
        };
        let cancel = async {
            // Waits first, is woken first, and is dropped before it looks.
            tokio::select! { biased; _ = cancelled.0.next(ALL) => {} () = publish => {} }
            drop(cancelled);
        };
        let ((), taken) = tokio::join!(cancel, waits.take(1));
        assert_eq!(names(&taken), number_names(0..1), "{place}");
    }
}

pub(crate) async fn ends_everything_when_it_is_closed(system: &dyn System) {
    let at = At::new(system).await;
    for place in at.one_of_each(Duration::from_secs(600)).await {
        let at = At::new(system).await;
        match place.kind {
            helixmq::message::Kind::Queue => at.declare_queue(&place).await,
            helixmq::message::Kind::Topic => at.declare_topic(&place).await,
        }
        at.publish(&place, numbered(0..3)).await;
        let mut full = at.join(&place, "full", Start::Earliest, 1).await;
        let out = full.take(1).await;
        let mut waits = at.join(&place, "waits", Start::Latest, 10).await;
        let mut also = at.join(&place, "waits", Start::Latest, 10).await;
        if place.kind == helixmq::message::Kind::Queue {
            accept(waits.take(2).await).await;
        }
        let ended = timeout(PATIENCE, async {
            tokio::join!(waits.0.next(ALL), also.0.next(ALL), full.0.next(ALL), async {
                tokio::task::yield_now().await;
                at.broker.close().await;
            })
        });
        let (waited, also, full, ()) = ended.await.expect("all of them end");
        assert!(waited.unwrap().is_none() && also.unwrap().is_none() && full.unwrap().is_none(), "{place}");
        assert_eq!(at.try_publish(&place, numbered(0..1)).await.unwrap_err().0, [(0, PublishError::Closed)], "{place}");
        let settled = out.settle(vec![Settlement::Accept]).await;
        assert!(matches!(settled, Err(BrokerError::Closed)), "{place}: {settled:?}");
        let again = at.broker.declare(&[]).await;
        assert!(matches!(again, Err(BrokerError::Closed)), "{place}: {again:?}");
    }
}

impl At {
    async fn declare_queue(&self, place: &Address) {
        let settings =
            QueueSettings { storage: self.storage, lease: Duration::from_secs(600), ..QueueSettings::default() };
        let what = helixmq::broker::Declaration::Queue(Arc::clone(&place.name), settings);
        self.broker.declare(&[what]).await.unwrap();
    }

    async fn declare_topic(&self, place: &Address) {
        let settings = TopicSettings {
            storage: self.storage,
            partitions: 1,
            lease: Duration::from_secs(600),
            ..TopicSettings::default()
        };
        let what = helixmq::broker::Declaration::Topic(Arc::clone(&place.name), settings);
        self.broker.declare(&[what]).await.unwrap();
    }
}

/// Written by publishers and readers, never by the broker.
#[derive(Default)]
struct Ledger {
    sent: Mutex<Vec<MessageId>>,
    accepted: Mutex<BTreeMap<MessageId, u32>>,
    stop: AtomicBool,
}

impl Ledger {
    fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }
}

const PUBLISHERS: u64 = 3;
const READERS: u64 = 4;

async fn publish_at_random(at: Arc<At>, to: Address, ledger: Arc<Ledger>, mut dice: Dice, count: usize) {
    let mut left = count;
    while left > 0 {
        let size = (1 + dice.roll(64) as usize).min(left);
        left -= size;
        let batch: Vec<Message> = (0..size)
            .map(|_| Message {
                priority: dice.roll(11) as u8,
                key: (dice.roll(3) > 0).then(|| format!("key {}", dice.roll(20)).into()),
                not_before: (dice.roll(10) == 0).then(|| now_ms() + dice.roll(30)),
                ..message("stress")
            })
            .collect();
        let ids: Vec<MessageId> = batch.iter().map(|message| message.id.clone()).collect();
        at.publish(&to, batch).await;
        ledger.sent.lock().unwrap().extend(ids);
        tokio::task::yield_now().await;
    }
}

/// Takes, and does with it whatever the dice say; now and then it leaves and comes back.
async fn read_at_random(at: Arc<At>, from: Address, ledger: Arc<Ledger>, mut dice: Dice) {
    while !ledger.stop.load(SeqCst) {
        let mut reader = at.read_at_most(&from, 1 + dice.roll(200) as usize).await;
        for _ in 0..dice.roll(60) {
            let max = BatchMax { count: 1 + dice.roll(64) as usize, ..ALL };
            let patience = Duration::from_millis(dice.roll(5));
            let Ok(next) = timeout(patience, reader.0.next(max)).await else {
                if ledger.stop.load(SeqCst) {
                    return;
                }
                continue;
            };
            let taken = next.unwrap().unwrap();
            for part in taken.split(4, |_| dice.roll(4) as usize) {
                let ids: Vec<MessageId> = part.as_slice().iter().map(|delivery| delivery.message.id.clone()).collect();
                let after = Duration::from_millis(dice.roll(10));
                match dice.roll(10) {
                    0 => drop(part),
                    1 => settle(part, redeliver(after, 1)).await,
                    2 => settle(part, Settlement::Release { after }).await,
                    _ => {
                        accept(part).await;
                        let mut accepted = ledger.accepted.lock().unwrap();
                        ids.into_iter().for_each(|id| *accepted.entry(id).or_default() += 1);
                    }
                }
            }
        }
    }
}

async fn run(at: &Arc<At>, place: &Address, ledger: &Arc<Ledger>, each: usize, seed: u64, until: usize) {
    let mut tasks = JoinSet::new();
    for n in 0..PUBLISHERS {
        let dice = Dice::new(seed + n);
        tasks.spawn(publish_at_random(Arc::clone(at), place.clone(), Arc::clone(ledger), dice, each));
    }
    for n in 0..READERS {
        let dice = Dice::new(seed + 100 + n);
        tasks.spawn(read_at_random(Arc::clone(at), place.clone(), Arc::clone(ledger), dice));
    }
    eventually("enough is accepted", || ledger.accepted() >= until).await;
    ledger.stop.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

pub(crate) async fn accepts_each_message_once_under_stress(system: &dyn System) {
    let at = Arc::new(At::new(system).await);
    if !at.does("let readers come and go many times a second") {
        return;
    }
    for (seed, place) in at.one_of_each(Duration::from_secs(600)).await.into_iter().enumerate() {
        let ledger = Arc::new(Ledger::default());
        let all = 5000 * PUBLISHERS as usize;
        run(&at, &place, &ledger, 5000, seed as u64 * 1000, all).await;
        let (sent, accepted) = (ledger.sent.lock().unwrap(), ledger.accepted.lock().unwrap());
        assert!(sent.len() == all && sent.iter().all(|id| accepted.contains_key(id)), "{place}: something is missing");
        assert!(accepted.values().all(|times| *times == 1), "{place}: no lease ran out, and something came twice");
        let stats = at.stats(&place);
        assert_eq!((stats.delayed, stats.unsettled), (0, 0), "{place}");
        assert!(stats.lag.iter().all(|(_, lag)| *lag == 0), "{place}");
    }
}

pub(crate) async fn what_was_sent_is_accepted_or_pending_after_an_interruption(system: &dyn System) {
    let at = Arc::new(At::new(system).await);
    let Some(queue) = at.queue(QueueSettings { lease: Duration::from_secs(600), ..QueueSettings::default() }).await
    else {
        return;
    };
    if !at.claims("browse", |can| can.browse) {
        return;
    }
    let ledger = Arc::new(Ledger::default());
    run(&at, &queue, &ledger, 5000, 42, 4000).await;
    let page = at.browse(&queue, BrowseAt::Start(Start::Earliest), usize::MAX).await.unwrap();
    let mut counted = ledger.accepted.lock().unwrap().clone();
    page.items.iter().for_each(|item| *counted.entry(item.message.id.clone()).or_default() += 1);
    let mut sent = ledger.sent.lock().unwrap().clone();
    sent.sort_unstable();
    assert!(counted.values().all(|times| *times == 1), "each is in one place");
    assert!(counted.into_keys().eq(sent), "and all are somewhere");
}

pub(crate) async fn loses_nothing_when_leases_run_out_under_stress(system: &dyn System) {
    let at = Arc::new(At::new(system).await);
    for place in at.one_of_each(system.short_lease()).await {
        if at.read(&place).await.leased(&at).is_none() {
            return;
        }
        let ledger = Arc::new(Ledger::default());
        run(&at, &place, &ledger, 1000, 77, 1000 * PUBLISHERS as usize).await;
        let (sent, accepted) = (ledger.sent.lock().unwrap(), ledger.accepted.lock().unwrap());
        assert!(sent.iter().all(|id| accepted.contains_key(id)), "{place}: something is missing");
    }
}
