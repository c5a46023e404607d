//! The demo's handler on the demo's data: a week of earthquakes, and every count exact.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use helixmq::{
    message::{Address, MessageId, ReasonCode, Settlement, now_ms},
    route::Order,
};
use serde_json::Value;

use crate::support::*;

const FEED: &[u8] = include_bytes!("../../data/usgs-quakes-2018-02.ndjson.gz");
const ALERTS: &str = "helixagent.tasks.notifications";

/// Each event as a message under the feed's own id, keyed by network, with what the feed says of it.
fn feed() -> Vec<(helixmq::message::Message, Value)> {
    let mut lines = String::new();
    flate2::read::GzDecoder::new(FEED).read_to_string(&mut lines).expect("text");
    lines
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).expect("JSON");
            let mut message = helixmq::message::Message::new("quake", line.to_owned(), now_ms());
            message.id = MessageId::parse(event["id"].as_str().expect("an id"));
            message.key = Some(event["properties"]["net"].as_str().expect("a network").to_owned().into());
            (message, event)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_week_of_earthquakes_is_handled_to_the_last_one() {
    let feed = feed();
    assert_eq!(feed.len(), 1707);
    let route =
        from_topic("usgs.quakes", "quake-triage").ordered(Order::Key).lanes(3).to(ALERTS, Address::queue(ALERTS));
    let engine = Plan::new().plugin_as(example("quake-triage"), "quake-triage").route(route).start().await;
    engine.send_to_topic("usgs.quakes", feed.iter().map(|(message, _)| message.clone())).await;
    engine.topic_done("usgs.quakes").await;

    let kind = |event: &Value| event["properties"]["type"].as_str().unwrap_or_default().to_owned();
    let is_quake = |event: &Value| kind(event) == "earthquake";
    let expected_alerts: Vec<_> = feed
        .iter()
        .filter(|(_, event)| is_quake(event) && event["properties"]["mag"].as_f64().is_some_and(|mag| mag >= 4.5))
        .map(|(message, _)| message.id.to_string())
        .collect();
    let alerts: Vec<_> = engine.published(ALERTS);
    assert_eq!((alerts.len(), expected_alerts.len()), (85, 85));
    let of =
        |alert: &helixmq::message::Message| alert.correlation_id.clone().expect("the event it is about").to_string();
    assert_eq!(
        alerts.iter().map(|alert| of(alert)).collect::<BTreeSet<_>>(),
        expected_alerts.iter().cloned().collect()
    );
    for alert in &alerts {
        let payload: Value = serde_json::from_slice(&alert.payload).expect("JSON");
        assert_eq!(payload["id"], of(alert));
        assert_eq!(alert.hops(), 1);
    }

    // Within each network the alerts come in the order of the feed.
    let network: BTreeMap<_, _> =
        feed.iter().map(|(message, _)| (message.id.to_string(), message.key.clone())).collect();
    for key in network.values().collect::<BTreeSet<_>>() {
        let got: Vec<_> = alerts.iter().map(|alert| of(alert)).filter(|id| network.get(id) == Some(key)).collect();
        let wanted: Vec<_> = expected_alerts.iter().filter(|id| network.get(*id) == Some(key)).cloned().collect();
        assert_eq!(got, wanted);
    }

    let dead = engine.dead();
    assert_eq!(dead.len(), 28);
    let mut causes: BTreeMap<_, usize> = BTreeMap::new();
    for dead in &dead {
        assert_eq!(
            (dead.code(), dead.letter.handler_code.as_deref()),
            (ReasonCode::HandlerRejected, Some("NOT_AN_EARTHQUAKE"))
        );
        *causes.entry(dead.letter.text.clone()).or_default() += 1;
    }
    assert_eq!(causes, [("explosion".to_owned(), 15), ("quarry blast".to_owned(), 13)].into());
    let rejected = feed.iter().filter(|(_, event)| !is_quake(event)).map(|(message, _)| message);
    assert_eq!(ids(dead.iter().map(|dead| &*dead.message)), ids(rejected));

    let settled = engine.broker.ledger().into_iter().filter_map(|passed| match passed {
        Passed::Settled(id, 1, Settlement::Accept) => Some(id),
        _ => None,
    });
    let accepted: Vec<_> = settled.collect();
    assert_eq!(accepted.len(), 1679);
    let quakes = feed.iter().filter(|(_, event)| is_quake(event)).map(|(message, _)| message);
    assert_eq!(accepted.into_iter().collect::<BTreeSet<_>>(), ids(quakes));
    engine.stop().await;
}
