//! The consumer that one writes by hand with the client library: what the benchmark measures the engine against. It asks the
//! same of the server (a consumer group, everything acknowledged and deleted once it is handled, results confirmed before
//! that) and nothing of what the engine adds: no connecting again, no leases, no attempts, no priorities, no sandbox. In:
//! entries. Out: what a function makes of them.
//!
//! Start at [`ByHand`]. Nothing of the engine uses this.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use redis::{RedisError, Value, aio::MultiplexedConnection, cmd, pipe, streams::StreamReadReply};

use super::{
    errors,
    place::{GROUP, Place},
    settings::Settings,
    transport::{self, Driver},
};
use crate::{broker::BrokerError, message::Address};

/// Entries that are fetched, and acknowledged, together.
const BATCH: usize = 500;
/// How long a fetch waits, in ms.
const POLL_MS: usize = 50;

/// What a message became.
#[derive(Debug)]
pub(crate) struct Handled {
    /// Its number.
    pub(crate) number: u64,
    /// To be published, and confirmed, before it is acknowledged.
    pub(crate) result: Option<Vec<u8>>,
}

/// The loop, as one consumer of the queue's group.
pub(crate) struct ByHand {
    connection: MultiplexedConnection,
    driver: tokio::sync::Mutex<Driver>,
    stream: String,
    results: Option<String>,
    settings: Settings,
    stop: AtomicBool,
}

impl ByHand {
    /// Connects to read the messages of ordinary priority of a queue that the engine has declared; results go to another.
    ///
    /// # Errors
    /// There is no connection.
    pub(crate) async fn connect(settings: &Settings, queue: &str, results: Option<&str>) -> Result<Self, BrokerError> {
        let connected = transport::connect_library(settings).await;
        let (connection, driver) = connected.map_err(|error| BrokerError::Lost(error.text))?;
        let level = crate::message::PRIORITY_NORMAL;
        let stream = |queue: &str| Place::new(&Address::queue(queue), settings).key(&format!("p{level}"));
        Ok(Self {
            connection,
            driver: driver.into(),
            stream: stream(queue),
            results: results.map(stream),
            settings: settings.clone(),
            stop: AtomicBool::new(false),
        })
    }

    /// Reads until it is told to stop. `handle` gets the id and the payload of each message; `note` the numbers of those that
    /// were acknowledged.
    ///
    /// # Errors
    /// Whatever goes wrong: nothing is tried again.
    pub(crate) async fn run(
        &self,
        handle: impl Fn(&str, &[u8]) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), BrokerError> {
        let mut driver = self.driver.lock().await;
        tokio::select! {
            read = self.read(handle, note) => read.map_err(|error| errors::seam(&self.settings, &error)),
            () = &mut *driver => Err(BrokerError::Lost("the connection was lost".to_owned())),
        }
    }

    async fn read(&self, handle: impl Fn(&str, &[u8]) -> Handled, note: impl Fn(&[u64])) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        let mut fetch = cmd("XREADGROUP");
        fetch.arg("GROUP").arg(GROUP).arg("by-hand").arg("COUNT").arg(BATCH).arg("BLOCK").arg(POLL_MS);
        fetch.arg("STREAMS").arg(&self.stream).arg(">");
        while !self.stop.load(Relaxed) {
            let reply: Option<StreamReadReply> = fetch.query_async(&mut connection).await?;
            let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
            let (mut ids, mut numbers, mut results) = (Vec::new(), Vec::new(), pipe());
            for entry in entries {
                let field = |name: &str| match entry.map.get(name) {
                    Some(Value::BulkString(value)) => value.as_slice(),
                    _ => &[],
                };
                let id = std::str::from_utf8(field("id")).unwrap_or_default();
                let Handled { number, result } = handle(id, field("payload"));
                if let (Some(stream), Some(result)) = (&self.results, &result) {
                    results.cmd("XADD").arg(stream).arg("*").arg("id").arg(id).arg("payload").arg(result).ignore();
                }
                numbers.push(number);
                ids.push(entry.id);
            }
            if ids.is_empty() {
                continue;
            }
            if !results.is_empty() {
                results.exec_async(&mut connection).await?;
            }
            let mut done = pipe();
            done.cmd("XACK").arg(&self.stream).arg(GROUP).arg(&ids).ignore();
            done.cmd("XDEL").arg(&self.stream).arg(&ids).ignore();
            done.exec_async(&mut connection).await?;
            note(&numbers);
        }
        Ok(())
    }

    /// Ends the loop.
    pub(crate) fn close(&self) {
        self.stop.store(true, Relaxed);
    }
}

/// Removes the queues of a run.
///
/// # Errors
/// What the server says against it: they are still there.
pub(crate) async fn remove(settings: &Settings, queues: &[&str]) -> Result<(), BrokerError> {
    let connected = transport::connect_library(settings).await;
    let (mut connection, mut driver) = connected.map_err(|error| BrokerError::Lost(error.text))?;
    let mut command = cmd("DEL");
    for queue in queues {
        let place = Place::new(&Address::queue(*queue), settings);
        command.arg(&place.base);
        for name in place.streams().iter().map(String::as_str).chain(["due", "tries", "bell"]) {
            command.arg(place.key(name));
        }
    }
    tokio::select! {
        removed = command.exec_async(&mut connection) => removed.map_err(|error| errors::seam(settings, &error)),
        () = &mut driver => Err(BrokerError::Lost("the connection was lost".to_owned())),
    }
}
