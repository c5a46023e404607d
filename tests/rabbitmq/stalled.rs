//! The server does not feed a consumer any more, and says nothing: whoever waits would wait for ever.

use std::time::Duration;

use helixmq::{
    broker::rabbitmq::topology::QueueKind::{Classic, Quorum},
    message::Address,
};

use crate::{
    raw::cancel_frame,
    server::Server,
    site::{Site, WORK},
    support::{eventually, ledger::send, proxy::Proxy},
};

/// Its consumer is cancelled behind the engine's back, as the proxy says so and the answer is waived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begins_to_read_anew_when_messages_wait_and_none_comes() {
    let server = Server::shared();
    for kind in [Classic, Quorum] {
        let proxy = Proxy::start(server.amqp()).await;
        let mut site = Site::new(&server, kind).await.through(&proxy);
        site.settings.stalled_after = Duration::from_millis(500);
        let engine = site.handling().await;
        let mut sent = send(&engine.broker, &Address::queue(WORK), 10).await;
        assert!(site.ledger.handles(&sent).await.is_empty());
        let (connections, vhost) = (proxy.accepted(), site.vhost.name());
        let consumers = || server.management().consumer_tags(vhost, WORK);
        // The one that takes as many at a time as it should: no other follows it.
        let lasting = async || consumers().into_iter().find(|(.., prefetch)| *prefetch > 1);
        let ((port, channel), tag, _) = eventually("there is a consumer", lasting).await;
        proxy.slip_in(port, &cancel_frame(channel, &tag));
        eventually("it is gone", async || consumers().iter().all(|(_, other, _)| *other != tag).then_some(())).await;
        sent.extend(send(&engine.broker, &Address::queue(WORK), 10).await);
        assert!(site.ends(engine, &sent).await.is_empty(), "{kind:?}");
        assert_eq!(proxy.accepted(), connections, "{kind:?}: the connections are the same");
        assert_eq!(site.ledger.attempt_max(), 1, "{kind:?}: nothing was tried in vain");
    }
}
