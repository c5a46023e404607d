//! Whether a store is whole: every page, what the tables must say of each other, and the sum of every message.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::Serialize;

use crate::store::{StoreError, open, read};

/// Most findings of one kind that are told.
const FINDINGS_MAX: i64 = 20;

/// What a check came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// What is wrong, in words; empty: nothing.
    pub findings: Vec<String>,
    /// Messages that were looked at.
    pub messages: u64,
    /// That the disk failed in an earlier run, as it was written down then; the next start verifies the store.
    pub failed: Option<String>,
}

/// What must hold between tables. Each gives one row of text for each mistake.
const RULES: &[&str] = &[
    "SELECT format('lane %d of queue %s says %d messages of %d bytes and has %d of %d', lane & 15,
         coalesce(place.name, '?'), lane.count, lane.bytes, count(key), coalesce(sum(message.bytes), 0))
     FROM lane LEFT JOIN place ON place.place = lane >> 4
     LEFT JOIN message ON key BETWEEN lane << 47 AND (lane << 47 | 140737488355327)
     GROUP BY lane
     HAVING lane.count <> count(key) OR lane.bytes <> coalesce(sum(message.bytes), 0)",
    "SELECT format('%d messages are in the queues and their lanes say %d', there, said)
     FROM (SELECT (SELECT count(*) FROM message) AS there, (SELECT coalesce(sum(count), 0) FROM lane) AS said)
     WHERE there <> said",
    "SELECT format('lane %d of queue %d says %d messages wait, and %d do', lane & 15, lane >> 4, waiting,
         coalesce(there.count, 0))
     FROM lane LEFT JOIN
         (SELECT key >> 47 AS id, count(*) AS count FROM attempt WHERE due IS NOT NULL GROUP BY 1) AS there
         ON there.id = lane.lane
     WHERE waiting <> coalesce(there.count, 0)",
    "SELECT format('lane %d belongs to place %d, which is no queue', lane & 15, lane >> 4)
     FROM lane WHERE lane >> 4 NOT IN (SELECT place FROM place WHERE kind = 'queue')",
    "SELECT format('queue %s has used sequence %d and says that the next is %d', name, used, sequence_next)
     FROM (SELECT lane >> 4 AS id, max(max(handed),
             (SELECT coalesce(max(key) & 140737488355327, 0) FROM message
              WHERE key BETWEEN lane << 47 AND (lane << 47 | 140737488355327))) AS used
         FROM lane GROUP BY lane)
     JOIN place ON place = id WHERE used >= sequence_next",
    "SELECT format('message %d of queue %d is noted and is not there', key & 140737488355327, key >> 51)
     FROM attempt WHERE NOT EXISTS (SELECT 1 FROM message WHERE message.key = attempt.key)",
    "SELECT format('partition %d of topic %s has room for %d messages, of %d bytes, and has %d of %d', number,
         coalesce(place.name, '?'), next - start, partition.bytes, count(key), coalesce(sum(log.bytes), 0))
     FROM partition LEFT JOIN place USING (place)
     LEFT JOIN log ON key BETWEEN partition << 43 | start AND (partition << 43 | 8796093022207)
     GROUP BY partition
     HAVING count(key) > next - start OR partition.bytes <> coalesce(sum(log.bytes), 0)",
    "SELECT format('partition %d has a message at %d and ends at %d', partition, last, next)
     FROM (SELECT partition, next, (SELECT coalesce(max(key) & 8796093022207, -1) FROM log
             WHERE key BETWEEN partition << 43 AND (partition << 43 | 8796093022207)) AS last FROM partition)
     WHERE last >= next",
    "SELECT format('%d messages belong to partition %d, which does not exist', count(*), key >> 43)
     FROM log WHERE key >> 43 NOT IN (SELECT partition FROM partition) GROUP BY key >> 43",
    "SELECT format('group %d is at %d of partition %d, which ends at %d', consumer_group, handed, partition, next)
     FROM progress LEFT JOIN partition USING (partition) WHERE next IS NULL OR handed > next",
    "SELECT format('offset %d of partition %d is noted for group %d and is not there', key & 8796093022207, key >> 43,
         consumer_group)
     FROM retry WHERE NOT EXISTS (SELECT 1 FROM log WHERE log.key = retry.key)",
    "SELECT format('group %d is noted somewhere and does not exist', consumer_group)
     FROM (SELECT consumer_group FROM progress UNION SELECT consumer_group FROM retry)
     WHERE consumer_group NOT IN (SELECT consumer_group FROM consumer_group)",
];

/// Blocking. Reads the whole store of a directory, at about the speed of the disk.
///
/// # Errors
/// The store cannot be read at all. What is wrong with it otherwise is a finding.
pub fn check(directory: &Path) -> Result<Checked, StoreError> {
    let database = open::existing(directory)?;
    let failed = open::marker::find(directory).map_err(|cause| open::failed(directory, "looking at", cause))?;
    let connection = open::reader(&database)?;
    let mut checked = Checked { failed, ..Checked::default() };
    match look(&connection, &mut checked) {
        Ok(()) => {}
        Err(cause) => match StoreError::sqlite("reading the store", cause) {
            StoreError::Damaged { what } => checked.findings.push(what),
            error => return Err(error),
        },
    }
    Ok(checked)
}

fn look(connection: &Connection, checked: &mut Checked) -> rusqlite::Result<()> {
    // All of one moment: a running engine changes sums and rows together.
    let connection = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    checked.findings = open::verify::findings(&connection)?;
    if !checked.findings.is_empty() {
        // What the tables say is worth nothing then.
        return Ok(());
    }
    for rule in RULES {
        let mut mistakes = connection.prepare(&format!("{rule} LIMIT {FINDINGS_MAX}"))?;
        let mistakes = mistakes.query_map([], |row| row.get::<_, String>(0))?;
        checked.findings.extend(mistakes.collect::<Result<Vec<_>, _>>()?);
    }
    for kept in KEPT {
        kept.look(&connection, checked)?;
    }
    Ok(())
}

/// Where messages lie.
struct Kept {
    /// Key first, then what a message is made of.
    messages: &'static str,
    /// Where the message of a key is, for people.
    place: &'static str,
}

const KEPT: &[Kept] = &[
    Kept {
        messages: "SELECT key, id, type, timestamp, rest, payload FROM message",
        place: "SELECT format('message %d of queue %s', ?1 & 140737488355327,
                    coalesce((SELECT name FROM place WHERE place = ?1 >> 51), ?1 >> 51))",
    },
    Kept {
        messages: "SELECT key, id, type, timestamp, rest, payload FROM log",
        place: "SELECT format('offset %d of partition %d of topic %s', ?1 & 8796093022207,
                    coalesce((SELECT number FROM partition WHERE partition = ?1 >> 43), ?1 >> 43),
                    coalesce((SELECT name FROM place JOIN partition USING (place) WHERE partition = ?1 >> 43), '?'))",
    },
];

impl Kept {
    /// Reads every message, as a reader would, so that the sum of each is looked at: SQLite has none.
    fn look(&self, connection: &Connection, checked: &mut Checked) -> rusqlite::Result<()> {
        let mut messages = connection.prepare(self.messages)?;
        let mut rows = messages.query([])?;
        let mut unreadable = 0;
        while let Some(row) = rows.next()? {
            checked.messages += 1;
            let Err(error) = read::message(row, 1) else { continue };
            unreadable += 1;
            if unreadable <= FINDINGS_MAX {
                let place: String = connection.query_row(self.place, [row.get::<_, i64>(0)?], |place| place.get(0))?;
                checked.findings.push(match error {
                    StoreError::Unreadable { what } => format!("{place}: {what}"),
                    error => format!("{place} cannot be read: {error}"),
                });
            }
        }
        if unreadable > FINDINGS_MAX {
            checked.findings.push(format!("{} more cannot be read", unreadable - FINDINGS_MAX));
        }
        Ok(())
    }
}
