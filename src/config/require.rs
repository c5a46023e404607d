//! `messaging.require`: the systems without which the engine does not start.

use std::sync::Arc;

use super::{
    Backend, Config, kind,
    section::{Given, Reader, Section},
    tree::Value,
    words::{listed, nearest, quoted},
};

const KEY: &str = "require";
/// Most that are named.
const SYSTEMS_MAX: usize = 64;

/// Names, as they stand there: which systems there are is known later.
pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Vec<Given<String>> {
    let path = section.path_of(KEY);
    let Some(node) = section.ask(KEY, "a list of systems: [rabbitmq]", "- (none)") else { return Vec::new() };
    let Value::List(items) = &node.value else {
        let origin = section.origin_of(KEY);
        let fix = "write [rabbitmq], or remove the key";
        section.reader.refuse(origin, &path, format!("is {}, not a list of systems", node.kind()), fix);
        return Vec::new();
    };
    if items.is_empty() {
        let origin = section.origin_of(KEY);
        section.reader.show(&path, "- (none)".to_owned(), origin);
    }
    let items = items.iter().take(SYSTEMS_MAX).enumerate();
    items.filter_map(|(place, item)| section.reader.one(&format!("{path}[{place}]"), item, &kind::name())).collect()
}

/// Refuses what is no system that the configuration uses. The engine's own always is, and always there.
pub(super) fn checked(reader: &mut Reader<'_>, named: Vec<Given<String>>, config: &Config) -> Vec<Arc<str>> {
    let connections = config.connections_in_use();
    let embedded = Backend::Inmemory.name();
    let systems: Vec<&str> = std::iter::once(&embedded).chain(connections.keys()).map(|name| &**name).collect();
    let mut required = Vec::new();
    for (place, given) in named.into_iter().enumerate() {
        let path = format!("messaging.{KEY}[{place}]");
        if systems.iter().any(|system| **system == *given.value) {
            reader.show(&path, given.value.clone(), given.origin);
            required.push(given.value.into());
            continue;
        }
        // One of `connections:` that could not be read: that has been said.
        if reader.unread.contains(&given.value) {
            continue;
        }
        let fix = match nearest(&given.value, systems.iter().copied()) {
            Some(name) => format!("did you mean {name}?"),
            None => format!("remove it, or write {}", listed(&systems, "or")),
        };
        let problem = format!("{} is no system that this configuration uses", quoted(&given.value));
        reader.refuse(given.origin, &path, problem, fix);
    }
    required
}

#[cfg(all(test, feature = "rabbitmq"))]
mod tests {
    use crate::config::load_text;

    #[test]
    fn names_systems_that_are_used() {
        let load = |require: &str| {
            let text = format!("messaging: {{require: {require}}}\nrabbitmq: {{host: a, username: u, password: p}}");
            load_text("x.yaml".as_ref(), &text, &|_| None)
        };
        let required = load("[rabbitmq]").unwrap().config.require;
        assert_eq!(required.iter().map(|name| &**name).collect::<Vec<_>>(), ["rabbitmq"]);
        assert!(load("[]").unwrap().config.require.is_empty());
        load("[rabbitmq, embedded]").unwrap();
        for (require, problem) in [
            ("[kafka]", "\"kafka\" is no system that this configuration uses"),
            ("[rabitmq]", "did you mean rabbitmq?"),
            ("rabbitmq", "is a single value, not a list of systems"),
            ("[[rabbitmq]]", "is a list, not a name"),
        ] {
            let errors = load(require).expect_err(require).to_string();
            assert!(errors.contains(problem), "{require}: {errors}");
        }
    }
}
