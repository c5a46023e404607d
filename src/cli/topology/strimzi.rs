//! Topics as resources of Kubernetes, for the operator Strimzi, 0.49 and newer. Source: Strimzi, "KafkaTopic schema reference".

use super::kafka::settings_of;
use crate::broker::kafka::Settings;

/// The cluster that they belong to, as a `Kafka` resource names it.
const CLUSTER: &str = "helixagent";

pub(super) fn print(settings: &Settings) -> String {
    let mut text = format!(
        "# Topics for Strimzi's operator, in the cluster {CLUSTER}: put another name there if yours has one. Printed by\n\
         #   helixmq topology export --format strimzi\n"
    );
    for (name, plan) in &settings.topics {
        let resource = resource_name(name);
        text.push_str(&format!(
            "---\napiVersion: kafka.strimzi.io/v1\nkind: KafkaTopic\nmetadata:\n  name: {}\n  labels:\n    \
             strimzi.io/cluster: {CLUSTER}\nspec:\n",
            scalar(&resource)
        ));
        if resource != **name {
            text.push_str(&format!("  topicName: {}\n", scalar(name)));
        }
        text.push_str(&format!("  partitions: {}\n", plan.partitions));
        if let Some(copies) = plan.replication_factor.or(settings.replication_factor) {
            text.push_str(&format!("  replicas: {copies}\n"));
        }
        let config = settings_of(plan);
        if !config.is_empty() {
            text.push_str("  config:\n");
            for (setting, value) in config {
                text.push_str(&format!("    {}: {}\n", scalar(&setting), scalar(&value)));
            }
        }
    }
    text
}

/// Kubernetes takes lower-case letters, digits, '-' and '.', with letters or digits at both ends. Source: RFC 1123.
fn resource_name(topic: &str) -> String {
    let lower: String = topic
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let name = lower.trim_matches(['-', '.']);
    if name.is_empty() { "topic".to_owned() } else { name.to_owned() }
}

/// A word that YAML takes for itself, or a text in quotes.
fn scalar(text: &str) -> String {
    let number = text.parse::<i64>().is_ok();
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && !matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "null" | "yes" | "no" | "on" | "off");
    if number || word { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        for (topic, wanted) in [("a.b-c", "a.b-c"), ("My_Topic", "my-topic"), ("-a-", "a"), ("__", "topic")] {
            assert_eq!(resource_name(topic), wanted);
        }
        for (text, wanted) in [("a.b", "a.b"), ("true", "\"true\""), ("-1", "-1"), ("a b", "\"a b\""), ("", "\"\"")] {
            assert_eq!(scalar(text), wanted);
        }
    }
}
