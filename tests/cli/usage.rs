//! Calls that make no sense, and calls to an engine that is not there.

use std::{io::Read, process::Stdio};

use crate::sandbox::Sandbox;

#[test]
fn a_wrong_call_ends_with_2_and_says_so_in_json_too() {
    let sandbox = Sandbox::new();
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["publish"],
        &["publish", "--queue", "a", "--topic", "b"],
        &["publish", "--queue", "a", "--header", "novalue"],
        &["publish", "--queue", "a b"],
        &["tail", "--queue", "a", "--from", "yesterday"],
        &["route", "explain"],
        &["dlq", "list", "--since", "noon"],
        &["dlq", "show", "../plugins"],
        &["plugin", "new", "x", "--lang", "cobol"],
        &["plugin", "new", "../x"],
        &["tail", "--queue", "a", "--api", "localhost"],
    ] {
        let plain = sandbox.run(arguments).ended(2);
        assert!(plain.stdout.is_empty() && !plain.stderr.is_empty(), "{arguments:?}");
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        let error = &sandbox.run(&arguments).ended(2).json()["error"];
        for name in ["code", "message", "hint"] {
            assert!(error[name].as_str().is_some_and(|text| !text.is_empty()), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn without_an_engine_it_ends_with_4() {
    let sandbox = Sandbox::with_config("http: {listen: '127.0.0.1:1'}");
    for arguments in [
        &["publish", "--queue", "a"][..],
        &["tail", "--queue", "a"],
        &["dlq", "list"],
        &["dlq", "show", "1"],
        &["plugin", "list"],
    ] {
        let ran = sandbox.feed(arguments, "{}\n").ended(4);
        let said = ran.stderr.lines().last().unwrap();
        assert!(said.contains("no engine answers at http://127.0.0.1:1") && said.contains("helixmq serve"), "{said}");
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        let answer = sandbox.feed(&arguments, "{}\n").ended(4).stdout;
        assert!(answer.lines().last().unwrap().contains(r#""code":"UNREACHABLE""#), "{answer}");
    }
    let nowhere = Sandbox::with_config(crate::sandbox::ANY_PORT);
    assert!(nowhere.run(&["plugin", "list"]).ended(4).sentence().contains("no engine of this configuration runs"));
}

#[test]
#[cfg(feature = "rabbitmq")]
fn a_benchmark_without_its_server_ends_with_4() {
    let sandbox = Sandbox::new();
    let said = sandbox.run(&["bench", "rabbitmq", "--url", "amqp://guest:guest@127.0.0.1:1"]).ended(4);
    assert!(said.sentence().contains("RabbitMQ at 127.0.0.1:1 is not there"), "{}", said.stderr);
    let said = sandbox.run(&["bench", "--compare", "rabbitmq-json", "rabbitmq-json-native"]).ended(4);
    assert!(said.sentence().contains("no RabbitMQ is named"), "{}", said.stderr);
}

#[test]
fn a_file_that_is_not_there_ends_with_5() {
    let sandbox = Sandbox::new();
    assert!(
        sandbox.run(&["publish", "--queue", "a", "--file", "none"]).ended(5).sentence().contains("none cannot be read")
    );
    assert!(sandbox.run(&["plugin", "check", "none"]).ended(5).sentence().contains("there is no file none"));
}

#[test]
fn whoever_has_read_enough_hears_no_more() {
    let sandbox = Sandbox::new();
    let mut child = sandbox.command(&["config", "show"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}
