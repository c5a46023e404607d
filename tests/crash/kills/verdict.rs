//! What was confirmed against what is left. Anything that should not be is a sentence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    evidence::Evidence,
    phases::{ATTEMPTS_MAX, Phase, RETENTION_BYTES, To},
};

/// Most ids that a sentence names.
const NAMED_MAX: usize = 5;

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) rows: Vec<Row>,
    /// Empty: all is as it should be.
    pub(crate) wrong: Vec<String>,
}

/// Numbers of one phase.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) phase: &'static str,
    pub(crate) kills: u64,
    /// Confirmed.
    pub(crate) published: usize,
    /// Of these: by a handler that returned its result.
    pub(crate) handled: usize,
    pub(crate) dead_lettered: usize,
    /// Still waiting, or still kept.
    pub(crate) pending: usize,
    /// Of a topic with retention: given up, oldest first, because it was full.
    pub(crate) given_up: usize,
    pub(crate) lost: usize,
    /// The highest attempt that a handler saw.
    pub(crate) attempts_max: u64,
    /// Handled or begun more than once, or at a later attempt than the first.
    pub(crate) redelivered: usize,
}

pub(crate) fn judge(phases: &[Phase], kills: &[u64], ledger: &BTreeSet<String>, found: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    for (phase, kills) in phases.iter().zip(kills) {
        verdict.phase(phase, *kills, ledger, found);
    }
    let known = |id: &&String| phases.iter().any(|phase| phase.sent(id).is_some());
    let ids = found.handled.keys().chain(found.runs.keys()).chain(found.dead.keys()).chain(found.pending.keys());
    verdict.found("nobody sent", ids.chain(found.kept.iter().map(|(id, _)| id)).filter(|id| !known(id)));
    verdict
}

impl Verdict {
    fn phase(&mut self, phase: &Phase, kills: u64, ledger: &BTreeSet<String>, found: &Evidence) {
        let confirmed: Vec<&String> = ledger.iter().filter(|id| phase.sent(id).is_some()).collect();
        let mut row = Row { phase: phase.name, kills, published: confirmed.len(), ..Row::default() };
        let mut lost = Vec::new();
        if phase.to == To::Brief {
            (row.pending, row.given_up, lost) = self.kept(phase, &confirmed, found);
        } else {
            for id in confirmed {
                let (handled, dead) = (found.handled.contains_key(id), found.dead.contains_key(id));
                let pending = found.pending.contains_key(id);
                row.handled += usize::from(handled);
                row.dead_lettered += usize::from(dead);
                row.pending += usize::from(pending);
                if !(handled || dead || pending) {
                    lost.push(id);
                }
            }
        }
        row.lost = lost.len();
        self.found(&format!("{}: lost", phase.name), lost.into_iter());
        self.attempts(phase, found, &mut row);
        let ours = |id: &&String| phase.sent(id).is_some();
        if phase.to == To::Kept {
            let twice = found.pending.iter().filter(|(_, times)| **times > 1).map(|(id, _)| id);
            self.found(&format!("{}: there more than once", phase.name), twice.filter(ours));
        } else {
            let waiting = found.pending.keys().filter(ours);
            self.found(&format!("{}: waiting after all was handled", phase.name), waiting);
        }
        let unexplained = found.dead.iter().filter(|(_, letters)| letters.iter().any(|letter| letter.reason.is_none()));
        self.found(&format!("{}: dead without a reason", phase.name), unexplained.map(|(id, _)| id).filter(ours));
        if phase.name == "ordered" {
            self.order(phase, found);
        }
        self.rows.push(row);
    }

    fn attempts(&mut self, phase: &Phase, found: &Evidence, row: &mut Row) {
        let mut attempts: BTreeMap<&String, Vec<u64>> = BTreeMap::new();
        let ours = |id: &String| phase.sent(id).is_some();
        for (id, numbers) in found.handled.iter().chain(&found.runs).filter(|(id, _)| ours(id)) {
            attempts.entry(id).or_default().extend(numbers);
        }
        row.redelivered = attempts.iter().filter(|(_, numbers)| numbers.iter().any(|number| *number > 1)).count();
        row.attempts_max = attempts.values().flatten().copied().max().unwrap_or(0);
        let above = attempts.iter().filter(|(_, numbers)| numbers.iter().any(|number| *number > ATTEMPTS_MAX));
        self.found(&format!("{}: attempts above {ATTEMPTS_MAX}", phase.name), above.map(|(id, _)| *id));
        let runs = found.runs.iter().filter(|(id, numbers)| ours(id) && numbers.len() as u64 > ATTEMPTS_MAX);
        self.found(&format!("{}: begun more than {ATTEMPTS_MAX} times", phase.name), runs.map(|(id, _)| id));
        // A letter may name a later one: the process ended while the message was being given up, and no handler saw it.
        let early = found.dead.iter().filter(|(_, letters)| letters.iter().any(|letter| letter.attempts == 0));
        self.found(
            &format!("{}: dead before its first attempt", phase.name),
            early.map(|(id, _)| id).filter(|id| ours(id)),
        );
    }

    /// Messages with one key are handled in the order in which they were sent, those left out that are dead letters.
    fn order(&mut self, phase: &Phase, found: &Evidence) {
        let mut latest: BTreeMap<usize, u64> = BTreeMap::new();
        let mut overtaken = Vec::new();
        for id in &found.handled_first {
            let Some((publisher, number)) = phase.sent(id) else { continue };
            let latest = latest.entry(publisher).or_default();
            if number < *latest {
                overtaken.push(id);
            }
            *latest = number.max(*latest);
        }
        self.found(&format!("{}: overtaken", phase.name), overtaken.into_iter());
    }

    /// What a topic keeps are the latest of what was confirmed, without a gap, and as many as it may keep. Gives how many
    /// are kept, how many were given up, and what is missing in between.
    fn kept<'a>(
        &mut self,
        phase: &Phase,
        confirmed: &[&'a String],
        found: &Evidence,
    ) -> (usize, usize, Vec<&'a String>) {
        let number = |id: &str| phase.sent(id).map_or(u64::MAX, |(_, number)| number);
        let kept: Vec<u64> = found.kept.iter().map(|(id, _)| number(id)).collect();
        if !kept.is_sorted_by(|a, b| a < b) {
            self.wrong.push(format!("{}: what is kept is not in order, or there twice", phase.name));
        }
        let bytes: usize = found.kept.iter().map(|(_, bytes)| bytes).sum();
        let first = kept.first().copied().unwrap_or(u64::MAX);
        let (before, from): (Vec<&String>, Vec<&String>) = confirmed.iter().partition(|id| number(id) < first);
        // What a message counts beside its data is not known here; the largest is 4000 long.
        if !before.is_empty() && bytes < RETENTION_BYTES / 2 {
            self.wrong.push(format!("{}: {bytes} bytes are kept of {RETENTION_BYTES} that may be", phase.name));
        }
        let lost: Vec<&String> = from.iter().filter(|id| kept.binary_search(&number(id)).is_err()).copied().collect();
        (from.len() - lost.len(), before.len(), lost)
    }

    fn found<'a>(&mut self, what: &str, ids: impl Iterator<Item = &'a String>) {
        let ids: Vec<&str> = ids.map(String::as_str).collect();
        if !ids.is_empty() {
            let named = &ids[..ids.len().min(NAMED_MAX)];
            self.wrong.push(format!("{what}: {} messages, such as {}", ids.len(), named.join(", ")));
        }
    }

    pub(crate) fn lost(&self) -> usize {
        self.rows.iter().map(|row| row.lost).sum()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| phase | kills | published | handled | dead-lettered | pending | given up | lost | attempts max | redelivered |\n\
             |---|---|---|---|---|---|---|---|---|---|"
        )?;
        let mut all = Row { phase: "all", ..Row::default() };
        for row in &self.rows {
            line(f, row)?;
            all.kills += row.kills;
            all.published += row.published;
            all.handled += row.handled;
            all.dead_lettered += row.dead_lettered;
            all.pending += row.pending;
            all.given_up += row.given_up;
            all.lost += row.lost;
            all.attempts_max = all.attempts_max.max(row.attempts_max);
            all.redelivered += row.redelivered;
        }
        line(f, &all)?;
        self.wrong.iter().try_for_each(|wrong| writeln!(f, "WRONG: {wrong}"))
    }
}

fn line(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let Row { phase, kills, published, handled, dead_lettered, pending, given_up, lost, attempts_max, redelivered } =
        row;
    writeln!(
        f,
        "| {phase} | {kills} | {published} | {handled} | {dead_lettered} | {pending} | {given_up} | {lost} | \
         {attempts_max} | {redelivered} |"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kills::{evidence::Letter, phases},
        random::Random,
    };

    /// Everything is there, one of each kind; then one thing is changed.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Evidence), wanted: &[&str]) {
        let phases = phases::all();
        for phase in &phases {
            phase.lines(0, 3, &mut Random::new(1));
        }
        let ids = |names: &[&str]| names.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let ledger = ids(&["publish.0.0", "handle.0.0", "settle.0.0", "ordered.0.0", "ordered.0.1", "retention.0.1"]);
        let mut found = Evidence::default();
        for id in ["handle.0.0", "ordered.0.0", "ordered.0.1"] {
            found.handled.insert(id.into(), vec![1]);
            found.handled_first.push(id.into());
        }
        found.dead.insert("settle.0.0".into(), vec![letter(4)]);
        found.pending.insert("publish.0.0".into(), 1);
        found.kept.push(("retention.0.1".into(), 1000));
        change(&mut found);
        let verdict = judge(&phases, &[0; 9], &ledger, &found);
        let said: Vec<&str> = verdict.wrong.iter().map(String::as_str).collect();
        assert_eq!(said, wanted, "{verdict}");
    }

    fn letter(attempts: u64) -> Letter {
        Letter { reason: Some("HANDLER_REJECTED".into()), attempts }
    }

    #[test]
    fn sees_nothing_wrong_where_nothing_is() {
        check(|_| {}, &[]);
        // Handled and then a dead letter, after a kill in between; in doubt, and there.
        check(|found| drop(found.dead.insert("handle.0.0".into(), vec![letter(4), letter(4)])), &[]);
        check(|found| drop(found.handled.insert("handle.0.2".into(), vec![1, 2])), &[]);
    }

    #[test]
    fn sees_what_is_lost() {
        for (id, wanted) in [
            ("handle.0.0", "handle: lost: 1 messages, such as handle.0.0"),
            ("ordered.0.1", "ordered: lost: 1 messages, such as ordered.0.1"),
        ] {
            check(|found| drop(found.handled.remove(id)), &[wanted]);
        }
        check(|found| found.pending.clear(), &["publish: lost: 1 messages, such as publish.0.0"]);
        check(|found| found.dead.clear(), &["settle: lost: 1 messages, such as settle.0.0"]);
        let gap =
            |found: &mut Evidence| found.kept = vec![("retention.0.0".into(), 1 << 20), ("retention.0.2".into(), 9)];
        check(gap, &["retention: lost: 1 messages, such as retention.0.1"]);
        let early = |found: &mut Evidence| found.kept = vec![("retention.0.2".into(), 9)];
        check(early, &["retention: 9 bytes are kept of 262144 that may be"]);
    }

    #[test]
    fn sees_one_attempt_too_many_or_none() {
        let dead = |found: &mut Evidence| drop(found.dead.insert("settle.0.0".into(), vec![letter(0)]));
        check(dead, &["settle: dead before its first attempt: 1 messages, such as settle.0.0"]);
        let handled = |found: &mut Evidence| drop(found.handled.insert("handle.0.0".into(), vec![5]));
        check(handled, &["handle: attempts above 4: 1 messages, such as handle.0.0"]);
        let runs = |found: &mut Evidence| drop(found.runs.insert("handle.0.0".into(), vec![1, 2, 3, 3, 4]));
        check(runs, &["handle: begun more than 4 times: 1 messages, such as handle.0.0"]);
    }

    #[test]
    fn sees_what_should_not_be() {
        check(
            |found| found.pending.extend([("handle.0.0".to_owned(), 1)]),
            &["handle: waiting after all was handled: 1 messages, such as handle.0.0"],
        );
        check(
            |found| found.pending.extend([("publish.0.0".to_owned(), 2)]),
            &["publish: there more than once: 1 messages, such as publish.0.0"],
        );
        check(
            |found| drop(found.handled.insert("handle.0.3".into(), vec![1])),
            &["nobody sent: 1 messages, such as handle.0.3"],
        );
        check(
            |found| found.dead.get_mut("settle.0.0").unwrap()[0].reason = None,
            &["settle: dead without a reason: 1 messages, such as settle.0.0"],
        );
        check(|found| found.handled_first.reverse(), &["ordered: overtaken: 1 messages, such as ordered.0.0"]);
    }
}
