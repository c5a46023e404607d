//! A call as a guest sees it, and a guest's answer as the engine sees it.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use uuid::fmt::Hyphenated;

use super::bindings::helix::messaging::types;
use crate::{
    handler::{
        Call, Terms,
        limits::{CODE_BYTES_MAX, REASON_BYTES_MAX, bounded_text},
    },
    message::{Failure, FailureKind, Message, MessageId, Outbound, Outcome, PRIORITY_MAX, Text, UnixMs, header},
};

type Headers<'a> = SmallVec<[types::HeaderParam<'a>; 8]>;

/// What a guest's view borrows beside the call itself.
struct Borrowed {
    id: [u8; Hyphenated::LENGTH],
}

impl Borrowed {
    fn new() -> Self {
        Self { id: [0; Hyphenated::LENGTH] }
    }
}

fn headers(message: &Message) -> Headers<'_> {
    message.headers.iter().map(|(name, value)| types::HeaderParam { name, value }).collect()
}

fn message<'a>(
    call: &'a Call<'_>,
    id: &'a mut Borrowed,
    headers: &'a [types::HeaderParam<'a>],
) -> types::MessageParam<'a> {
    let message = call.message;
    types::MessageParam {
        id: message.id.as_str(&mut id.id),
        type_: &message.kind,
        source: call.topic.unwrap_or(&call.source.name),
        payload: &message.payload,
        content_type: message.content_type.as_deref(),
        key: message.key.as_deref(),
        headers,
        attributes: &[],
        timestamp_ms: message.timestamp,
        attempt: call.attempt,
        correlation_id: message.correlation_id.as_deref(),
        reply_to: message.reply_to.as_deref(),
    }
}

/// Shows a call as a task.
pub(super) fn with_task<R>(call: &Call<'_>, show: impl FnOnce(types::Task<'_>) -> R) -> R {
    let (mut id, headers) = (Borrowed::new(), headers(call.message));
    show(types::Task {
        priority: call.message.priority,
        attempts_max: call.attempts_max,
        deadline_ms: call.message.expires_at,
        parent_task_id: call.message.extra.as_ref().and_then(|extra| extra.parent_task_id.as_deref()),
        message: message(call, &mut id, &headers),
    })
}

fn event<'a>(call: &'a Call<'_>, id: &'a mut Borrowed, headers: &'a [types::HeaderParam<'a>]) -> types::Event<'a> {
    let extra = call.message.extra.as_ref();
    types::Event {
        partition: call.position.map_or(0, |position| position.partition),
        offset: call.position.map_or(0, |position| position.offset),
        origin: extra.and_then(|extra| extra.origin.as_deref()).unwrap_or_default(),
        subject: extra.and_then(|extra| extra.subject.as_deref()),
        data_schema: extra.and_then(|extra| extra.data_schema.as_deref()),
        message: message(call, id, headers),
    }
}

/// Shows a call as an event.
pub(super) fn with_event<R>(call: &Call<'_>, show: impl FnOnce(types::Event<'_>) -> R) -> R {
    let (mut id, headers) = (Borrowed::new(), headers(call.message));
    show(event(call, &mut id, &headers))
}

/// Shows calls as events.
pub(super) fn with_events<R>(calls: &[Call<'_>], show: impl FnOnce(&[types::Event<'_>]) -> R) -> R {
    let mut ids: Vec<Borrowed> = calls.iter().map(|_| Borrowed::new()).collect();
    let headers: Vec<_> = calls.iter().map(|call| headers(call.message)).collect();
    let events: Vec<_> =
        calls.iter().zip(&mut ids).zip(&headers).map(|((call, id), headers)| event(call, id, headers)).collect();
    show(&events)
}

/// A guest's answer to one call. `now` is the time results get that name none.
pub(super) fn outcome(
    answer: Result<Vec<types::OutboundMessage>, types::Failure>,
    handled: &Message,
    terms: &Terms,
    now: UnixMs,
) -> Outcome {
    match answer {
        Ok(results) if results.is_empty() => Outcome::Done(Vec::new()),
        Ok(results) => done(results, handled, terms, now),
        Err(types::Failure::Retry(hint)) => Outcome::Retry {
            reason: bounded_text(&hint.reason, REASON_BYTES_MAX, false),
            delay: hint.delay_ms.map(|ms| Duration::from_millis(u64::from(ms))),
        },
        Err(types::Failure::Reject(rejection)) => Outcome::Reject {
            reason: bounded_text(&rejection.reason, REASON_BYTES_MAX, false),
            code: rejection.code.map(|code| bounded_text(&code, CODE_BYTES_MAX, false).into()),
        },
    }
}

fn done(results: Vec<types::OutboundMessage>, handled: &Message, terms: &Terms, now: UnixMs) -> Outcome {
    if results.len() > terms.limits.results_max {
        let text = format!("returned {} messages; at most {} are allowed", results.len(), terms.limits.results_max);
        return Outcome::failed(FailureKind::Contract, text);
    }
    let mut outbound = Vec::with_capacity(results.len());
    for (place, result) in results.into_iter().enumerate() {
        let destination = Text::from(result.destination.as_str());
        match outbound_message(result, Some(handled), now) {
            Ok(mut message) => {
                if message.id == MessageId::default() {
                    message.id = handled.id.derive(&terms.route, place);
                }
                outbound.push(Outbound { destination, message });
            }
            Err(text) => return Outcome::failed(FailureKind::Contract, format!("returned a message with {text}")),
        }
    }
    terms.accept(outbound).map_or_else(|failed| failed, Outcome::Done)
}

/// A message that a guest wants published, as one of ours. Without an id of its own it has the nil id, for the caller to
/// replace.
pub(super) fn outbound_message(
    outbound: types::OutboundMessage,
    handled: Option<&Message>,
    now: UnixMs,
) -> Result<Message, String> {
    let mut message = Message {
        kind: outbound.type_.into(),
        payload: Bytes::from(outbound.payload),
        headers: own_headers(&outbound.headers, handled),
        timestamp: now,
        priority: crate::message::PRIORITY_NORMAL,
        key: outbound.key.map(Bytes::from),
        content_type: outbound.content_type.map(Text::from),
        correlation_id: outbound.correlation_id.map(Text::from).or_else(|| handled.and_then(correlation)),
        reply_to: outbound.reply_to.map(Text::from),
        ..Message::default()
    };
    for attribute in &outbound.attributes {
        set_attribute(&mut message, &attribute.name, &attribute.value, now)?;
    }
    Ok(message)
}

fn correlation(handled: &Message) -> Option<Text> {
    handled.correlation_id.clone().or_else(|| {
        let mut buffer = [0; Hyphenated::LENGTH];
        Some(Text::from(handled.id.as_str(&mut buffer)))
    })
}

fn own_headers(given: &[types::HeaderResult], handled: Option<&Message>) -> crate::message::Headers {
    let bytes = given.iter().map(|header| header.name.len() + header.value.len()).sum::<usize>();
    let mut headers = crate::message::Headers::with_capacity(bytes + 96);
    let mut dropped = 0;
    for header in given {
        if header::is_own(&header.name) {
            dropped += 1;
        } else {
            headers.append(&header.name, &header.value);
        }
    }
    if dropped > 0 {
        crate::telemetry::metrics().headers_dropped.inc_by(dropped);
    }
    let Some(handled) = handled else { return headers };
    for name in [header::TRACEPARENT, header::TRACESTATE] {
        if let Some(value) = handled.headers.get(name)
            && headers.get(name).is_none()
        {
            headers.append(name, value);
        }
    }
    let hops = handled.hops().saturating_add(1);
    if hops == 1 {
        headers.append(header::HOPS, "1")
    } else {
        headers.append(header::HOPS, &hops.to_string())
    }
    headers
}

fn set_attribute(message: &mut Message, name: &str, value: &str, now: UnixMs) -> Result<(), String> {
    let number =
        || value.parse::<u64>().map_err(|_| format!("attribute {name:?} that is not a number: {}", shown(value)));
    match name {
        "id" if value.is_empty() || value.len() > crate::message::ID_BYTES_MAX => {
            return Err(format!("an id of {} bytes", value.len()));
        }
        "id" => message.id = MessageId::parse(value),
        "priority" => message.priority = u8::try_from(number()?).unwrap_or(PRIORITY_MAX).min(PRIORITY_MAX),
        "delay-ms" => message.not_before = Some(now.saturating_add(number()?)),
        "ttl-ms" => message.expires_at = Some(now.saturating_add(number()?)),
        "origin" => message.extra_mut().origin = Some(value.into()),
        "subject" => message.extra_mut().subject = Some(value.into()),
        "data-schema" => message.extra_mut().data_schema = Some(value.into()),
        "parent-task-id" => message.extra_mut().parent_task_id = Some(value.into()),
        _ => return Err(format!("an unknown attribute {}", shown(name))),
    }
    Ok(())
}

fn shown(text: &str) -> String {
    format!("{:?}", bounded_text(text, 64, false))
}

/// An answer to a guest's request, as the guest sees it.
pub(super) fn answer(message: &Message) -> types::MessageResult {
    types::MessageResult {
        id: message.id.to_string(),
        type_: message.kind.to_string(),
        source: String::new(),
        payload: message.payload.to_vec(),
        content_type: message.content_type.as_ref().map(Text::to_string),
        key: message.key.as_ref().map(|key| key.to_vec()),
        headers: message
            .headers
            .iter()
            .map(|(name, value)| types::HeaderResult { name: name.to_owned(), value: value.to_owned() })
            .collect(),
        attributes: Vec::new(),
        timestamp_ms: message.timestamp,
        attempt: 1,
        correlation_id: message.correlation_id.as_ref().map(Text::to_string),
        reply_to: message.reply_to.as_ref().map(Text::to_string),
    }
}

/// A failure, with its text bounded.
pub(super) fn failure(kind: FailureKind, text: &str, backtrace: Option<String>) -> Outcome {
    Outcome::Failed(Box::new(Failure { kind, text: bounded_text(text, REASON_BYTES_MAX, false), backtrace }))
}
