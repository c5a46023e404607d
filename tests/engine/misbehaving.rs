//! Handlers that break things: each costs its own delivery one attempt, and nothing and nobody else anything.

use std::sync::atomic::{AtomicBool, Ordering};

use helixmq::{
    message::{Message, Outcome, ReasonCode, Settlement},
    route::{Match, Route},
    telemetry::metrics,
};

use crate::{logs, support::*};

/// What one of them does to a message, and what the engine must make of it.
struct Case {
    plugin: &'static str,
    headers: &'static [(&'static str, &'static str)],
    kind: &'static str,
    code: ReasonCode,
    /// Part of the reason.
    says: &'static str,
    /// Whether the reason has a stack beside it.
    backtrace: bool,
    /// Whether it is tried again.
    retried: bool,
}

const CASE: Case = Case {
    plugin: "",
    headers: &[],
    kind: "bad",
    code: ReasonCode::HandlerTrapped,
    says: "",
    backtrace: false,
    retried: true,
};

/// The route to the one that misbehaves: takes what has the header `bad`.
fn bad_route(case: &Case) -> Route {
    // Short only where it is what ends the call: a machine may be busy.
    let timeout = if case.code == ReasonCode::HandlerTimeout { 150 } else { 30_000 };
    let mut route = from_queue("work", case.plugin).named("bad").timeout(timeout).attempts(2);
    route.matches = Match { headers: [("bad".to_owned(), "#".parse().unwrap())].into(), ..Match::default() };
    route
}

fn bad(case: &Case, name: &str) -> Message {
    with_headers(with_headers(of_type(case.kind, message(name)), &[("bad", "yes")]), case.headers)
}

/// Two bad messages among twenty good ones on the same queue, and twenty on another: the bad ones use up their attempts,
/// each with the cause, and the good ones are handled once.
async fn check(case: Case) {
    let echo = from_queue("work", "echo").named("good");
    let other = from_queue("other", "native").to("elsewhere", helixmq::message::Address::queue("elsewhere"));
    let engine = Plan::new()
        .plugin(case.plugin)
        .plugin("echo")
        .native("native", |_| Outcome::Done(Vec::new()))
        .route(bad_route(&case))
        .route(echo)
        .route(other)
        .start()
        .await;
    let good = |from: usize| (from..from + 10).map(|number| message(format!("good {number}")));
    let first = engine.send_to_queue("work", [bad(&case, "bad 1")]).await.remove(0);
    engine.send_to_queue("work", good(0)).await;
    let second = engine.send_to_queue("work", [bad(&case, "bad 2")]).await.remove(0);
    engine.send_to_queue("work", good(10)).await;
    engine.send_to_queue("other", good(20)).await;
    engine.queue_done("work").await;
    engine.queue_done("other").await;

    let mut out = engine.out();
    out.sort_by_key(|name| name.split(' ').next_back().and_then(|number| number.parse::<u32>().ok()));
    assert_eq!(out, (0..20).map(|number| format!("good {number}")).collect::<Vec<_>>(), "{}", case.plugin);
    let dead = engine.some_dead(2).await;
    assert_eq!(ids(dead.iter().map(|dead| &*dead.message)), ids([&*first, &*second]));
    for dead in dead {
        let letter = &dead.letter;
        assert_eq!((letter.code, &letter.handler.as_ref().unwrap().name[..]), (case.code, case.plugin), "{letter:?}");
        assert!(letter.text.contains(case.says), "{}: {:?}", case.plugin, letter.text);
        assert!(!letter.text.contains(char::is_control), "{:?}", letter.text);
        assert_eq!(letter.backtrace.is_some(), case.backtrace, "{}: {letter:?}", case.plugin);
        assert!(letter.text.len() <= 1024 && letter.backtrace.as_ref().is_none_or(|trace| trace.len() <= 8192));
        let attempts = if case.retried { vec![(1, case.code), (2, case.code)] } else { vec![(1, case.code)] };
        assert_eq!(dead.history(), attempts, "{}", case.plugin);
    }
    engine.stop().await;
}

macro_rules! cases {
    ($($name:ident: { $($case:tt)* },)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            check(Case { $($case)*, ..CASE }).await;
        })+
    };
}

cases! {
    a_panic_is_a_trap_with_its_message_and_stack: { plugin: "trap", says: "this handler always panics", backtrace: true },
    an_unreachable_instruction_is_a_trap: { plugin: "trap", kind: "unreachable", says: "unreachable", backtrace: true },
    endless_recursion_is_a_trap: { plugin: "recurse", says: "stack", backtrace: true },
    one_that_never_returns_is_ended_at_its_deadline: { plugin: "spin", code: ReasonCode::HandlerTimeout, says: "within 150 ms", backtrace: true },
    one_that_sleeps_in_the_host_is_ended_at_its_deadline: { plugin: "sleep", code: ReasonCode::HandlerTimeout, says: "within 150 ms", backtrace: true },
    one_that_never_returns_after_its_answer_is_ended: { plugin: "spins-after-answering", code: ReasonCode::HandlerTimeout, says: "within 150 ms", backtrace: true },
    memory_without_end_is_refused: { plugin: "allocate-memory", code: ReasonCode::HandlerOutOfMemory, says: "67108864", backtrace: true },
    many_memories_count_together: { plugin: "allocate-many-memories", code: ReasonCode::HandlerOutOfMemory, backtrace: true },
    memories_of_one_instance_count_together: { plugin: "allocate-multi-memory", code: ReasonCode::HandlerOutOfMemory, backtrace: true },
    tables_count_as_memory: { plugin: "allocate-tables", code: ReasonCode::HandlerOutOfMemory, backtrace: true },
    a_result_larger_than_its_memory_is_refused: { plugin: "returns-huge", code: ReasonCode::HandlerOutOfMemory, backtrace: true },
    a_result_larger_than_a_message_is_refused: { plugin: "returns-huge", headers: &[("bytes", "9000000")], code: ReasonCode::MessageTooLarge, says: "9000" },
    too_many_results_are_refused_all_together: { plugin: "returns-many", code: ReasonCode::HandlerContract, says: "1001 messages" },
    resources_without_end_are_refused: { plugin: "leaks-resources", backtrace: true },
    leaving_is_never_success: { plugin: "exits", says: "exit(0)", backtrace: true },
    leaving_with_a_failure_is_a_failure: { plugin: "exits", kind: "failure", says: "exit(1)", backtrace: true },
    one_that_traps_after_its_answer_has_failed: { plugin: "traps-after-answering", says: "unreachable", backtrace: true },
    an_answer_beyond_its_memory_is_refused: { plugin: "answers-out-of-bounds", code: ReasonCode::HandlerContract },
    an_answer_that_is_no_text_is_refused: { plugin: "answers-bad-text", code: ReasonCode::HandlerContract, says: "utf-8" },
    a_result_that_breaks_the_contract_takes_the_good_one_with_it: { plugin: "breaks-contract", code: ReasonCode::HandlerContract, says: "priority" },
    an_unknown_attribute_breaks_the_contract: { plugin: "breaks-contract", headers: &[("attribute", "colour=green")], code: ReasonCode::HandlerContract, says: "colour" },
    an_empty_id_breaks_the_contract: { plugin: "breaks-contract", headers: &[("attribute", "id=")], code: ReasonCode::HandlerContract, says: "id" },
    a_destination_that_was_not_granted_is_final: { plugin: "publishes-elsewhere", code: ReasonCode::CapabilityDenied, says: "not-granted", retried: false },
    long_names_do_not_make_a_long_reason: { plugin: "traps-with-long-names", says: "unreachable", backtrace: true },
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_handler_that_panics_costs_one_attempt() {
    let panicked = AtomicBool::new(false);
    let engine = Plan::new()
        .native("native", move |call| {
            if call.message.payload == "bad" && !panicked.swap(true, Ordering::SeqCst) {
                panic!("once");
            }
            Outcome::Done(Vec::new())
        })
        .route(from_queue("work", "native"))
        .start()
        .await;
    let sent = engine.send_to_queue("work", [message("good"), message("bad"), message("good")]).await;
    engine.queue_done("work").await;
    let settled = engine.broker.settlements(&sent[1]);
    let [Settlement::Redeliver { failure, .. }, Settlement::Accept] = &settled[..] else { panic!("{settled:?}") };
    assert_eq!((failure.code, failure.text.as_str()), (ReasonCode::HandlerTrapped, "panicked: once"));
    assert_eq!(engine.broker.settlements(&sent[0]), [Settlement::Accept]);
    assert_eq!(engine.broker.settlements(&sent[2]), [Settlement::Accept]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_log_lines_is_bounded_counted_and_escaped() {
    logs::keep();
    let engine = Plan::new().plugin("floods-log").route(from_queue("work", "floods-log").named("flood")).start().await;
    let dropped = metrics().log_lines_dropped.with_label_values(&["floods-log"]);
    let before = dropped.get();
    engine.send_to_queue("work", [with_headers(message("flood"), &[("lines", "20000"), ("bytes", "5000")])]).await;
    engine.queue_done("work").await;
    assert_eq!(engine.dead().len(), 0);
    let lines = logs::of_route("flood");
    assert_eq!(lines.len() as u64 + dropped.get() - before, 20_000);
    // A thousand a second: however long the call took, it was not all of it.
    assert!((1..10_000).contains(&lines.len()), "{} lines", lines.len());
    for line in lines {
        assert!(line.text.len() <= 4096 && line.text.contains("\\u{1b}[31m") && !line.text.contains('\u{1b}'));
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_sees_nothing_it_was_not_granted() {
    let engine = Plan::new()
        .plugin("env-peek")
        .settings("env-peek", &[("greeting", "hello \"you\"")])
        .route(from_queue("work", "env-peek"))
        .start()
        .await;
    engine.send_to_queue("work", [message("peek")]).await;
    engine.queue_done("work").await;
    let report: serde_json::Value = serde_json::from_str(&engine.out()[0]).expect("JSON");
    assert_eq!((&report["variables"], &report["preopens"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["arguments"], 0, "{report}");
    for what in ["connect_error", "listen_error", "lookup_error", "open_error"] {
        assert!(report[what].is_string(), "{what}: {report}");
    }
    assert_eq!(report["greeting"], "hello \"you\"");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_headers_are_not_a_handlers_to_write() {
    let engine = Plan::new().plugin("headers").route(from_queue("work", "headers")).start().await;
    let before = metrics().headers_dropped.get();
    engine.send_to_queue("work", [message("headers")]).await;
    engine.queue_done("work").await;
    let headers = engine.published("out").remove(0).headers.clone();
    assert_eq!(headers.get("colour"), Some("green"));
    assert_eq!((headers.get("x-helix-forged"), headers.get("x-death")), (None, None));
    assert!(metrics().headers_dropped.get() >= before + 2);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_prints_is_kept_in_the_log() {
    logs::keep();
    let engine =
        Plan::new().plugin("writes-output").route(from_queue("work", "writes-output").named("prints")).start().await;
    let sent = engine.send_to_queue("work", [message("print")]).await;
    engine.queue_done("work").await;
    assert_eq!(engine.dead().len(), 0);
    let lines: Vec<_> = logs::of_route("prints").into_iter().map(|line| line.text).collect();
    let id = &sent[0].id;
    assert_eq!(lines, [format!("to standard output: {id}"), format!("to standard error: {id}")]);
    engine.stop().await;
}
