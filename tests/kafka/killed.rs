//! The server is killed, and comes back: what it confirmed is handled, whatever was on its way.

use std::{collections::BTreeSet, time::Duration};

use helixmq::{handler::Call, message::Outcome};

use crate::{
    server::Server,
    site::{Account, Engine, Site},
    support::{
        eventually,
        ledger::{Publishing, send},
    },
};

/// Publishers and messages of each.
const PUBLISHERS: usize = 8;
const BATCHES: usize = 40;
const BATCH: usize = 10;
const TOTAL: usize = PUBLISHERS * BATCHES * BATCH;

/// Kills it, waits until the engine has noticed, and starts it again.
async fn kill_and_restart(server: &Server, engine: &Engine) {
    server.kill().await;
    let reason = engine.degraded().await;
    assert!(reason.contains("no server"), "{reason}");
    server.up().await;
}

/// Nobody is to blame, and nothing is repeated without need: what was confirmed was published once, and what was settled is
/// not handled again, though it was not committed yet when the server went.
fn assert_clean(account: &Account) {
    assert!(account.dead.is_empty(), "a server that is killed is nobody's attempt: {:?}", account.dead);
    // A publish that was given up without an answer is tried again by its publisher, and may have been there: those that
    // were on their way, at each kill.
    assert!(account.published_twice <= 2 * PUBLISHERS * BATCH, "{account:?}");
    // The session outlives the server: none of them, as long as the group is not shared out anew.
    assert!(account.called_again <= TOTAL / 20, "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_in_the_middle_of_publishing_and_reading() {
    let server = Server::own().await;
    let site = Site::new(&server).await;
    let engine = site.handling().await;
    let publishing = Publishing::start(&engine.broker, &site.work, PUBLISHERS, BATCHES, BATCH);
    // Once with everything in flight, once more when it has just come back.
    for part in [TOTAL / 4, TOTAL / 2] {
        let half_way = async || (publishing.confirmed() >= part && !site.ledger.handled().is_empty()).then_some(());
        eventually("messages are on their way", half_way).await;
        kill_and_restart(&server, &engine).await;
    }
    let sent = publishing.end().await;
    assert_eq!(sent.len(), TOTAL);
    assert_clean(&site.ends(engine, &sent).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_skipped_while_handlers_are_at_work() {
    let server = Server::own().await;
    let site = Site::new(&server).await;
    let slowly = |_: &Call<'_>| {
        std::thread::sleep(Duration::from_millis(1));
        Outcome::Done(Vec::new())
    };
    let engine = site.engine(3, slowly).await;
    let sent = send(&engine.broker, &site.work, 2_000).await;
    for part in [300, 1_000] {
        let half_way = async || (site.ledger.handled().len() >= part).then_some(());
        eventually("some are handled", half_way).await;
        kill_and_restart(&server, &engine).await;
    }
    let account = site.ends(engine, &sent).await;
    assert_clean(&account);
    assert_eq!(account.published_twice, 0, "all were confirmed before");
}

/// Commits as often as it can, so that one is always on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_neither_lost_nor_ahead_of_itself_when_a_commit_is_cut_off() {
    let server = Server::own().await;
    let mut site = Site::new(&server).await;
    site.settings.commit_interval = Duration::from_millis(10);
    site.settings.commit_messages_max = 1;
    let engine = site.handling().await;
    let mut sent = BTreeSet::new();
    for _ in 0..3 {
        let publishing = Publishing::start(&engine.broker, &site.work, 2, 20, BATCH);
        let handled = site.ledger.handled().len();
        eventually("it goes on", async || (site.ledger.handled().len() > handled + 50).then_some(())).await;
        kill_and_restart(&server, &engine).await;
        sent.extend(publishing.end().await);
    }
    // What was published twice is handled twice: wait for all records, not only for all ids.
    let raw = site.raw();
    let records = raw.read(&site.work.name).await.len();
    let called = || site.ledger.calls().values().map(Vec::len).sum::<usize>();
    eventually("all records are handled", async || (called() >= records).then_some(())).await;
    let account = site.ends(engine, &sent).await;
    assert_clean(&account);
    // What is settled when it stops is committed.
    raw.commits_all(&site.group, &site.work.name).await;
    // Whoever comes next has nothing to do.
    let calls = site.ledger.calls();
    let engine = site.handling().await;
    let more = send(&engine.broker, &site.work, 10).await;
    assert!(site.ledger.handles(&more).await.is_empty());
    engine.stop().await;
    let again: Vec<_> =
        site.ledger.calls().into_iter().filter(|(id, of)| calls.get(id).is_some_and(|before| before != of)).collect();
    assert!(again.is_empty(), "handled again after everything was settled: {again:?}");
}

/// Messages wait to be tried again while the server is killed: each is tried as often as it may be, and not more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_outlive_the_server() {
    let server = Server::own().await;
    let site = Site::new(&server).await;
    let delay = Some(Duration::from_secs(2));
    let retry = move |_: &Call<'_>| Outcome::Retry { reason: "not yet".into(), delay };
    let engine = site.engine(3, retry).await;
    let sent = send(&engine.broker, &site.work, 40).await;
    eventually("they wait", async || (site.ledger.calls().len() == 40).then_some(())).await;
    kill_and_restart(&server, &engine).await;
    let is_over = async || site.ledger.calls().values().all(|attempts| attempts.contains(&3)).then_some(());
    eventually("all were tried as often as allowed", is_over).await;
    let raw = site.raw();
    eventually("all are dead", async || (raw.ids(&site.dead.name).await.0 == sent).then_some(())).await;
    engine.stop().await;
    site.accounts(&sent, 3).await;
    for (id, attempts) in site.ledger.calls() {
        assert_eq!(attempts, [1, 2, 3], "{id}");
    }
}
