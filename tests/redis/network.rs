//! The network between the engine and the server fails in every way that it has. Each time: nothing confirmed is lost,
//! nothing stays stuck, and the health says what is wrong while it is.

use std::time::Duration;

use helixmq::message::{Address, Outcome};
use redis::Value;

use crate::{
    server::Server,
    site::{Site, WORK},
    support::{
        eventually,
        ledger::{Publishing, send},
        proxy::{Cut, Flow, Proxy, Way},
    },
};

/// Publishers, batches of each, messages of each batch.
const MUCH: (usize, usize, usize) = (8, 20, 10);

/// Breaks the network in the middle of everything, and heals it once the engine has noticed.
async fn survives(break_it: impl AsyncFn(&mut Proxy), heal: impl AsyncFn(&mut Proxy)) {
    let server = Server::shared();
    let mut proxy = Proxy::start(server.plain()).await;
    let site = Site::new(&server).through(&proxy);
    // Slow enough to be in the middle of it for a while.
    let slowly = |_: &helixmq::handler::Call<'_>| {
        std::thread::sleep(Duration::from_micros(200));
        Outcome::Done(Vec::new())
    };
    let engine = site.engine(3, slowly).await;
    let (publishers, batches, count) = MUCH;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), publishers, batches, count);
    let some = async || (publishing.confirmed() > 100 && site.ledger.handled().len() > 50).then_some(());
    eventually("messages are on their way", some).await;
    break_it(&mut proxy).await;
    engine.degraded().await;
    heal(&mut proxy).await;
    let sent = publishing.end().await;
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "a network is nobody's attempt: {dead:?}");
    assert!(site.ids(WORK).await.is_empty(), "what was handled is gone");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_idle_connections() {
    let server = Server::shared();
    let proxy = Proxy::start(server.plain()).await;
    let site = Site::new(&server).through(&proxy);
    let engine = site.handling().await;
    let mut sent = send(&engine.broker, &Address::queue(WORK), 10).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    for cut in [Cut::Reset, Cut::Finish, Cut::Reset] {
        proxy.cut(cut);
        sent.extend(send(&engine.broker, &Address::queue(WORK), 10).await);
        assert!(site.ledger.handles(&sent).await.is_empty(), "after {cut:?}");
    }
    site.ends(engine, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_while_the_server_is_away_and_works_once_it_is_there() {
    let server = Server::shared();
    let mut proxy = Proxy::start(server.plain()).await;
    proxy.refuse().await;
    let site = Site::new(&server).through(&proxy);
    let engine = site.handling().await;
    engine.degraded().await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), 2, 2, 10);
    proxy.accept().await;
    let sent = publishing.end().await;
    site.ends(engine, &sent).await;
}

/// An operator ends all connections, makes the server forget every script, and sees nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_when_scripts_are_forgotten_and_clients_ended() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let raw = site.raw().await;
    let engine = site.handling().await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), 4, 100, 10);
    for round in 1..=5 {
        let some = async || (publishing.confirmed() >= round * 400).then_some(());
        eventually("it goes on", some).await;
        let _: Value = raw.ask("SCRIPT FLUSH SYNC").await;
        if round % 2 == 0 {
            assert!(raw.end_all_others().await >= 1, "the engine is connected");
        }
    }
    let sent = publishing.end().await;
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "{dead:?}");
}
