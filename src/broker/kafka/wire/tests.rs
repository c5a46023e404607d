use proptest::{collection, option, prelude::*};
use rdkafka::{
    Timestamp,
    message::{Header, Headers as _, OwnedMessage},
};
use serde_json::{Map, json};

use super::*;
use crate::{
    broker::kafka::settings::Format,
    message::{Extra, Headers, MessageId, PRIORITY_NORMAL, ReasonCode, Text, now_ms},
};

const NOW: i64 = 1_767_225_600_000;

type Given<'a> = (&'a str, Option<&'a [u8]>);

fn headers(given: &[Given<'_>]) -> OwnedHeaders {
    given.iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: *value }))
}

fn record(value: Option<&[u8]>, given: &[Given<'_>]) -> OwnedMessage {
    let headers = Some(headers(given)).filter(|_| !given.is_empty());
    OwnedMessage::new(value.map(<[u8]>::to_vec), None, "events".into(), Timestamp::CreateTime(NOW), 3, 17, headers)
}

/// What a reader gets of what was sent.
fn arrived(sent: &Record) -> OwnedMessage {
    let timestamp = Timestamp::CreateTime(if sent.timestamp == 0 { NOW } else { sent.timestamp });
    let (value, key) = (sent.value.as_deref().map(<[u8]>::to_vec), sent.key.as_deref().map(<[u8]>::to_vec));
    OwnedMessage::new(value, key, "events".into(), timestamp, 0, 1, Some(sent.headers.clone()))
}

fn pairs(headers: &OwnedHeaders) -> Vec<(String, Option<Vec<u8>>)> {
    headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
}

fn sent_headers(message: &Message, format: Format) -> Vec<String> {
    pairs(&outgoing(message, format, None).headers)
        .into_iter()
        .map(|(name, value)| format!("{name}={}", String::from_utf8(value.unwrap()).unwrap()))
        .collect()
}

#[test]
fn a_record_of_another_program_is_a_message() {
    let read =
        incoming(&record(Some(b"{}"), &[("a", Some(b"1")), ("a", Some(b"2")), ("content-type", Some(b"text/x"))]));
    assert_eq!((read.poison, read.copy), (None, None));
    let message = read.message;
    assert_eq!((&message.payload[..], message.timestamp, message.priority), (&b"{}"[..], NOW as u64, PRIORITY_NORMAL));
    assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("a", "1"), ("a", "2"), ("content-type", "text/x")]);
    assert_eq!((message.content_type.as_deref(), message.key), (Some("text/x"), None));
}

#[test]
fn an_id_is_made_of_the_place_of_a_record() {
    let id = |topic: &str, partition, offset, value: &[u8]| {
        let headers = None;
        let at = Timestamp::CreateTime(NOW);
        incoming(&OwnedMessage::new(Some(value.to_vec()), None, topic.into(), at, partition, offset, headers))
            .message
            .id
    };
    assert_eq!(id("a", 0, 1, b"x"), id("a", 0, 1, b"x"));
    let places = [("a", 0, 1), ("a", 0, 2), ("a", 1, 1), ("a", 65_536, 1), ("b", 0, 1)];
    let ids: std::collections::BTreeSet<_> =
        places.iter().map(|(topic, partition, offset)| id(topic, *partition, *offset, b"x")).collect();
    assert_eq!(ids.len(), places.len());
}

#[test]
fn what_is_no_text_goes_out_as_it_came() {
    let given: &[Given<'_>] = &[
        ("a", None),
        ("a", Some(b"")),
        ("b", Some(b"\xff\x00")),
        ("b", Some(b"text")),
        ("", Some(b"\xc3\xa9")),
        ("b", Some(b"\xfe")),
    ];
    let mut message = incoming(&record(Some(b""), given)).message;
    assert_eq!(
        message.headers.iter().take(6).collect::<Vec<_>>(),
        [("a", ""), ("a", ""), ("b", "/wA="), ("b", "text"), ("", "é"), ("b", "/g==")]
    );
    // What is put behind them changes nothing, and what is changed is sent as what it is.
    message.headers.append("a", "");
    message.headers.append("c", "");
    let sent = pairs(&outgoing(&message, Format::Native, None).headers);
    let expected = given.iter().copied().chain([("a", Some(&b""[..])), ("c", Some(b""))]);
    let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect();
    assert_eq!(sent[..8], expected[..]);
}

#[test]
fn a_tombstone_stays_one_and_is_seen() {
    let gone = incoming(&record(None, &[])).message;
    assert_eq!((gone.payload.len(), gone.headers.get(names::TOMBSTONE)), (0, Some("true")));
    for format in [Format::Native, Format::CloudEventsBinary, Format::CloudEventsStructured] {
        let sent = outgoing(&gone, format, None);
        assert_eq!(sent.value, None, "{format:?}");
        assert!(pairs(&sent.headers).iter().all(|(name, _)| name != names::TOMBSTONE));
        assert_eq!(incoming(&arrived(&sent)).message.headers.get(names::TOMBSTONE), Some("true"));
    }
    let empty = incoming(&record(Some(b""), &[(names::TOMBSTONE, Some(b"true"))])).message;
    assert_eq!(empty.headers.get(names::TOMBSTONE), None);
    assert_eq!(outgoing(&empty, Format::Native, None).value.as_deref(), Some(&b""[..]));
}

#[test]
fn what_cannot_be_a_message_says_why() {
    for (record, says) in [
        (record(Some(b"{"), &[("content-type", Some(b"application/cloudevents+json"))]), Some("not a JSON object")),
        (
            record(Some(b"{}"), &[("content-type", Some(b"Application/CloudEvents+JSON; charset=UTF-8"))]),
            Some("specversion"),
        ),
        (
            record(
                Some(br#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#),
                &[("content-type", Some(b"application/cloudevents+json"))],
            ),
            Some("\"id\" is missing"),
        ),
        (record(Some(b"{"), &[("content-type", Some(b"application/cloudevents-batch+json"))]), None),
        (record(None, &[("content-type", Some(b"application/cloudevents+json"))]), None),
    ] {
        let read = incoming(&record);
        match (read.poison, says) {
            (Some(poison), Some(says)) => assert!(poison.contains(says), "{poison}"),
            (poison, says) => assert_eq!(poison.as_deref(), says),
        }
    }
}

/// A message of ours, in every format, and the same again.
fn full() -> Message {
    Message {
        key: Some(Bytes::from_static(b"k")),
        content_type: Some("application/json".into()),
        correlation_id: Some("c-1".into()),
        priority: 9,
        headers: Headers::from_iter([("traceparent", "00-aa-bb-01"), ("x", "1")]),
        extra: Some(Box::new(Extra {
            origin: Some("/shop".into()),
            subject: Some("17".into()),
            trace_id: Some("t".into()),
            unknown: Map::from_iter([("tenant".to_owned(), json!("a")), ("level".to_owned(), json!(3))]),
            ..Extra::default()
        })),
        ..Message::new("order.created", &br#"{"n":1}"#[..], 1_768_557_600_250)
    }
}

#[test]
fn headers_are_those_that_are_documented() {
    let mut message = Message { id: MessageId::parse("m-1"), ..full() };
    let rest = [
        "x-helix-type=order.created",
        "x-helix-priority=9",
        "x-helix-correlation-id=c-1",
        r#"x-helix-extra={"source":"/shop","subject":"17","trace_id":"t","unknown":{"tenant":"a","level":3}}"#,
    ];
    let mut native = vec!["traceparent=00-aa-bb-01", "x=1", "x-helix-id=m-1", "x-helix-content-type=application/json"];
    native.extend(rest);
    assert_eq!(sent_headers(&message, Format::Native), native);
    let binary = [
        "traceparent=00-aa-bb-01",
        "x=1",
        "ce_specversion=1.0",
        "ce_id=m-1",
        "ce_source=/shop",
        "ce_type=order.created",
        "ce_subject=17",
        "ce_time=2026-01-16T10:00:00.25Z",
        "ce_tenant=a",
        "ce_level=3",
        "content-type=application/json",
        "x-helix-priority=9",
        "x-helix-correlation-id=c-1",
        r#"x-helix-extra={"trace_id":"t","unknown":{"tenant":"a","level":3}}"#,
    ];
    assert_eq!(sent_headers(&message, Format::CloudEventsBinary), binary);
    message.extra = None;
    message.kind = Text::default();
    let structured = outgoing(&message, Format::CloudEventsStructured, None);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&structured.value.unwrap()).unwrap(),
        json!({
            "specversion": "1.0", "id": "m-1", "source": "/helixmq", "type": "helixmq.message",
            "time": "2026-01-16T10:00:00.25Z", "datacontenttype": "application/json", "data": {"n": 1},
        })
    );
    assert_eq!(structured.timestamp, 1_768_557_600_250);
}

#[test]
fn an_event_of_ours_comes_back_in_both_modes() {
    for payload in [&br#"{"n":1}"#[..], b"[1]", b" {}", b"\"text\"", b"7", b"\xff", b"", b"{"] {
        for content_type in [None, Some(Text::from("application/json")), Some("text/plain".into())] {
            for bare in [false, true] {
                let mut message = Message { payload: payload.into(), content_type: content_type.clone(), ..full() };
                if bare {
                    message = Message { extra: None, kind: Text::default(), ..message };
                }
                for format in [Format::CloudEventsBinary, Format::CloudEventsStructured] {
                    let sent = outgoing(&message, format, None);
                    let mut back = incoming(&arrived(&sent)).message;
                    back.headers.retain(|name, _| !name.starts_with("ce_") && name != "content-type");
                    assert_eq!(back, message, "{format:?}");
                }
            }
        }
    }
}

#[test]
fn events_of_others_are_read_and_their_extensions_survive() {
    let binary: &[Given<'_>] = &[
        ("ce_specversion", Some(b"1.0")),
        ("ce_id", Some(b"e-1")),
        ("ce_source", Some(b"/shop")),
        ("ce_type", Some(b"order.created")),
        ("ce_subject", Some(b"17")),
        ("ce_time", Some(b"2026-01-16T11:00:00.0000001+01:00")),
        ("ce_dataschema", Some(b"urn:x")),
        ("ce_tenant", Some(b"a")),
        ("content-type", Some(b"text/plain")),
    ];
    let document = br#"{"specversion":"1.0","id":"e-1","source":"/shop","type":"order.created","subject":"17",
        "time":"2026-01-16T10:00:00Z","dataschema":"urn:x","tenant":"a","datacontenttype":"text/plain","data":"hello"}"#;
    let structured: &[Given<'_>] = &[("content-type", Some(b"application/cloudevents+json; charset=utf-8"))];
    for record in [record(Some(b"hello"), binary), record(Some(document), structured)] {
        let message = incoming(&record).message;
        let extra = message.extra.clone().unwrap();
        assert_eq!((message.id.to_string().as_str(), message.kind.as_str()), ("e-1", "order.created"));
        assert_eq!((&message.payload[..], message.content_type.as_deref()), (&b"hello"[..], Some("text/plain")));
        assert_eq!(message.timestamp, 1_768_557_600_000);
        assert_eq!((extra.origin.as_deref(), extra.subject.as_deref()), (Some("/shop"), Some("17")));
        assert_eq!(extra.data_schema.as_deref(), Some("urn:x"));
        for format in [Format::Native, Format::CloudEventsBinary, Format::CloudEventsStructured] {
            let again = incoming(&arrived(&outgoing(&message, format, None))).message;
            let extension = |message: &Message| {
                let unknown =
                    message.extra.as_ref().and_then(|extra| extra.unknown.get("tenant")?.as_str().map(str::to_owned));
                unknown.or_else(|| message.headers.get("ce_tenant").map(str::to_owned))
            };
            assert_eq!(extension(&again).as_deref(), Some("a"), "{format:?}");
            assert_eq!((&again.id, &again.kind, &again.payload), (&message.id, &message.kind, &message.payload));
            assert_eq!(again.timestamp, message.timestamp);
        }
    }
    // In our own format it goes out as it came, in place and number.
    let mut message = incoming(&record(Some(b"hello"), binary)).message;
    let sent = pairs(&outgoing(&message, Format::Native, None).headers);
    assert_eq!(sent, pairs(&headers(binary)));
    message.timestamp += 1;
    assert_eq!(incoming(&arrived(&outgoing(&message, Format::Native, None))).message, message);
}

#[test]
fn a_partition_is_chosen_by_a_header_that_is_not_sent() {
    for (text, partition, headers) in [("3", Some(3), 0), ("x", None, 1), ("-1", None, 1), ("", None, 1)] {
        let mut message = Message::new("t", "", NOW as u64);
        message.headers.append(names::PARTITION, text);
        let sent = outgoing(&message, Format::Native, None);
        let is_sent = pairs(&sent.headers).iter().filter(|(name, _)| name == names::PARTITION).count();
        assert_eq!((sent.partition, is_sent), (partition, headers), "{text}");
    }
}

#[test]
fn the_time_of_a_record_is_the_messages_where_no_server_would_mind() {
    let now = now_ms();
    let dead = Headers::from_iter([(crate::message::header::DEAD_CODE, "X")]);
    for (at, headers, own) in [
        (now, Headers::default(), true),
        (1_000, Headers::default(), true),
        (0, Headers::default(), false),
        (now + 3_600_000, Headers::default(), false),
        (u64::MAX, Headers::default(), false),
        (1_000, dead, false),
    ] {
        let message = Message { headers, ..Message::new("t", "", at) };
        let sent = outgoing(&message, Format::Native, None);
        assert_eq!(sent.timestamp, if own { at as i64 } else { 0 });
        assert_eq!(incoming(&arrived(&sent)).message.timestamp, at);
    }
}

fn copy(failures: usize) -> Copy {
    let failed = |attempt: usize| FailedAttempt {
        attempt: u32::try_from(attempt).unwrap(),
        at: 7,
        code: ReasonCode::Timeout,
        text: "ß\n".to_owned(),
    };
    Copy {
        topic: "events".into(),
        partition: 5,
        offset: u64::MAX,
        group: "g".into(),
        attempt: 3,
        due: 99,
        failures: (1..=failures).map(failed).collect(),
    }
}

#[test]
fn a_copy_says_what_it_is_of_and_a_part_of_that_is_none() {
    let message = full();
    let sent = outgoing(&message, Format::CloudEventsStructured, Some(&copy(2)));
    let read = incoming(&arrived(&sent));
    assert_eq!((read.message, read.copy), (message, Some(copy(2))));
    for missing in [names::RETRY_TOPIC, names::RETRY_OFFSET, names::RETRY_GROUP, names::ATTEMPT, names::DUE] {
        let left = pairs(&sent.headers).into_iter().filter(|(name, _)| name != missing);
        let headers = left.fold(OwnedHeaders::new(), |headers, (name, value)| {
            headers.insert(Header { key: &name, value: value.as_ref() })
        });
        assert_eq!(incoming(&arrived(&Record { headers, ..sent.clone() })).copy, None, "{missing}");
    }
    let long = incoming(&arrived(&outgoing(&full(), Format::Native, Some(&copy(100))))).copy.unwrap();
    let numbers: Vec<_> = long.failures.iter().map(|failure| failure.attempt).collect();
    assert_eq!((numbers.len(), numbers[0], numbers[1], numbers[31]), (crate::message::FAILURES_MAX, 1, 70, 100));
}

fn short() -> impl Strategy<Value = Text> {
    collection::vec(any::<char>(), 0..9).prop_map(Text::from_iter)
}

prop_compose! {
    fn rarer()(texts in collection::vec(option::of(short()), 5), unknown in any::<bool>()) -> Extra {
        let mut texts = texts.into_iter().map(|text| text.filter(|text| !text.is_empty()));
        let mut next = || texts.next().flatten();
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
        id in prop_oneof![any::<u64>().prop_map(MessageId::generate), "\\PC{1,100}".prop_map(|text| MessageId::parse(&text))],
        (kind, payload) in (short(), collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)),
        headers in collection::vec((prop_oneof!["[a-c]{1,2}", "ce_[a-z]{1,5}", "[^\\x00]{0,3}", Just("content-type".to_owned())], "\\PC{0,8}"), 0..6),
        timestamp in prop_oneof![0..1_700_000_000_000_u64, any::<u64>()],
        (priority, transient, retries_max) in (0_u8..=10, any::<bool>(), option::of(any::<u32>())),
        key in option::of(collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from)),
        (correlation_id, reply_to) in (option::of(short()), option::of(short())),
        (not_before, expires_at) in (option::of(any::<u64>()), option::of(any::<u64>())),
        (content_type, extra) in (short(), option::of(rarer().prop_map(Box::new))),
    ) -> Message {
        Message {
            id, kind, payload, timestamp, priority, key, correlation_id, reply_to,
            not_before, expires_at, retries_max, transient, extra,
            content_type: Some(content_type),
            headers: Headers::from_iter(headers),
        }
    }
}

proptest! {
    #[test]
    fn a_message_of_ours_comes_back_as_it_was(message in ours()) {
        let read = incoming(&arrived(&outgoing(&message, Format::Native, None)));
        prop_assert_eq!(read.copy, None);
        let mut back = read.message;
        // What a publisher put there beside our own words stands in for those that it left out, and stays where it is.
        if message.kind.is_empty() && message.headers.get("ce_type").is_some() {
            back.kind = Text::default();
        }
        prop_assert_eq!(&back, &message);
        let read = incoming(&arrived(&outgoing(&message, Format::CloudEventsBinary, Some(&copy(1)))));
        prop_assert_eq!(read.copy, Some(copy(1)));
    }

    #[test]
    fn what_others_sent_goes_out_as_it_came(
        given in collection::vec(("[a-d]{0,2}", option::of(collection::vec(any::<u8>(), 0..6))), 0..8),
        value in option::of(collection::vec(any::<u8>(), 0..9)),
    ) {
        let given: Vec<Given<'_>> = given.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let sent = outgoing(&incoming(&record(value.as_deref(), &given)).message, Format::Native, None);
        prop_assert_eq!(sent.value.as_deref(), value.as_deref());
        let mut headers = pairs(&sent.headers);
        // It has an id from now on.
        prop_assert_eq!(headers.pop().map(|(name, _)| name), Some(names::ID.to_owned()));
        prop_assert_eq!(headers, pairs(&super::tests::headers(&given)));
    }
}
