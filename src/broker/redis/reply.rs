//! Answers of the server, as bytes: where one ends, and what is in it. Entries are most of what ever comes, so they are read
//! where they lie; all else is left to the client library. In: bytes as they come. Out: one [`Reply`] for each answer.
//! Source: Redis, "Redis serialization protocol specification", RESP2.

use std::io;

use bytes::{Bytes, BytesMut};
use redis::{RedisError, Value};

/// Longest string that a server sends. Source: redis.conf, `proto-max-bulk-len`.
const TEXT_MAX: usize = 512 << 20;
/// Most values of one answer: more is no answer to anything that is asked here.
const VALUES_MAX: usize = 100_000_000;
/// Longest line that says how long something is.
const LENGTH_MAX: usize = 32;
/// Longest line of any other kind.
const LINE_MAX: usize = 64 << 10;

/// One answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply(Bytes);

impl Reply {
    /// What it says.
    ///
    /// # Errors
    /// What the server says against what was asked.
    pub(super) fn value(&self) -> Result<Value, RedisError> {
        match redis::parse_redis_value(&self.0)? {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
    }

    /// The same, with what is said against it in its place.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn any(&self) -> Result<Value, RedisError> {
        redis::parse_redis_value(&self.0)
    }

    /// Whether the server says something against what was asked.
    pub(super) fn is_error(&self) -> bool {
        self.0.first() == Some(&b'-')
    }

    /// Its values, one by one.
    pub(super) fn walk(&self) -> Walk<'_> {
        Walk(&self.0)
    }
}

/// Goes through the values of an answer. `None` is what does not fit, and the end.
#[derive(Debug)]
pub(super) struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    /// An array begins, of so many values.
    pub(super) fn array(&mut self) -> Option<usize> {
        self.length(b'*')
    }

    /// A string.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.length(b'$')?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest.get(2..)?;
        Some(text)
    }

    fn length(&mut self, kind: u8) -> Option<usize> {
        if self.0.first() != Some(&kind) {
            return None;
        }
        let end = end_of_line(self.0)?;
        let length = usize::try_from(number(self.0.get(1..end)?)?).ok()?;
        self.0 = self.0.get(end + 2..)?;
        Some(length)
    }
}

/// Finds where an answer ends, however it comes in pieces: nothing is looked at twice.
#[derive(Debug)]
pub(super) struct Scanner {
    /// Up to here it is known.
    at: usize,
    /// Values that are still to come.
    missing: usize,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { at: 0, missing: 1 }
    }

    /// Takes the first answer away, once it is whole.
    ///
    /// # Errors
    /// What comes is no answer.
    pub(super) fn take(&mut self, heard: &mut BytesMut) -> io::Result<Option<Reply>> {
        while self.missing > 0 {
            let Some(rest) = heard.get(self.at..).filter(|rest| !rest.is_empty()) else { return Ok(None) };
            let Some((length, values)) = one(rest)? else { return Ok(None) };
            if length > rest.len() {
                return Ok(None);
            }
            self.at += length;
            self.missing = self.missing - 1 + values;
            if self.missing > VALUES_MAX {
                return Err(no_answer());
            }
        }
        let reply = heard.split_to(self.at).freeze();
        *self = Self::new();
        Ok(Some(Reply(reply)))
    }
}

/// How many bytes the first value has without those in it, and how many are in it; `None`: that is not here yet.
fn one(rest: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let Some(kind) = rest.first() else { return Ok(None) };
    let line_max = match kind {
        b'$' | b'*' | b':' => LENGTH_MAX,
        b'+' | b'-' => LINE_MAX,
        _ => return Err(no_answer()),
    };
    let Some(end) = end_of_line(rest) else {
        return if rest.len() > line_max { Err(no_answer()) } else { Ok(None) };
    };
    let line = end + 2;
    let length = || number(rest.get(1..end).unwrap_or_default()).ok_or_else(no_answer);
    match kind {
        b'+' | b'-' | b':' => Ok(Some((line, 0))),
        b'$' => match usize::try_from(length()?) {
            Ok(length) if length > TEXT_MAX => Err(no_answer()),
            Ok(length) => Ok(Some((line + length + 2, 0))),
            Err(_) => Ok(Some((line, 0))),
        },
        _ => Ok(Some((line, usize::try_from(length()?).unwrap_or(0)))),
    }
}

fn end_of_line(text: &[u8]) -> Option<usize> {
    let end = text.iter().position(|byte| *byte == b'\r')?;
    (text.get(end + 1) == Some(&b'\n')).then_some(end)
}

fn number(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let add = |sum: i64, digit: &u8| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0'));
    let number = digits.iter().try_fold(0, add)?;
    Some(if is_negative { -number } else { number })
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came is no answer of a Redis")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MANY: &[u8] = b"+OK\r\n*2\r\n$3\r\na\r\n\r\n*2\r\n:-12\r\n$-1\r\n-ERR no\r\n*-1\r\n$0\r\n\r\n*0\r\n";

    /// All answers in it, as it comes in pieces of that many bytes.
    fn scan(text: &[u8], piece: usize) -> io::Result<Vec<Bytes>> {
        let (mut scanner, mut heard, mut found) = (Scanner::new(), BytesMut::new(), Vec::new());
        for piece in text.chunks(piece) {
            heard.extend_from_slice(piece);
            while let Some(Reply(reply)) = scanner.take(&mut heard)? {
                found.push(reply);
            }
        }
        Ok(found)
    }

    #[test]
    fn finds_each_answer_however_it_comes_in_pieces() {
        for piece in 1..MANY.len() {
            let found = scan(MANY, piece).unwrap();
            let all: Vec<&[u8]> = found.iter().map(|reply| &reply[..]).collect();
            let wanted: [&[u8]; 6] = [b"+OK\r\n", &MANY[5..33], b"-ERR no\r\n", b"*-1\r\n", b"$0\r\n\r\n", b"*0\r\n"];
            assert_eq!(all, wanted, "in pieces of {piece}");
        }
    }

    #[test]
    fn refuses_what_is_no_answer() {
        for text in
            ["HTTP/1.1 400\r\n", "$x\r\n", "$999999999999\r\n", "*100000001\r\n", "$1111111111111111111111111111111111"]
        {
            assert!(scan(text.as_bytes(), 7).is_err(), "{text}");
        }
    }

    #[test]
    fn goes_through_values_and_stops_where_they_do_not_fit() {
        let reply = Reply(Bytes::from_static(b"*2\r\n$2\r\na\n\r\n*1\r\n$-1\r\n"));
        let mut walk = reply.walk();
        assert_eq!((walk.array(), walk.text(), walk.array()), (Some(2), Some(b"a\n".as_slice()), Some(1)));
        assert_eq!((walk.text(), walk.array()), (None, None));
        assert!(Reply(Bytes::from_static(b"-NOGROUP none\r\n")).is_error());
        let error = Reply(Bytes::from_static(b"-NOGROUP none\r\n")).value().unwrap_err();
        assert_eq!(error.code(), Some("NOGROUP"));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>, piece in 1..20_usize) {
            scan(&text, piece).ok();
            let reply = Reply(text.into());
            let mut walk = reply.walk();
            while walk.array().is_some() || walk.text().is_some() {}
        }

        #[test]
        fn strings_read_back_as_they_were_written(texts in proptest::collection::vec(any::<Vec<u8>>(), 0..9), piece in 1..40_usize) {
            let mut written = format!("*{}\r\n", texts.len()).into_bytes();
            for text in &texts {
                written.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
                written.extend_from_slice(text);
                written.extend_from_slice(b"\r\n");
            }
            let found = scan(&written, piece).unwrap();
            prop_assert_eq!(found.len(), 1);
            let reply = Reply(found[0].clone());
            let mut walk = reply.walk();
            prop_assert_eq!(walk.array(), Some(texts.len()));
            for text in &texts {
                prop_assert_eq!(walk.text(), Some(text.as_slice()));
            }
        }
    }
}
