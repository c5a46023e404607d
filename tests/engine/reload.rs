//! Versions and settings change while traffic flows: what was sent was handled once, whatever happened meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use helixmq::{
    broker::{Broker, embedded},
    handler::{Call, ReloadResult},
    hub::StartError,
    message::{Address, Message, Outbound, Outcome},
    route::{Order, Route, RouteTable},
};
use tokio::task::JoinHandle;

use crate::support::*;

/// Publishes to queues in turn until told to stop; gives what it sent.
struct Publisher {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<String>>,
    sent: Arc<AtomicU32>,
}

impl Publisher {
    fn start(broker: &Arc<Tap>, queues: &[&str]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let (broker, queues) =
            (Arc::clone(broker), queues.iter().map(|queue| Address::queue(*queue)).collect::<Vec<_>>());
        #[allow(clippy::disallowed_methods, reason = "the test joins it")]
        let task = tokio::spawn(async move {
            let mut ids = Vec::new();
            let mut rounds = 0_u32;
            while !stopped.load(Ordering::SeqCst) {
                for queue in &queues {
                    let messages: Vec<_> =
                        (0..5).map(|place| Arc::new(keyed(&format!("{}", place % 3), "traffic"))).collect();
                    ids.extend(messages.iter().map(|message| message.id.to_string()));
                    broker.inner.publish(queue, messages).await.expect("confirmed");
                }
                rounds += 1;
                counted.store(rounds, Ordering::SeqCst);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            ids
        });
        Self { stop, task, sent }
    }

    /// Waits until some more was sent.
    async fn go_on(&self) {
        let before = self.sent.load(Ordering::SeqCst);
        eventually("more is sent", || self.sent.load(Ordering::SeqCst) > before + 3).await;
    }

    async fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("it ends")
    }
}

/// How often each message came out, by the id of the message it came from.
fn came_out(engine: &Engine) -> BTreeMap<String, u32> {
    let mut times = BTreeMap::new();
    for result in engine.published("out") {
        *times.entry(result.correlation_id.clone().expect("where it came from").to_string()).or_default() += 1;
    }
    times
}

fn check_each_once(engine: &Engine, sent: &[String]) {
    let out = came_out(engine);
    let lost: Vec<_> = sent.iter().filter(|id| !out.contains_key(*id)).collect();
    let doubled: Vec<_> = out.iter().filter(|(_, times)| **times > 1).collect();
    assert!(lost.is_empty() && doubled.is_empty(), "lost {}, doubled {:?}, of {}", lost.len(), doubled, sent.len());
    assert_eq!((out.len(), engine.dead().len()), (sent.len(), 0));
}

/// Overwrites a file where it is, in pieces, as a careless deployment does.
async fn overwrite_in_pieces(file: &Path, with: &Path) {
    let bytes = fs::read(with).expect("read");
    let mut file = fs::File::create(file).expect("truncated");
    for piece in bytes.chunks(bytes.len() / 5) {
        file.write_all(piece).expect("written");
        file.flush().expect("flushed");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_swap_under_load_and_each_message_is_handled_once() {
    let route = from_queue("work", "marker").lanes(2).attempts(10);
    let engine = Plan::new().plugin_as(fixture("marker-v1"), "marker").route(route).start().await;
    let versions = [fixture("marker-v1"), fixture("marker-v2")];
    let digests = [engine.digest("marker").expect("it serves"), String::new()];
    let file = engine.plugins().join("marker.wasm");
    let publisher = Publisher::start(&engine.broker, &["work"]);
    let serves = async |which: usize, how: &str| {
        let right = |digest: String| if which == 0 { digest == digests[0] } else { digest != digests[0] };
        eventually(&format!("version {} serves by {how}", which + 1), || engine.digest("marker").is_some_and(right))
            .await;
        publisher.go_on().await;
    };
    let refused = async |bad: &str| {
        let serving = engine.digest("marker");
        engine.install(&fixture(bad), "marker");
        eventually(&format!("{bad} is refused"), || engine.refusal("marker").is_some()).await;
        assert_eq!(engine.digest("marker"), serving);
        publisher.go_on().await;
    };
    publisher.go_on().await;
    for round in 0..2 {
        engine.install(&versions[1], "marker");
        serves(1, "rename").await;
        refused(["wrong-world", "init-error"][round]).await;
        overwrite_in_pieces(&file, &versions[0]).await;
        serves(0, "overwriting").await;
        fs::remove_file(&file).expect("removed");
        eventually("nothing serves", || engine.digest("marker").is_none()).await;
        publisher.go_on().await;
        engine.install(&versions[1], "marker");
        serves(1, "adding").await;
        refused(["imports-unknown", "many-functions"][round]).await;
        // As a ConfigMap does it: a link to a file behind a link to a folder, which is swapped.
        for (place, version) in versions.iter().enumerate() {
            let folder = engine.plugins().join(format!("..{round}-{place}"));
            fs::create_dir(&folder).expect("made");
            fs::copy(version, folder.join("marker.wasm")).expect("copied");
        }
        let swap = |to: String| {
            let new = engine.plugins().join("..new");
            symlink(engine.plugins().join(to), &new).expect("linked");
            fs::rename(new, engine.plugins().join("..data")).expect("swapped");
        };
        swap(format!("..{round}-0"));
        let link = engine.plugins().join("link");
        symlink(engine.plugins().join("..data/marker.wasm"), &link).expect("linked");
        fs::rename(link, &file).expect("renamed");
        serves(0, "linking").await;
        swap(format!("..{round}-1"));
        serves(1, "swapping the link").await;
        swap(format!("..{round}-0"));
        serves(0, "swapping the link back").await;
    }
    let sent = publisher.finish().await;
    engine.queue_done("work").await;
    check_each_once(&engine, &sent);
    let out = engine.out();
    assert!(out.iter().any(|text| text.starts_with("v1 ")) && out.iter().any(|text| text.starts_with("v2 ")));
    let receipts = engine.receipts("marker");
    assert!(receipts.iter().all(|receipt| receipt.digest.is_some()));
    assert!(receipts.iter().any(|receipt| receipt.result == ReloadResult::Removed));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_of_a_file_has_one_receipt() {
    let engine = Plan::new().plugin_as(fixture("marker-v1"), "marker").start().await;
    let steps = ["marker-v2", "wrong-world", "marker-v2", "init-error", "marker-v1"];
    for (place, step) in steps.iter().enumerate() {
        engine.install(&fixture(step), "marker");
        eventually(&format!("{step} has a receipt"), || engine.receipts("marker").len() == place + 2).await;
    }
    fs::remove_file(engine.plugins().join("marker.wasm")).expect("removed");
    eventually("its end has a receipt", || engine.receipts("marker").len() == 7).await;
    let results: Vec<_> = engine
        .receipts("marker")
        .into_iter()
        .map(|receipt| match receipt.result {
            ReloadResult::Loaded => 'L',
            ReloadResult::Refused(_) => 'R',
            ReloadResult::Removed => '-',
            ReloadResult::RolledBack => 'B',
        })
        .collect();
    assert_eq!(results, ['L', 'L', 'R', 'L', 'R', 'L', '-']);
    // Touched, not changed.
    engine.install(&fixture("marker-v2"), "marker");
    eventually("it is back", || engine.receipts("marker").len() == 8).await;
    engine.install(&fixture("marker-v2"), "marker");
    engine.install(&fixture("echo"), "other");
    eventually("the other is there", || engine.receipts("other").len() == 1).await;
    assert_eq!(engine.receipts("marker").len(), 8);
    engine.stop().await;
}

/// Answers under its own name.
fn answering(name: &'static str) -> impl Fn(&Call<'_>) -> Outcome + Send + Sync + 'static {
    move |call| {
        let mut result = Message::new("result", name, call.message.timestamp);
        result.id = call.message.id.derive("out", 0);
        result.correlation_id = Some(call.message.id.to_string().into());
        Outcome::Done(vec![Outbound { destination: "out".into(), message: result }])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_change_under_load_and_each_message_is_handled_once() {
    let engine = Plan::new()
        .native("one", answering("one"))
        .native("two", answering("two"))
        .route(from_queue("kept", "one").lanes(2))
        .route(from_queue("changed", "one"))
        .route(from_queue("removed", "one"))
        .start()
        .await;
    let publisher = Publisher::start(&engine.broker, &["kept", "changed", "removed", "added"]);
    let kept = from_queue("kept", "one").lanes(2);
    let shapes: [Vec<Route>; 4] = [
        vec![kept.clone(), from_queue("changed", "two").lanes(3), from_queue("added", "one")],
        vec![kept.clone(), from_queue("changed", "one").ordered(Order::Key).lanes(2), from_queue("removed", "two")],
        vec![kept.clone(), from_queue("added", "two"), from_queue("removed", "two").timeout(100)],
        vec![
            kept.clone(),
            from_queue("changed", "one").types(&["other"]),
            from_queue("changed", "two").types(&["test.*"]),
            from_queue("removed", "one"),
            from_queue("added", "one"),
        ],
    ];
    for round in 0..12 {
        publisher.go_on().await;
        let mut settings = engine.hub.settings();
        settings.routes = RouteTable::new(shapes[round % shapes.len()].clone()).expect("routes");
        engine.hub.apply(settings, None).await.expect("applied");
    }
    publisher.go_on().await;
    let sent = publisher.finish().await;
    for queue in ["kept", "changed", "removed", "added"] {
        engine.queue_done(queue).await;
    }
    check_each_once(&engine, &sent);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_cannot_be_applied_change_nothing() {
    let strict = embedded::Settings { auto_create: false, ..embedded::Settings::default() };
    let broker = Arc::new(Tap::new(strict));
    let queue =
        |name: &str| helixmq::broker::Declaration::Queue(name.into(), helixmq::broker::QueueSettings::default());
    broker.inner.declare(&["work", "other", "out", DEAD].map(queue)).await.expect("declared");
    let engine = Plan::new()
        .native("one", answering("one"))
        .native("two", answering("two"))
        .route(from_queue("work", "one"))
        .start_on(Arc::clone(&broker))
        .await;
    let before = engine.hub.settings();
    let mut settings = before.clone();
    let routes = vec![from_queue("other", "two"), from_queue("work", "two"), from_queue("zz.missing", "one")];
    settings.routes = RouteTable::new(routes).expect("routes");
    let refused = engine.hub.apply(settings, None).await;
    assert!(
        matches!(&refused, Err(error @ StartError::Missing(_)) if error.to_string().contains("zz.missing")),
        "{refused:?}"
    );
    assert_eq!(engine.hub.settings().routes.iter().count(), 1);
    engine.send_to_queue("work", [message("one")]).await;
    engine.send_to_queue("other", [message("nobody's")]).await;
    engine.queue_done("work").await;
    assert_eq!(engine.out(), ["one"]);
    assert_eq!(engine.left(&Address::queue("other")), 1, "no route of the refused settings runs");
    engine.hub.apply(before, None).await.expect("applied");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_call_ends_on_the_version_it_began_with() {
    let route = from_queue("work", "handler").timeout(1000).attempts(1);
    let engine = Plan::new().plugin_as(fixture("sleep"), "handler").route(route).start().await;
    let old = engine.digest("handler").expect("it serves");
    engine.send_to_queue("work", [message("one")]).await;
    eventually("it is being handled", || engine.stats(&Address::queue("work")).unsettled == 1).await;
    engine.install(&fixture("marker-v2"), "handler");
    eventually("the new one serves", || engine.digest("handler").is_some_and(|digest| digest != old)).await;
    assert_eq!(engine.dead().len(), 0, "the call goes on");
    let second = engine.send_to_queue("work", [message("two")]).await;
    let dead = engine.one_dead().await;
    assert_eq!(dead.letter.handler.map(|handler| handler.digest), Some(old));
    engine.queue_done("work").await;
    assert_eq!(engine.out(), [format!("v2 {}", second[0].id)]);
    engine.stop().await;
}
