//! Files that must not be taken into service: the version before keeps serving, and the reason names what is wrong.

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use helixmq::{
    handler::ReloadResult,
    message::{Message, Outcome},
};

use crate::support::*;

/// What one of them is, and part of why it is refused.
const REFUSED: &[(&str, &[&str])] = &[
    ("wrong-world", &["exports none of", "acme:reports/printer@1.0.0"]),
    ("wrong-version", &["helix:messaging/", "@0.2.0", "offers helix:messaging@0.1"]),
    ("changed-record", &["field message", "expected record of 12 fields, found 13"]),
    ("imports-unknown", &["acme:secrets/vault@1.0.0", "not offered"]),
    ("init-error", &["init refused", "the model file is missing"]),
    ("init-traps", &["init failed", "unreachable", "init always panics"]),
    ("init-spins", &["init took too long"]),
    ("starts-with-many-memories", &["more than the 67108864 bytes of memory"]),
    ("shared-memory", &["threads"]),
    ("slow-to-compile", &["compiling it "]),
    ("nested-loops", &["nested loops", "at most 64"]),
    ("many-functions", &["number of its functions", "at most 200000"]),
    ("large-function", &["length of one of its functions", "at most 4194304"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_never_replaces_a_good_one() {
    let engine = Plan::new()
        .plugin_as(fixture("marker-v1"), "marker")
        .loading(|loading| {
            loading.init_timeout = Duration::from_secs(1);
            loading.compile_cpu_max = Duration::from_secs(1);
        })
        .route(from_queue("work", "marker"))
        .start()
        .await;
    let serving = engine.digest("marker").expect("it serves");
    let mut sent: Vec<Message> = Vec::new();
    for (name, reasons) in REFUSED {
        let before = engine.receipts("marker").last().map(|receipt| receipt.digest.clone());
        engine.install(&fixture(name), "marker");
        eventually(&format!("{name} is refused"), || {
            engine.receipts("marker").last().map(|receipt| receipt.digest.clone()) != before
        })
        .await;
        let refusal =
            engine.refusal("marker").unwrap_or_else(|| panic!("{name}: {:?}", engine.receipts("marker").last()));
        for reason in *reasons {
            assert!(refusal.contains(reason), "{name}: {refusal:?} does not say {reason:?}");
        }
        assert!(refusal.len() < 9000 && !refusal.contains('\u{1b}'), "{name}: {refusal:?}");
        assert_eq!(engine.digest("marker").as_ref(), Some(&serving), "{name}");
        let one = message(*name);
        sent.push(one.clone());
        engine.send_to_queue("work", [one]).await;
    }
    engine.queue_done("work").await;
    assert_eq!(engine.out(), sent.iter().map(|message| format!("v1 {}", message.id)).collect::<Vec<_>>());
    engine.install(&fixture("marker-v2"), "marker");
    eventually("the good one serves", || engine.digest("marker").is_some_and(|digest| digest != serving)).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_component_is_refused_by_what_it_is() {
    let engine =
        Plan::new().plugin_as(fixture("marker-v1"), "marker").route(from_queue("work", "marker")).start().await;
    let whole = fs::read(fixture("echo")).expect("read");
    let core_module = b"\0asm\x01\0\0\0".to_vec();
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("a core module", core_module, "it is a core module, not a component"),
        ("a file that was cut off", whole[..whole.len() / 2].to_vec(), "not a whole WebAssembly file"),
        ("a text", b"hello, world\n".to_vec(), "it is not a WebAssembly file"),
        ("nothing", Vec::new(), "not a whole WebAssembly file"),
        ("a file with a broken middle", [&whole[..9000], &[0xff; 64][..], &whole[9064..]].concat(), ""),
    ];
    for (what, bytes, reason) in cases {
        let before = engine.receipts("marker").len();
        let file = engine.beside("case");
        fs::write(&file, bytes).expect("written");
        engine.install(&file, "marker");
        eventually(&format!("{what} is refused"), || engine.receipts("marker").len() > before).await;
        let refusal =
            engine.refusal("marker").unwrap_or_else(|| panic!("{what}: {:?}", engine.receipts("marker").last()));
        assert!(refusal.contains(reason), "{what}: {refusal:?}");
    }
    engine.send_to_queue("work", [message("one")]).await;
    engine.queue_done("work").await;
    assert!(engine.out()[0].starts_with("v1 "));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_file_is_refused_whatever_its_time_says() {
    let engine = Plan::new().route(from_queue("work", "marker")).start().await;
    let whole = fs::read(fixture("echo")).expect("read");
    let file = engine.beside("cut");
    fs::write(&file, &whole[..whole.len() / 2]).expect("written");
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    File::options().write(true).open(&file).expect("open").set_modified(tomorrow).expect("set");
    fs::rename(&file, engine.plugins().join("marker.wasm")).expect("renamed");
    eventually("it is refused", || engine.refusal("marker").is_some()).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_under_two_names_is_two_plugins() {
    let cache = tempfile::tempdir().expect("a directory");
    let mut plan = Plan::new().cold(cache.path().join("cache"));
    for name in ["one", "two", "three", "four"] {
        plan = plan.plugin_as(fixture("echo"), name).route(from_queue(name, name));
    }
    let engine = plan.start().await;
    for name in ["one", "two", "three", "four"] {
        engine.send_to_queue(name, [message(name)]).await;
        engine.queue_done(name).await;
    }
    assert_eq!(engine.out(), ["one", "two", "three", "four"]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compiled_once_is_not_compiled_again() {
    let cache = tempfile::tempdir().expect("a directory");
    for cached in [false, true] {
        let engine = Plan::new().cold(cache.path().join("cache")).plugin("echo").start().await;
        assert_eq!(engine.receipts("echo")[0].cached, cached);
        engine.stop().await;
    }
    let left: Vec<_> = fs::read_dir(cache.path().join("cache")).expect("a directory").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_file_that_was_pinned_is_taken() {
    let engine =
        Plan::new().plugin_as(fixture("marker-v1"), "marker").route(from_queue("work", "marker")).start().await;
    let serving = engine.digest("marker").expect("it serves");
    let mut settings = engine.hub.settings();
    settings.plugins.entry("marker".into()).or_default().sha256 = Some(serving.to_uppercase());
    engine.hub.apply(settings, None).await.expect("applied");
    eventually("it is loaded again", || engine.receipts("marker").len() == 2).await;
    engine.install(&fixture("marker-v2"), "marker");
    eventually("the other is refused", || {
        engine.refusal("marker").is_some_and(|reason| reason.contains(&serving.to_uppercase()))
    })
    .await;
    assert_eq!(engine.digest("marker"), Some(serving));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_does_not_take_a_native_handlers_name() {
    let engine =
        Plan::new().native("native", |_| Outcome::Done(Vec::new())).route(from_queue("work", "native")).start().await;
    engine.install(&fixture("echo"), "native");
    eventually("it is refused", || engine.refusal("native").is_some()).await;
    // Nor does it take the handler with it when it goes.
    std::fs::remove_file(engine.plugins().join("native.wasm")).expect("removed");
    engine.install(&fixture("marker-v1"), "marker");
    eventually("the directory was looked at", || engine.digest("marker").is_some()).await;
    engine.send_to_queue("work", [message("one")]).await;
    engine.queue_done("work").await;
    assert_eq!(engine.out(), Vec::<String>::new());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_refuses_to_stop_is_left_after_a_second() {
    let engine =
        Plan::new().plugin_as(fixture("shutdown-spins"), "marker").route(from_queue("work", "marker")).start().await;
    engine.send_to_queue("work", [message("one")]).await;
    engine.queue_done("work").await;
    engine.install(&fixture("marker-v2"), "marker");
    eventually("the next one serves", || engine.receipts("marker").len() == 2).await;
    let sent = engine.send_to_queue("work", [message("two")]).await;
    engine.queue_done("work").await;
    assert_eq!(engine.out(), ["one".to_owned(), format!("v2 {}", sent[0].id)]);
    assert!(engine.receipts("marker").iter().all(|receipt| receipt.result == ReloadResult::Loaded));
    engine.stop().await;
}
