use std::task::Poll;

use amq_protocol::{
    frame::{AMQPFrame, gen_frame, parse_frame},
    protocol::{AMQPClass, BasicProperties, basic},
    types::{AMQPValue, FieldArray, FieldTable},
};
use proptest::prelude::*;

use super::*;

/// All that comes out, where `bytes` come in pieces of at most `piece` bytes and go into a buffer of `room` bytes.
fn pass(bytes: &[u8], first: usize, piece: usize, room: usize) -> io::Result<Vec<u8>> {
    run(Filter { greeted: true, ..Filter::new("PLAIN") }, bytes, first, piece, room)
}

fn run(mut filter: Filter, bytes: &[u8], first: usize, piece: usize, room: usize) -> io::Result<Vec<u8>> {
    let (mut left, mut passed) = (bytes, Vec::new());
    let mut next = first;
    let mut buffer = vec![0; room];
    loop {
        let read = filter.read(&mut buffer, |free| {
            let count = left.len().min(free.len()).min(next);
            next = piece;
            free[..count].copy_from_slice(&left[..count]);
            left = &left[count..];
            Poll::Ready(Ok(count))
        });
        match read {
            Poll::Ready(Ok(0)) => return Ok(passed),
            Poll::Ready(Ok(count)) => passed.extend_from_slice(&buffer[..count]),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => unreachable!("the source always has an answer"),
        }
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, 1][..], &length, payload, &[0xce]].concat()
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A content header with these properties, written one behind the other.
fn content(flags: u16, properties: &[Vec<u8>]) -> Vec<u8> {
    frame(2, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2][..], &flags.to_be_bytes(), &properties.concat()].concat())
}

fn deliver(routing_key: &[u8]) -> Vec<u8> {
    frame(1, &[&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"exchange"), &short(routing_key)].concat())
}

fn body(bytes: &[u8]) -> Vec<u8> {
    frame(3, bytes)
}

fn written(frame: &AMQPFrame) -> Vec<u8> {
    gen_frame(frame)(Vec::new().into()).unwrap().into_inner().0
}

/// Every frame, as the client library reads them.
fn read(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).expect("a frame that the library reads");
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn properties(frames: &[AMQPFrame]) -> &BasicProperties {
    frames
        .iter()
        .find_map(|frame| match frame {
            AMQPFrame::Header(_, header) => Some(&header.properties),
            _ => None,
        })
        .expect("a content header")
}

const HEADERS: u16 = 1 << 13;
const MESSAGE_ID: u16 = 1 << 7;

#[test]
fn what_is_no_text_is_read_as_text_wherever_the_stream_is_cut() {
    let table = [short(b"\xff"), b"Sv".to_vec(), short(b"ok"), b"t\x01".to_vec()];
    let table = [&table[0][..], b"S", &long(b"\xfe"), &table[2], &table[3]].concat();
    let stream = [
        deliver(b"key"),
        content(HEADERS | MESSAGE_ID, &[long(&table), short(b"\xc3\x28")]),
        body(b"\xff\xff"),
        deliver(b"\xff"),
        content(MESSAGE_ID, &[short(b"id")]),
        body(b"12"),
    ]
    .concat();
    for cut in 1..stream.len() {
        for room in [1, 16, 4096] {
            let passed = pass(&stream, cut, usize::MAX, room).unwrap();
            let frames = read(&passed);
            assert_eq!(frames.len(), 6, "cut at {cut}, room for {room}");
            let properties = properties(&frames);
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "base64url:wyg");
            let headers = properties.headers().as_ref().unwrap().inner();
            assert_eq!(headers["base64url:_w"], AMQPValue::LongString(b"\xfe".to_vec().into()));
            assert_eq!(headers["ok"], AMQPValue::Boolean(true));
            let AMQPFrame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) = &frames[3] else {
                panic!("{:?}", frames[3]);
            };
            assert_eq!(deliver.routing_key.as_str(), "base64url:_w");
        }
    }
}

#[test]
fn bytes_that_do_not_fit_are_kept_in_a_header() {
    let id = [0xff; 255];
    let frames = read(&pass(&content(MESSAGE_ID, &[short(&id)]), 1, 1, 4096).unwrap());
    let text = properties(&frames).message_id().as_ref().unwrap().as_str();
    assert!(text.starts_with("sha256:"), "{text}");
    let headers = properties(&frames).headers().as_ref().unwrap().inner();
    let AMQPValue::FieldTable(behind) = &headers["x-helix-bytes"] else { panic!("{headers:?}") };
    assert_eq!(behind.inner()[text], AMQPValue::ByteArray(id.to_vec().into()));
}

#[test]
fn deep_tables_become_bytes() {
    let nested =
        |levels: usize| (0..levels).fold(Vec::new(), |inner, _| [&short(b"t")[..], b"F", &long(&inner)].concat());
    let stream = content(HEADERS, &[long(&nested(15))]);
    assert_eq!(pass(&stream, 7, 7, 4096).unwrap(), stream);
    // As deep as a frame can be: the library alone would end the process.
    let deepest = nested(20_000);
    let frames = read(&pass(&content(HEADERS, &[long(&deepest)]), 4096, 4096, 1 << 20).unwrap());
    let mut depth = 1;
    let mut value = &properties(&frames).headers().as_ref().unwrap().inner()["t"];
    while let AMQPValue::FieldTable(table) = value {
        value = &table.inner()["t"];
        depth += 1;
    }
    let AMQPValue::ByteArray(bytes) = value else { panic!("{value:?}") };
    assert_eq!((depth, bytes.as_slice()), (16, &nested(20_000 - 16)[..]));
}

#[test]
fn what_grows_too_long_for_a_frame_keeps_its_headers_as_bytes() {
    let tune = frame(1, &[0, 10, 0, 30, 0, 0, 0, 0, 32, 0, 0, 0]);
    let table: Vec<u8> = (0..200).flat_map(|_| [&short(b"\xff")[..], b"V"].concat()).collect();
    let many: Vec<u8> = table.iter().copied().cycle().take(table.len() * 10).collect();
    // Text, and longer than agreed.
    let text: Vec<u8> = (0..2000).flat_map(|_| [&short(b"text")[..], b"V"].concat()).collect();
    for (table, kept) in [(&table, false), (&many, true), (&text, false)] {
        let stream = [tune.clone(), content(HEADERS | MESSAGE_ID, &[long(table), short(b"id")])].concat();
        let passed = pass(&stream, 100, 100, 1 << 16).unwrap();
        assert!(passed.len() <= tune.len() + 8192);
        let frames = read(&passed);
        assert_eq!(properties(&frames).message_id().as_ref().unwrap().as_str(), "id");
        let headers = properties(&frames).headers().as_ref().unwrap().inner();
        assert_eq!(headers.get("x-helix-table") == Some(&AMQPValue::ByteArray(table.clone().into())), kept);
    }
}

#[test]
fn a_sentence_is_cut_where_the_server_cut_a_character() {
    let close = |text: &[u8]| frame(1, &[&[0, 20, 0, 40, 1, 148][..], &short(text), &[0, 50, 0, 10]].concat());
    let cut = "no queue 'ü".as_bytes();
    let passed = pass(&close(&cut[..cut.len() - 1]), 3, 3, 64).unwrap();
    assert_eq!(passed, close(b"no queue '"));
}

#[test]
fn who_is_no_broker_of_ours_is_told_apart() {
    let start =
        frame(1, &[&[0, 10, 0, 10, 0, 9][..], &long(b""), &long(b"AMQPLAIN EXTERNAL"), &long(b"en_US")].concat());
    let mechanism = NoConversation::Mechanism { wanted: "PLAIN", offered: "AMQPLAIN EXTERNAL".to_owned() };
    for (bytes, expected) in [
        (b"\x15\x03\x03\x00\x02\x02\x46".to_vec(), NoConversation::Tls),
        (b"HTTP/1.1 400 Bad Request".to_vec(), NoConversation::Http),
        (b"AMQP\x03\x01\x00\x00".to_vec(), NoConversation::Version),
        (b"220 smtp".to_vec(), NoConversation::Unknown),
        (start, mechanism),
    ] {
        let error = run(Filter::new("PLAIN"), &bytes, 1, 1, 64).unwrap_err();
        let reason = error.get_ref().and_then(|cause| cause.downcast_ref::<NoConversation>());
        assert_eq!(reason, Some(&expected));
    }
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<f32>().prop_map(AMQPValue::Float),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        Just(AMQPValue::Void),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
            prop::collection::btree_map("\\PC{0,9}", inner, 0..4)
                .prop_map(|table| AMQPValue::FieldTable(fields(table))),
        ]
    })
}

fn fields(table: std::collections::BTreeMap<String, AMQPValue>) -> FieldTable {
    let mut fields = FieldTable::default();
    for (name, value) in table {
        fields.insert(name.into(), value);
    }
    fields
}

prop_compose! {
    fn delivery()(
        key in "\\PC{0,12}",
        id in "\\PC{0,12}",
        table in prop::collection::btree_map("\\PC{0,9}", value(), 0..6),
        payload in prop::collection::vec(any::<u8>(), 0..80),
    ) -> Vec<u8> {
        let header = BasicProperties::default().with_message_id(id.into()).with_headers(fields(table)).with_priority(3);
        let header = AMQPFrame::Header(1, amq_protocol::frame::AMQPContentHeader {
            class_id: 60, body_size: payload.len() as u64, properties: header,
        });
        [deliver(key.as_bytes()), written(&header), body(&payload), frame(8, &[])].concat()
    }
}

proptest! {
    #[test]
    fn what_can_be_read_passes_unchanged(
        deliveries in prop::collection::vec(delivery(), 1..5),
        (first, piece, room) in (1_usize..400, 1_usize..400, 1_usize..600),
    ) {
        let stream = deliveries.concat();
        prop_assert_eq!(pass(&stream, first, piece, room).unwrap(), stream);
    }

    #[test]
    fn any_bytes_pass_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..300) {
        // Whatever it is, it ends, and no more is made of it than escaping takes.
        prop_assert!(pass(&bytes, piece, piece, 64).map_or(true, |passed| passed.len() <= 2 * bytes.len() + 600));
    }

    #[test]
    fn any_table_is_readable_afterwards(
        names in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..255), 1..6),
        id in prop::collection::vec(any::<u8>(), 0..255),
    ) {
        let table: Vec<u8> = names.iter().flat_map(|name| [&short(name)[..], b"V"].concat()).collect();
        let frames = read(&pass(&content(HEADERS | MESSAGE_ID, &[long(&table), short(&id)]), 50, 50, 4096).unwrap());
        prop_assert_eq!(frames.len(), 1);
    }
}
