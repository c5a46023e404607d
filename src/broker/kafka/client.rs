//! What every client of Kafka has in common: how servers are reached, and where its errors and log lines go. In: settings.
//! Out: the client library's own configuration, to which each kind of client adds its part.

use std::sync::Arc;

use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext},
    error::KafkaError,
};

use super::{
    Settings,
    condition::Condition,
    settings::{Mechanism, Sasl, Tls},
};
use crate::broker::BrokerError;

/// What all clients are configured with. Names: librdkafka, CONFIGURATION.md.
pub(super) fn config(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    let ms = |time: std::time::Duration| time.as_millis().to_string();
    config
        .set("bootstrap.servers", settings.brokers.join(","))
        .set("client.id", &settings.client_id)
        .set("socket.connection.setup.timeout.ms", ms(settings.connect_timeout))
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", ms(settings.reconnect_delay_max))
        .set("topic.metadata.refresh.interval.ms", ms(settings.metadata_interval))
        .set("statistics.interval.ms", ms(settings.statistics_interval))
        .set("log.connection.close", "false")
        .set("allow.auto.create.topics", "false");
    // Not by whether somebody wants to read it: that a commit has failed is heard of in a line.
    config.set_log_level(RDKafkaLogLevel::Info);
    secure(&mut config, settings.tls.as_ref(), settings.sasl.as_ref());
    for (name, value) in &settings.extra {
        config.set(name, value);
    }
    config
}

fn secure(config: &mut ClientConfig, tls: Option<&Tls>, sasl: Option<&Sasl>) {
    let protocol = match (tls, sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(sasl) = sasl {
        let mechanism = match sasl.mechanism {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config.set("sasl.mechanism", mechanism);
        config.set("sasl.username", &sasl.user).set("sasl.password", sasl.password.reveal());
    }
    if let Some(tls) = tls {
        let files = [
            ("ssl.ca.location", &tls.ca_file),
            ("ssl.certificate.location", &tls.cert_file),
            ("ssl.key.location", &tls.key_file),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                config.set(name, file.to_string_lossy());
            }
        }
        if let Some(password) = &tls.key_password {
            config.set("ssl.key.password", password.reveal());
        }
        if tls.skip_verify {
            config.set("enable.ssl.certificate.verification", "false");
            config.set("ssl.endpoint.identification.algorithm", "none");
        }
    }
}

/// Hears what a client has to say of its servers. A kind of client with more to hear has it inside its own context.
#[derive(Clone, Debug)]
pub(super) struct Watched(pub(super) Arc<Condition>);

impl ClientContext for Watched {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.failed(&error, reason);
    }
}

impl ConsumerContext for Watched {}

/// A line of the client library. What goes wrong is told by whoever it goes wrong for, so that nothing here is louder than a
/// detail.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Emerg};
    match level {
        Emerg | Alert | Critical => tracing::error!(target: "librdkafka", facility, "{line}"),
        _ => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// A client that only asks: which topics there are, where they begin and end. It joins no group and makes nothing.
pub(super) struct Query(Arc<BaseConsumer<Watched>>);

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Query").finish_non_exhaustive()
    }
}

impl Query {
    pub(super) fn new(settings: &Settings, condition: Arc<Condition>) -> Result<Self, BrokerError> {
        check_files(settings)?;
        let consumer = config(settings).create_with_context(Watched(condition));
        Ok(Self(Arc::new(consumer.map_err(|error| refused(&error))?)))
    }

    /// Asks on a thread that may wait, and serves what the client has to say meanwhile. `question` has to bound its own
    /// wait.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Watched>) -> T + Send + 'static,
    ) -> Result<T, BrokerError> {
        let consumer = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            let answer = question(&consumer);
            serve(&consumer);
            answer
        });
        asked.await.map_err(|error| BrokerError::Lost(format!("a question to Kafka ended without an answer: {error}")))
    }
}

/// Events that are heard at a time: figures, which come by the clock, and errors behind them.
const EVENTS: usize = 64;

/// Callbacks run only while somebody polls; without a group no message can come. An event that a callback has had looks like
/// none, so that nothing tells when there are no more.
pub(super) fn serve(consumer: &BaseConsumer<Watched>) {
    for _ in 0..EVENTS {
        // An error is told by the callback, too.
        drop(consumer.poll(std::time::Duration::ZERO));
    }
}

/// Whether the files are there that the settings name: of these the client library says no name.
fn check_files(settings: &Settings) -> Result<(), BrokerError> {
    let Some(tls) = &settings.tls else { return Ok(()) };
    let files = [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)];
    for (key, file) in files {
        let Some(file) = file else { continue };
        if let Err(error) = std::fs::File::open(file) {
            let reason = format!("kafka.tls.{key}, {}, cannot be read: {error}; correct the path", file.display());
            return Err(BrokerError::Refused { reason, code: crate::message::ReasonCode::InvalidConfig });
        }
    }
    Ok(())
}

/// The client library will not begin with these settings.
pub(super) fn refused(error: &KafkaError) -> BrokerError {
    BrokerError::Refused {
        reason: format!("Kafka's client library refuses its settings: {error}; correct them under `kafka:`"),
        code: crate::message::ReasonCode::InvalidConfig,
    }
}
