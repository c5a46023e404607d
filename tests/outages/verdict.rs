//! The account of messages: *sent = handled ∪ dead*, nothing is dead because of an outage, keys are in order, and what comes
//! twice has the same id.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value;

use crate::load::{KEYS, Sent};

/// What became of all messages. Empty: nothing came.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    flows: BTreeMap<String, Flow>,
}

#[derive(Debug, Default)]
struct Flow {
    /// How many arrived of each key, up to the first that has not; and those that came before it.
    of: [u64; KEYS],
    early: [BTreeSet<u64>; KEYS],
    /// How many there should be.
    sent: u64,
    /// Came before one that was sent earlier with the same key.
    overtaken: Vec<String>,
    twice: usize,
    attempt_max: u64,
    strange: Vec<String>,
    dead: Vec<String>,
}

impl Verdict {
    /// One arrives at the far end of a flow.
    pub(crate) fn arrives(&mut self, name: &str, sent: &Sent, payload: &[u8]) {
        let flow = self.flows.entry(name.to_owned()).or_default();
        let said: Value = serde_json::from_slice(payload).unwrap_or_default();
        let id = said["id"].as_str().unwrap_or_default();
        let Some((key, number)) = read(name, id).filter(|(key, number)| *number < sent.of[*key]) else {
            flow.strange.push(String::from_utf8_lossy(payload).into_owned());
            return;
        };
        flow.attempt_max = flow.attempt_max.max(said["attempt"].as_u64().unwrap_or(0));
        if number < flow.of[key] || flow.early[key].contains(&number) {
            flow.twice += 1;
        } else if number > flow.of[key] {
            let attempt = &said["attempt"];
            flow.overtaken.push(format!("{id}, attempt {attempt}, before {}", flow.of[key]));
            flow.early[key].insert(number);
        } else {
            flow.of[key] += 1;
            while flow.early[key].remove(&flow.of[key]) {
                flow.of[key] += 1;
            }
        }
    }

    /// A dead letter is found.
    pub(crate) fn dies(&mut self, name: &str, payload: &[u8]) {
        self.flows.entry(name.to_owned()).or_default().dead.push(String::from_utf8_lossy(payload).into_owned());
    }

    /// Whether everything of a flow that was sent has arrived.
    pub(crate) fn has_all(&mut self, name: &str, sent: &Sent) -> bool {
        let flow = self.flows.entry(name.to_owned()).or_default();
        flow.sent = sent.of.iter().sum();
        flow.of == sent.of
    }

    /// How many messages have not arrived.
    pub(crate) fn missing(&self) -> u64 {
        self.flows.values().map(Flow::missing).sum()
    }

    /// Takes out what was overtaken in a flow, for a scenario that is known not to keep its order always.
    pub(crate) fn take_overtaken(&mut self, flow: &str) -> Vec<String> {
        self.flows.get_mut(flow).map(|flow| std::mem::take(&mut flow.overtaken)).unwrap_or_default()
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_right(&self) -> bool {
        self.flows.values().all(|flow| {
            flow.sent > 0
                && flow.of.iter().sum::<u64>() == flow.sent
                && flow.overtaken.is_empty()
                && flow.strange.is_empty()
                && flow.dead.is_empty()
        })
    }
}

impl Flow {
    fn missing(&self) -> u64 {
        let arrived = self.of.iter().sum::<u64>() + self.early.iter().map(|early| early.len() as u64).sum::<u64>();
        self.sent - arrived
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, flow) in &self.flows {
            write!(f, "{name}: {} sent, {} missing, ", flow.sent, flow.missing())?;
            write!(f, "{} twice, highest attempt {}, ", flow.twice, flow.attempt_max)?;
            for (what, which) in [("dead", &flow.dead), ("overtaken", &flow.overtaken), ("strange", &flow.strange)] {
                write!(f, "{} {what} {:?}, ", which.len(), &which[..which.len().min(8)])?;
            }
        }
        Ok(())
    }
}

/// The key and number in an id.
fn read(flow: &str, id: &str) -> Option<(usize, u64)> {
    let (key, number) = id.strip_prefix(flow)?.strip_prefix('.')?.split_once('.')?;
    Some((key.parse().ok().filter(|key| *key < KEYS)?, number.parse().ok()?))
}
