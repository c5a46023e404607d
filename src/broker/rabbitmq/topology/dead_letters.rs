//! Whether what servers remove from queues arrives anywhere. Pure: it looks at the topology alone.

use std::{fmt, sync::Arc};

use super::{Binding, Queue, Topology};

/// A queue whose dead letters would be lost, or about whose dead letters nothing can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Astray {
    /// Which.
    pub queue: Arc<str>,
    /// Why, and what to do.
    pub reason: String,
}

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}: {}", self.queue, self.reason)
    }
}

/// Every queue with a dead letter exchange from which nothing arrives, by the bindings of the topology. A server drops
/// such messages without a word.
#[must_use]
pub fn astray(topology: &Topology) -> Vec<Astray> {
    let lost = topology.queues.iter().filter_map(|(name, queue)| {
        let reason = reason(topology, name, queue)?;
        Some(Astray { queue: Arc::clone(name), reason })
    });
    lost.collect()
}

fn reason(topology: &Topology, name: &Arc<str>, queue: &Queue) -> Option<String> {
    let to = queue.text("x-dead-letter-exchange")?;
    let key = queue.text("x-dead-letter-routing-key");
    let own = || topology.bindings.iter().filter(|binding| binding.queue == *name);
    if to.is_empty() {
        let key = match key {
            Some(key) => key,
            // A rung: whatever key a message has, it is the name of the queue to return to.
            None if own().any(|binding| binding.exchange == *name) => return None,
            None => {
                return Some(
                    "its dead letters keep their routing key and go to the queue of that name, which may not be there; \
                     name one as x-dead-letter-routing-key"
                        .to_owned(),
                );
            }
        };
        let there = topology.queues.contains_key(key);
        return (!there).then(|| format!("its dead letters go to the queue {key:?}, which is not configured; add it"));
    }
    let Some(exchange) = topology.exchanges.get(to) else {
        return Some(format!(
            "its dead letter exchange {to:?} is not configured; add it under exchanges, and bind a queue"
        ));
    };
    // Without a key of its own, a dead letter keeps the one it came with: one of the queue's bindings, or its name.
    let keys: Vec<&str> = match key {
        Some(key) => vec![key],
        None => own().map(|binding| binding.routing_key.as_str()).chain([&**name]).collect(),
    };
    let from: Vec<&Binding> = topology.bindings.iter().filter(|binding| *binding.exchange == *to).collect();
    let lost = keys.into_iter().find(|key| !from.iter().any(|binding| leads(&exchange.kind, binding, key)))?;
    Some(format!(
        "its dead letters go to the exchange {to} with the routing key {lost:?}, from where no binding leads to a queue; \
         bind one, or name another x-dead-letter-routing-key"
    ))
}

/// Whether a binding takes that key. `key` may be a pattern itself: then whether it takes all that match.
fn leads(exchange: &str, binding: &Binding, key: &str) -> bool {
    match exchange {
        "direct" => binding.routing_key == key,
        "topic" => binding.routing_key == key || matches(&binding.routing_key, key),
        // By headers, or by rules that are not known here: that there is one must do.
        _ => true,
    }
}

/// Whether a pattern of a topic exchange matches. Source: AMQP 0-9-1, section 3.1.3.3. A word of the key that is a
/// wildcard itself is matched by `#` and by the same wildcard only.
pub(super) fn matches(pattern: &str, key: &str) -> bool {
    let key: Vec<_> = key.split('.').collect();
    // For each number of words of the key: whether the pattern so far takes them.
    let mut takes = vec![false; key.len() + 1];
    takes.iter_mut().take(1).for_each(|none| *none = true);
    for part in pattern.split('.') {
        let mut next = Vec::with_capacity(takes.len());
        for place in 0..takes.len() {
            let here = takes.get(place).copied().unwrap_or_default();
            let (before, word) = match place.checked_sub(1) {
                Some(before) => (takes.get(before).copied().unwrap_or_default(), key.get(before).copied()),
                None => (false, None),
            };
            next.push(match part {
                "#" => here || next.last().copied().unwrap_or_default(),
                "*" => before && word != Some("#"),
                _ => before && word == Some(part),
            });
        }
        takes = next;
    }
    takes.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::rabbitmq::topology::{Arguments, Exchange, QueueKind};

    fn check(kind: &str, bindings: &[&str], key: Option<&str>, wanted: Option<&str>) {
        let mut all = Topology::default();
        all.exchanges.insert("dlx".into(), Exchange::durable(kind));
        let mut arguments = Arguments::from([("x-dead-letter-exchange".to_owned(), "dlx".into())]);
        arguments.extend(key.map(|key| ("x-dead-letter-routing-key".to_owned(), key.into())));
        all.queues.insert("q".into(), Queue::durable(QueueKind::Classic, arguments));
        let binding = |exchange: &str, queue: &str, key: &str| Binding {
            exchange: exchange.into(),
            queue: queue.into(),
            routing_key: key.to_owned(),
            arguments: Arguments::new(),
        };
        all.bindings = bindings.iter().map(|key| binding("dlx", "dead", key)).collect();
        all.bindings.push(binding("in", "q", "tasks.*"));
        let got = astray(&all);
        match wanted {
            None => assert_eq!(got, [], "{kind} {bindings:?} {key:?}"),
            Some(words) => assert!(matches!(got.as_slice(), [one] if one.reason.contains(words)), "{got:?}"),
        }
    }

    #[test]
    fn dead_letters_must_arrive_by_a_binding() {
        check("direct", &["dlq"], Some("dlq"), None);
        check("direct", &["dlx"], Some("dlq"), Some("no binding leads"));
        check("direct", &[], Some("dlq"), Some("no binding leads"));
        check("fanout", &["any"], Some("dlq"), None);
        check("fanout", &[], None, Some("no binding leads"));
        check("topic", &["d.#"], Some("d"), None);
        check("topic", &["d.*"], Some("d"), Some("no binding leads"));
        check("topic", &["#"], None, None);
        check("topic", &["tasks.*"], None, Some("\"q\""));
        check("topic", &["tasks.*", "q"], None, None);
        check("topic", &["tasks.one", "q"], None, Some("\"tasks.*\""));
    }

    #[test]
    fn where_they_go_must_be_configured() {
        let queue = |arguments: &[(&str, &str)]| {
            let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
            let mut all = Topology::default();
            all.queues.insert("q".into(), Queue::durable(QueueKind::Quorum, arguments));
            astray(&all).first().map(ToString::to_string).unwrap_or_default()
        };
        assert_eq!(queue(&[]), "");
        assert!(queue(&[("x-dead-letter-exchange", "gone")]).contains("\"gone\" is not configured"));
        assert!(queue(&[("x-dead-letter-exchange", "")]).contains("keep their routing key"));
        let to = |key| queue(&[("x-dead-letter-exchange", ""), ("x-dead-letter-routing-key", key)]);
        assert_eq!(to("q"), "");
        assert!(to("other").contains("\"other\", which is not configured"));
    }

    #[test]
    fn patterns_match_as_a_server_matches_them() {
        for (pattern, key, wanted) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#.c", "a.b.c", true),
            ("#.#.#", "a", true),
            ("*.#", "", true),
            ("a.*", "a.#", false),
            ("a.#.b", "a.b.c", false),
        ] {
            assert_eq!(matches(pattern, key), wanted, "{pattern} {key}");
        }
    }
}
