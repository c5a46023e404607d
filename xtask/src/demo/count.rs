//! What the engine says of the demo's route: from its metrics while it works, and at the end from what lies at the far
//! ends, message by message.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Progress,
    engine::{Engine, LOOK_AGAIN},
};
use crate::Result;

/// How long nothing may move before it is given up.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Dead letters of one page.
const PAGE: &str = "500";

/// Counts of the engine.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Messages that were handled.
    pub(super) handled: u64,
    /// Messages that died.
    pub(super) dead: u64,
    /// Messages that wait, are out, or are to be tried again.
    pub(super) pending: u64,
}

/// What lies at the far ends.
#[derive(Debug, Default)]
pub(super) struct FarEnd {
    /// Alerts, each counted once.
    pub(super) alerts: u64,
    /// Dead letters, each counted once, by the reason that the handler gave.
    pub(super) causes: BTreeMap<String, u64>,
}

/// Waits until every message has been settled.
pub(super) fn settled(engine: &Engine, sent: u64, progress: &mut Progress) -> Result<Counts> {
    let mut last = Counts::default();
    let mut moved = Instant::now();
    loop {
        let now = counts(engine)?;
        progress.show("handled", now.handled + now.dead, sent);
        if now.pending == 0 && now.handled + now.dead >= sent {
            return Ok(now);
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        } else if moved.elapsed() > STALLED_AFTER {
            return Ok(last);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn counts(engine: &Engine) -> Result<Counts> {
    let text = engine.get("/metrics")?;
    Ok(Counts {
        handled: sum(&text, "helixmq_handler_outcomes_total", &["route=\"quakes\"", "outcome=\"done\""]),
        dead: sum(&text, "messaging_dead_lettered_total", &["route=\"quakes\""]),
        pending: sum(&text, "messaging_queue_depth", &["destination=\"topic:quakes\""]),
    })
}

/// Sum of a metric over everything that has these labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let of_name = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let with_labels = of_name.filter(|(there, _)| labels.iter().all(|label| there.split(',').any(|one| one == *label)));
    with_labels.filter_map(|(_, value)| value.trim().parse::<f64>().ok()).map(|value| value as u64).sum()
}

/// Reads the alerts and the dead letters.
pub(super) fn far_end(engine: &Engine) -> Result<FarEnd> {
    let alerts = engine.ask(&["tail", "--queue", "helixagent.tasks.notifications", "--from", "beginning"])?;
    let alerts: BTreeSet<&str> = alerts.iter().filter_map(|alert| alert.get("id")?.as_str()).collect();
    let mut end = FarEnd { alerts: alerts.len() as u64, ..FarEnd::default() };
    let mut seen = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut arguments = vec!["dlq", "list", "--limit", PAGE];
        arguments.extend(cursor.iter().flat_map(|cursor| ["--cursor", cursor]));
        let page = engine.ask(&arguments)?.pop().ok_or("`helixmq dlq list` printed nothing")?;
        for letter in page.get("items").and_then(Value::as_array).into_iter().flatten() {
            let [id, cause] = ["id", "text"].map(|name| letter.get(name).and_then(Value::as_str).unwrap_or_default());
            if seen.insert(id.to_owned()) {
                *end.causes.entry(cause.to_owned()).or_default() += 1;
            }
        }
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() {
            return Ok(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_has_the_labels() {
        let text = "# HELP a A\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na{x=\"11\",y=\"2\"} 5\nab{x=\"1\"} 6\n";
        assert_eq!(sum(text, "a", &["x=\"1\""]), 7);
        assert_eq!(sum(text, "a", &["x=\"1\"", "y=\"2\""]), 3);
        assert_eq!(sum(text, "b", &[]), 0);
    }
}
