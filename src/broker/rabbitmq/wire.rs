//! temporary
use crate::message::*;
use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
pub(super) struct Facts {
    pub(super) attempt: u32,
    pub(super) failures: Vec<FailedAttempt>,
    pub(super) delivery_count: Option<u64>,
    pub(super) stream_offset: Option<u64>,
}
pub(super) struct Copy<'a> {
    pub(super) attempt: u32,
    pub(super) failures: &'a [FailedAttempt],
}
fn num(v: &AMQPValue) -> Option<u64> {
    match v {
        AMQPValue::LongLongInt(n) => u64::try_from(*n).ok(),
        AMQPValue::LongInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortShortInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortInt(n) => u64::try_from(*n).ok(),
        AMQPValue::ShortShortUInt(n) => Some(u64::from(*n)),
        AMQPValue::LongUInt(n) => Some(u64::from(*n)),
        AMQPValue::LongString(s) => std::str::from_utf8(s.as_bytes()).ok()?.parse().ok(),
        _ => None,
    }
}
pub(super) fn incoming(p: BasicProperties, payload: Bytes, _e: &str, _r: &str, now: UnixMs) -> (Message, Facts) {
    let mut m = Message::new(p.kind().as_ref().map(|k| k.as_str().to_owned()).unwrap_or_default(), payload, now);
    if let Some(id) = p.message_id() {
        m.id = MessageId::parse(id.as_str());
    }
    let mut f = Facts { attempt: 1, failures: vec![], delivery_count: None, stream_offset: None };
    if let Some(t) = p.priority() {
        m.priority = *t;
    }
    if let Some(h) = p.headers() {
        for (k, v) in h.inner() {
            match k.as_str() {
                "x-helix-attempt" => f.attempt = num(v).unwrap_or(1) as u32,
                "x-helix-failures" => {
                    if let AMQPValue::LongString(s) = v {
                        f.failures = serde_json::from_slice(s.as_bytes()).unwrap_or_default()
                    }
                }
                "x-delivery-count" => f.delivery_count = num(v),
                "x-stream-offset" => f.stream_offset = num(v),
                "x-helix-not-before" => m.not_before = num(v),
                "x-helix-timestamp" => m.timestamp = num(v).unwrap_or(0),
                "x-helix-expires-at" => m.expires_at = num(v),
                "x-helix-key" => {
                    if let AMQPValue::LongString(s) = v {
                        m.key = Some(s.as_bytes().to_vec().into())
                    }
                }
                _ => {
                    if let AMQPValue::LongString(s) = v {
                        m.headers.append(k.as_str(), &String::from_utf8_lossy(s.as_bytes()))
                    }
                }
            }
        }
    }
    (m, f)
}
pub(super) fn outgoing(m: &Message, c: Option<Copy<'_>>, _now: UnixMs) -> BasicProperties {
    let mut h = FieldTable::default();
    let mut set = |k: &str, v: String| {
        h.insert(k.into(), AMQPValue::LongString(v.into()));
    };
    for (k, v) in m.headers.iter() {
        set(k, v.to_owned());
    }
    set("x-helix-timestamp", m.timestamp.to_string());
    if let Some(t) = m.not_before {
        set("x-helix-not-before", t.to_string());
    }
    if let Some(t) = m.expires_at {
        set("x-helix-expires-at", t.to_string());
    }
    if let Some(k) = &m.key {
        set("x-helix-key", String::from_utf8_lossy(k).into_owned());
    }
    if let Some(c) = c {
        set("x-helix-attempt", c.attempt.to_string());
        set("x-helix-failures", serde_json::to_string(c.failures).unwrap_or_default());
    }
    BasicProperties::default()
        .with_message_id(m.id.to_string().into())
        .with_type(m.kind.as_str().into())
        .with_priority(m.priority)
        .with_delivery_mode(2)
        .with_headers(h)
}
