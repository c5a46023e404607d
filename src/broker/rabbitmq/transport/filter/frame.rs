//! One frame: whether the client library can read it, and how it reads when it is written anew.
//!
//! Source: AMQP 0-9-1, sections 2.3.5 (frames), 4.2 (fields), 2.3.5.2 (content headers); RabbitMQ, "AMQP 0-9-1 Errata".

use super::{
    HEADER_BYTES,
    escape::escape,
    fields::{Fields, Shape, shape},
};

/// Type of frames that hold a method.
pub(super) const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;

/// Tables and arrays deeper than this become bytes. The library reads them by calling itself, on a stack of 2 MiB, and a
/// frame has room for 20 000 levels; what people nest has three or four.
pub(in crate::broker::rabbitmq) const LEVELS_MAX: usize = 16;

/// Header with the bytes behind texts that do not say them, by text.
const HEADER_BYTES_BEHIND: &[u8] = b"x-helix-bytes";
/// Header with the table of headers as it came, where there is no room to write it in text.
const HEADER_TABLE: &[u8] = b"x-helix-table";

/// Kinds of frames, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Method,
    ContentHeader,
    Other,
}

/// What to do with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    /// Let it pass.
    Readable,
    /// Write it anew.
    Unreadable,
    /// Let it pass: it says how long frames may be.
    Tune { frame_bytes_max: usize },
    /// It says how a client may show who it is.
    Start { mechanisms: &'a [u8] },
}

/// Its kind and the length of its payload, once that has come.
pub(super) fn begin(bytes: &[u8]) -> Option<(Kind, usize)> {
    let mut fields = Fields(bytes);
    let kind = match fields.u8()? {
        METHOD => Kind::Method,
        CONTENT_HEADER => Kind::ContentHeader,
        _ => Kind::Other,
    };
    fields.take(2)?;
    Some((kind, fields.u32()?))
}

/// What to do with a whole frame. What is no AMQP passes: the library says so better.
pub(super) fn judge(kind: Kind, frame: &[u8]) -> Verdict<'_> {
    let payload = payload(frame);
    let readable = match kind {
        Kind::Method => match method(payload) {
            Some((START, mut fields)) => {
                let mechanisms = fields.take(2).and_then(|_| fields.long()).and_then(|_| fields.long());
                return mechanisms.map_or(Verdict::Readable, |mechanisms| Verdict::Start { mechanisms });
            }
            Some((TUNE, mut fields)) => {
                let frame_bytes_max = fields.take(2).and_then(|_| fields.u32()).unwrap_or_default();
                return Verdict::Tune { frame_bytes_max };
            }
            Some((id, fields)) => method_is_readable(id, fields),
            None => None,
        },
        Kind::ContentHeader => content_is_readable(payload),
        Kind::Other => None,
    };
    match readable {
        Some(false) => Verdict::Unreadable,
        Some(true) | None => Verdict::Readable,
    }
}

/// The frame in text. `None` where it is no AMQP.
pub(super) fn rewrite(kind: Kind, frame: &[u8], frame_bytes_max: usize) -> Option<Vec<u8>> {
    let payload = payload(frame);
    let mut written = match kind {
        Kind::Method => write_method(payload)?,
        Kind::ContentHeader => write_content(payload, Headers::Text)?,
        Kind::Other => return None,
    };
    // What grew too long would end the connection as well.
    let too_long = |written: &Vec<u8>| frame_bytes_max > 0 && HEADER_BYTES + written.len() + 1 > frame_bytes_max;
    if too_long(&written) && kind == Kind::ContentHeader {
        written = write_content(payload, Headers::Bytes)?;
        if too_long(&written) {
            written = write_content(payload, Headers::None)?;
        }
    }
    let mut whole = Vec::with_capacity(HEADER_BYTES + written.len() + 1);
    whole.extend_from_slice(frame.get(..3)?);
    whole.extend_from_slice(&u32::try_from(written.len()).ok()?.to_be_bytes());
    whole.append(&mut written);
    whole.push(*frame.last()?);
    Some(whole)
}

fn payload(frame: &[u8]) -> &[u8] {
    frame.get(HEADER_BYTES..frame.len().saturating_sub(1)).unwrap_or_default()
}

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

// Methods.

type MethodId = (u16, u16);
const START: MethodId = (10, 10);
const TUNE: MethodId = (10, 30);

/// A piece of a method's arguments.
#[derive(Clone, Copy)]
enum Piece {
    /// So many bytes that are no text.
    Plain(usize),
    /// A name.
    Name,
    /// A sentence of the server's, which may be cut off in the middle of a character.
    Sentence,
}

/// The methods with short strings that others have chosen, and how they begin.
fn pieces(id: MethodId) -> &'static [Piece] {
    use Piece::{Name, Plain, Sentence};
    match id {
        // connection.close, channel.close
        (10, 50) | (20, 40) => &[Plain(2), Sentence],
        // basic.return
        (60, 50) => &[Plain(2), Sentence, Name, Name],
        // basic.deliver: consumer, tag, redelivered, exchange, routing key
        (60, 60) => &[Name, Plain(9), Name, Name],
        // basic.get-ok
        (60, 71) => &[Plain(9), Name, Name],
        _ => &[],
    }
}

fn method(payload: &[u8]) -> Option<(MethodId, Fields<'_>)> {
    let mut fields = Fields(payload);
    let id = (fields.u16()?, fields.u16()?);
    Some((id, fields))
}

fn method_is_readable(id: MethodId, mut fields: Fields<'_>) -> Option<bool> {
    for piece in pieces(id) {
        match piece {
            Piece::Plain(count) => {
                fields.take(*count)?;
            }
            Piece::Name | Piece::Sentence if is_text(fields.short()?) => {}
            Piece::Name | Piece::Sentence => return Some(false),
        }
    }
    Some(true)
}

fn write_method(payload: &[u8]) -> Option<Vec<u8>> {
    let (id, mut fields) = method(payload)?;
    let mut written = payload.get(..4)?.to_vec();
    for piece in pieces(id) {
        match piece {
            Piece::Plain(count) => written.extend_from_slice(fields.take(*count)?),
            Piece::Name => write_short(&mut written, fields.short()?, &mut Vec::new())?,
            Piece::Sentence => {
                let sentence = fields.short()?;
                let text = sentence.utf8_chunks().next().map_or("", |chunk| chunk.valid());
                put_short(&mut written, text.as_bytes())?;
            }
        }
    }
    written.extend_from_slice(fields.0);
    Some(written)
}

// Content headers.

/// Class, weight, length of the body.
const CONTENT_PLAIN_BYTES: usize = 12;
/// The property that is a table.
const FLAG_HEADERS: u16 = 1 << 13;

/// How a property is written.
#[derive(Clone, Copy)]
enum Property {
    Short,
    Table,
    Plain(usize),
}

/// The properties of a message and the flag that says that there is one, in the order in which they are written.
const PROPERTIES: [(u16, Property); 14] = [
    (1 << 15, Property::Short), // content-type
    (1 << 14, Property::Short), // content-encoding
    (FLAG_HEADERS, Property::Table),
    (1 << 12, Property::Plain(1)), // delivery-mode
    (1 << 11, Property::Plain(1)), // priority
    (1 << 10, Property::Short),    // correlation-id
    (1 << 9, Property::Short),     // reply-to
    (1 << 8, Property::Short),     // expiration
    (1 << 7, Property::Short),     // message-id
    (1 << 6, Property::Plain(8)),  // timestamp
    (1 << 5, Property::Short),     // type
    (1 << 4, Property::Short),     // user-id
    (1 << 3, Property::Short),     // app-id
    (1 << 2, Property::Short),     // cluster-id
];

fn content_is_readable(payload: &[u8]) -> Option<bool> {
    let mut fields = Fields(payload);
    fields.take(CONTENT_PLAIN_BYTES)?;
    let flags = fields.u16()?;
    for (flag, property) in PROPERTIES {
        if flags & flag == 0 {
            continue;
        }
        let readable = match property {
            Property::Short => is_text(fields.short()?),
            Property::Table => values_are_readable(fields.long()?, true, LEVELS_MAX)?,
            Property::Plain(count) => fields.take(count).is_some(),
        };
        if !readable {
            return Some(false);
        }
    }
    Some(true)
}

/// Whether a table is well formed, its names are text, and it is at most so many levels deep: reading it is safe then.
pub(in crate::broker::rabbitmq) fn table_is_readable(bytes: &[u8], levels: usize) -> bool {
    values_are_readable(bytes, true, levels) == Some(true)
}

/// Values, each behind its name in a table.
fn values_are_readable(bytes: &[u8], named: bool, levels: usize) -> Option<bool> {
    let Some(inner) = levels.checked_sub(1) else { return Some(false) };
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        if named && !is_text(fields.short()?) {
            return Some(false);
        }
        let readable = match shape(fields.u8()?)? {
            Shape::Fixed(count) => fields.take(count).is_some(),
            Shape::Long => fields.long().is_some(),
            Shape::Table => values_are_readable(fields.long()?, true, inner)?,
            Shape::Array => values_are_readable(fields.long()?, false, inner)?,
        };
        if !readable {
            return Some(false);
        }
    }
    Some(true)
}

/// How the table of headers is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Headers {
    /// In text.
    Text,
    /// As one header with its bytes.
    Bytes,
    /// Not at all.
    None,
}

/// Texts that do not say the bytes they stand for, with the bytes.
type Behind = Vec<(String, Vec<u8>)>;

fn write_content(payload: &[u8], headers: Headers) -> Option<Vec<u8>> {
    let mut fields = Fields(payload);
    let plain = fields.take(CONTENT_PLAIN_BYTES)?;
    let flags = fields.u16()?;
    let mut behind = Behind::new();
    // The table stands in the middle and may have to hold what the rest left over, so it is put in last.
    let (mut before, mut table, mut after) = (Vec::new(), None, Vec::new());
    for (flag, property) in PROPERTIES {
        if flags & flag == 0 {
            continue;
        }
        let written = if flag > FLAG_HEADERS { &mut before } else { &mut after };
        match property {
            Property::Short => write_short(written, fields.short()?, &mut behind)?,
            Property::Table => table = Some(fields.long()?),
            Property::Plain(count) => written.extend_from_slice(fields.take(count)?),
        }
    }
    let mut values = Vec::new();
    match (table, headers) {
        (Some(table), Headers::Text) => write_values(&mut values, table, true, LEVELS_MAX, &mut behind)?,
        (Some(table), Headers::Bytes) => write_bytes(&mut values, HEADER_TABLE, table)?,
        (Some(_), Headers::None) | (None, _) => {}
    }
    if !behind.is_empty() && headers == Headers::Text {
        let mut pairs = Vec::new();
        for (text, bytes) in &behind {
            write_bytes(&mut pairs, text.as_bytes(), bytes)?;
        }
        put_short(&mut values, HEADER_BYTES_BEHIND)?;
        values.push(b'F');
        put_long(&mut values, &pairs)?;
    }
    let mut written = plain.to_vec();
    let has_table = table.is_some() || !values.is_empty();
    written.extend_from_slice(&(if has_table { flags | FLAG_HEADERS } else { flags }).to_be_bytes());
    written.extend_from_slice(&before);
    if has_table {
        put_long(&mut written, &values)?;
    }
    written.extend_from_slice(&after);
    Some(written)
}

fn write_values(written: &mut Vec<u8>, bytes: &[u8], named: bool, levels: usize, behind: &mut Behind) -> Option<()> {
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        if named {
            write_short(written, fields.short()?, behind)?;
        }
        let kind = fields.u8()?;
        let named = match shape(kind)? {
            Shape::Fixed(count) => {
                written.push(kind);
                written.extend_from_slice(fields.take(count)?);
                continue;
            }
            Shape::Long => {
                written.push(kind);
                put_long(written, fields.long()?)?;
                continue;
            }
            Shape::Table => true,
            Shape::Array => false,
        };
        let inner = fields.long()?;
        if levels == 1 {
            written.push(b'x');
            put_long(written, inner)?;
        } else {
            let mut values = Vec::with_capacity(inner.len());
            write_values(&mut values, inner, named, levels - 1, behind)?;
            written.push(kind);
            put_long(written, &values)?;
        }
    }
    Some(())
}

fn write_short(written: &mut Vec<u8>, bytes: &[u8], behind: &mut Behind) -> Option<()> {
    if is_text(bytes) {
        return put_short(written, bytes);
    }
    let escaped = escape(bytes);
    put_short(written, escaped.text.as_bytes())?;
    if !escaped.reversible {
        behind.push((escaped.text, bytes.to_vec()));
    }
    Some(())
}

/// A header whose value is bytes.
fn write_bytes(written: &mut Vec<u8>, name: &[u8], bytes: &[u8]) -> Option<()> {
    put_short(written, name)?;
    written.push(b'x');
    put_long(written, bytes)
}

fn put_short(written: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    written.push(u8::try_from(bytes.len()).ok()?);
    written.extend_from_slice(bytes);
    Some(())
}

fn put_long(written: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    written.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_be_bytes());
    written.extend_from_slice(bytes);
    Some(())
}
