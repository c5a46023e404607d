use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString},
};
use proptest::{collection, option, prelude::*};
use serde_json::{Map, json};

use super::*;
use crate::message::{Extra, Headers, Message, MessageId, ReasonCode, Text};

const NOW: u64 = 1_768_557_600_000;

fn arrive(properties: BasicProperties) -> (Message, Facts) {
    incoming(properties, Bytes::from_static(b"{}"), "exchange", "key", NOW)
}

fn table<'a>(pairs: impl IntoIterator<Item = (&'a str, AMQPValue)>) -> FieldTable {
    let pairs = pairs.into_iter().map(|(name, value)| (ShortString::from(name), value));
    FieldTable::from(pairs.collect::<std::collections::BTreeMap<_, _>>())
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A property beside those of an ordinary message, so that no letters are needed.
fn with_header(name: &str, value: AMQPValue) -> BasicProperties {
    ordinary().with_headers(table([(name, value)]))
}

fn ordinary() -> BasicProperties {
    BasicProperties::default().with_message_id("id".into()).with_priority(5).with_delivery_mode(2)
}

#[test]
fn headers_show_as_text_and_go_out_as_they_came() {
    let nested = AMQPValue::FieldTable(table([
        ("list", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongInt(-1), AMQPValue::Void]))),
        ("name", text("x")),
    ]));
    for (value, shown) in [
        (text("plain"), "plain"),
        (AMQPValue::Boolean(true), "true"),
        (AMQPValue::ShortShortInt(-7), "-7"),
        (AMQPValue::ShortShortUInt(7), "7"),
        (AMQPValue::ShortInt(-300), "-300"),
        (AMQPValue::ShortUInt(300), "300"),
        (AMQPValue::LongInt(-70_000), "-70000"),
        (AMQPValue::LongUInt(70_000), "70000"),
        (AMQPValue::LongLongInt(i64::MIN), "-9223372036854775808"),
        (AMQPValue::Float(1.5), "1.5"),
        (AMQPValue::Double(0.1), "0.1"),
        (AMQPValue::Double(f64::INFINITY), "inf"),
        (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 12345 }), "123.45"),
        (AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 5 }), "0.005"),
        (AMQPValue::DecimalValue(DecimalValue { scale: 0, value: 5 }), "5"),
        (AMQPValue::Timestamp(1_768_557_600), "1768557600"),
        (AMQPValue::ByteArray(vec![0xff, 0].into()), "/wA="),
        (AMQPValue::LongString(vec![0xff, 0].into()), "/wA="),
        (AMQPValue::Void, ""),
        (nested, r#"{"list":[-1,null],"name":"x"}"#),
    ] {
        let properties = with_header("some-header", value);
        let (message, _) = arrive(properties.clone());
        assert_eq!(message.headers.get("some-header"), Some(shown));
        assert_eq!(outgoing(&message, None, NOW), properties, "{shown}");
    }
}

#[test]
fn a_header_that_was_changed_goes_out_as_text() {
    let (mut message, _) = arrive(with_header("count", AMQPValue::LongInt(7)));
    message.headers.set("count", "8");
    let sent = outgoing(&message, None, NOW);
    assert_eq!(sent.headers().as_ref().unwrap().inner()["count"], text("8"));
}

#[test]
fn what_the_engine_keeps_is_not_shown_and_not_made_of_nonsense() {
    let check = |name: &str, value: AMQPValue, change: &dyn Fn(&mut Message, &mut Facts)| {
        let mut expected = arrive(ordinary());
        change(&mut expected.0, &mut expected.1);
        assert_eq!(arrive(with_header(name, value)), expected, "{name}");
    };
    let failure = FailedAttempt { attempt: 1, at: 5, code: ReasonCode::Timeout, text: "slow".to_owned() };
    let failures = serde_json::to_string(&[&failure]).unwrap();
    check("x-helix-attempt", AMQPValue::LongLongInt(3), &|_, facts| facts.attempt = 3);
    check("x-helix-attempt", text("3"), &|_, facts| facts.attempt = 3);
    check("x-helix-attempt", AMQPValue::LongLongInt(-3), &|_, _| {});
    check("x-helix-attempt", AMQPValue::LongLongInt(0), &|_, _| {});
    check("x-helix-attempt", text("third"), &|_, _| {});
    check("x-helix-failures", text(&failures), &|_, facts| facts.failures = vec![failure.clone()]);
    check("x-helix-failures", text("[}"), &|_, _| {});
    check("x-helix-timestamp", AMQPValue::LongLongInt(1234), &|message, _| message.timestamp = 1234);
    check("x-helix-key", text("k"), &|message, _| message.key = Some(Bytes::from_static(b"k")));
    check("x-helix-key", AMQPValue::Void, &|_, _| {});
    check("x-helix-not-before", AMQPValue::Timestamp(9), &|message, _| message.not_before = Some(9));
    check("x-helix-not-before", AMQPValue::Boolean(true), &|_, _| {});
    check("x-helix-expires-at", AMQPValue::LongUInt(9), &|message, _| message.expires_at = Some(9));
    check("x-helix-retries-max", AMQPValue::LongLongInt(4), &|message, _| message.retries_max = Some(4));
    check("x-helix-retries-max", AMQPValue::LongLongInt(1 << 40), &|_, _| {});
    check("x-helix-extra", text("[]"), &|_, _| {});
    check("x-helix-amqp", text(".!!"), &|_, _| {});
    check("x-helix-amqp", text(".AAAAAWE"), &|_, _| {});
    check("x-helix-order", text("zz"), &|_, _| {});
    check("x-helix-more", text("zz"), &|_, _| {});
    check("x-delivery-count", AMQPValue::LongLongInt(2), &|_, facts| facts.delivery_count = Some(2));
    check("x-acquired-count", AMQPValue::LongLongInt(3), &|_, facts| facts.acquired_count = Some(3));
    check("x-stream-offset", AMQPValue::LongLongInt(7), &|_, facts| facts.stream_offset = Some(7));
    check("x-first-death-queue", text("q"), &|_, _| {});
    check("x-last-death-reason", text("expired"), &|_, _| {});
    for shown in ["x-helix-dead-code", "x-helix-hops", "x-helix-replay-of", "x-first-death-row"] {
        check(shown, text("v"), &|message, _| message.headers.append(shown, "v"));
    }
}

#[test]
fn properties_that_say_nothing_are_ignored() {
    let (message, _) = arrive(ordinary().with_expiration("soon".into()).with_priority(200));
    assert_eq!((message.expires_at, message.priority), (None, 10));
    assert_eq!(*outgoing(&message, None, NOW).priority(), Some(200));
    let (message, _) = arrive(ordinary().with_expiration("250".into()));
    assert_eq!(message.expires_at, Some(NOW + 250));
    assert_eq!(outgoing(&message, None, NOW + 50).expiration().as_ref().unwrap().as_str(), "200");
    assert_eq!(outgoing(&message, None, NOW + 500).expiration().as_ref().unwrap().as_str(), "0");
    // Longer than the server takes.
    let late = Message { expires_at: Some(NOW + (1 << 33)), ..message };
    assert_eq!(*outgoing(&late, None, NOW).expiration(), None);
}

#[test]
fn a_time_is_seconds_or_what_can_only_be_milliseconds() {
    for (given, read) in
        [(None, 0), (Some(0), 0), (Some(1_768_557_600), NOW), (Some(NOW), NOW), (Some(u64::MAX), u64::MAX)]
    {
        let mut properties = ordinary();
        if let Some(given) = given {
            properties = properties.with_timestamp(given);
        }
        let (message, _) = arrive(properties.clone());
        assert_eq!(message.timestamp, read);
        assert_eq!(outgoing(&message, None, NOW), properties);
    }
}

#[test]
fn a_message_without_an_id_has_one_of_its_content() {
    let bare = || BasicProperties::default().with_headers(table([("a", text("1"))]));
    let id = |properties, payload: &'static [u8]| incoming(properties, payload.into(), "e", "k", NOW).0.id;
    let first = id(bare(), b"x");
    let again = table([("a", text("1")), ("x-delivery-count", AMQPValue::LongLongInt(1))]);
    assert_eq!(first, id(bare().with_headers(again), b"x"));
    assert_ne!(first, id(bare(), b"y"));
    assert_ne!(first, id(bare().with_app_id("x".into()), b"x"));
    let other = table([("a", text("2"))]);
    assert_ne!(first, id(bare().with_headers(other), b"x"));
    let in_stream = table([("a", text("1")), ("x-stream-offset", AMQPValue::LongLongInt(0))]);
    assert_ne!(first, id(bare().with_headers(in_stream), b"x"));
    // A copy has it, whatever happens to it.
    let (message, _) = arrive(bare());
    let copy = outgoing(&message, Some(Copy { attempt: 2, failures: &[] }), NOW);
    assert_eq!(incoming(copy, message.payload.clone(), "", "queue", NOW).0.id, message.id);
}

#[test]
fn a_copy_waits_without_an_expiration_and_keeps_its_deaths_apart_without_those_of_waiting() {
    let death =
        |queue: &str| AMQPValue::FieldTable(table([("queue", text(queue)), ("count", AMQPValue::LongLongInt(1))]));
    let deaths = |queues: &[&str]| {
        AMQPValue::FieldArray(FieldArray::from(queues.iter().map(|queue| death(queue)).collect::<Vec<_>>()))
    };
    let copy = Copy { attempt: 4, failures: &[] };
    for (before, after) in [
        (deaths(&["helixagent.retry.500", "orders", "helixagent.retry"]), Some(deaths(&["orders"]))),
        (deaths(&["helixagent.retry"]), None),
        (text("no list"), None),
    ] {
        let properties = with_header("x-death", before.clone()).with_expiration("900".into());
        let (message, _) = arrive(properties);
        assert!(message.headers.get("x-death").is_some());
        let sent = outgoing(&message, Some(copy), NOW);
        assert_eq!(*sent.expiration(), None);
        let headers = sent.headers().as_ref().unwrap().inner();
        assert_eq!(headers.get("x-death"), None);
        // As it comes back from where it waited.
        let mut returned = headers.clone();
        returned.insert("x-death".into(), deaths(&["helixagent.retry.500"]));
        let (again, facts) = arrive(sent.clone().with_headers(returned.into()));
        let shown = again.headers.get("x-death");
        assert_eq!(shown, after.as_ref().map(value::text).as_deref().or(value::plain(&before)));
        let letter = outgoing(&again, None, NOW);
        assert_eq!(letter.headers().as_ref().unwrap().inner().get("x-death"), after.as_ref());
        assert_eq!((again.expires_at, facts.attempt), (Some(NOW + 900), 4));
        let sent = outgoing(&message, None, NOW);
        let kept = sent.headers().as_ref().unwrap().inner().get("x-death");
        assert_eq!(kept, Some(&before).filter(|deaths| matches!(deaths, AMQPValue::FieldArray(_))));
    }
}

#[test]
fn what_the_server_would_act_on_is_kept_and_not_sent() {
    let copies = AMQPValue::FieldArray(FieldArray::from(vec![text("audit")]));
    let (message, _) = arrive(with_header("CC", copies.clone()).with_user_id("somebody".into()));
    assert_eq!(message.headers.get("CC"), Some(r#"["audit"]"#));
    let sent = outgoing(&message, None, NOW);
    assert_eq!(*sent.user_id(), None);
    assert!(!sent.headers().as_ref().unwrap().contains_key("CC"));
    let (again, _) = arrive(sent.clone());
    assert_eq!(again, message);
    assert_eq!(outgoing(&again, None, NOW), sent);
}

#[test]
fn attributes_of_a_cloud_event_stand_in_for_what_is_missing() {
    let attributes = || {
        table([
            ("cloudEvents:specversion", text("1.0")),
            ("cloudEvents:id", text("e-1")),
            ("cloudEvents:type", text("order.created")),
            ("cloudEvents:source", text("/shop")),
            ("cloudEvents_subject", text("17")),
            ("cloudEvents:dataschema", text("urn:x")),
            ("cloudEvents:time", text("2026-01-16T10:00:00.25Z")),
        ])
    };
    let bare = BasicProperties::default().with_headers(attributes());
    let (event, _) = arrive(bare.clone());
    assert_eq!(
        (event.id.to_string().as_str(), event.kind.as_str(), event.timestamp),
        ("e-1", "order.created", NOW + 250)
    );
    let extra = event.extra.as_deref().unwrap();
    assert_eq!((extra.origin.as_deref(), extra.subject.as_deref()), (Some("/shop"), Some("17")));
    assert_eq!(extra.data_schema.as_deref(), Some("urn:x"));
    assert_eq!(outgoing(&event, None, NOW), bare);
    let native = bare.with_message_id("m".into()).with_type("t".into()).with_timestamp(7);
    let (event, _) = arrive(native.clone());
    assert_eq!((event.id.to_string().as_str(), event.kind.as_str(), event.timestamp), ("m", "t", 7000));
    assert_eq!(outgoing(&event, None, NOW), native);
}

#[test]
fn a_table_too_deep_to_be_read_safely_is_none() {
    let nested = (0..5000).fold(Vec::new(), |inner: Vec<u8>, _| {
        [&b"\x01tF"[..], &u32::try_from(inner.len()).unwrap().to_be_bytes(), &inner].concat()
    });
    let bytes = [&u32::try_from(nested.len()).unwrap().to_be_bytes()[..], &nested].concat();
    let deep = format!(".{}", crate::codec::bytes::to_base64url(&bytes));
    assert_eq!(arrive(with_header("x-helix-amqp", text(&deep))), arrive(ordinary()));
}

#[test]
fn a_long_history_is_cut_and_a_header_is_as_long_as_it_is_said_to_be() {
    let failures: Vec<_> = (1..=100)
        .map(|attempt| FailedAttempt { attempt, at: 0, code: ReasonCode::Timeout, text: "x".to_owned() })
        .collect();
    let sent = outgoing(&Message::new("kind", "", NOW), Some(Copy { attempt: 101, failures: &failures }), NOW);
    let (_, facts) = arrive(sent.clone());
    let numbers: Vec<_> = facts.failures.iter().map(|failure| failure.attempt).collect();
    assert_eq!((numbers.len(), numbers.first(), numbers.last()), (crate::message::FAILURES_MAX, Some(&1), Some(&100)));
    let written = amq_protocol::frame::AMQPFrame::Header(
        1,
        amq_protocol::frame::AMQPContentHeader { class_id: 60, body_size: 0, properties: sent.clone() },
    );
    let frame = amq_protocol::frame::gen_frame(&written)(Vec::new().into()).unwrap().into_inner().0;
    let said = header_bytes(&sent);
    assert!(said >= frame.len() && said <= frame.len() + 64, "{said} {}", frame.len());
}

fn short(bytes_max: usize) -> impl Strategy<Value = Text> {
    collection::vec(any::<char>(), 0..bytes_max).prop_map(Text::from_iter)
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<f32>().prop_map(AMQPValue::Float),
        any::<f64>().prop_map(AMQPValue::Double),
        (any::<u8>(), any::<u32>()).prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        Just(AMQPValue::Void),
        collection::vec(any::<u8>(), 0..30).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        "\\PC{0,9}".prop_map(|text| AMQPValue::LongString(text.into())),
        collection::vec(any::<u8>(), 0..30).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..4).prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
            foreign_table(inner).prop_map(AMQPValue::FieldTable),
        ]
    })
}

fn foreign_table(value: impl Strategy<Value = AMQPValue>) -> impl Strategy<Value = FieldTable> {
    collection::btree_map("\\PC{0,9}".prop_map(ShortString::from), value, 0..5).prop_map(FieldTable::from)
}

prop_compose! {
    fn foreign()(
        texts in collection::vec(option::of("\\PC{0,12}".prop_map(ShortString::from)), 7),
        id in "\\PC{1,12}",
        headers in option::of(foreign_table(value()).prop_filter("no headers", |table| !table.inner().is_empty())),
        priority in option::of(any::<u8>()),
        mode in option::of(any::<u8>()),
        timestamp in option::of(prop_oneof![any::<u64>(), 0..2_000_000_000_u64]),
    ) -> BasicProperties {
        let mut texts = texts.into_iter();
        let mut properties = BasicProperties::default().with_message_id(id.into());
        if let Some(text) = texts.next().flatten() { properties = properties.with_content_type(text); }
        if let Some(text) = texts.next().flatten() { properties = properties.with_content_encoding(text); }
        if let Some(text) = texts.next().flatten() { properties = properties.with_correlation_id(text); }
        if let Some(text) = texts.next().flatten() { properties = properties.with_reply_to(text); }
        if let Some(text) = texts.next().flatten() { properties = properties.with_type(text); }
        if let Some(text) = texts.next().flatten() { properties = properties.with_app_id(text); }
        if let Some(text) = texts.next().flatten() { properties = properties.with_cluster_id(text); }
        if let Some(headers) = headers { properties = properties.with_headers(headers); }
        if let Some(priority) = priority { properties = properties.with_priority(priority); }
        if let Some(mode) = mode { properties = properties.with_delivery_mode(mode); }
        if let Some(timestamp) = timestamp { properties = properties.with_timestamp(timestamp); }
        properties
    }
}

fn id() -> impl Strategy<Value = MessageId> {
    prop_oneof![any::<u64>().prop_map(MessageId::generate), "\\PC{1,100}".prop_map(|text| MessageId::parse(&text))]
}

prop_compose! {
    fn rarer()(texts in collection::vec(option::of(short(9)), 5), unknown in any::<bool>()) -> Extra {
        let mut texts = texts.into_iter().map(|text| text.unwrap_or_default()).map(Some);
        let mut next = || texts.next().flatten().filter(|text| !text.is_empty());
        Extra {
            origin: next(),
            subject: next(),
            data_schema: next(),
            parent_task_id: next(),
            trace_id: next(),
            unknown: if unknown { Map::from_iter([("x".to_owned(), json!([1, "2"]))]) } else { Map::new() },
        }
    }
}

prop_compose! {
    fn ours()(
        (id, kind, payload) in (id(), short(90), collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)),
        headers in collection::vec((prop_oneof!["[a-c]{1,2}", "CC", "x-death", "[a-z]{250,260}"], "\\PC{0,8}"), 0..6),
        timestamp in prop_oneof![0..3_000_000_000_000_u64, any::<u64>()],
        (priority, transient, retries_max) in (0_u8..=10, any::<bool>(), option::of(any::<u32>())),
        key in option::of(collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from)),
        (content_type, correlation_id, reply_to) in (option::of(short(9)), option::of(short(90)), option::of(short(90))),
        (not_before, expires_at) in (option::of(any::<u64>()), option::of(any::<u64>())),
        extra in option::of(rarer().prop_map(Box::new)),
    ) -> Message {
        Message {
            id, kind, payload, timestamp, priority, key, content_type, correlation_id, reply_to,
            not_before, expires_at, retries_max, transient, extra,
            headers: Headers::from_iter(headers),
        }
    }
}

proptest! {
    #[test]
    fn a_message_of_ours_comes_back_as_it_was(message in ours(), attempt in 1_u32..9) {
        let sent = outgoing(&message, None, NOW);
        let (back, facts) = incoming(sent, message.payload.clone(), "e", "k", NOW + 7);
        prop_assert_eq!(&back, &message);
        prop_assert_eq!(facts, Facts { attempt: 1, ..Facts::default() });
        let sent = outgoing(&message, Some(Copy { attempt, failures: &[] }), NOW);
        let (back, facts) = incoming(sent, message.payload.clone(), "", "q", NOW + 7);
        prop_assert_eq!(&back, &message);
        prop_assert_eq!(facts.attempt, attempt);
    }

    #[test]
    fn what_others_sent_goes_out_as_it_came(properties in foreign()) {
        let (message, _) = arrive(properties.clone());
        let sent = outgoing(&message, None, NOW);
        // NaN is not equal to itself; its bytes are.
        prop_assert_eq!(format!("{sent:?}"), format!("{properties:?}"));
    }
}
