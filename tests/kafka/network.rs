//! The network between the engine and the server fails in every way that it has. Each time: nothing confirmed is lost,
//! nothing stays stuck, and the health says what is wrong while it is.

use std::time::Duration;

use helixmq::message::Outcome;

use crate::{
    server::{ProxiedServer, Server},
    site::Site,
    support::{
        eventually,
        ledger::{Publishing, send},
        proxy::{Cut, Flow, Way},
    },
};

/// Publishers, batches of each, messages of each batch.
const MUCH: (usize, usize, usize) = (8, 20, 10);

/// Breaks the network in the middle of everything, and heals it once the engine has noticed.
async fn survives(break_it: impl AsyncFn(&mut ProxiedServer), heal: impl AsyncFn(&mut ProxiedServer)) {
    let server = Server::shared();
    let mut proxy = server.proxy().await;
    let site = Site::new(&server).await.through_the_proxy();
    // Slow enough to be in the middle of it for a while.
    let slowly = |_: &helixmq::handler::Call<'_>| {
        std::thread::sleep(Duration::from_micros(200));
        Outcome::Done(Vec::new())
    };
    let engine = site.engine(3, slowly).await;
    let (publishers, batches, count) = MUCH;
    let publishing = Publishing::start(&engine.broker, &site.work, publishers, batches, count);
    let some = async || (publishing.confirmed() > 100 && site.ledger.handled().len() > 50).then_some(());
    eventually("messages are on their way", some).await;
    break_it(&mut proxy).await;
    engine.degraded().await;
    heal(&mut proxy).await;
    let sent = publishing.end().await;
    let account = site.ends(engine, &sent).await;
    assert!(account.dead.is_empty(), "a network is nobody's attempt: {:?}", account.dead);
    assert!(account.published_twice <= publishers * count, "{account:?}");
    assert!(account.called_again <= publishers * batches * count, "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_connections_that_are_reset_and_refused_for_a_while() {
    survives(
        async |proxy| {
            proxy.refuse().await;
            proxy.cut(Cut::Reset);
        },
        async |proxy| proxy.accept().await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_connections_that_end_in_good_order() {
    survives(
        async |proxy| {
            proxy.refuse().await;
            proxy.cut(Cut::Finish);
        },
        async |proxy| proxy.accept().await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_server_that_hears_nothing() {
    survives(async |proxy| proxy.set(Way::ToServer, Flow::Held), async |proxy| proxy.heal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_server_that_is_not_heard() {
    survives(async |proxy| proxy.set(Way::ToClient, Flow::Held), async |proxy| proxy.heal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_black_hole() {
    survives(async |proxy| proxy.black_hole(), async |proxy| proxy.heal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_bytes_that_are_lost() {
    survives(
        async |proxy| proxy.set(Way::ToServer, Flow::Lost),
        async |proxy| {
            proxy.heal();
            proxy.cut(Cut::Reset);
        },
    )
    .await;
}

/// Nobody is hurt by a network that is only slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_over_a_slow_network() {
    let server = Server::shared();
    let proxy = server.proxy().await;
    let site = Site::new(&server).await.through_the_proxy();
    let engine = site.handling().await;
    // So that all connections that it needs are there.
    let mut sent = send(&engine.broker, &site.work, 10).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    proxy.set(Way::ToServer, Flow::Late(Duration::from_millis(50)));
    proxy.set(Way::ToClient, Flow::Slow(200_000));
    sent.extend(Publishing::start(&engine.broker, &site.work, 4, 2, 25).end().await);
    let account = site.ends(engine, &sent).await;
    assert_eq!(account.published_twice, 0, "confirmed late, and sent again");
    let calls = site.ledger.calls();
    assert!(calls.values().all(|attempts| *attempts == [1]), "handled more than once: {calls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_idle_connections() {
    let server = Server::shared();
    let proxy = server.proxy().await;
    let site = Site::new(&server).await.through_the_proxy();
    let engine = site.handling().await;
    let mut sent = send(&engine.broker, &site.work, 10).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    for cut in [Cut::Reset, Cut::Finish, Cut::Reset] {
        proxy.cut(cut);
        sent.extend(send(&engine.broker, &site.work, 10).await);
        assert!(site.ledger.handles(&sent).await.is_empty(), "after {cut:?}");
    }
    site.ends(engine, &sent).await;
}
