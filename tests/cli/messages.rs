//! Messages through a running engine: in by `publish`, seen by `tail`, found dead by `dlq`.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::sandbox::{ANY_PORT, Ran, Sandbox, eventually, plugin};

const ROUTES: &str = "routes:
  - {name: orders, queue: orders, handler: echo, destinations: {out: 'queue:results'}}
  - {name: bad, queue: bad, handler: rejects}
";

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{ROUTES}"));
    sandbox.plug("echo");
    sandbox.plug("rejects");
    sandbox
}

#[test]
fn every_line_is_published_and_its_result_seen() {
    let sandbox = sandbox();
    let _engine = sandbox.serve();
    // More than one request takes.
    let input: String = (0..2500).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let arguments = [
        "publish",
        "--queue",
        "orders",
        "--raw",
        "--type",
        "order",
        "--key",
        "k",
        "--header",
        "region=eu",
        "--header",
        "a=b=c",
    ];
    let ran = sandbox.feed(&arguments, &input).ended(0);
    assert_eq!(ran.stderr, "published 2500\n");
    let mut ids: Vec<_> = ran.stdout.lines().map(str::to_owned).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2500);
    let results = eventually(
        || {
            Some(lines(&sandbox.run(&["tail", "--queue", "results", "--json"]).stdout))
                .filter(|results| results.len() == 2500)
        },
        || "not all were handled".to_owned(),
    );
    let first = results.iter().find(|result| result["payload"]["n"] == 0).unwrap();
    assert_eq!((first["type"].as_str(), first["key"].as_str()), (Some("order"), Some("k")));
    assert_eq!((first["headers"]["region"].as_str(), first["headers"]["a"].as_str()), (Some("eu"), Some("b=c")));
    assert_eq!(sandbox.run(&["tail", "--queue", "results", "--limit", "3"]).ended(0).stdout.lines().count(), 3);
}

#[test]
fn a_bad_line_is_named_and_stops_no_other() {
    let sandbox = sandbox();
    let _engine = sandbox.serve();
    let input = "{\"type\":\"a\",\"data\":{\"n\":12345678901234567890123}}\nnot json\n\n{\"id\":5}\n{\"data\":2}";
    let plain = sandbox.feed(&["publish", "--topic", "events", "--type", "b"], input).ended(1);
    let said: Vec<_> = plain.stderr.lines().collect();
    assert!(
        said[0].starts_with("line 2: MESSAGE_INVALID: ") && said[1].starts_with("line 4: MESSAGE_INVALID: "),
        "{said:?}"
    );
    assert_eq!((plain.stdout.lines().count(), said.last()), (2, Some(&"published 2, failed 2")));
    let answers = lines(&sandbox.feed(&["publish", "--topic", "events", "--json"], input).ended(1).stdout);
    let failed: Vec<_> =
        answers.iter().filter(|answer| answer.get("error").is_some()).map(|answer| answer["line"].as_u64()).collect();
    assert_eq!(
        (failed, answers.last().unwrap()),
        (vec![Some(2), Some(4)], &serde_json::json!({ "published": 2, "failed": 2 }))
    );

    let seen = sandbox.run(&["tail", "--topic", "events", "--from", "beginning", "--json"]).ended(0).stdout;
    assert_eq!(seen.matches("12345678901234567890123").count(), 2, "numbers stay as they were written: {seen}");
    let mut types: Vec<_> = lines(&seen).iter().map(|event| event["type"].as_str().unwrap_or("-").to_owned()).collect();
    types.sort_unstable();
    assert_eq!(types, ["-", "a", "a", "b"]);
    assert_eq!(sandbox.run(&["tail", "--topic", "events", "--from", "now"]).ended(0).stdout, "");
}

#[test]
fn what_follows_is_shown_as_it_comes() {
    let sandbox = sandbox();
    let _engine = sandbox.serve();
    sandbox.feed(&["publish", "--topic", "events", "--raw"], "1\n").ended(0);
    let following =
        sandbox.command(&["tail", "--topic", "events", "--from", "beginning", "--follow", "--limit", "2", "--json"]);
    let following = std::thread::spawn(move || Ran::of(following));
    sandbox.feed(&["publish", "--topic", "events", "--raw"], "2\n").ended(0);
    assert_eq!(lines(&following.join().unwrap().ended(0).stdout).len(), 2);
}

#[test]
fn a_follower_does_not_end_without_a_word_when_the_engine_does() {
    let sandbox = sandbox();
    let engine = sandbox.serve();
    sandbox.feed(&["publish", "--topic", "events", "--raw"], "1\n").ended(0);
    let mut following = sandbox.command(&["tail", "--topic", "events", "--from", "beginning", "--follow"]);
    let mut following = following.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut seen = BufReader::new(following.stdout.take().unwrap());
    seen.read_line(&mut String::new()).unwrap();
    engine.signal(Signal::TERM);
    let ended = following.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!((ended.status.code(), said.contains("the engine is stopping")), (Some(4), true), "{said}");
    assert_eq!(engine.end().code(), Some(0));
}

#[test]
fn dead_letters_are_listed_and_shown() {
    let sandbox = sandbox();
    let _engine = sandbox.serve();
    assert_eq!(sandbox.run(&["dlq", "list"]).ended(0).stderr, "no dead letters\n");
    let ids = sandbox
        .feed(&["publish", "--queue", "bad", "--raw", "--header", "reason=no such order"], "{\"n\":1}\n{\"n\":2}\n")
        .ended(0)
        .stdout;
    let list = |arguments: &[&str]| sandbox.run(&[&["dlq", "list", "--json"], arguments].concat()).ended(0).json();
    eventually(|| (list(&[])["total"] == 2).then_some(()), || list(&[]).to_string());
    let first = list(&["--limit", "1"]);
    assert_eq!((first["count"].as_u64(), first["items"][0]["reason"].as_str()), (Some(1), Some("HANDLER_REJECTED")));
    let second = list(&["--limit", "1", "--cursor", first["next_cursor"].as_str().unwrap()]);
    assert_ne!(first["items"][0]["id"], second["items"][0]["id"]);
    assert_eq!(list(&["--route", "orders", "--since", "2020-01-01T00:00:00Z"])["total"], 0);
    let table = sandbox.run(&["dlq", "list"]).ended(0).stdout;
    assert!(table.contains("HANDLER_REJECTED") && table.contains("no such order"), "{table}");

    let id = ids.lines().next().unwrap();
    assert_eq!(sandbox.run(&["dlq", "show", id, "--json"]).ended(0).json()["message"]["payload"]["n"], 1);
    let shown = sandbox.run(&["dlq", "show", id]).ended(0).stdout;
    assert!(shown.contains("message.payload") && shown.contains("{\"n\":1}"), "{shown}");
    assert!(sandbox.run(&["dlq", "show", "nobody"]).ended(5).sentence().contains("nobody"));
}

#[test]
fn plugins_are_listed_with_their_digest_and_nobody_enters_without_a_token() {
    let sandbox = sandbox();
    let _engine = sandbox.serve();
    let digest = helixmq::handler::component::digest(&std::fs::read(plugin("echo")).unwrap());
    let listed = sandbox.run(&["plugin", "list", "--json"]).ended(0).json();
    assert_eq!(
        (listed["items"][0]["name"].as_str(), listed["items"][0]["digest"].as_str()),
        (Some("echo"), Some(digest.as_str()))
    );
    let table = sandbox.run(&["plugin", "list"]).ended(0).stdout;
    assert!(
        table.lines().any(|line| line.starts_with("echo ") && line.contains("serving") && line.contains(&digest[..12])),
        "{table}"
    );
    let mut stranger = sandbox.command(&["plugin", "list"]);
    stranger.env("HELIXMQ_TOKEN", "not-the-token-of-this-engine");
    assert!(Ran::of(stranger).ended(6).sentence().contains("HELIXMQ_TOKEN"));
    assert!(sandbox.run(&["tail", "--queue", "nowhere"]).ended(5).sentence().contains("queue:nowhere"));
    let well = sandbox.run(&["doctor", "--json"]).ended(0).json();
    assert!(
        well["checks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|check| check["found"].as_str().unwrap().starts_with("an engine runs at"))
    );
}
