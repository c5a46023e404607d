use bytes::Bytes;
use proptest::{option, prelude::*};
use serde_json::{Map, Value, json};

use super::*;
use crate::message::{Extra, Kind, Message, MessageId, PRIORITY_MAX, Position, Text, header};

const NOW: u64 = 1_768_557_600_000;
const MAX: usize = 8 << 20;

fn task(text: &str) -> Message {
    read(text.as_bytes(), Kind::Queue, NOW, MAX).unwrap().message
}

fn back(message: &Message, shape: Kind) -> Value {
    serde_json::from_slice(&write(message, shape).unwrap()).unwrap()
}

#[test]
fn reads_the_documented_task() {
    let message = task(
        r#"{"id":"task-123","type":"completion","priority":1,
            "payload":{"model": "helix-ensemble",  "messages":[]},"created_at":"2026-01-16T10:00:00Z"}"#,
    );
    assert_eq!(message.id, MessageId::Text("task-123".into()));
    assert_eq!((message.kind.as_str(), message.priority, message.timestamp), ("completion", 1, NOW));
    assert_eq!(message.payload, r#"{"model": "helix-ensemble",  "messages":[]}"#);
}

#[test]
fn reads_the_documented_event_and_a_cloud_event_alike() {
    let ours = r#"{"id":"event-456","type":"debate.round.completed","source":"debate-service","subject":"s",
        "data":{"round":2},"timestamp":"2026-01-16T10:00:00Z","data_content_type":"application/json","data_schema":"d"}"#;
    let theirs = r#"{"specversion":"1.0","id":"event-456","type":"debate.round.completed","source":"debate-service",
        "subject":"s","data":{"round":2},"time":"2026-01-16T10:00:00Z","datacontenttype":"application/json","dataschema":"d"}"#;
    let read = |text: &str| super::read(text.as_bytes(), Kind::Topic, 0, MAX).unwrap().message;
    assert_eq!(read(ours), read(theirs));
    assert_eq!(read(ours).payload, r#"{"round":2}"#);
    assert_eq!(read(ours).extra.unwrap().origin.as_deref(), Some("debate-service"));
}

#[test]
fn the_text_of_a_cloud_event_that_is_not_json_is_its_data() {
    let text = |media: &str| {
        format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"{media}","data":"<a/>"}}"#)
    };
    let payload = |media: &str| read(text(media).as_bytes(), Kind::Topic, 0, MAX).unwrap().message.payload;
    assert_eq!(payload("text/xml; charset=utf-8"), "<a/>");
    assert_eq!(payload("application/vnd.a+json"), "\"<a/>\"");
}

#[test]
fn payloads_are_kept_byte_for_byte() {
    for (given, bytes) in [
        (r#""payload":"text""#, &b"\"text\""[..]),
        (r#""payload": 1.0e2 "#, b"1.0e2"),
        (r#""payload":null"#, b"null"),
        (r#""payload":{"b":1,"a":12345678901234567890123}"#, br#"{"b":1,"a":12345678901234567890123}"#),
        (r#""payload_base64":"/wA=""#, b"\xff\x00"),
        (r#""data_base64":"/wA""#, b"\xff\x00"),
        (r#""payload_text":"plain""#, b"plain"),
        (r#""payload_base64":null"#, b""),
        (r#""type":"t""#, b""),
    ] {
        let message = task(&format!("{{{given}}}"));
        assert_eq!(message.payload, bytes, "{given}");
        for shape in [Kind::Queue, Kind::Topic] {
            let again = read(&write(&message, shape).unwrap(), shape, 0, MAX).unwrap().message;
            assert_eq!(again.payload, bytes, "{given}");
        }
    }
}

#[test]
fn priorities_have_names_and_are_clamped() {
    for (given, priority, clamped) in [
        ("0", 0, false),
        ("10", 10, false),
        ("11", PRIORITY_MAX, true),
        ("-1", 0, true),
        ("99999999999999999999999999999999999999999999", PRIORITY_MAX, true),
        ("\"low\"", 1, false),
        ("\"normal\"", 5, false),
        ("\"High\"", 8, false),
        ("\"CRITICAL\"", 10, false),
        ("null", 5, false),
    ] {
        let read = read(format!(r#"{{"priority":{given}}}"#).as_bytes(), Kind::Queue, NOW, MAX).unwrap();
        assert_eq!((read.message.priority, read.priority_clamped), (priority, clamped), "{given}");
    }
}

#[test]
fn times_are_rfc_3339_or_milliseconds() {
    let message = task(
        r#"{"created_at":4102444800000,"scheduled_at":"2026-01-16T11:00:00+01:00","deadline":"0001-01-01T00:00:00Z"}"#,
    );
    assert_eq!(message.timestamp, 4_102_444_800_000, "the future is taken as given");
    assert_eq!((message.not_before, message.expires_at), (Some(NOW), None));
    assert_eq!(task(r#"{"expiration":1768557600000}"#).expires_at, Some(NOW));
}

#[test]
fn headers_of_the_engine_are_dropped_and_counted() {
    let read = read(
        br#"{"headers":{"a":"1","x-helix-attempt":"9","x-death":{}},"metadata":{"n":2,"b":true},
            "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#,
        Kind::Queue,
        NOW,
        MAX,
    )
    .unwrap();
    let headers: Vec<_> = read.message.headers.iter().collect();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(headers, [("a", "1"), ("n", "2"), ("b", "true"), (header::TRACEPARENT, parent)]);
    assert_eq!(read.headers_dropped, 2);
    assert_eq!(read.message.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
}

#[test]
fn unknown_fields_come_back_as_they_came() {
    let message = task(r#"{"id":"1","state":"queued","retry_count":2,"z":{"b":[1,2.5,null],"a":"x"},"a":-1}"#);
    let written = back(&message, Kind::Queue);
    for (name, value) in [
        ("state", json!("queued")),
        ("retry_count", json!(2)),
        ("z", json!({"b":[1,2.5,null],"a":"x"})),
        ("a", json!(-1)),
    ] {
        assert_eq!(written.get(name), Some(&value), "{name}");
    }
}

#[test]
fn a_line_is_one_line_and_may_be_published_again() {
    let mut message = task("{\"id\":\"1\",\"payload\":{\r\n  \"a\": \"x\\ny\"\n}}");
    message.payload = [&message.payload[..], b"\n"].concat().into();
    let mut line = Vec::new();
    write_line(&message, Kind::Topic, Some(Position { partition: 3, offset: 9 }), &mut line).unwrap();
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    let value: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&value["data"]["a"], &value["partition"], &value["offset"]), (&json!("x\ny"), &json!(3), &json!(9)));
    let again = read(&line, Kind::Topic, 0, MAX).unwrap().message;
    assert_eq!(again.extra, None, "where it was read is not a field of its own");
}

#[test]
fn says_which_field_is_wrong_and_what_would_be_right() {
    for (text, wanted) in [
        ("", "not JSON: EOF while parsing a value at line 1 column 0"),
        ("{\"type\":\"a\"} x", "not JSON: trailing characters at line 1 column 14"),
        ("[1]", "a message is a JSON object such as {\"type\":\"order.created\",\"payload\":{}}, this is a list"),
        (r#"{"id":""}"#, r#""id" is empty; write one, or leave it out and one is made"#),
        (r#"{"id":7}"#, r#""id" is a number; write it as text: "7""#),
        (r#"{"type":{}}"#, r#""type" is an object; write text in quotes"#),
        (r#"{"id":"a","id":"b"}"#, r#""id" is given twice; keep one"#),
        (r#"{"payload":1,"data":1}"#, r#""data" and "payload" both give the payload; keep one"#),
        (
            r#"{"payload_base64":"é"}"#,
            r#""payload_base64" is not base64; write the bytes in base64 as in RFC 4648, section 4"#,
        ),
        (
            r#"{"created_at":1768557600000,"timestamp":0}"#,
            r#""created_at" and "timestamp" say different things about the same; keep one"#,
        ),
        (
            r#"{"timestamp":1768557600}"#,
            r#""timestamp" is 1768557600, which looks like seconds; write RFC 3339 such as "2026-01-16T10:00:00Z", or milliseconds since 1970"#,
        ),
        (
            r#"{"deadline":"soon"}"#,
            r#""deadline" is "soon", which is no time since 1970; write RFC 3339 such as "2026-01-16T10:00:00Z", or milliseconds since 1970"#,
        ),
        (
            r#"{"priority":1.5}"#,
            r#""priority" is 1.5; write a whole number from 0 to 10, or low (1), normal (5), high (8) or critical (10)"#,
        ),
        (
            r#"{"priority":"urgent"}"#,
            r#""priority" is "urgent"; write a whole number from 0 to 10, or low (1), normal (5), high (8) or critical (10)"#,
        ),
        (r#"{"max_retries":-1}"#, r#""max_retries" is -1; write a whole number, 0 or more"#),
        (
            r#"{"headers":"a=b"}"#,
            r#""headers" is text; write an object with text under each name, or a list of pairs ["name", "value"]"#,
        ),
        (r#"{"metadata":{"a":{}}}"#, r#""metadata.a" is an object; headers are text; put it into the payload"#),
        (r#"{"delivery_mode":"fast"}"#, r#""delivery_mode" is "fast"; write "persistent" or "transient""#),
        (
            r#"{"traceparent":"00-1-2-3"}"#,
            r#""traceparent" is 00-1-2-3; write it as W3C Trace Context has it: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>"#,
        ),
        (r#"{"specversion":"0.3"}"#, r#""specversion" is "0.3"; CloudEvents are read in version "1.0""#),
        (
            r#"{"specversion":"1.0","id":"1"}"#,
            r#""source" is missing; a CloudEvent has id, source and type, none of them empty"#,
        ),
    ] {
        assert_eq!(read(text.as_bytes(), Kind::Queue, NOW, MAX).unwrap_err().to_string(), wanted, "{text}");
    }
    assert_eq!(read(b"{\"a\":\"\xff\"}", Kind::Queue, NOW, MAX), Err(JsonError::NotUtf8 { at: 6 }));
    let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(256));
    assert_eq!(
        read(long.as_bytes(), Kind::Queue, NOW, MAX).unwrap_err().to_string(),
        r#""id" takes 256 bytes; at most 255 are allowed"#
    );
}

#[test]
fn refuses_what_is_too_large() {
    let check = |text: &str, max: usize| read(text.as_bytes(), Kind::Queue, NOW, max).unwrap_err();
    assert_eq!(check(r#"{"payload":"12345678"}"#, 9), JsonError::TooLarge { bytes: 10, max: 9 });
    assert_eq!(check(r#"{"other":"12345678"}"#, 9), JsonError::TooLarge { bytes: 15, max: 9 });
    let many: Map<String, Value> = (0..1000).map(|n| (n.to_string(), json!("v"))).collect();
    assert_eq!(check(&json!({ "headers": many }).to_string(), MAX).code(), crate::message::ReasonCode::MessageTooLarge);
    assert_eq!(check(&Value::Object(many).to_string(), MAX), JsonError::TooManyFields);
    let deep = format!(r#"{{"other":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    assert!(check(&deep, MAX).to_string().starts_with("\"other\" cannot be kept"));
    let deep = format!(r#"{{"payload":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(task(&deep).payload.len(), 200_000, "a payload is not looked into");
}

fn text(max: usize) -> impl Strategy<Value = Text> {
    proptest::collection::vec(any::<char>(), 0..max).prop_map(Text::from_iter)
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        "\\PC{0,20}".prop_map(Bytes::from),
        "[ \n]{0,2}(\\{\"a\": ?[0-9]{1,30}\\}|\"[a-z]*\"|null|\\[1,\n2\\])[ \n]{0,2}".prop_map(Bytes::from),
    ]
}

fn unknown() -> impl Strategy<Value = Map<String, Value>> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        Just(json!({"b": [1, {"a": null}]})),
    ];
    proptest::collection::vec(("x[a-z]{0,6}", value), 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

prop_compose! {
    fn extras()(
        origin in option::of(text(8)), subject in option::of(text(8)), data_schema in option::of(text(8)),
        parent_task_id in option::of(text(8)), trace_id in option::of(text(8)), unknown in unknown(),
    ) -> Option<Box<Extra>> {
        let extra = Extra { origin, subject, data_schema, parent_task_id, trace_id, unknown };
        (extra != Extra::default()).then(|| Box::new(extra))
    }
}

prop_compose! {
    fn messages()(
        id in prop_oneof![Just(MessageId::generate(1)), "\\PC{1,20}".prop_map(|text| MessageId::parse(&text))],
        kind in text(20),
        payload in payload(),
        headers in proptest::collection::vec(("[a-c]{1,2}", "\\PC{0,8}"), 0..6),
        (timestamp, not_before, expires_at) in (any::<u64>(), option::of(any::<u64>()), option::of(0..300_000_000_000_000_u64)),
        priority in 0..=PRIORITY_MAX,
        key in option::of(payload()),
        (content_type, correlation_id, reply_to) in (option::of(text(8)), option::of(text(8)), option::of(text(8))),
        retries_max in option::of(any::<u32>()),
        transient in any::<bool>(),
        extra in extras(),
    ) -> Message {
        Message {
            id, kind, payload, headers: headers.into_iter().collect(), timestamp, priority, key, content_type,
            correlation_id, reply_to, not_before, expires_at, retries_max, transient, extra,
        }
    }
}

proptest! {
    #[test]
    fn every_message_reads_back_as_it_was_written(message in messages(), shape in prop_oneof![Just(Kind::Queue), Just(Kind::Topic)]) {
        let written = write(&message, shape).unwrap();
        let again = read(&written, shape, 7, MAX).unwrap();
        prop_assert_eq!(again.message, message);
        let mut line = Vec::new();
        write_line(&read(&written, shape, 7, MAX).unwrap().message, shape, None, &mut line).unwrap();
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn reading_never_panics(text in proptest::collection::vec(any::<u8>(), 0..200), fields in "\\{(\"(id|type|payload|priority|deadline|headers|key)\":(1|\"x\"|null|\\{\\}|\\[\\[\"a\",1\\]\\]),?){0,4}\\}") {
        drop(read(&text, Kind::Queue, 0, MAX));
        drop(read(fields.as_bytes(), Kind::Topic, 0, MAX));
    }
}
