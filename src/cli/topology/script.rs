//! Topics as a shell script for the tools that come with Kafka, as a container that runs once takes it.

use super::kafka::settings_of;
use crate::broker::kafka::Settings;

const HEAD: &str = r#"#!/bin/sh
# Makes topics that are missing, and changes nothing that is there. Printed by
#   helixmq topology export --format kafka-init
# Kafka's bin/ must be in PATH. BOOTSTRAP_SERVERS says where Kafka is, COMMAND_CONFIG is a file with what its clients need to
# be let in (security.protocol, sasl.jaas.config, ...).
set -eu
: "${BOOTSTRAP_SERVERS:=localhost:9092}"

# topic NAME PARTITIONS OPTIONS...
topic() {
  name=$1 partitions=$2
  shift 2
  kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
    --create --if-not-exists --topic "$name" --partitions "$partitions" "$@"
}

"#;

pub(super) fn print(settings: &Settings) -> String {
    let mut text = HEAD.to_owned();
    for (name, plan) in &settings.topics {
        let mut line = format!("topic {name} {}", plan.partitions);
        if let Some(copies) = plan.replication_factor.or(settings.replication_factor) {
            line.push_str(&format!(" --replication-factor {copies}"));
        }
        for (setting, value) in settings_of(plan) {
            line.push_str(" --config ");
            line.push_str(&quoted(&format!("{setting}={value}")));
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=' | ',' | ':' | '/');
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell_stay_one_word() {
        for (text, wanted) in [("a.b=1", "a.b=1"), ("a=b c", "'a=b c'"), ("a=$(x)", "'a=$(x)'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(quoted(text), wanted);
        }
    }
}
