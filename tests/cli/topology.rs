//! RabbitMQ's topology without a server: what is exported, and what is said where there is nothing to compare with.

use std::fs;

use crate::sandbox::{ANY_PORT, Sandbox};

#[test]
fn the_standard_topology_is_exported_as_committed() {
    let committed = fs::read_to_string("configs/rabbitmq/definitions.json").unwrap();
    let sandbox = Sandbox::with_config(ANY_PORT);
    assert_eq!(sandbox.run(&["topology", "export"]).ended(0).stdout, committed);
    sandbox.run(&["topology", "export", "--file", "written.json"]).ended(0);
    assert_eq!(fs::read_to_string(sandbox.path("written.json")).unwrap(), committed);
}

#[test]
fn without_rabbitmq_there_is_nothing_to_compare_with() {
    let ended = Sandbox::with_config(ANY_PORT).run(&["topology", "plan"]).ended(3);
    assert!(ended.sentence().contains("add a section `rabbitmq:`"), "{}", ended.stderr);
}

#[test]
fn a_server_that_is_not_there_is_said() {
    let rabbitmq = "rabbitmq: {host: 127.0.0.1, port: 1, username: u, password: hunter2}\n";
    let sandbox = Sandbox::with_config(&format!("{ANY_PORT}{rabbitmq}"));
    for verb in ["plan", "apply"] {
        let ended = sandbox.run(&["topology", verb]).ended(4);
        assert!(ended.sentence().contains("127.0.0.1:1"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"));
    }
}
