//! What is left after the last kill: what handlers said, dead letters, and what still waits.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use serde_json::Value;

use super::phases::{Phase, To};
use crate::{api::Api, site::PATIENCE};

/// By id.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// The attempts at which it was handled, in the order of results.
    pub(crate) handled: BTreeMap<String, Vec<u64>>,
    /// Ids in the order in which they were handled first.
    pub(crate) handled_first: Vec<String>,
    /// The attempts that a handler began, of those that say so.
    pub(crate) runs: HashMap<String, Vec<u64>>,
    pub(crate) dead: BTreeMap<String, Vec<Letter>>,
    /// How often it still waits.
    pub(crate) pending: BTreeMap<String, u64>,
    /// What is kept of a topic with retention, in order, with its bytes.
    pub(crate) kept: Vec<(String, usize)>,
}

#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) reason: Option<String>,
    pub(crate) attempts: u64,
}

/// Waits until handlers have done all there is; fails when there is no progress.
#[track_caller]
pub(crate) fn drain(api: &Api, phases: &[Phase]) {
    let queues: Vec<&str> = phases.iter().filter(|phase| phase.to == To::Queue).map(|phase| phase.name).collect();
    let (mut least, mut since) = (u64::MAX, Instant::now());
    loop {
        let waiting = api.waiting(&queues).expect("the engine runs");
        if waiting == 0 {
            return;
        }
        if waiting < least {
            (least, since) = (waiting, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{waiting} messages wait and nothing happens");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Everything there is, read without consuming it.
pub(crate) fn collect(api: &Api, phases: &[Phase]) -> Evidence {
    let mut found = Evidence::default();
    api.tail("queue=handled", |message| {
        let (id, attempt) = said(&message["payload"]);
        let attempts = found.handled.entry(id.clone()).or_default();
        if attempts.is_empty() {
            found.handled_first.push(id);
        }
        attempts.push(attempt);
    });
    api.tail("topic=runs", |event| {
        let (id, attempt) = said(&event["data"]);
        found.runs.entry(id).or_default().push(attempt);
    });
    for letter in api.dead_letters() {
        let kept = Letter {
            reason: letter["reason"].as_str().map(str::to_owned),
            attempts: letter["attempts_count"].as_u64().unwrap_or(0),
        };
        found.dead.entry(id(&letter)).or_default().push(kept);
    }
    for phase in phases {
        match phase.to {
            To::Kept | To::Queue => api.tail(&format!("queue={}", phase.name), |message| {
                *found.pending.entry(id(&message)).or_default() += 1;
            }),
            To::Brief => api.tail(&format!("topic={}", phase.name), |event| {
                found.kept.push((id(&event), event["data"].as_str().map_or(0, str::len)));
            }),
            To::Topic => {}
        }
    }
    found
}

/// What a witness says.
fn said(evidence: &Value) -> (String, u64) {
    (id(evidence), evidence["attempt"].as_u64().unwrap_or_else(|| panic!("no attempt in {evidence}")))
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_owned()
}
