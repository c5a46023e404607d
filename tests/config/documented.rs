//! `docs/configuration.md` has every key with what it takes and its default, and no other.

use std::{collections::BTreeMap, fs};

use helixmq::{broker::topology, config};

#[test]
fn the_documentation_has_every_key_as_it_is_in_the_code() {
    let text = fs::read_to_string("docs/configuration.md").unwrap();
    let mut documented = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [key, takes, default, meaning] = cells.as_slice() else { continue };
        assert!(!meaning.is_empty(), "{key} has no meaning");
        let earlier = documented.insert(key.trim_matches('`').to_owned(), format!("{takes} | {default}"));
        assert!(earlier.is_none(), "{key} is there twice");
    }
    let mut wrong = Vec::new();
    for key in config::keys() {
        let wanted = format!("{} | {}", key.takes, key.default);
        if documented.remove(&key.path).as_deref() != Some(&wanted) {
            wrong.push(format!("| `{}` | {wanted} | … |", key.path));
        }
    }
    assert!(
        wrong.is_empty(),
        "docs/configuration.md must have these lines, each with its meaning:\n{}",
        wrong.join("\n")
    );
    assert!(documented.is_empty(), "docs/configuration.md has keys that do not exist: {documented:?}");
}

#[test]
fn the_documentation_has_the_standard_topology() {
    let text = fs::read_to_string("docs/configuration.md").unwrap();
    for queue in topology::QUEUES.iter().filter(|queue| !queue.rung) {
        assert!(text.contains(&format!("| {} ", queue.name)), "{}", queue.name);
    }
    for topic in topology::TOPICS {
        let hours = topic.retention.as_secs() / 3600;
        let kept = if hours % 24 == 0 { format!("{} d", hours / 24) } else { format!("{hours} h") };
        let row = format!("| {} | {} | {kept} |", topic.name, topic.partitions);
        assert!(text.contains(&row), "{row}");
    }
}
