//! The dead letter: the message as it was received, and beside it, in headers of the engine's own, everything a
//! person needs to understand what happened. It travels as an ordinary message, so that any broker can keep it and
//! any of its tools can show it. What a server dead-lettered by itself has its record instead, which is read, too.

use serde::Serialize;

use super::server_death;
use crate::message::{Address, FailedAttempt, HandlerIdentity, Headers, Message, ReasonCode, UnixMs, header};

/// Header that carries the reason code; a message that has it is a dead letter.
pub const HEADER_CODE: &str = header::DEAD_CODE;
const HEADER_TEXT: &str = "x-helix-dead-text";
const HEADER_AT: &str = "x-helix-dead-at";
const HEADER_SOURCE: &str = "x-helix-dead-source";
const HEADER_BROKER: &str = "x-helix-dead-broker";
const HEADER_PARTITION: &str = "x-helix-dead-partition";
const HEADER_OFFSET: &str = "x-helix-dead-offset";
const HEADER_ROUTE: &str = "x-helix-dead-route";
const HEADER_HANDLER: &str = "x-helix-dead-handler";
const HEADER_DIGEST: &str = "x-helix-dead-handler-digest";
const HEADER_VERSION: &str = "x-helix-dead-handler-version";
const HEADER_HANDLER_CODE: &str = "x-helix-dead-handler-code";
const HEADER_BACKTRACE: &str = "x-helix-dead-backtrace";
const HEADER_ATTEMPTS: &str = "x-helix-dead-attempts";
const HEADER_EXPIRES: &str = "x-helix-dead-expires-at";
/// How many headers of the message had no room in the letter.
const HEADER_LEFT_OUT: &str = "x-helix-dead-headers-left-out";
/// Bytes of headers that any system takes.
const CUT_BYTES: usize = 16 * 1024;
/// What these headers begin with; removed again when a letter is sent back.
const PREFIX: &str = "x-helix-dead-";

/// Most failed attempts that are written out; the oldest between the first and these are left out, and counted by
/// their numbers.
const ATTEMPTS_KEPT: usize = 16;

/// Why a message is dead, and all that is known about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeadLetter {
    /// Why, to group by.
    pub code: ReasonCode,
    /// Why, in words.
    pub text: String,
    /// The handler's own code, where it gave one.
    pub handler_code: Option<String>,
    /// When it was given up.
    pub at: UnixMs,
    /// Broker it came from.
    pub broker: String,
    /// Queue or topic it came from.
    pub source: String,
    /// Topics: where it lay.
    pub partition: Option<u32>,
    /// Topics: where it lay.
    pub offset: Option<u64>,
    /// The route it took; none where no route matched.
    pub route: Option<String>,
    /// Who failed; none where no handler ran.
    pub handler: Option<HandlerIdentity>,
    /// The guest's stack of the last failure.
    pub backtrace: Option<String>,
    /// Every failed attempt that is known, oldest first; the last one is why it is here.
    pub attempts: Vec<FailedAttempt>,
    /// The trace it belongs to.
    pub trace_id: Option<String>,
}

impl DeadLetter {
    /// The message to publish to the dead letter queue: `original` under its own id, payload, key and headers, with
    /// this record in headers of the engine's own. What would delay, expire or retry it is taken off.
    #[must_use]
    pub fn wrap(&self, original: &Message) -> Message {
        let mut letter = original.clone();
        letter.not_before = None;
        letter.expires_at = None;
        // Nobody looks after it but who keeps it: that the message itself might have been lost is no reason to lose it now.
        letter.transient = false;
        let mut headers = Headers::with_capacity(original.headers.size() + 512);
        for (name, value) in original.headers.iter().filter(|(name, _)| !name.starts_with(PREFIX)) {
            headers.append(name, value);
        }
        self.write(&mut headers);
        if let Some(at) = original.expires_at {
            headers.append(HEADER_EXPIRES, &at.to_string());
        }
        letter.headers = headers;
        letter
    }

    /// The same letter with fewer headers, for a system that has no room for all of them: its own record comes first, then
    /// the message's as far as they fit. `None` where they are not what makes it large.
    #[must_use]
    pub fn cut(letter: &Message) -> Option<Message> {
        if letter.headers.size() <= CUT_BYTES {
            return None;
        }
        let is_ours = |name: &str| name.starts_with(PREFIX) && !matches!(name, HEADER_BACKTRACE | HEADER_ATTEMPTS);
        let (mut headers, mut left_out) = (Headers::with_capacity(CUT_BYTES), 0_usize);
        let ours = letter.headers.iter().filter(|(name, _)| is_ours(name));
        for (name, value) in ours.chain(letter.headers.iter().filter(|(name, _)| !is_ours(name))) {
            if headers.size() + name.len() + value.len() <= CUT_BYTES {
                headers.append(name, value);
            } else {
                left_out += 1;
            }
        }
        headers.append(HEADER_LEFT_OUT, &left_out.to_string());
        Some(Message { headers, ..letter.clone() })
    }

    fn write(&self, headers: &mut Headers) {
        headers.append(HEADER_CODE, self.code.as_str());
        headers.append(HEADER_TEXT, &self.text);
        headers.append(HEADER_AT, &self.at.to_string());
        headers.append(HEADER_BROKER, &self.broker);
        headers.append(HEADER_SOURCE, &self.source);
        let handler = self.handler.as_ref();
        let optional = [
            (HEADER_PARTITION, self.partition.map(|number| number.to_string())),
            (HEADER_OFFSET, self.offset.map(|number| number.to_string())),
            (HEADER_ROUTE, self.route.clone()),
            (HEADER_HANDLER, handler.map(|handler| handler.name.clone())),
            (HEADER_VERSION, handler.and_then(|handler| handler.version.clone())),
            (HEADER_DIGEST, handler.map(|handler| handler.digest.clone()).filter(|digest| !digest.is_empty())),
            (HEADER_HANDLER_CODE, self.handler_code.clone()),
            (HEADER_BACKTRACE, self.backtrace.clone()),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                headers.append(name, &value);
            }
        }
        if let Ok(attempts) = serde_json::to_string(&bounded(&self.attempts)) {
            headers.append(HEADER_ATTEMPTS, &attempts);
        }
    }

    /// Reads the record back from a dead letter, or makes one of what the server wrote that took the message out of its
    /// queue; `None` where the message has neither.
    #[must_use]
    pub fn read(letter: &Message) -> Option<Self> {
        let get = |name| letter.headers.get(name).map(str::to_owned);
        let Some(code) = letter.headers.get(HEADER_CODE) else { return server_death::read(letter) };
        let code = code.parse().ok()?;
        Some(Self {
            code,
            text: get(HEADER_TEXT).unwrap_or_default(),
            handler_code: get(HEADER_HANDLER_CODE),
            at: number(letter, HEADER_AT).unwrap_or_default(),
            broker: get(HEADER_BROKER).unwrap_or_default(),
            source: get(HEADER_SOURCE).unwrap_or_default(),
            partition: number(letter, HEADER_PARTITION),
            offset: number(letter, HEADER_OFFSET),
            route: get(HEADER_ROUTE),
            handler: get(HEADER_HANDLER).map(|name| HandlerIdentity {
                name,
                version: get(HEADER_VERSION),
                digest: get(HEADER_DIGEST).unwrap_or_default(),
            }),
            backtrace: get(HEADER_BACKTRACE),
            attempts: letter
                .headers
                .get(HEADER_ATTEMPTS)
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
            trace_id: letter.trace_id().map(str::to_owned),
        })
    }

    /// The message as it was before it died: without the record.
    #[must_use]
    pub fn unwrap(letter: &Message) -> Message {
        let mut original = letter.clone();
        // What the dead letter queue itself allows the letter is not the message's.
        original.expires_at = number(letter, HEADER_EXPIRES);
        original.headers.retain(|name, _| !name.starts_with(PREFIX));
        original
    }

    /// Where it came from, if that still is an address.
    #[must_use]
    pub fn source_address(&self) -> Option<Address> {
        self.source.parse().ok()
    }
}

fn number<T: std::str::FromStr>(letter: &Message, name: &str) -> Option<T> {
    letter.headers.get(name).and_then(|text| text.parse().ok())
}

fn bounded(attempts: &[FailedAttempt]) -> Vec<&FailedAttempt> {
    let skipped = attempts.len().saturating_sub(ATTEMPTS_KEPT);
    let first = attempts.iter().take(usize::from(skipped > 0));
    first.chain(attempts.iter().skip(if skipped > 0 { skipped + 1 } else { 0 })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            code: ReasonCode::HandlerTrapped,
            text: "unreachable".into(),
            handler_code: None,
            at: 1_700_000_000_000,
            broker: "embedded".into(),
            source: "topic:quakes".into(),
            partition: Some(3),
            offset: Some(17),
            route: Some("quakes".into()),
            handler: Some(HandlerIdentity { name: "triage".into(), version: None, digest: "ab".into() }),
            backtrace: Some("0: handle".into()),
            attempts: vec![FailedAttempt { attempt: 1, at: 5, code: ReasonCode::HandlerTrapped, text: "x".into() }],
            trace_id: None,
        }
    }

    #[test]
    fn a_letter_reads_back_and_unwraps_to_the_original() {
        let mut original = Message::new("quake", &b"\xff\x00 raw"[..], 9);
        original.headers.append("region", "ak");
        original.key = Some(bytes::Bytes::from_static(b"ak"));
        original.expires_at = Some(11);
        let wrapped = letter().wrap(&original);
        assert_eq!(wrapped.payload, original.payload);
        assert_eq!(DeadLetter::read(&wrapped), Some(letter()));
        assert_eq!(DeadLetter::unwrap(&wrapped), original);
        assert_eq!(DeadLetter::read(&original), None);
    }

    #[test]
    fn a_letter_that_dies_again_carries_one_record() {
        let original = Message::new("quake", &b"{}"[..], 9);
        let twice = letter().wrap(&letter().wrap(&original));
        assert_eq!(twice.headers.iter().filter(|(name, _)| *name == HEADER_CODE).count(), 1);
    }

    #[test]
    fn a_long_history_keeps_its_first_and_its_last() {
        let mut long = letter();
        long.attempts = (1..=100)
            .map(|attempt| FailedAttempt { attempt, at: 0, code: ReasonCode::Timeout, text: String::new() })
            .collect();
        let read = DeadLetter::read(&long.wrap(&Message::default())).expect("a letter");
        let numbers: Vec<_> = read.attempts.iter().map(|attempt| attempt.attempt).collect();
        assert_eq!((numbers.len(), numbers.first(), numbers.last()), (ATTEMPTS_KEPT, Some(&1), Some(&100)));
    }

    #[test]
    fn a_letter_that_is_cut_keeps_its_record_and_says_what_is_missing() {
        let mut original = Message::new("order.created", "x", 1);
        (0..100).for_each(|n| original.headers.append(&format!("big-{n}"), &"v".repeat(1000)));
        assert_eq!(DeadLetter::cut(&Message::new("order.created", "x", 1)), None);
        let letter = letter().wrap(&original);
        let cut = DeadLetter::cut(&letter).unwrap();
        assert!(cut.headers.size() <= CUT_BYTES + 100);
        assert_eq!(DeadLetter::read(&cut).unwrap().code, letter_code(&letter));
        assert_eq!((cut.id, cut.payload), (letter.id.clone(), letter.payload.clone()));
        let left_out: usize = cut.headers.get(HEADER_LEFT_OUT).unwrap().parse().unwrap();
        assert_eq!(cut.headers.len() - 1 + left_out, letter.headers.len());
        assert!(left_out > 80 && cut.headers.get("big-0").is_some());
    }

    fn letter_code(letter: &Message) -> ReasonCode {
        DeadLetter::read(letter).unwrap().code
    }
}
