//! Every metric, by name. Source: SPEC §7. Labels are bounded: they name what is configured, never what is received.
//! Handles with labels are resolved where a route is built; counts are added once a batch.

use std::sync::OnceLock;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $kind:ident($text:literal $(, [$($label:literal),+])?) = $help:literal,)+) => {
        /// Every metric of the process.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[$doc])* #[doc = $help] pub $name: $kind,)+
        }

        impl Metrics {
            fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(let $name = make::$kind($text, $help $(, &[$($label),+])?)?;
                registry.register(Box::new($name.clone()))?;)+
                Ok(Self { registry, $($name,)+ })
            }
        }

        /// Name and labels of every metric, for tests and documents that must not drift.
        pub const NAMES: &[(&str, &[&str])] = &[$(($text, &[$($($label),+)?])),+];
    };
}

metrics! {
    published: IntCounterVec("messaging_messages_published_total", ["broker", "destination"]) = "Messages confirmed by a broker",
    consumed: IntCounterVec("messaging_messages_consumed_total", ["broker", "destination"]) = "Deliveries taken from a broker",
    depth: IntGaugeVec("messaging_queue_depth", ["broker", "destination"]) = "Messages that wait: ready and delayed; for topics the largest lag of a group",
    latency: HistogramVec("messaging_delivery_latency_seconds", ["route"]) = "From a message's own timestamp until it was settled, the slowest of each batch",
    dlq_depth: IntGaugeVec("messaging_dlq_messages_total", ["destination"]) = "Dead letters that are kept",
    dead_lettered: IntCounterVec("messaging_dead_lettered_total", ["route", "reason"]) = "Messages that became dead letters",
    retries: IntCounterVec("messaging_retries_total", ["route", "reason"]) = "Attempts that failed and are followed by another",
    publish_failures: IntCounterVec("messaging_publish_failures_total", ["broker", "reason"]) = "Messages that a broker did not confirm",
    priority_clamped: IntCounter("messaging_priority_clamped_total") = "Messages whose priority was out of range and was clamped",
    outcomes: IntCounterVec("helixmq_handler_outcomes_total", ["route", "handler", "outcome"]) = "Calls by how they ended",
    run_time: HistogramVec("helixmq_handler_batch_seconds", ["route", "handler"]) = "Time in the handler, a batch",
    handled_batch: HistogramVec("helixmq_handler_batch_messages", ["route", "handler"]) = "Messages in a batch",
    in_flight: IntGaugeVec("helixmq_in_flight_messages", ["route"]) = "Deliveries taken and not settled",
    held: IntGaugeVec("helixmq_held_messages", ["route"]) = "Deliveries held behind a retrying one to keep their order",
    brake: IntGaugeVec("helixmq_route_brake_state", ["route"]) = "0 open, 1 slowed to probes, 2 held",
    stall_restarts: IntCounterVec("messaging_subscription_restarts_total", ["source"]) = "Subscriptions begun anew because messages waited and none came",
    plugin_info: IntGaugeVec("helixmq_plugin_info", ["plugin", "version", "digest"]) = "1 for the version that serves",
    plugin_loaded_at: IntGaugeVec("helixmq_plugin_loaded_timestamp_seconds", ["plugin"]) = "Since when the serving version serves",
    reloads: IntCounterVec("helixmq_plugin_reloads_total", ["plugin", "result"]) = "Loads of plugin files, by result: loaded, refused, removed",
    reload_time: Histogram("helixmq_plugin_reload_seconds") = "From noticing a plugin file to serving it",
    config_reloads: IntCounterVec("helixmq_config_reloads_total", ["result"]) = "Reloads of the configuration, by result: applied, refused",
    log_lines_dropped: IntCounterVec("helixmq_guest_log_lines_dropped_total", ["plugin"]) = "Log lines of guests beyond their rate",
    headers_dropped: IntCounter("helixmq_guest_headers_dropped_total") = "Headers that guests may not set",
    publisher_headers_dropped: IntCounter("helixmq_publisher_headers_dropped_total") = "Headers that publishers may not set",
    settle_failures: IntCounterVec("helixmq_settle_failures_total", ["broker"]) = "Batches whose settlement failed; they are delivered again",
    broker_state: IntGaugeVec("helixmq_broker_state", ["broker"]) = "0 ready, 1 does part of its work (no room on disk), 2 failed",
    circuit_state: IntGaugeVec("messaging_circuit_state", ["broker"]) = "Whether the system is published to: 0 closed (yes), 1 half-open (one message as a probe), 2 open (no)",
    spool_messages: IntGaugeVec("messaging_spool_messages", ["broker"]) = "Messages that wait here for the system",
    spool_bytes: IntGaugeVec("messaging_spool_bytes", ["broker"]) = "Bytes of these messages",
    spool_oldest: GaugeVec("messaging_spool_oldest_seconds", ["broker"]) = "How long the oldest of these messages has waited",
    spool_accepted: IntCounterVec("messaging_spool_accepted_total", ["broker"]) = "Messages that were kept here for the system",
    spool_drained: IntCounterVec("messaging_spool_drained_total", ["broker"]) = "Messages that were kept here and that the system confirmed since",
    spool_refused: IntCounterVec("messaging_spool_refused_total", ["broker"]) = "Times that the system was there and did not take a message that was kept here",
    memory_budget: IntGaugeVec("messaging_memory_budget_bytes", ["part", "what"]) = "Bytes of messages that are fetched and not settled (part handling), or on their way to systems (part publishing): what is used, and its limit",
    connection_state: IntGaugeVec("messaging_broker_connection_state", ["broker", "state"]) = "1 for where the connections of a system are: connecting, ready, blocked, away, refused, closed",
    store_commits: IntCounterVec("helixmq_store_commits_total", ["broker"]) = "Times that the store made safe what waited, one flush of the disk each",
    store_changes: IntCounterVec("helixmq_store_changes_total", ["broker"]) = "Changes in these commits: messages in and out, and what is noted of them",
    store_commit: GaugeVec("helixmq_store_commit_seconds", ["broker"]) = "How long the last commit took, to the end of its flush",
    store_waiting: IntGaugeVec("helixmq_store_waiting_batches", ["broker"]) = "Batches of changes that wait for the disk",
    store_bytes: IntGaugeVec("helixmq_store_database_bytes", ["broker"]) = "Size of the database",
    store_free_bytes: IntGaugeVec("helixmq_store_database_free_bytes", ["broker"]) = "How much of the database is free for reuse",
    store_wal_bytes: IntGaugeVec("helixmq_store_wal_bytes", ["broker"]) = "Size of the write-ahead log",
    rabbitmq_published: IntCounterVec("rabbitmq_messages_published_total", ["destination"]) = "Messages that RabbitMQ confirmed",
    rabbitmq_consumed: IntCounterVec("rabbitmq_messages_consumed_total", ["destination"]) = "Deliveries taken from RabbitMQ",
    rabbitmq_acked: IntCounterVec("rabbitmq_messages_acked_total", ["destination"]) = "Deliveries acknowledged to RabbitMQ",
    rabbitmq_nacked: IntCounterVec("rabbitmq_messages_nacked_total", ["destination"]) = "Deliveries given back to RabbitMQ, or sent to a retry queue",
    rabbitmq_dead_lettered: IntCounterVec("rabbitmq_messages_dead_lettered_total", ["destination"]) = "Deliveries whose dead letter was confirmed",
    rabbitmq_publish_latency: Histogram("rabbitmq_publish_latency_seconds") = "From sending a batch to RabbitMQ until its last confirmation",
    rabbitmq_connection_state: IntGaugeVec("rabbitmq_connection_state", ["connection"]) = "0 away, 1 connected, 2 connected and blocked by the server",
    rabbitmq_consumers: IntGaugeVec("rabbitmq_queue_consumers", ["destination"]) = "Consumers of the queue, others' among them",
    rabbitmq_restarts: IntCounterVec("rabbitmq_subscription_restarts_total", ["destination", "reason"]) = "Subscriptions begun anew, by reason: lost, cancelled, stalled",
    kafka_sent: IntCounterVec("helixagent_kafka_messages_sent_total", ["topic"]) = "Messages that Kafka confirmed",
    kafka_received: IntCounterVec("helixagent_kafka_messages_received_total", ["topic", "group"]) = "Messages fetched from Kafka",
    kafka_lag: IntGaugeVec("helixagent_kafka_consumer_lag", ["topic", "group", "partition"]) = "Messages of a partition that its group has not settled, for partitions of this engine",
    kafka_errors: IntCounterVec("helixagent_kafka_producer_errors", ["topic", "reason"]) = "Messages that Kafka did not confirm",
    kafka_assigned: IntGaugeVec("helixagent_kafka_assigned_partitions", ["topic", "group"]) = "Partitions that this engine reads",
    kafka_rebalances: IntCounterVec("helixagent_kafka_rebalances_total", ["topic", "group", "what"]) = "Changes of who reads what, by what: assigned, revoked, lost",
    kafka_commits: IntCounterVec("helixagent_kafka_commits_total", ["topic", "group", "result"]) = "Commits of progress, by result: done, failed",
    kafka_transactions: IntCounterVec("helixagent_kafka_transactions_total", ["topic", "group", "result"]) = "Transactions, by result: committed, aborted",
    kafka_restarts: IntCounterVec("helixagent_kafka_subscription_restarts_total", ["topic", "group", "reason"]) = "Subscriptions begun anew, by reason: stalled, no place, failed",
    kafka_publish_latency: Histogram("helixagent_kafka_publish_latency_seconds") = "From handing a batch to the producer until its last confirmation",
    kafka_up: IntGauge("helixagent_kafka_up") = "1 while a server of Kafka answers",
    pubsub_gaps: IntCounterVec("messaging_pubsub_gaps_total", ["broker", "channel", "why"]) = "Times that messages of a channel may have been missed, by why: unheard (nobody listened), reconnected, slow",
    uptime: IntGauge("helixmq_start_time_seconds") = "When the process started, since 1970",
}

/// Upper bounds of time buckets, in seconds: 10 microseconds to 30 seconds.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];
/// Upper bounds of the numbers of messages in a batch.
const MESSAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

#[allow(non_snake_case, reason = "called by the macro by the name of the type each one makes")]
mod make {
    use super::*;

    type Made<T> = Result<T, prometheus::Error>;

    pub(super) fn IntCounter(name: &str, help: &str) -> Made<IntCounter> {
        IntCounter::new(name, help)
    }
    pub(super) fn IntGauge(name: &str, help: &str) -> Made<IntGauge> {
        IntGauge::new(name, help)
    }
    pub(super) fn Histogram(name: &str, help: &str) -> Made<Histogram> {
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))
    }
    pub(super) fn GaugeVec(name: &str, help: &str, labels: &[&str]) -> Made<GaugeVec> {
        GaugeVec::new(Opts::new(name, help), labels)
    }
    pub(super) fn IntCounterVec(name: &str, help: &str, labels: &[&str]) -> Made<IntCounterVec> {
        IntCounterVec::new(Opts::new(name, help), labels)
    }
    pub(super) fn IntGaugeVec(name: &str, help: &str, labels: &[&str]) -> Made<IntGaugeVec> {
        IntGaugeVec::new(Opts::new(name, help), labels)
    }
    pub(super) fn HistogramVec(name: &str, help: &str, labels: &[&str]) -> Made<HistogramVec> {
        let buckets = if name.ends_with("_messages") { MESSAGES } else { SECONDS };
        HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
    }
}

/// The metrics of this process.
#[must_use]
#[allow(
    clippy::expect_used,
    reason = "the table above is constant: it either always registers or never, and a test shows that it does"
)]
pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::new().expect("the names and labels of the table are valid and unique"))
}

impl Metrics {
    /// All of them as Prometheus text.
    ///
    /// # Errors
    /// When a metric cannot be written as text, which would be a mistake in this file.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers() {
        metrics().uptime.set(1);
        assert!(metrics().render().expect("text").contains("helixmq_start_time_seconds 1"));
    }
}
