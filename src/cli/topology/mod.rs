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

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Context, Exit, Failure};
use crate::config::Config;

/// What can be asked of the topology.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what the servers lack, and what they have otherwise, field by field; nothing is changed
    Plan,
    /// Make what is missing; what is there is neither changed nor deleted
    Apply {
        /// Also add partitions to topics that have too few; keys change places then
        #[arg(long)]
        #[cfg(feature = "kafka")]
        grow: bool,
    },
    /// Print it as a file that makes it elsewhere
    Export {
        /// What kind of file; RabbitMQ's definitions, unless only another system is configured
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// Write it there instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
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
    system: &'static str,
    what: &'static str,
    name: String,
    state: &'static str,
    /// Each: the field, as configured, as the server has it.
    differences: Vec<[String; 3]>,
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Plan => compare(Apply::Nothing, context),
        #[cfg(feature = "kafka")]
        Command::Apply { grow } => compare(if *grow { Apply::Grow } else { Apply::Make }, context),
        #[cfg(not(feature = "kafka"))]
        Command::Apply {} => compare(Apply::Make, context),
        Command::Export { format, file } => export(*format, file.as_deref(), context),
    }
}

/// As it is configured, with the warnings that are about it.
fn configured(context: &Context) -> Result<Config, Failure> {
    let loaded = context.load()?;
    let about = |path: &str| ["rabbitmq", "kafka", "redis"].iter().any(|system| path.starts_with(system));
    loaded.warnings.iter().filter(|warning| about(&warning.path)).for_each(|warning| context.warn(warning));
    Ok(loaded.config)
}

fn compare(apply: Apply, context: &Context) -> Result<Exit, Failure> {
    let config = configured(context)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new(Exit::Failed, "NO_RUNTIME", format!("the runtime cannot start: {error}"), "see `helixmq doctor`")
    })?;
    let lines = runtime.block_on(lines(&config, apply, context))?;
    let Some(lines) = lines else {
        let hint = "add a section `rabbitmq:`, `kafka:` or `redis:`, set RABBITMQ_URL, KAFKA_BROKERS or REDIS_URL, or name another file with --config";
        let message = "the configuration has no RabbitMQ, no Kafka and no Redis to compare with";
        return Err(Failure::new(Exit::Refused, "NOTHING_TO_COMPARE", message, hint));
    };
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
        context.output.table(["", "NAME", "STATE", "FIELD", "CONFIGURED", "SERVER"], &rows)?;
    }
    context.output.note(found.sentence(apply));
    Ok(if found.missing + found.differ > 0 { Exit::Failed } else { Exit::Done })
}

/// Of every system that is configured; `None`: none is.
async fn lines(config: &Config, apply: Apply, context: &Context) -> Result<Option<Vec<Line>>, Failure> {
    let mut all: Option<Vec<Line>> = None;
    #[cfg(feature = "rabbitmq")]
    if let Some(settings) = &config.rabbitmq {
        all.get_or_insert_default().extend(rabbitmq::compare(settings, apply, context).await?);
    }
    #[cfg(feature = "kafka")]
    if let Some(settings) = &config.kafka {
        all.get_or_insert_default().extend(kafka::compare(settings, apply).await?);
    }
    #[cfg(feature = "redis")]
    if let Some(settings) = &config.redis {
        all.get_or_insert_default().extend(redis::compare(settings, apply).await?);
    }
    let _ = context;
    Ok(all)
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

    fn rows(&self) -> Vec<[String; 6]> {
        let row = |[field, configured, current]: [&str; 3]| {
            let state = if self.state == "unknown" { "not compared" } else { self.state };
            [self.what, &self.name, state, field, configured, current].map(str::to_owned)
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

/// What is configured; without the system in the configuration, what every installation has.
fn export(format: Option<Format>, file: Option<&Path>, context: &Context) -> Result<Exit, Failure> {
    let config = configured(context)?;
    let format = format.unwrap_or_else(|| default_format(&config));
    let (text, summary) = match format {
        #[cfg(feature = "rabbitmq")]
        Format::Rabbitmq => rabbitmq::definitions(config.rabbitmq),
        #[cfg(feature = "kafka")]
        Format::KafkaInit => kafka::file(config.kafka, script::print),
        #[cfg(feature = "kafka")]
        Format::Strimzi => kafka::file(config.kafka, strimzi::print),
        #[cfg(feature = "redis")]
        Format::Redis => redis::file(config.redis),
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

/// That of the first system that is configured; else of the first that this build has.
fn default_format(config: &Config) -> Format {
    let all: &[(bool, Format)] = &[
        #[cfg(feature = "rabbitmq")]
        (config.rabbitmq.is_some(), Format::Rabbitmq),
        #[cfg(feature = "kafka")]
        (config.kafka.is_some(), Format::KafkaInit),
        #[cfg(feature = "redis")]
        (config.redis.is_some(), Format::Redis),
    ];
    all.iter().find(|(is_configured, _)| *is_configured).map_or(FIRST, |(_, format)| *format)
}
