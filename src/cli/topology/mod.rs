//! `topology`: the exchanges, queues and bindings of RabbitMQ as configured, beside those that the server has.

mod bindings;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{Context, Exit, Failure, store::sentence};
use crate::{
    broker::rabbitmq::{
        Settings,
        topology::{
            AtServerError, DeclareError, Entity, How, QueueKind, State, Topology, What, at_server, export, standard,
        },
    },
    message::ReasonCode,
};

/// What can be asked of the topology.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what the server lacks, and what it has otherwise, field by field; nothing is changed
    Plan,
    /// Make what is missing; what is there is neither changed nor deleted
    Apply,
    /// Print it as definitions that the server imports
    Export {
        /// Write it there instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Plan => compare(How::Look, context),
        Command::Apply => compare(How::Make, context),
        Command::Export { file } => write(file.as_deref(), context),
    }
}

/// RabbitMQ as it is configured, with the warnings that are about it.
fn configured(context: &Context) -> Result<Option<Settings>, Failure> {
    let loaded = context.load()?;
    loaded
        .warnings
        .iter()
        .filter(|warning| warning.path.starts_with("rabbitmq"))
        .for_each(|warning| context.warn(warning));
    Ok(loaded.config.rabbitmq)
}

fn compare(how: How, context: &Context) -> Result<Exit, Failure> {
    let Some(settings) = configured(context)? else {
        let hint = "add a section `rabbitmq:`, set RABBITMQ_URL, or name another file with --config";
        let message = "the configuration has no RabbitMQ to compare with";
        return Err(Failure::new(Exit::Refused, "NO_RABBITMQ", message, hint));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new(Exit::Failed, "NO_RUNTIME", format!("the runtime cannot start: {error}"), "see `helixmq doctor`")
    })?;
    let mut entities = runtime.block_on(at_server(&settings, how)).map_err(|error| not_compared(&error))?;
    if how == How::Look {
        look_at_bindings(&settings, &mut entities, context);
    }
    let found = Found::of(&entities);
    if context.output.json() {
        let counts = json!({
            "same": found.same, "made": found.made, "missing": found.missing, "differ": found.differ,
            "unknown": found.unknown,
        });
        context.output.value(&json!({ "entities": entities, "counts": counts }))?;
    } else {
        show(&entities, context)?;
    }
    context.output.note(found.sentence(how));
    Ok(if found.missing + found.differ > 0 { Exit::Failed } else { Exit::Done })
}

/// AMQP has no question for them; the management API has.
fn look_at_bindings(settings: &Settings, entities: &mut [Entity], context: &Context) {
    if settings.management_url.is_none() {
        let bindings = settings.topology.bindings.len();
        context.output.note(format_args!(
            "AMQP cannot list bindings: {bindings} are not compared, and `topology apply` makes them; set \
             rabbitmq.management_url to compare them"
        ));
        return;
    }
    match bindings::of(settings) {
        Ok(there) => {
            for entity in entities.iter_mut().filter(|entity| entity.what == What::Binding) {
                // Both are named by the same function.
                let is_there = there.contains(&entity.name);
                entity.state = if is_there { State::Same } else { State::Missing };
            }
        }
        Err(error) => context.output.note(format_args!("warning: bindings are not compared: {error}")),
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
    fn of(entities: &[Entity]) -> Self {
        let mut found = Self::default();
        for entity in entities {
            *match entity.state {
                State::Same => &mut found.same,
                State::Made => &mut found.made,
                State::Missing => &mut found.missing,
                State::Differs(_) => &mut found.differ,
                State::Unknown => &mut found.unknown,
            } += 1;
        }
        found
    }

    fn sentence(&self, how: How) -> String {
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
        if *missing > 0 && how == How::Look {
            text.push_str("; `helixmq topology apply` makes what is missing");
        }
        if *differ > 0 {
            text.push_str(
                "; what differs is never changed: change the configuration, or delete it on the server when it is empty",
            );
        }
        text
    }
}

fn show(entities: &[Entity], context: &Context) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for entity in entities {
        let row = |state: &str, field: &str, configured: &str, current: &str| {
            [entity.what.as_str(), &entity.name, state, field, configured, current].map(str::to_owned)
        };
        match &entity.state {
            State::Same => rows.push(row("same", "", "", "")),
            State::Made if entity.what == What::Binding => rows.push(row("bound", "", "", "")),
            State::Made => rows.push(row("made", "", "", "")),
            State::Missing => rows.push(row("missing", "", "", "")),
            State::Unknown => rows.push(row("not compared", "", "", "")),
            State::Differs(differences) => {
                rows.extend(differences.iter().map(|one| row("differs", &one.field, &one.configured, &one.current)));
            }
        }
    }
    context.output.table(["", "NAME", "STATE", "FIELD", "CONFIGURED", "SERVER"], &rows)
}

fn not_compared(error: &AtServerError) -> Failure {
    let (message, hint) = sentence(error);
    match error {
        AtServerError::Connect { code, .. } => {
            let exit = match code {
                ReasonCode::AuthenticationFailed => Exit::NotAllowed,
                ReasonCode::InvalidConfig => Exit::Refused,
                _ => Exit::Unreachable,
            };
            Failure::new(exit, code.as_str(), message, hint)
        }
        AtServerError::Declare(refused) => {
            let (exit, code) = match refused {
                DeclareError::Unreachable { .. } => (Exit::Unreachable, "BROKER_UNAVAILABLE"),
                DeclareError::NotAllowed { .. } => (Exit::NotAllowed, "NOT_ALLOWED"),
                DeclareError::Locked { .. } | DeclareError::Refused { .. } => (Exit::Failed, "NOT_DECLARED"),
            };
            Failure::new(exit, code, message, hint)
        }
    }
}

/// What is configured; without a RabbitMQ in the configuration, what every installation has.
fn write(file: Option<&Path>, context: &Context) -> Result<Exit, Failure> {
    let settings = configured(context)?;
    let standard = || (standard(QueueKind::Classic), "/".to_owned());
    let (topology, vhost): (Topology, String) =
        settings.map_or_else(standard, |settings| (settings.topology, settings.vhost));
    let mut text = serde_json::to_string_pretty(&export(&topology, &vhost)).unwrap_or_default();
    let Some(file) = file else {
        context.output.line(text)?;
        return Ok(Exit::Done);
    };
    text.push('\n');
    std::fs::write(file, text).map_err(|error| {
        let message = format!("{} cannot be written: {error}", file.display());
        Failure::new(Exit::Failed, "NOT_WRITTEN", message, "name a file that this user may write")
    })?;
    let (exchanges, queues, bindings) = (topology.exchanges.len(), topology.queues.len(), topology.bindings.len());
    if context.output.json() {
        let value = json!({ "file": file, "exchanges": exchanges, "queues": queues, "bindings": bindings });
        context.output.value(&value)?;
    } else {
        let file = file.display();
        let text = format!("{file}: {exchanges} exchanges, {queues} queues, {bindings} bindings");
        context.output.line(text)?;
    }
    Ok(Exit::Done)
}
