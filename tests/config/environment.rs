//! What variables mean, as a table: which values they lead to, what is refused, what is warned about.

use std::path::Path;

use helixmq::config::{self, Loaded};

const FILE: &str = "\
telemetry: {filter: warn}
plugins: {directory: tests/fixtures/config/no-plugins}
routes: [{name: audit, topic: audit, handler: audit}]
";

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let env = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    config::load_text(Path::new("messaging.yaml"), text, &env).map_err(|errors| errors.to_string())
}

/// Filter, group, whether it is enabled, and how many warnings there are.
fn holds(variables: &[(&str, &str)], filter: &str, group: &str, enabled: bool, warnings: usize) {
    let loaded = load(FILE, variables).unwrap();
    let route = loaded.config.routes.iter().next().unwrap();
    let got = (&*loaded.config.telemetry.filter, &*route.source.group, loaded.config.enabled, loaded.warnings.len());
    assert_eq!(got, (filter, group, enabled, warnings), "{variables:?}: {:?}", loaded.warnings);
}

fn refused(variables: &[(&str, &str)], words: &str) {
    let said = load(FILE, variables).map(|_| ()).unwrap_err();
    assert!(said.contains(words), "{variables:?}: {said}");
}

#[test]
fn variables_win_over_the_file() {
    holds(&[], "warn", "helixagent-group", true, 0);
    holds(&[("LOG_LEVEL", "info")], "info", "helixagent-group", true, 0);
    holds(&[("LOG_LEVEL", "")], "warn", "helixagent-group", true, 0);
    holds(&[("MESSAGING_DEBUG", "true"), ("LOG_LEVEL", "error")], "debug", "helixagent-group", true, 0);
    holds(&[("MESSAGING_DEBUG", "false")], "warn", "helixagent-group", true, 0);
    holds(&[("MESSAGING_ENABLED", "false")], "warn", "helixagent-group", false, 0);
    holds(&[("MESSAGING_BACKEND", "inmemory")], "warn", "helixagent-group", true, 0);
    holds(&[("MESSAGING_FALLBACK_ENABLED", "false")], "warn", "helixagent-group", true, 0);
    holds(&[("MESSAGING_FALLBACK_ENABLED", "true")], "warn", "helixagent-group", true, 1);
    holds(&[("KAFKA_GROUP_ID", "mine")], "warn", "mine", true, 0);
}

#[test]
fn old_names_are_accepted_with_a_warning_unless_they_contradict() {
    holds(&[("KAFKA_CONSUMER_GROUP", "mine")], "warn", "mine", true, 1);
    holds(&[("KAFKA_CONSUMER_GROUP", "mine"), ("KAFKA_GROUP_ID", "mine")], "warn", "mine", true, 1);
    holds(&[("MESSAGING_FALLBACK_INMEMORY", "false")], "warn", "helixagent-group", true, 1);
    refused(
        &[("KAFKA_CONSUMER_GROUP", "mine"), ("KAFKA_GROUP_ID", "yours")],
        "environment KAFKA_CONSUMER_GROUP: differs from KAFKA_GROUP_ID",
    );
}

#[test]
fn what_makes_no_sense_is_refused_and_never_ignored() {
    refused(&[("MESSAGING_BACKEND", "nats")], "\"nats\" is not a backend");
    refused(&[("MESSAGING_ENABLED", "perhaps")], "environment MESSAGING_ENABLED: messaging.enabled: \"perhaps\"");
    refused(&[("LOG_LEVEL", "warning")], "environment LOG_LEVEL: telemetry.filter: \"warning\" is not a level");
    let said =
        load(FILE, &[("REDIS_PASSWORD", "hunter2"), ("RABBITMQ_URL", "amqp://u:hunter2@h/")]).map(|_| ()).unwrap_err();
    assert!(!said.contains("hunter2"), "{said}");
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_system_that_this_build_has_not_is_refused() {
    refused(&[("MESSAGING_BACKEND", "redis")], "environment MESSAGING_BACKEND: this build has no broker for Redis");
    refused(&[("REDIS_PASSWORD", "hunter2")], "environment REDIS_PASSWORD: this build has no broker for Redis");
}

#[test]
fn a_variable_that_the_file_names_is_not_a_setting() {
    let file = format!("{FILE}\nhttp: {{token: \"${{REDIS_PASSWORD}}\"}}\n");
    assert!(load(&file, &[("REDIS_PASSWORD", "0123456789abcdef")]).is_ok());
}

#[test]
fn what_kubernetes_sets_for_a_service_is_a_warning() {
    holds(&[("REDIS_PORT", "tcp://10.0.0.1:6379")], "warn", "helixagent-group", true, 1);
    holds(&[("RABBITMQ_PORT", "tcp://10.0.0.1:5672")], "warn", "helixagent-group", true, 1);
}

#[test]
fn the_command_lines_token_is_the_engines_unless_the_file_says_otherwise() {
    let token = [("HELIXMQ_TOKEN", "0123456789abcdef")];
    let token_of = |text: &str| load(text, &token).unwrap().config.http.token.map(|token| token.reveal().to_owned());
    assert_eq!(token_of(FILE).as_deref(), Some("0123456789abcdef"));
    assert_eq!(token_of("http: {token: fedcba9876543210}").as_deref(), Some("fedcba9876543210"));
    assert_eq!(token_of("http: {open: true}"), None);
}
