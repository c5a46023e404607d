//! Plugins before they serve: looked at, refused, begun.

use std::fs;

use crate::sandbox::{ANY_PORT, Sandbox, plugin};

#[test]
fn a_file_that_would_serve_is_shown_with_its_digest() {
    let sandbox = Sandbox::new();
    let file = plugin("echo");
    let shown = sandbox.run(&["plugin", "check", file.to_str().unwrap(), "--json"]).ended(0).json();
    let digest = helixmq::handler::component::digest(&fs::read(&file).unwrap());
    assert_eq!((shown["serves"].as_bool(), shown["digest"].as_str()), (Some(true), Some(digest.as_str())));
    assert_eq!(shown["handles"], serde_json::json!(["tasks"]));
    assert!(
        shown["exports"]
            .as_array()
            .unwrap()
            .iter()
            .any(|export| export.as_str().unwrap().starts_with("helix:messaging/task-handler@"))
    );
    assert_eq!(fs::read_dir(sandbox.path("")).unwrap().count(), 0, "a look leaves nothing behind");
}

#[test]
fn a_file_that_would_not_serve_is_refused_with_its_reason() {
    let sandbox = Sandbox::new();
    let whole = fs::read(plugin("echo")).unwrap();
    sandbox.write("garbage.wasm", "this is text");
    sandbox.write("empty.wasm", "");
    sandbox.write("truncated.wasm", &whole[..whole.len() / 2]);
    sandbox.write("core.wasm", b"\0asm\x01\0\0\0");
    fs::create_dir(sandbox.path("directory.wasm")).unwrap();
    for (name, file) in
        [("init-error", "init-error.wasm"), ("wrong-world", "wrong-world.wasm"), ("nested-loops", "nested-loops.wasm")]
    {
        fs::copy(plugin(name), sandbox.path(file)).unwrap();
    }
    for (file, code, reason) in [
        ("garbage.wasm", "NOT_WASM", "it is not a WebAssembly file"),
        ("empty.wasm", "NOT_WHOLE", "it is not a whole WebAssembly file"),
        ("truncated.wasm", "NOT_WHOLE", "it is not a whole WebAssembly file"),
        ("core.wasm", "CORE_MODULE", "it is a core module, not a component"),
        ("directory.wasm", "UNREADABLE", "it is a directory"),
        ("wrong-world.wasm", "NO_HANDLER", "it exports none of"),
        ("nested-loops.wasm", "TOO_LARGE", "the depth of nested loops"),
        ("init-error.wasm", "NOT_STARTED", "init"),
    ] {
        let ran = sandbox.run(&["plugin", "check", file]).ended(3);
        assert!(
            ran.sentence().contains(&format!("{file} would not serve: ")) && ran.stderr.contains(reason),
            "{}",
            ran.stderr
        );
        assert_eq!(sandbox.run(&["plugin", "check", file, "--json"]).ended(3).json()["error"]["code"], code, "{file}");
    }
}

#[test]
fn a_new_plugin_is_written_and_an_old_one_stays() {
    let sandbox = Sandbox::new();
    let said = sandbox.run(&["plugin", "new", "order-triage"]).ended(0).stdout;
    assert!(said.contains("helixmq plugin check target/wasm32-wasip2/release/order_triage.wasm"), "{said}");
    assert!(fs::read_to_string(sandbox.path("order-triage/Cargo.toml")).unwrap().contains("name = \"order-triage\""));
    assert!(sandbox.path("order-triage/wit/types.wit").exists());
    sandbox.write("order-triage/src/lib.rs", "mine");
    let again = sandbox.run(&["plugin", "new", "order-triage"]).ended(1);
    assert!(again.sentence().contains("order-triage is there already"));
    assert_eq!(fs::read_to_string(sandbox.path("order-triage/src/lib.rs")).unwrap(), "mine");
}

#[test]
fn a_check_of_everything_loads_every_plugin_and_starts_nothing() {
    let sandbox = Sandbox::with_config(&format!(
        "{ANY_PORT}routes:\n  - {{name: orders, queue: orders, handler: echo}}\n  - {{name: later, queue: later, handler: not-there}}\n"
    ));
    sandbox.plug("echo");
    let well = sandbox.run(&["serve", "--check"]).ended(0);
    assert!(well.stdout.lines().any(|line| line.contains("orders") && line.contains("serves")), "{}", well.stdout);
    assert!(
        well.stderr.contains("warning: route later: there is no plugins-enabled/not-there.wasm"),
        "{}",
        well.stderr
    );
    assert!(!sandbox.path(".helixmq/address").exists());

    sandbox.plug("init-error");
    sandbox.write("plugins-enabled/echo.toml", "[[routes]]\nname = \"events\"\ntopic = \"events\"\n");
    let ill = sandbox.run(&["serve", "--check", "--json"]).ended(3);
    let mut documents = ill.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert_eq!(documents.next().unwrap()["plugins"][1]["state"], "refused");
    let refusals = documents.next().unwrap()["error"]["refusals"].clone();
    assert!(refusals[0].as_str().unwrap().starts_with("plugin init-error: "), "{refusals}");
    assert!(
        refusals[1]
            .as_str()
            .unwrap()
            .starts_with("route events: its handler echo does not handle what comes from a topic"),
        "{refusals}"
    );
}
