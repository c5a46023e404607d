//! The whole engine on the embedded broker, without a network: plugins from the fixtures in a folder of their own, a
//! broker in front of the broker that keeps a ledger of everything that passes, and patience instead of sleep.
//!
//! Start at [`Plan`]; a started one is an [`Engine`].

mod plan;
mod routes;
mod running;
mod tap;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use helixmq::message::{Message, now_ms};

pub(crate) use self::{
    plan::{Plan, example, fixture},
    routes::{RouteExt, from_queue, from_topic, route},
    running::{Dead, Engine},
    tap::{Passed, Tap},
};

/// Longer than anything that should happen takes, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Where dead letters go.
pub(crate) const DEAD: &str = "dead";

/// Looks again until it is so, without a guess at how long that takes.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A message that says its name.
pub(crate) fn message(name: impl Into<String>) -> Message {
    Message::new("test.message", name.into(), now_ms())
}

/// The same with a key.
pub(crate) fn keyed(key: &str, name: impl Into<String>) -> Message {
    Message { key: Some(key.to_owned().into()), ..message(name) }
}

/// The same with headers: what most fixtures are told by.
pub(crate) fn with_headers(mut message: Message, headers: &[(&str, &str)]) -> Message {
    for (name, value) in headers {
        message.headers.append(name, value);
    }
    message
}

/// The same of another type.
pub(crate) fn of_type(kind: &str, message: Message) -> Message {
    Message { kind: kind.into(), ..message }
}

/// The payload as text.
pub(crate) fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// The ids, each once.
pub(crate) fn ids<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeSet<String> {
    messages.into_iter().map(|message| message.id.to_string()).collect()
}
