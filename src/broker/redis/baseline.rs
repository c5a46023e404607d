//! The consumer that one writes by hand with the client library: what the benchmark measures the engine against. It promises
//! the same for what it handles: a consumer group, everything deleted and acknowledged once it is handled, results confirmed
//! before that, signs of life while handling takes long, and what another consumer had for longer than a lease taken over,
//! with the count of its attempts. It has nothing of what the engine adds: no connecting again, no retries, no priorities, no
//! sandbox. In: entries. Out: what a function makes of them.
//!
//! Start at [`ByHand`]. Nothing of the engine uses this.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use redis::{
    RedisError, Value,
    aio::MultiplexedConnection,
    cmd, pipe,
    streams::{StreamAutoClaimReply, StreamId, StreamPendingCountReply, StreamReadReply},
};

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
/// How often it looks for what others left.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// Its name in the group.
const CONSUMER: &str = "by-hand";

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

    /// Reads until it is told to stop. `handle` gets the id, the payload and the attempt of each message; `note` the numbers of
    /// those that were acknowledged.
    ///
    /// # Errors
    /// Whatever goes wrong: nothing is tried again.
    pub(crate) async fn run(
        &self,
        handle: impl Fn(&str, &[u8], usize) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), BrokerError> {
        let mut driver = self.driver.lock().await;
        tokio::select! {
            read = self.read(handle, note) => read.map_err(|error| errors::seam(&self.settings, &error)),
            () = &mut *driver => Err(BrokerError::Lost("the connection was lost".to_owned())),
        }
    }

    async fn read(
        &self,
        handle: impl Fn(&str, &[u8], usize) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        let mut fetch = cmd("XREADGROUP");
        fetch.arg("GROUP").arg(GROUP).arg(CONSUMER).arg("COUNT").arg(BATCH).arg("BLOCK").arg(POLL_MS);
        fetch.arg("STREAMS").arg(&self.stream).arg(">");
        let mut claimed_at = Instant::now();
        while !self.stop.load(Relaxed) {
            if claimed_at.elapsed() >= CLAIM_EVERY {
                let left = self.claim(&mut connection).await?;
                self.handle_all(&mut connection, left, &handle, &note).await?;
                claimed_at = Instant::now();
            }
            let reply: Option<StreamReadReply> = fetch.query_async(&mut connection).await?;
            let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
            self.handle_all(&mut connection, entries.map(|entry| (entry, 1)).collect(), &handle, &note).await?;
        }
        Ok(())
    }

    /// Takes over what others had for longer than a lease. Answers each with its attempt.
    async fn claim(&self, connection: &mut MultiplexedConnection) -> Result<Vec<(StreamId, usize)>, RedisError> {
        let mut claim = cmd("XAUTOCLAIM");
        claim.arg(&self.stream).arg(GROUP).arg(CONSUMER).arg(self.lease_ms()).arg("0-0").arg("COUNT").arg(BATCH);
        let left: StreamAutoClaimReply = claim.query_async(connection).await?;
        let (Some(first), Some(last)) = (left.claimed.first(), left.claimed.last()) else { return Ok(Vec::new()) };
        let mut count = cmd("XPENDING");
        count.arg(&self.stream).arg(GROUP).arg(&first.id).arg(&last.id).arg(left.claimed.len()).arg(CONSUMER);
        let counted: StreamPendingCountReply = count.query_async(connection).await?;
        let attempt = |entry: &StreamId| {
            counted.ids.iter().find(|pending| pending.id == entry.id).map_or(1, |pending| pending.times_delivered)
        };
        Ok(left
            .claimed
            .into_iter()
            .map(|entry| (attempt(&entry), entry))
            .map(|(count, entry)| (entry, count))
            .collect())
    }

    /// Handles entries, and acknowledges them together.
    async fn handle_all(
        &self,
        connection: &mut MultiplexedConnection,
        entries: Vec<(StreamId, usize)>,
        handle: &impl Fn(&str, &[u8], usize) -> Handled,
        note: &impl Fn(&[u64]),
    ) -> Result<(), RedisError> {
        if entries.is_empty() {
            return Ok(());
        }
        let lease = Duration::from_millis(self.lease_ms());
        let (mut numbers, mut results, mut alive_at) = (Vec::new(), pipe(), Instant::now());
        for (entry, attempt) in &entries {
            let field = |name: &str| match entry.map.get(name) {
                Some(Value::BulkString(value)) => value.as_slice(),
                _ => &[],
            };
            let id = std::str::from_utf8(field("id")).unwrap_or_default();
            let Handled { number, result } = handle(id, field("payload"), *attempt);
            if let (Some(stream), Some(result)) = (&self.results, &result) {
                results.cmd("XADD").arg(stream).arg("*").arg("id").arg(id).arg("payload").arg(result).ignore();
            }
            numbers.push(number);
            if alive_at.elapsed() >= lease / 3 {
                let mut alive = cmd("XCLAIM");
                alive.arg(&self.stream).arg(GROUP).arg(CONSUMER).arg(0);
                entries.iter().for_each(|(entry, _)| {
                    alive.arg(&entry.id);
                });
                alive.arg("JUSTID").exec_async(connection).await?;
                alive_at = Instant::now();
            }
        }
        if !results.is_empty() {
            results.exec_async(connection).await?;
        }
        let ids: Vec<&str> = entries.iter().map(|(entry, _)| entry.id.as_str()).collect();
        let mut done = pipe();
        // Deleted first: what is acknowledged and not deleted would stay for ever.
        done.cmd("XDEL").arg(&self.stream).arg(&ids).ignore();
        done.cmd("XACK").arg(&self.stream).arg(GROUP).arg(&ids).ignore();
        done.exec_async(connection).await?;
        note(&numbers);
        Ok(())
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX)
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
