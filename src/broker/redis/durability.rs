//! What a server would lose, as it is configured: asked once, for `doctor` and for the log at the start. In: a server. Out: its
//! version, how it keeps what it has, and what should be looked at. What to do about it: docs/redis.md.

use std::{collections::BTreeMap, time::Duration};

use redis::{Value, cmd};
use tokio::time::timeout;

use super::{link::Up, settings::Settings, transport};

/// How long the answers may take.
pub(super) const ANSWERS: Duration = Duration::from_secs(5);
/// The oldest that knows what scripts here say of themselves. Source: Redis, "Eval scripts", script flags.
const MAJOR_MIN: u32 = 7;

/// How a server keeps what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// As it says; empty where it does not.
    pub version: String,
    /// In few words, as its configuration has them.
    pub kept: String,
    /// Whether what it confirms is on its disk when it ends; `None`: it does not say.
    pub is_durable: Option<bool>,
    /// What should be looked at: what it is, and what to do.
    pub worries: Vec<(String, String)>,
}

/// Asks a server.
///
/// # Errors
/// A sentence that says why it could not be asked, and what to do.
pub async fn ask(settings: &Settings) -> Result<Durability, String> {
    let (client, driver) = transport::connect(settings).await.map_err(|error| error.text)?;
    let up = Up::once(client);
    tokio::select! {
        biased;
        asked = timeout(ANSWERS, of(&up)) => asked.map_err(|_| format!("Redis did not answer within {ANSWERS:?}")),
        () = driver => Err("Redis ended the connection".to_owned()),
    }
}

/// The same over a connection that is there. What a user may not ask is left out.
pub(super) async fn of(up: &Up) -> Durability {
    let mut said = BTreeMap::new();
    for section in ["server", "persistence", "memory"] {
        let mut command = cmd("INFO");
        command.arg(section);
        if let Ok(Value::BulkString(text)) = up.ask(&command).await {
            let lines = String::from_utf8_lossy(&text).into_owned();
            let pairs = lines.lines().filter_map(|line| line.split_once(':'));
            said.extend(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())));
        }
    }
    // Many that are run by others answer nothing here.
    for name in ["appendfsync", "save"] {
        let mut command = cmd("CONFIG");
        command.arg("GET").arg(name);
        let Ok(answer) = up.ask(&command).await else { continue };
        if let Ok(Some((_, Value::BulkString(value)))) = answer.into_map_iter().map(|mut pairs| pairs.next()) {
            said.insert(name.to_owned(), String::from_utf8_lossy(&value).into_owned());
        }
    }
    judged(&said)
}

fn judged(said: &BTreeMap<String, String>) -> Durability {
    let get = |name: &str| said.get(name).map_or("", String::as_str);
    let mut worries = Vec::new();
    let mut worry = |found: &str, fix: &str| worries.push((found.to_owned(), fix.to_owned()));
    let version = get("redis_version").to_owned();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < MAJOR_MIN) {
        worry("is older than 7.0 and does not know what the scripts ask for", "use Redis 7.0 or newer");
    }
    let kept = match (get("aof_enabled"), get("appendfsync"), get("save")) {
        ("1", "always", _) => "appendonly yes, appendfsync always".to_owned(),
        ("1", "", _) => "appendonly yes".to_owned(),
        ("1", fsync, _) => {
            let up_to =
                if fsync == "everysec" { "the last 2 s" } else { "what the system had not written, 30 s or so" };
            worry(
                &format!("appendfsync is {fsync}: {up_to} of what was confirmed are lost when its machine loses power"),
                "set appendfsync to always, or live with it",
            );
            format!("appendonly yes, appendfsync {fsync}")
        }
        ("0", _, "") if said.contains_key("save") => {
            worry("keeps nothing on disk: all messages are lost when it ends", "set appendonly to yes");
            "appendonly no, no snapshots".to_owned()
        }
        ("0", ..) => {
            worry(
                "appendonly is no: all messages since its last snapshot are lost when it ends",
                "set appendonly to yes, and appendfsync to always",
            );
            "appendonly no".to_owned()
        }
        _ => {
            worry(
                "does not say how it keeps what it has",
                "let the user ask for INFO, or see to it that appendonly is yes",
            );
            "not known".to_owned()
        }
    };
    if get("aof_enabled") == "1" && get("aof_last_write_status") == "err" {
        worry("cannot write its append-only file, and takes nothing until it can", "see its log: is its disk full?");
    }
    let policy = get("maxmemory_policy");
    if !policy.is_empty() && policy != "noeviction" {
        worry(
            &format!(
                "maxmemory-policy is {policy}: where memory is short it throws whole queues away, and tells nobody"
            ),
            "set maxmemory-policy to noeviction",
        );
    }
    let policy = if policy.is_empty() { String::new() } else { format!(", {policy}") };
    // Snapshots are taken now and then: what came since the last is not in them.
    let is_durable = match get("aof_enabled") {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    };
    Durability { version, kept: format!("{kept}{policy}"), is_durable, worries }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_can_be_lost_and_what_to_do() {
        for (said, kept, words) in [
            (
                "aof_enabled=1 appendfsync=always maxmemory_policy=noeviction",
                "appendonly yes, appendfsync always, noeviction",
                vec![],
            ),
            ("aof_enabled=1 appendfsync=everysec", "appendonly yes, appendfsync everysec", vec!["the last 2 s"]),
            ("aof_enabled=1 appendfsync=no", "appendonly yes, appendfsync no", vec!["30 s or so"]),
            ("aof_enabled=1", "appendonly yes", vec![]),
            ("aof_enabled=0 save=", "appendonly no, no snapshots", vec!["keeps nothing on disk"]),
            ("aof_enabled=0 save=3600", "appendonly no", vec!["since its last snapshot"]),
            ("aof_enabled=0", "appendonly no", vec!["since its last snapshot"]),
            ("", "not known", vec!["does not say"]),
            (
                "aof_enabled=1 appendfsync=always maxmemory_policy=allkeys-lru",
                "appendonly yes, appendfsync always, allkeys-lru",
                vec!["throws whole queues away"],
            ),
            (
                "redis_version=6.2.7 aof_enabled=1 appendfsync=always",
                "appendonly yes, appendfsync always",
                vec!["older than 7.0"],
            ),
            (
                "aof_enabled=1 appendfsync=always aof_last_write_status=err",
                "appendonly yes, appendfsync always",
                vec!["cannot write"],
            ),
        ] {
            let pairs = said.split_whitespace().filter_map(|pair| pair.split_once('='));
            let judged = judged(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
            assert_eq!(judged.kept, kept, "{said}");
            let is_durable = (!said.is_empty()).then(|| said.contains("aof_enabled=1"));
            assert_eq!(judged.is_durable, is_durable, "{said}");
            let found: Vec<_> = judged.worries.iter().map(|(found, _)| found.as_str()).collect();
            assert_eq!(found.len(), words.len(), "{said}: {found:?}");
            assert!(found.iter().zip(&words).all(|(found, words)| found.contains(words)), "{said}: {found:?}");
        }
    }
}
