//! What other programs publish, through the whole engine, and what they get to read of ours: each way to compress, each thing
//! that may be missing, what no message can be, what is large, CloudEvents, topics that match a pattern.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use helixmq::{
    broker::{PublishError, kafka::settings::Format},
    handler::Call,
    message::{Address, Message, Outcome, Position},
};

use crate::{
    raw::{Raw, Read, Record},
    server::Server,
    site::{Engine, Site, topic},
    support::eventually,
};

/// A message that a handler was called with.
#[derive(Clone, Debug)]
struct Seen {
    topic: Option<String>,
    at: Position,
    message: Arc<Message>,
}

#[derive(Clone, Default)]
struct Handler(Arc<Mutex<Vec<Seen>>>);

impl Handler {
    fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for so many; by their places.
    async fn sees(&self, count: usize) -> Vec<Seen> {
        let mut all = eventually(&format!("{count} come"), async || {
            let all = self.all();
            (all.len() >= count).then_some(all)
        })
        .await;
        assert_eq!(all.len(), count, "{all:?}");
        all.sort_by_key(|seen| (seen.topic.clone(), seen.at.partition, seen.at.offset));
        all
    }

    /// An engine whose handler is this, and accepts all but what has the header `reject`.
    async fn start(&self, site: &Site) -> Engine {
        let handler = self.clone();
        let handle = move |call: &Call<'_>| {
            let seen = Seen {
                topic: call.topic.map(str::to_owned),
                at: call.position.expect("a place in a topic"),
                message: Arc::clone(call.message),
            };
            handler.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            match call.message.headers.get("reject") {
                Some(_) => Outcome::Reject { reason: "as it was told".into(), code: None },
                None => Outcome::Done(Vec::new()),
            }
        };
        // Other programs make the topics, and they decide about partitions.
        site.engine_with(3, handle, |parts| parts.settings.declarations = vec![topic(&site.dead, 1)]).await
    }
}

async fn site(server: &Server) -> Site {
    let site = Site::new(server).await;
    site.raw().topic(&site.work.name, 1).await;
    site
}

/// Waits for so many dead letters.
async fn dead(site: &Site, count: usize) -> Vec<Read> {
    let raw = site.raw();
    let letters = async || {
        let letters = raw.read(&site.dead.name).await;
        (letters.len() >= count).then_some(letters)
    };
    let letters = eventually("dead letters", letters).await;
    assert_eq!(letters.len(), count, "{letters:?}");
    letters
}

fn says<'a>(letter: &'a Read, name: &str) -> &'a str {
    let value = letter.header(name).unwrap_or_else(|| panic!("no {name} in {letter:?}"));
    std::str::from_utf8(value).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_it_is_compressed_with_is_read() {
    let server = Server::shared();
    let site = site(&server).await;
    let handler = Handler::default();
    let engine = handler.start(&site).await;
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let bootstrap = server.bootstrap();
        let raw = Raw::with(&[("bootstrap.servers", &bootstrap), ("compression.codec", codec), ("linger.ms", "50")]);
        let records = (0..10).map(|number| Record::new(format!("{codec} {number} ").repeat(200))).collect();
        raw.publish(&site.work.name, records).await;
    }
    let all = handler.sees(50).await;
    let expected = codecs.iter().flat_map(|codec| (0..10).map(move |n| format!("{codec} {n} ").repeat(200)));
    assert!(
        all.iter().map(|seen| &seen.message.payload[..]).eq(expected.collect::<Vec<_>>().iter().map(String::as_bytes))
    );
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_missing_in_the_dead_letter_too() {
    let server = Server::shared();
    let site = site(&server).await;
    let handler = Handler::default();
    let engine = handler.start(&site).await;
    let mut headed = Record::new("no key").header("reject", "1").header("bytes", [0xff, 0x00]);
    headed.headers.push(("null".into(), None));
    let tombstone = Record { value: None, ..Record::default() }.key("gone").header("reject", "1");
    let empty = Record::new("").key("").header("reject", "1");
    let records = vec![headed, tombstone, empty, Record::default()];
    site.raw().publish(&site.work.name, records.clone()).await;
    let all = handler.sees(4).await;
    let message = |place: usize| &*all[place].message;
    assert_eq!((message(0).key.as_deref(), &message(0).payload[..]), (None, &b"no key"[..]));
    assert_eq!(message(0).headers.get("null"), Some(""));
    assert_eq!((message(1).key.as_deref(), message(1).payload.len()), (Some(&b"gone"[..]), 0));
    let is_tombstone = |place| message(place).headers.get("x-helix-tombstone") == Some("true");
    assert_eq!([0, 1, 2, 3].map(is_tombstone), [false, true, false, true]);
    assert_eq!((message(2).key.as_deref(), message(3).key.as_deref()), (Some(&b""[..]), None));
    // Nobody gave them an id: each has one of its own.
    assert_eq!(all.iter().map(|seen| seen.message.id.to_string()).collect::<BTreeSet<_>>().len(), 4);
    let letters = dead(&site, 3).await;
    for (letter, record) in letters.iter().zip(&records) {
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value));
        let theirs: Vec<_> = letter.headers.iter().filter(|(name, _)| !name.starts_with("x-helix-")).cloned().collect();
        assert_eq!(theirs, record.headers);
    }
    site.raw().commits_all(&site.group, &site.work.name).await;
    engine.stop().await;
}

/// It says that it is an event, and is none; those beside it are handled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_message_is_dead_with_its_place() {
    let server = Server::shared();
    let site = site(&server).await;
    let handler = Handler::default();
    let engine = handler.start(&site).await;
    let poison = Record::new("{\"specversion\"").key("k").header("content-type", "application/cloudevents+json");
    let records = vec![Record::new("before"), poison.clone(), Record::new("behind")];
    site.raw().publish(&site.work.name, records).await;
    let letters = dead(&site, 1).await;
    assert_eq!((&letters[0].key, &letters[0].value), (&poison.key, &poison.value));
    assert_eq!(says(&letters[0], "x-helix-dead-code"), "MESSAGE_INVALID");
    assert!(says(&letters[0], "x-helix-dead-text").contains("CloudEvent"), "{letters:?}");
    let place = ["partition", "offset", "source"].map(|name| says(&letters[0], &format!("x-helix-dead-{name}")));
    assert_eq!(place, ["0", "1", &site.work.to_string()]);
    let seen: Vec<_> = handler.sees(2).await.iter().map(|seen| seen.at.offset).collect();
    assert_eq!(seen, [0, 2]);
    site.raw().commits_all(&site.group, &site.work.name).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_record_of_others_is_read_and_one_of_ours_refused_at_once() {
    const SIZE: usize = 10 << 20;
    let server = Server::shared();
    let site = Site::new(&server).await;
    site.raw().topic_with(&site.work.name, 1, &[("max.message.bytes", "20000000")]).await;
    let handler = Handler::default();
    let engine = handler.start(&site).await;
    let raw = Raw::with(&[("bootstrap.servers", &server.bootstrap()), ("message.max.bytes", "20000000")]);
    let large: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    raw.publish(&site.work.name, vec![Record::new("small"), Record::new(large.clone()), Record::new("behind")]).await;
    let all = handler.sees(3).await;
    assert!(all[1].message.payload == large, "it came otherwise");
    let ours = Arc::new(Message::new("large", large, 1));
    let beside = Arc::new(Message::new("small", "beside it", 1));
    let failed = engine.broker.publish(&site.work, vec![ours, beside]).await.unwrap_err();
    assert!(matches!(failed.0[..], [(0, PublishError::TooLarge { bytes, .. })] if bytes >= SIZE), "{failed:?}");
    assert_eq!(&handler.sees(4).await[3].message.payload[..], b"beside it");
    engine.stop().await;
}

/// Those that have a value, as text.
fn headers_of(read: &Read) -> BTreeMap<&str, &str> {
    let headers = read.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)));
    headers.map(|(name, value)| (name, std::str::from_utf8(value).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_read_in_both_modes_and_written_in_the_one_that_is_configured() {
    let server = Server::shared();
    for format in [Format::CloudEventsBinary, Format::CloudEventsStructured] {
        let mut site = site(&server).await;
        site.settings.format = format;
        let handler = Handler::default();
        let engine = handler.start(&site).await;
        let binary = Record::new("{\"a\":1}")
            .key("k")
            .header("ce_specversion", "1.0")
            .header("ce_id", "event 1")
            .header("ce_source", "/theirs")
            .header("ce_type", "order.created")
            .header("ce_comexampleextension", "x")
            .header("content-type", "application/json");
        let document = r#"{"specversion":"1.0","id":"event 2","source":"/theirs","type":"order.created","comexampleextension":"x","datacontenttype":"application/json","data":{"a":1}}"#;
        let structured =
            Record::new(document).key("k").header("content-type", "application/cloudevents+json; charset=UTF-8");
        site.raw().publish(&site.work.name, vec![binary, structured]).await;
        let all = handler.sees(2).await;
        for (number, seen) in all.iter().enumerate() {
            let message = &seen.message;
            assert_eq!(message.id.to_string(), format!("event {}", number + 1));
            assert_eq!((&*message.kind, &message.payload[..]), ("order.created", &b"{\"a\":1}"[..]));
            assert_eq!(message.content_type.as_deref(), Some("application/json"));
            assert_eq!(message.extra.as_ref().unwrap().origin.as_deref(), Some("/theirs"));
        }
        // What was read either way is written in one.
        let out = Address::topic(server.name("out"));
        site.raw().topic(&out.name, 1).await;
        let messages = all.iter().map(|seen| Arc::clone(&seen.message)).collect();
        engine.broker.publish(&out, messages).await.unwrap();
        for (number, read) in site.raw().read(&out.name).await.iter().enumerate() {
            let id = format!("event {}", number + 1);
            let headers = headers_of(read);
            if format == Format::CloudEventsBinary {
                let attributes = ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_comexampleextension"];
                let found = attributes.map(|name| headers.get(name).copied().unwrap_or("(none)"));
                assert_eq!(found, ["1.0", &id, "/theirs", "order.created", "x"], "{headers:?}");
                assert_eq!(headers.get("content-type"), Some(&"application/json"));
                assert_eq!(read.value.as_deref(), Some(&b"{\"a\":1}"[..]));
            } else {
                assert!(headers["content-type"].starts_with("application/cloudevents+json"), "{headers:?}");
                let written: serde_json::Value = serde_json::from_slice(read.value.as_ref().unwrap()).unwrap();
                let expected: serde_json::Value = serde_json::from_str(document).unwrap();
                for (name, value) in expected.as_object().unwrap() {
                    let value = if name == "id" { &serde_json::Value::from(id.as_str()) } else { value };
                    assert_eq!(&written[name], value, "{name} of {written}");
                }
            }
            assert_eq!(read.key.as_deref(), Some(&b"k"[..]));
        }
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_reads_all_its_topics_and_those_that_come_later() {
    let server = Server::shared();
    let mut site = Site::new(&server).await;
    let base = server.name("pattern");
    let name = |end: &str| format!("{base}.{end}");
    site.work = Address::topic(name("*"));
    let raw = site.raw();
    raw.topic(&name("a"), 2).await;
    raw.topic(&name("b"), 1).await;
    // Not its own: a word too many.
    raw.topic(&name("a.b"), 1).await;
    let handler = Handler::default();
    let engine = handler.start(&site).await;
    raw.publish(&name("a"), vec![Record::new("a0").on(0), Record::new("a1").on(1)]).await;
    raw.publish(&name("b"), vec![Record::new("b0"), Record::new("b1").header("reject", "1")]).await;
    raw.publish(&name("a.b"), vec![Record::new("another's")]).await;
    handler.sees(4).await;
    raw.topic(&name("c"), 1).await;
    raw.publish(&name("c"), vec![Record::new("c0"), Record::new("c1").header("reject", "1")]).await;
    let all = handler.sees(6).await;
    let places = all.iter().map(|seen| {
        let payload = std::str::from_utf8(&seen.message.payload).unwrap();
        (payload, seen.topic.clone().unwrap(), seen.at.partition, seen.at.offset)
    });
    let expected = [
        ("a0", "a", 0, 0),
        ("a1", "a", 1, 0),
        ("b0", "b", 0, 0),
        ("b1", "b", 0, 1),
        ("c0", "c", 0, 0),
        ("c1", "c", 0, 1),
    ];
    assert!(places.eq(expected.map(|(payload, end, partition, offset)| (payload, name(end), partition, offset))));
    let letters = dead(&site, 2).await;
    for (letter, end) in letters.iter().zip(["b", "c"]) {
        assert_eq!(says(letter, "x-helix-dead-source"), Address::topic(name(end)).to_string());
        assert_eq!((says(letter, "x-helix-dead-partition"), says(letter, "x-helix-dead-offset")), ("0", "1"));
    }
    for end in ["a", "b", "c"] {
        raw.commits_all(&site.group, &name(end)).await;
    }
    engine.stop().await;
}

/// What the server itself would not take, but may have on its disk: published under one number or name, and changed there
/// while the server is away.
fn change_on_disk(server: &Server, topic: &str, change: impl Fn(&mut Vec<u8>)) {
    let certificate = server.certificate("ca.pem");
    let directory = certificate.parent().unwrap().parent().unwrap();
    let log = directory.join("data").join(format!("{topic}-0/00000000000000000000.log"));
    let mut bytes = fs::read(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    change(&mut bytes);
    fs::write(log, bytes).unwrap();
}

/// Where each batch of a log begins.
fn batches(log: &[u8]) -> Vec<usize> {
    let mut begins = Vec::new();
    let mut at = 0;
    while let Some(size) = log.get(at + 8..at + 12) {
        begins.push(at);
        at += 12 + u32::from_be_bytes(size.try_into().unwrap()) as usize;
    }
    begins
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_at_all_is_said_and_waits_for_somebody_to_decide() {
    let server = Server::own().await;
    let site = site(&server).await;
    let raw = site.raw();
    for value in ["first", "codec", "between", "name", "last"] {
        raw.publish(&site.work.name, vec![Record::new(value).header("a-name-to-break", "1")]).await;
    }
    server.stop().await;
    change_on_disk(&server, &site.work.name, |log| {
        let begins = batches(log);
        assert_eq!(begins.len(), 5);
        // The lowest bits of a batch's attributes say how it is compressed; nothing is 7.
        log[begins[1] + 22] |= 7;
        let name = b"a-name-to-break";
        let at = log[begins[3]..].windows(name.len()).position(|some| some == name).unwrap() + begins[3];
        log[at] = 0xff;
    });
    server.up().await;
    let handler = Handler::default();
    let engine = handler.start(&site).await;
    // What lies behind it waits, as nobody can say what would be lost.
    let reason = engine.degraded().await;
    assert!(reason.contains(&format!("at offset 1 in partition 0 of {} is broken, or", site.work.name)), "{reason}");
    assert_eq!(handler.sees(1).await[0].at.offset, 0);
    engine.stop().await;
    raw.commit(&site.group, &site.work.name, 0, 2, "").await;
    let engine = handler.start(&site).await;
    let offsets: Vec<_> = handler.sees(3).await.iter().map(|seen| seen.at.offset).collect();
    assert_eq!(offsets, [0, 2, 4]);
    let letters = dead(&site, 1).await;
    assert_eq!(says(&letters[0], "x-helix-dead-code"), "MESSAGE_INVALID");
    assert!(says(&letters[0], "x-helix-dead-text").contains("not UTF-8"), "{letters:?}");
    assert_eq!(says(&letters[0], "x-helix-dead-offset"), "3");
    assert_eq!(letters[0].value.as_deref(), Some(&b"name"[..]));
    raw.commits_all(&site.group, &site.work.name).await;
    engine.stop().await;
}
