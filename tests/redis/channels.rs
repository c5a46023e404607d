//! Pub/Sub: at most once, and what may have been missed is counted.

use std::sync::Arc;

use helixmq::{
    handler::Call,
    message::{Address, Outcome},
    telemetry,
};

use crate::{
    server::Server,
    site::{DEAD, Engine, Site},
    support::{
        eventually,
        ledger::{message, send},
    },
};

/// A site with a channel of its own, whose name it gives.
fn site(server: &Server) -> (Site, String) {
    let mut site = Site::new(server);
    let channel = site.settings.key_prefix.trim_end_matches(':').to_owned();
    site.settings.channels.insert(channel.as_str().into());
    (site, channel)
}

/// An engine that reads the channel, and is heard to do so.
async fn listening(site: &Site, channel: &str, ends: impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static) -> Engine {
    let engine = site
        .engine_with(3, ends, |parts| {
            parts.routes[0].source.address = Address::topic(channel);
            parts.settings.declarations.remove(0);
        })
        .await;
    let raw = site.raw().await;
    let listens = async || {
        let (_, count): (String, u64) = raw.ask(&format!("PUBSUB NUMSUB {channel}")).await;
        (count == 1).then_some(())
    };
    eventually("it listens", listens).await;
    engine
}

/// How many gaps of the channel are counted.
fn gaps(channel: &str, why: &str) -> u64 {
    let all = telemetry::metrics().render().expect("metrics");
    let labels = format!("{{broker=\"redis\",channel=\"{channel}\",why=\"{why}\"}} ");
    let line = all.lines().find_map(|line| line.strip_prefix("messaging_pubsub_gaps_total")?.strip_prefix(&labels));
    line.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_hears_ours_and_others_messages_and_nothing_is_kept() {
    let server = Server::shared();
    let (site, channel) = site(&server);
    let engine = listening(&site, &channel, |_| Outcome::Done(Vec::new())).await;
    let sent = send(&engine.broker, &Address::topic(channel.as_str()), 20).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    assert_eq!(site.raw().await.publish(&channel, "no JSON").await, 1);
    eventually("that, too", async || (site.ledger.handled().len() == 21).then_some(())).await;
    engine.stop().await;
    assert!(site.ledger.calls().values().all(|attempts| *attempts == [1]));
    let left = site.raw().await.keys(&site.settings.key_prefix).await;
    assert!(!left.iter().any(|key| key.contains(&format!("{{{channel}}}"))), "{left:?}");
    assert_eq!((gaps(&channel, "unheard"), gaps(&channel, "reconnected")), (0, 0));
}

/// Nobody delivers it again, so it is tried here, and kept when that was in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_here_and_becomes_a_dead_letter() {
    let server = Server::shared();
    let (site, channel) = site(&server);
    let engine = listening(&site, &channel, |_| Outcome::Retry { reason: "never".into(), delay: None }).await;
    let sent = send(&engine.broker, &Address::topic(channel.as_str()), 3).await;
    eventually("all are dead", async || (site.ids(DEAD).await == sent).then_some(())).await;
    engine.stop().await;
    assert!(site.ledger.calls().values().all(|attempts| *attempts == [1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_missed_is_counted() {
    let server = Server::own().await;
    let (site, channel) = site(&server);
    let to = Address::topic(channel.as_str());
    let broker = site.broker().await;
    // Published all the same: that nobody hears is how channels are.
    broker.publish(&to, vec![Arc::new(message(1)), Arc::new(message(2))]).await.expect("published");
    assert_eq!(gaps(&channel, "unheard"), 2);
    let engine = listening(&site, &channel, |_| Outcome::Done(Vec::new())).await;
    assert_eq!(site.raw().await.ask::<u64>("CLIENT KILL TYPE pubsub").await, 1);
    eventually("it listens again", async || (gaps(&channel, "reconnected") == 1).then_some(())).await;
    let sent = send(&engine.broker, &to, 10).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    assert_eq!(gaps(&channel, "unheard"), 2, "somebody listens now");
    engine.stop().await;
    broker.close().await;
}
