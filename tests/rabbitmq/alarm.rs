//! The server is short of memory, and takes no messages until it is not: what waits is handled, what is published is not
//! lost, and the health says why.

use helixmq::{
    broker::rabbitmq::topology::QueueKind::{Classic, Quorum},
    message::{Address, Outcome},
};

use crate::{
    server::Server,
    site::{Site, WORK},
    support::{
        degraded, eventually,
        ledger::{Publishing, send},
        ready,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_publishing_at_a_memory_alarm_and_goes_on_afterwards() {
    let server = Server::own().await;
    for kind in [Classic, Quorum] {
        let site = Site::new(&server, kind).await;
        let broker = site.broker_with_queues().await;
        let mut sent = send(&broker, &Address::queue(WORK), 50).await;
        server.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
        // The server tells a connection when it publishes.
        let publishing = Publishing::start(&broker, &Address::queue(WORK), 4, 2, 10);
        let reason = degraded(&broker).await;
        assert!(reason.contains("takes no messages"), "{reason}");
        assert_eq!(publishing.confirmed(), 0);

        // What is there is handled all the same.
        let engine = site.engine_on(broker, 3, |_| Outcome::Done(Vec::new())).await;
        assert!(site.ledger.handles(&sent).await.is_empty());
        assert_eq!(publishing.confirmed(), 0);

        server.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]).await;
        sent.extend(publishing.end().await);
        assert!(site.ends(engine, &sent).await.is_empty());
    }
}

/// A message that is tried again is published, too: short of memory, it waits here instead, and is not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_what_is_to_be_tried_again_while_the_server_takes_nothing() {
    let server = Server::own().await;
    let site = Site::new(&server, Quorum).await;
    let broker = site.broker_with_queues().await;
    let sent = send(&broker, &Address::queue(WORK), 20).await;
    server.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    let retry_once = |call: &helixmq::handler::Call<'_>| match call.attempt {
        1 => Outcome::Retry { reason: "not yet".into(), delay: None },
        _ => Outcome::Done(Vec::new()),
    };
    let engine = site.engine_on(broker, 3, retry_once).await;
    eventually("all were tried", async || (site.ledger.calls().len() == sent.len()).then_some(())).await;
    degraded(&engine.broker).await;
    server.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]).await;
    ready(&engine.broker).await;
    assert!(site.ends(engine, &sent).await.is_empty());
}
