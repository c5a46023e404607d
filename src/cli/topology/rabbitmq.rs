//! RabbitMQ's side of `topology`: exchanges, queues and bindings.

use std::sync::Arc;

use super::{
    super::{Context, Exit, Failure, store::sentence},
    Apply, Line, bindings,
};
use crate::{
    broker::rabbitmq::{
        Settings,
        topology::{
            AtServerError, DeclareError, Entity, How, QueueKind, State, Topology, What, at_server, export, standard,
        },
    },
    message::ReasonCode,
};

/// What the server has of it.
pub(super) async fn compare(
    system: &Arc<str>,
    settings: &Settings,
    apply: Apply,
    context: &Context,
) -> Result<Vec<Line>, Failure> {
    let how = if apply == Apply::Nothing { How::Look } else { How::Make };
    let mut entities = at_server(settings, how).await.map_err(|error| not_compared(&error))?;
    if how == How::Look {
        look_at_bindings(system, settings, &mut entities, context);
    }
    Ok(entities.into_iter().map(|entity| line(system, entity)).collect())
}

fn line(system: &Arc<str>, entity: Entity) -> Line {
    let (state, differences) = match entity.state {
        State::Same => ("same", Vec::new()),
        State::Made if entity.what == What::Binding => ("bound", Vec::new()),
        State::Made => ("made", Vec::new()),
        State::Missing => ("missing", Vec::new()),
        State::Unknown => ("unknown", Vec::new()),
        State::Differs(differences) => {
            ("differs", differences.into_iter().map(|one| [one.field, one.configured, one.current]).collect())
        }
    };
    Line { system: Arc::clone(system), what: entity.what.as_str(), name: entity.name.to_string(), state, differences }
}

/// AMQP has no question for them; the management API has.
fn look_at_bindings(system: &str, settings: &Settings, entities: &mut [Entity], context: &Context) {
    if settings.management_url.is_none() {
        let bindings = settings.topology.bindings.len();
        context.output.note(format_args!(
            "{system}: AMQP cannot list bindings: {bindings} are not compared, and `topology apply` makes them; set \
             management_url to compare them"
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
        Err(error) => context.output.note(format_args!("warning: {system}: bindings are not compared: {error}")),
    }
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

/// What is configured, as definitions; without a RabbitMQ in the configuration, what every installation has. Also says how
/// much it is.
pub(super) fn definitions(settings: Option<&Settings>) -> (String, String) {
    let standard = || (standard(QueueKind::Classic), "/".to_owned());
    let (topology, vhost): (Topology, String) =
        settings.map_or_else(standard, |settings| (settings.topology.clone(), settings.vhost.clone()));
    let mut text = serde_json::to_string_pretty(&export(&topology, &vhost)).unwrap_or_default();
    text.push('\n');
    let (exchanges, queues, bindings) = (topology.exchanges.len(), topology.queues.len(), topology.bindings.len());
    (text, format!("{exchanges} exchanges, {queues} queues, {bindings} bindings"))
}
