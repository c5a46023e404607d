//! `topology`: what of RabbitMQ, Kafka and Redis is configured, beside what the servers have, and as files that others make it from.

#[cfg(feature = "rabbitmq")]
mod bindings;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "kafka")]
mod script;
#[cfg(feature = "kafka")]
mod strimzi;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Context, Exit, Failure};
use crate::{
    config::{Config, Connection},
    message::Kind,
};

/// What can be asked of the topology.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what the servers lack, and what they have otherwise, field by field; nothing is changed
    Plan {
        #[command(flatten)]
        of: Of,
    },
    /// Make what is missing; what is there is neither changed nor deleted
    Apply {
        #[command(flatten)]
        of: Of,
        /// Also add partitions to topics that have too few; keys change places then
        #[arg(long)]
        #[cfg(feature = "kafka")]
        grow: bool,
    },
    /// Print it as a file that makes it elsewhere
    Export {
        #[command(flatten)]
        of: Of,
        /// What kind of file; that of the system, which without --system is the one that has the queues
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// Write it there instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Which system is meant.
#[derive(Debug, clap::Args)]
pub(super) struct Of {
    /// Only this one of the systems in use: rabbitmq, kafka, redis, or a name of `connections:`
    #[arg(long, value_name = "NAME")]
    system: Option<String>,
}

/// Files that others make a topology from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Definitions that RabbitMQ imports
    #[cfg(feature = "rabbitmq")]
    Rabbitmq,
    /// A shell script for Kafka's own tools
    #[cfg(feature = "kafka")]
    KafkaInit,
    /// KafkaTopic resources of Kubernetes, for Strimzi
    #[cfg(feature = "kafka")]
    Strimzi,
    /// Commands for redis-cli
    #[cfg(feature = "redis")]
    Redis,
}

/// What is to be done about what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Apply {
    Nothing,
    Make,
    #[cfg(feature = "kafka")]
    Grow,
}

/// One thing that is configured, beside what a server has.
struct Line {
    system: Arc<str>,
    what: &'static str,
    name: String,
    state: &'static str,
    /// Each: the field, as configured, as the server has it.
    differences: Vec<[String; 3]>,
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Plan { of } => compare(Apply::Nothing, of, context),
        #[cfg(feature = "kafka")]
        Command::Apply { of, grow } => compare(if *grow { Apply::Grow } else { Apply::Make }, of, context),
        #[cfg(not(feature = "kafka"))]
        Command::Apply { of } => compare(Apply::Make, of, context),
        Command::Export { of, format, file } => export(*format, of, file.as_deref(), context),
    }
}

/// As it is configured, with the warnings that are about it.
fn configured(context: &Context) -> Result<Config, Failure> {
    let loaded = context.load()?;
    let about =
        |path: &str| ["rabbitmq", "kafka", "redis", "connections"].iter().any(|system| path.starts_with(system));
    loaded.warnings.iter().filter(|warning| about(&warning.path)).for_each(|warning| context.warn(warning));
    Ok(loaded.config)
}

/// The systems in use, or the one that is meant.
fn systems(config: &Config, of: &Of) -> Result<BTreeMap<Arc<str>, Connection>, Failure> {
    let mut all = config.connections_in_use();
    let Some(name) = &of.system else { return Ok(all) };
    if !all.contains_key(name.as_str()) {
        let names: Vec<_> = all.keys().map(|name| &**name).collect();
        let hint = match names.as_slice() {
            [] => "add it to the configuration".to_owned(),
            names => format!("name one that is used: {}", names.join(", ")),
        };
        let message = format!("the configuration uses no system outside of the engine that is called {name:?}");
        return Err(Failure::new(Exit::NotFound, "SYSTEM_NOT_FOUND", message, hint));
    }
    all.retain(|other, _| **other == **name);
    Ok(all)
}

fn compare(apply: Apply, of: &Of, context: &Context) -> Result<Exit, Failure> {
    let config = configured(context)?;
    let systems = systems(&config, of)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new(Exit::Failed, "NO_RUNTIME", format!("the runtime cannot start: {error}"), "see `helixmq doctor`")
    })?;
    if systems.is_empty() {
        let hint = "add a section `rabbitmq:`, `kafka:` or `redis:`, set RABBITMQ_URL, KAFKA_BROKERS or REDIS_URL, or name another file with --config";
        let message = "the configuration uses no RabbitMQ, no Kafka and no Redis to compare with";
        return Err(Failure::new(Exit::Refused, "NOTHING_TO_COMPARE", message, hint));
    }
    let mut lines = Vec::new();
    for (name, connection) in &systems {
        // Which of several: not every error says.
        let failed = |failure: Failure| failure.about(name);
        lines.extend(runtime.block_on(compared(name, connection, apply, context)).map_err(failed)?);
    }
    let found = Found::of(&lines);
    if context.output.json() {
        let counts = json!({
            "same": found.same, "made": found.made, "missing": found.missing, "differ": found.differ,
            "unknown": found.unknown,
        });
        let entities: Vec<_> = lines.iter().map(Line::value).collect();
        context.output.value(&json!({ "entities": entities, "counts": counts }))?;
    } else {
        let rows: Vec<_> = lines.iter().flat_map(Line::rows).collect();
        context.output.table(["SYSTEM", "", "NAME", "STATE", "FIELD", "CONFIGURED", "SERVER"], &rows)?;
    }
    context.output.note(found.sentence(apply));
    Ok(if found.missing + found.differ > 0 { Exit::Failed } else { Exit::Done })
}

/// What one system has of what is configured.
async fn compared(
    name: &Arc<str>,
    connection: &Connection,
    apply: Apply,
    context: &Context,
) -> Result<Vec<Line>, Failure> {
    let _ = (name, apply, context);
    match connection {
        #[cfg(feature = "rabbitmq")]
        Connection::Rabbitmq(settings) => rabbitmq::compare(name, settings, apply, context).await,
        #[cfg(feature = "kafka")]
        Connection::Kafka(settings) => kafka::compare(name, settings, apply).await,
        #[cfg(feature = "redis")]
        Connection::Redis(settings) => redis::compare(name, settings, apply).await,
        #[allow(unreachable_patterns, reason = "a build may have none of them")]
        _ => Ok(Vec::new()),
    }
}

impl Line {
    fn value(&self) -> Value {
        // Bindings are made each time, and nobody can say whether they were there.
        let state = if self.state == "bound" { "made" } else { self.state };
        let mut value = json!({ "system": self.system, "what": self.what, "name": self.name, "state": state });
        if let (Some(value), false) = (value.as_object_mut(), self.differences.is_empty()) {
            let differences = self.differences.iter().map(
                |[field, configured, current]| json!({ "field": field, "configured": configured, "current": current }),
            );
            value.insert("differences".to_owned(), differences.collect());
        }
        value
    }

    fn rows(&self) -> Vec<[String; 7]> {
        let row = |[field, configured, current]: [&str; 3]| {
            let state = if self.state == "unknown" { "not compared" } else { self.state };
            [&*self.system, self.what, &self.name, state, field, configured, current].map(str::to_owned)
        };
        if self.differences.is_empty() {
            return vec![row([""; 3])];
        }
        self.differences.iter().map(|fields| row(fields.each_ref().map(String::as_str))).collect()
    }
}

/// How many there are of each.
#[derive(Default)]
struct Found {
    same: usize,
    made: usize,
    missing: usize,
    differ: usize,
    unknown: usize,
}

impl Found {
    fn of(lines: &[Line]) -> Self {
        let mut found = Self::default();
        for line in lines {
            *match line.state {
                "same" => &mut found.same,
                "missing" => &mut found.missing,
                "differs" => &mut found.differ,
                "unknown" => &mut found.unknown,
                _ => &mut found.made,
            } += 1;
        }
        found
    }

    fn sentence(&self, apply: Apply) -> String {
        let Self { same, made, missing, differ, unknown } = self;
        let mut parts = vec![format!("{same} as configured")];
        for (count, word) in
            [(made, "made or bound"), (missing, "missing"), (differ, "different"), (unknown, "not compared")]
        {
            if *count > 0 {
                parts.push(format!("{count} {word}"));
            }
        }
        let mut text = parts.join(", ");
        if *missing > 0 && apply == Apply::Nothing {
            text.push_str("; `helixmq topology apply` makes what is missing");
        }
        if *differ > 0 {
            text.push_str(
                "; what differs is never changed, but `topology apply --grow` adds partitions to topics of Kafka: change the configuration, or delete it on the server when it is empty",
            );
        }
        text
    }
}

/// What is configured; without such a system in the configuration, what every installation has.
fn export(format: Option<Format>, of: &Of, file: Option<&Path>, context: &Context) -> Result<Exit, Failure> {
    let config = configured(context)?;
    let (format, connection) = exported(format, &config, systems(&config, of)?)?;
    let (text, summary) = match format {
        #[cfg(feature = "rabbitmq")]
        Format::Rabbitmq => rabbitmq::definitions(connection.as_ref().and_then(Connection::as_rabbitmq)),
        #[cfg(feature = "kafka")]
        Format::KafkaInit => kafka::file(connection.as_ref().and_then(Connection::as_kafka), script::print),
        #[cfg(feature = "kafka")]
        Format::Strimzi => kafka::file(connection.as_ref().and_then(Connection::as_kafka), strimzi::print),
        #[cfg(feature = "redis")]
        Format::Redis => redis::file(connection.as_ref().and_then(Connection::as_redis)),
    };
    let Some(file) = file else {
        context.output.line(text.trim_end())?;
        return Ok(Exit::Done);
    };
    std::fs::write(file, text).map_err(|error| {
        let message = format!("{} cannot be written: {error}", file.display());
        Failure::new(Exit::Failed, "NOT_WRITTEN", message, "name a file that this user may write")
    })?;
    if context.output.json() {
        context.output.value(&json!({ "file": file, "has": summary }))?;
    } else {
        context.output.line(format!("{}: {summary}", file.display()))?;
    }
    Ok(Exit::Done)
}

/// Of the first system that this build has.
#[cfg(feature = "rabbitmq")]
const FIRST: Format = Format::Rabbitmq;
#[cfg(all(feature = "kafka", not(feature = "rabbitmq")))]
const FIRST: Format = Format::KafkaInit;
#[cfg(not(any(feature = "rabbitmq", feature = "kafka")))]
const FIRST: Format = Format::Redis;

/// What kind of file, and of which system: the only one that it can be of, else the one that names of queues and topics
/// mean; none where none is configured.
fn exported(
    format: Option<Format>,
    config: &Config,
    mut systems: BTreeMap<Arc<str>, Connection>,
) -> Result<(Format, Option<Connection>), Failure> {
    if let Some(format) = format {
        systems.retain(|_, connection| Format::of(connection).kind() == format.kind());
    }
    let usual = [Kind::Queue, Kind::Topic].map(|kind| config.system_of(kind).name());
    let found = match (systems.len(), usual.iter().find(|name| systems.contains_key(*name))) {
        (0, _) => None,
        (1, _) => systems.pop_first(),
        (_, Some(name)) => systems.remove_entry(name),
        (_, None) => {
            let names: Vec<_> = systems.keys().map(|name| &**name).collect();
            let message = "several systems could be meant, and a file is of one";
            let hint = format!("name one with --system: {}", names.join(", "));
            return Err(Failure::new(Exit::Usage, "WHICH_SYSTEM", message, hint));
        }
    };
    let connection = found.map(|(_, connection)| connection);
    Ok((format.or(connection.as_ref().map(Format::of)).unwrap_or(FIRST), connection))
}

impl Format {
    /// The usual one for a system.
    fn of(connection: &Connection) -> Self {
        match connection {
            #[cfg(feature = "rabbitmq")]
            Connection::Rabbitmq(_) => Self::Rabbitmq,
            #[cfg(feature = "kafka")]
            Connection::Kafka(_) => Self::KafkaInit,
            #[cfg(feature = "redis")]
            Connection::Redis(_) => Self::Redis,
        }
    }

    /// Of which kind of system it is.
    fn kind(self) -> &'static str {
        match self {
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq => "rabbitmq",
            #[cfg(feature = "kafka")]
            Self::KafkaInit | Self::Strimzi => "kafka",
            #[cfg(feature = "redis")]
            Self::Redis => "redis",
        }
    }
}
