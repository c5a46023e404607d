//! A client of Redis that knows nothing of the engine: what lies in its keys, and what an operator may do to a server.

use std::collections::BTreeSet;

use redis::{Cmd, FromRedisValue, RedisError, Value, aio::MultiplexedConnection, cmd};

use crate::{server::Server, support::soon};

/// What an entry of a stream says, by name.
type Fields = Vec<(String, Vec<u8>)>;

/// A connection of a test's own.
#[derive(Clone)]
pub(crate) struct Raw(MultiplexedConnection);

/// One entry of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    fields: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let found = self.fields.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    /// The id of its message.
    pub(crate) fn id(&self) -> String {
        self.field("id").expect("a message of the engine's")
    }
}

impl Raw {
    pub(crate) async fn connect(server: &Server) -> Self {
        let client = redis::Client::open(format!("redis://{}", server.plain())).expect("a client");
        // Long answers take longer than the library allows.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        let connection = soon("a connection", connection).await;
        Self(connection.expect("a connection"))
    }

    /// Carries out a command, as it would be written.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &str) -> T {
        let answered: Result<T, RedisError> = self.answer(words).await;
        answered.unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    /// The same, whatever it answers.
    pub(crate) async fn answer<T: FromRedisValue>(&self, words: &str) -> Result<T, RedisError> {
        let command: Vec<_> = words.split_whitespace().collect();
        self.send(cmd(command[0]).arg(&command[1..])).await
    }

    async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        soon("an answer", command.query_async(&mut self.0.clone())).await
    }

    /// A figure of `INFO`.
    pub(crate) async fn info(&self, name: &str) -> String {
        let all: String = self.ask("INFO everything").await;
        let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} is not in {all}")).trim().to_owned()
    }

    /// Keys that begin so.
    pub(crate) async fn keys(&self, prefix: &str) -> BTreeSet<String> {
        self.ask(&format!("KEYS {prefix}*")).await
    }

    /// All entries of all streams of a queue or topic, whoever has them.
    pub(crate) async fn entries(&self, prefix: &str, name: &str) -> Vec<Entry> {
        let mut all = Vec::new();
        for key in self.keys(&format!("{prefix}*{{{name}}}:")).await {
            let kept = key.rsplit_once("}:").map(|(_, ending)| ending);
            let is_kept = kept.is_some_and(|ending| {
                ending == "log" || ending.len() <= 3 && ending.starts_with(['p', 'd']) && !ending.starts_with("due")
            });
            let kind: String = self.ask(&format!("TYPE {key}")).await;
            if is_kept && kind == "stream" {
                let rows: Vec<(String, Fields)> = self.ask(&format!("XRANGE {key} - +")).await;
                all.extend(rows.into_iter().map(|(_, fields)| Entry { fields }));
            }
        }
        all
    }

    /// The ids of the messages in a queue or topic.
    pub(crate) async fn ids(&self, prefix: &str, name: &str) -> BTreeSet<String> {
        self.entries(prefix, name).await.iter().map(Entry::id).collect()
    }

    /// Publishes to a channel. How many heard it.
    pub(crate) async fn publish(&self, channel: &str, payload: &str) -> u64 {
        let sent = cmd("PUBLISH").arg(channel).arg(payload).to_owned();
        self.send(&sent).await.expect("published")
    }

    /// Ends the connections of everybody else, as an operator does.
    pub(crate) async fn end_all_others(&self) -> u64 {
        self.ask("CLIENT KILL TYPE normal SKIPME yes").await
    }

    /// Adds a user. `rules` as `ACL SETUSER` has them.
    pub(crate) async fn user(&self, name: &str, rules: &str) {
        let _: Value = self.ask(&format!("ACL SETUSER {name} {rules}")).await;
    }
}
