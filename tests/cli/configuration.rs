//! What of a configuration, or of the machine, is refused, and how it is said.

use std::{fs, net::TcpListener, os::unix::fs::symlink, path::Path};

use crate::sandbox::{ANY_PORT, Ran, Sandbox};

#[test]
fn every_mistake_is_named_at_once() {
    let run = |arguments: &[&str]| {
        let mut command = Sandbox::new().command(arguments);
        // Its paths are those of the project.
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        Ran::of(command).ended(3)
    };
    let file = "tests/fixtures/config/six-mistakes.yaml";
    let wanted = fs::read_to_string(Path::new(file).with_extension("expected")).unwrap();
    for verb in [&["config", "check"][..], &["config", "show"], &["serve"], &["serve", "--check"], &["route", "list"]] {
        let arguments: Vec<_> = verb.iter().copied().chain(["--config", file]).collect();
        let ran = run(&arguments);
        assert_eq!(ran.stdout, "");
        let (first, rest) = ran.stderr.split_once('\n').unwrap();
        assert_eq!(
            first,
            format!(
                "error: the configuration of {file} has 6 mistakes, and nothing of it is in force; correct what follows"
            )
        );
        assert_eq!(rest, wanted);
    }
    let error = &run(&["config", "check", "--json", "--config", file]).json()["error"];
    assert_eq!((error["code"].as_str(), error["mistakes"].as_array().map(Vec::len)), (Some("INVALID_CONFIG"), Some(6)));
}

#[test]
fn a_sound_configuration_is_shown_with_its_origins_and_without_its_secrets() {
    let sandbox =
        Sandbox::with_config("http: {token: '${SECRET_OF_TEST}'}\nroutes: [{name: a, queue: b, handler: c}]\n");
    let run = |arguments: &[&str]| {
        let mut command = sandbox.command(arguments);
        command.env("SECRET_OF_TEST", "0123456789abcdef0123456789abcdef");
        Ran::of(command).ended(0)
    };
    assert!(run(&["config", "check"]).stdout.starts_with("configs/messaging.yaml is sound: 1 routes"));
    assert_eq!(run(&["config", "check", "--json"]).json()["routes"], 1);
    let shown = run(&["config", "show"]).stdout;
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
    let line =
        |path: &str| shown.lines().find(|line| line.starts_with(path)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("http.token "), ["http.token", "***", "configs/messaging.yaml:1"]);
    assert_eq!(line("http.listen "), ["http.listen", "127.0.0.1:7061", "default"]);
    let values = run(&["config", "show", "--json"]).json();
    assert!(
        values["values"]
            .as_array()
            .unwrap()
            .iter()
            .any(|value| value["path"] == "routes[0].handler" && value["value"] == "c")
    );
}

#[test]
fn what_is_not_there_is_said_in_a_sentence() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    let none = sandbox.run(&["serve", "--config", "none.yaml"]).ended(3);
    assert!(none.sentence().contains("there is no configuration file none.yaml"));
    let none = sandbox.run(&["serve", "--plugins", "none"]).ended(3);
    assert!(none.sentence().contains("the directory none cannot be read"));
    sandbox.write("others/a.toml", "");
    let others = sandbox.run(&["serve", "--plugins", "others"]).ended(3);
    assert!(others.sentence().contains("others/a.toml would not be read"));
}

#[test]
fn a_plugins_directory_that_cannot_be_read_is_refused() {
    let sandbox = Sandbox::with_config("plugins: {directory: loop}\n");
    // A permission would not keep root out.
    symlink("loop", sandbox.path("loop")).unwrap();
    for verb in [&["serve"][..], &["serve", "--check"]] {
        assert!(sandbox.run(verb).ended(3).sentence().contains("the plugins directory loop cannot be read"));
    }
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}engine: {{data_directory: file/data}}\n"));
    sandbox.write("file", "");
    let ran = sandbox.run(&["serve"]).ended(1);
    assert!(ran.sentence().contains("the data directory file/data cannot be used"), "{}", ran.stderr);
}

#[test]
fn a_port_in_use_is_said_in_a_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sandbox = Sandbox::with_config(&format!("http: {{listen: '{address}'}}\n"));
    let ran = sandbox.run(&["serve"]).ended(1);
    assert!(ran.sentence().contains(&format!("something else listens on {address} already")));
    assert_eq!(sandbox.run(&["serve", "--json"]).ended(1).json()["error"]["code"], "PORT_IN_USE");
}

#[test]
fn the_doctor_finds_what_is_wrong_and_makes_nothing() {
    let sandbox = Sandbox::with_config(ANY_PORT);
    let well = sandbox.run(&["doctor", "--json"]).ended(0).json();
    assert_eq!(well["ok"], true);
    assert!(well["checks"].as_array().unwrap().len() >= 11);
    assert!(!sandbox.path(".helixmq").exists());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    sandbox.write(
        "configs/messaging.yaml",
        format!("http: {{listen: '{address}'}}\nengine: {{data_directory: configs/messaging.yaml/x}}\n"),
    );
    let ill = sandbox.run(&["doctor"]).ended(1).stdout;
    let failed: Vec<_> = ill.lines().filter(|line| line.starts_with("fail")).collect();
    assert_eq!(failed.len(), 2, "{ill}");
    assert!(
        failed[0].contains("data directory")
            && failed[1].contains("port")
            && failed.iter().all(|line| line.contains("; "))
    );

    sandbox.write("configs/messaging.yaml", "bogus: 1");
    assert!(sandbox.run(&["doctor"]).ended(1).stdout.contains("fail  configuration"));
}
