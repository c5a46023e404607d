//! Messages to the server, each confirmed or known to have failed. A batch goes in one round trip, in pieces that the server
//! takes one after the other.

use std::sync::Arc;

use redis::{Cmd, RedisError, Value, cmd};
use tokio::time::timeout;

use super::{errors, link::Up, place::Place, scripts, shared::Shared, wire};
use crate::{broker::PublishError, message::Message};

/// Most messages that the server takes in one piece: it does nothing else meanwhile.
const TOGETHER: usize = 256;
/// Most bytes of them, unless one alone has more.
const TOGETHER_BYTES: usize = 1 << 20;

/// Publishes messages to one place, in this order. One result for each.
pub(super) async fn publish(
    shared: &Shared,
    place: &Arc<Place>,
    messages: &[&Message],
) -> Vec<Result<(), PublishError>> {
    let settings = &shared.settings;
    let all = |error: PublishError| messages.iter().map(|_| Err(error.clone())).collect::<Vec<_>>();
    let up = match shared.connection_to_publish().await {
        Ok(up) => up,
        Err(error) => return all(error),
    };
    let (counts, commands) = pieces(place, messages);
    let _changing = place.changing();
    let sent = timeout(settings.publish_timeout, send(shared, &up, commands)).await;
    let answers = match sent {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => {
            shared.publish.judge(&error);
            return all(errors::unpublished(settings, &place.address, &error));
        }
        Err(_) => {
            let text = format!("Redis at {} did not answer within {:?}", settings.endpoint(), settings.publish_timeout);
            return all(PublishError::Unconfirmed(text));
        }
    };
    let mut results = Vec::with_capacity(messages.len());
    for (count, answer) in counts.iter().zip(answers) {
        let before = results.len();
        match answer {
            Ok(answer) => {
                shared.full(false);
                taken(place, answer, *count, &mut results);
            }
            Err(error) => {
                shared.publish.judge(&error);
                if errors::is_full(&error) {
                    shared.full(true);
                }
                let error = errors::unpublished(settings, &place.address, &error);
                results.extend(std::iter::repeat_n(Err(error), *count));
            }
        }
        results.resize_with(before + count, || Err(PublishError::Unconfirmed("the answer was cut short".to_owned())));
    }
    results
}

/// For how many messages each command is, and the commands.
fn pieces(place: &Place, messages: &[&Message]) -> (Vec<usize>, Vec<Cmd>) {
    let (mut counts, mut commands): (Vec<usize>, Vec<Cmd>) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for message in messages {
        let (fields, size) = (wire::outgoing(message), message.size());
        let fits = counts.last().is_some_and(|count| *count < TOGETHER && bytes + size <= TOGETHER_BYTES);
        if !fits {
            bytes = 0;
            let mut command = scripts::PUBLISH.by_hash();
            command.arg(&place.base).arg(super::place::GROUP);
            counts.push(0);
            commands.push(command);
        }
        bytes += size;
        if let (Some(count), Some(command)) = (counts.last_mut(), commands.last_mut()) {
            *count += 1;
            command.arg(message.priority).arg(message.not_before.unwrap_or(0)).arg(size).arg(fields.len());
            fields.add_to(command);
        }
    }
    (counts, commands)
}

/// Sends them together. One that the server has forgotten how to carry out is sent again: nothing of it was done.
async fn send(shared: &Shared, up: &Up, commands: Vec<Cmd>) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
    let mut pipeline = redis::pipe();
    for command in commands {
        pipeline.add_command(command);
    }
    let replicas = shared.settings.min_replicas;
    let patience = u64::try_from(shared.settings.publish_timeout.as_millis() / 2).unwrap_or(1).max(1);
    let waits = || {
        let mut command = cmd("WAIT");
        command.arg(replicas).arg(patience);
        command
    };
    if replicas > 0 {
        pipeline.add_command(waits());
    }
    let answers = up.ask_all(&pipeline).await?;
    let mut answers: Vec<Result<Value, RedisError>> = answers.into_iter().map(errors::of).collect();
    let mut have_it = (replicas > 0).then(|| answers.pop()).flatten();
    let mut again = false;
    for (command, answer) in pipeline.cmd_iter().zip(&mut answers) {
        // Once one was not taken, those behind it were not either: the server had forgotten it for all.
        if matches!(answer, Err(error) if errors::is_forgotten_script(error)) {
            if !again {
                scripts::load_all(up).await?;
                again = true;
            }
            *answer = up.ask(command).await;
        }
    }
    if replicas > 0 && again {
        have_it = Some(up.ask(&waits()).await);
    }
    if let Some(have_it) = have_it {
        let count = if let Ok(Value::Int(count)) = have_it { count } else { 0 };
        if count < i64::from(replicas) {
            let text = format!("{count} of {replicas} replicas have it");
            return Err(RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, text)));
        }
    }
    Ok(answers)
}

/// What the server made of one piece.
fn taken(place: &Place, answer: Value, count: usize, results: &mut Vec<Result<(), PublishError>>) {
    let address = || place.address.clone();
    let Value::Array(parts) = answer else {
        results.extend(std::iter::repeat_n(Err(PublishError::NotFound(address())), count));
        return;
    };
    let mut parts = parts.into_iter();
    let (Some(Value::Int(dropped)), Some(Value::BulkString(each))) = (parts.next(), parts.next()) else { return };
    let of = |wanted: &[u8]| each.iter().filter(|one| wanted.contains(*one)).count();
    place.published(of(b"03"), u64::try_from(dropped).unwrap_or(0));
    if let (Some(Value::Int(delayed)), Some(Value::Int(at))) = (parts.next(), parts.next()) {
        place.delayed(delayed, at);
    }
    if each.contains(&b'3') {
        place.wake();
    }
    results.extend(each.iter().map(|one| match one {
        b'0' | b'3' => Ok(()),
        b'1' => Err(PublishError::Full { address: address(), limit: "length_max".to_owned() }),
        _ => Err(PublishError::Full { address: address(), limit: "bytes_max".to_owned() }),
    }));
}
