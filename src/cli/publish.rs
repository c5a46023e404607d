//! `publish`: lines of a file become messages. A line that is refused is named, and stops no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read},
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json, value::RawValue};

use super::{
    Context, Exit, Failure,
    arguments::{Place, pair},
    client::{CUT_OFF, Client, Query},
    shown::text,
};
use crate::message::Kind;

/// Most lines of one request.
const LINES_MAX: usize = 1000;
/// Bytes from which on a request takes no further line.
const REQUEST_BYTES: usize = 4 << 20;
/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 32 << 20;

/// Fields of a message, each as it was written.
type Fields = BTreeMap<String, Box<RawValue>>;

/// What `publish` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    to: Place,
    /// A message a line: a JSON object with the fields of a task or event; `-` or nothing: standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Type of messages that name none
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Key of messages that name none
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Header of messages that have none of that name; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// Each line is a payload as it stands
    #[arg(long)]
    raw: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let to = args.to.address()?;
    let path = match to.kind {
        Kind::Queue => format!("/v1/messaging/tasks/{}", to.place()),
        Kind::Topic => format!("/v1/messaging/events/{}", to.place()),
    };
    let (mut lines, bytes) = open(args.file.as_deref(), context)?;
    let client = Client::new(context)?;
    let query = if args.raw { raw_query(args) } else { Query::new() };
    let mut sending = Sending { client, path, query, context, bar: bar(bytes), published: 0, failed: 0 };
    let ended = loop {
        let batch = match lines.next_batch() {
            Ok(batch) => batch,
            Err(error) => break Err(unreadable(args.file.as_deref(), &error)),
        };
        for line in &batch.too_long {
            sending.refused(*line, "MESSAGE_TOO_LARGE", &format!("longer than {LINE_BYTES_MAX} bytes"))?;
        }
        if !batch.numbers.is_empty() {
            let batch = if args.raw { batch } else { batch.map(|line| with_defaults(line, args)) };
            if let Err(failure) = sending.send(&batch) {
                break Err(failure);
            }
            sending.bar.set_position(lines.read);
        } else if batch.too_long.is_empty() {
            break Ok(());
        }
    };
    sending.bar.finish_and_clear();
    sending.say_count()?;
    ended?;
    Ok(if sending.failed > 0 { Exit::Failed } else { Exit::Done })
}

/// What is being sent, and how it goes.
struct Sending<'c> {
    client: Client,
    path: String,
    query: Query,
    context: &'c Context,
    bar: ProgressBar,
    published: u64,
    failed: u64,
}

impl Sending<'_> {
    /// Sends lines as one request; says of each what became of it as the engine answers.
    fn send(&mut self, batch: &Batch) -> Result<(), Failure> {
        let mut unanswered: BTreeSet<usize> = batch.numbers.iter().copied().collect();
        let sent = self.send_and_hear(batch, &mut unanswered);
        let (Some(first), Some(last)) = (unanswered.first(), unanswered.last()) else { return sent };
        if sent.as_ref().is_err_and(Failure::is_silent) {
            return sent;
        }
        let (exit, why) = match sent {
            Ok(()) => (Exit::Failed, "the engine did not answer for them".to_owned()),
            Err(failure) if failure.code() == CUT_OFF => (failure.exit(), failure.message().to_owned()),
            // Refused as a whole: nothing of it was published.
            Err(failure) => {
                let hint = format!("{}, and publish from line {first} on", failure.hint());
                return Err(failure.with_hint(hint));
            }
        };
        let message = format!("it is not known whether lines {first} to {last} were published: {why}");
        Err(Failure::new(
            exit,
            CUT_OFF,
            message,
            format!("publish again from line {first} on; with ids of your own, doubled messages show"),
        ))
    }

    fn send_and_hear(&mut self, batch: &Batch, unanswered: &mut BTreeSet<usize>) -> Result<(), Failure> {
        let Self { client, path, query, context, bar, published, failed } = self;
        let answers = client.post_lines(path, query, &batch.bytes)?;
        for answer in answers {
            let answer = answer?.value;
            let place = answer.get("line").and_then(Value::as_u64).and_then(|line| usize::try_from(line).ok());
            let Some(line) = place.and_then(|line| line.checked_sub(1)).and_then(|place| batch.numbers.get(place))
            else {
                continue;
            };
            if !unanswered.remove(line) {
                continue;
            }
            match answer.get("id").and_then(Value::as_str) {
                Some(id) => {
                    *published += 1;
                    bar.suspend(|| confirmed(context, *line, id))?;
                }
                None => {
                    *failed += 1;
                    bar.suspend(|| {
                        refused(context, *line, &text(&answer, &["/error/code"]), &text(&answer, &["/error/message"]))
                    })?;
                }
            }
        }
        Ok(())
    }

    fn refused(&mut self, line: usize, code: &str, message: &str) -> Result<(), Failure> {
        self.failed += 1;
        self.bar.suspend(|| refused(self.context, line, code, message))
    }

    fn say_count(&self) -> Result<(), Failure> {
        let (published, failed, output) = (self.published, self.failed, self.context.output);
        if output.json() {
            return output.value(&json!({ "published": published, "failed": failed }));
        }
        output.note(match failed {
            0 => format!("published {published}"),
            failed => format!("published {published}, failed {failed}"),
        });
        Ok(())
    }
}

fn confirmed(context: &Context, line: usize, id: &str) -> Result<(), Failure> {
    if context.output.json() {
        context.output.value(&json!({ "line": line, "id": id }))
    } else {
        context.output.line(id)
    }
}

fn refused(context: &Context, line: usize, code: &str, message: &str) -> Result<(), Failure> {
    context.output.note(format_args!("line {line}: {code}: {}", super::output::safe(message)));
    if context.output.json() {
        context.output.value(&json!({ "line": line, "error": { "code": code, "message": message } }))?;
    }
    Ok(())
}

fn raw_query(args: &Args) -> Query {
    let mut query = vec![("raw", "true".to_owned())];
    query.extend(args.kind.iter().map(|kind| ("type", kind.clone())));
    query.extend(args.key.iter().map(|key| ("key", key.clone())));
    query.extend(args.headers.iter().map(|(name, value)| ("header", format!("{name}={value}"))));
    query
}

/// A line with what the arguments add to it. One that is no object stays as it is: the engine says what is wrong.
fn with_defaults(line: &[u8], args: &Args) -> Vec<u8> {
    if args.kind.is_none() && args.key.is_none() && args.headers.is_empty() {
        return line.to_vec();
    }
    let add = || {
        let mut fields: Fields = serde_json::from_slice(line)?;
        for (name, value) in [("type", &args.kind), ("key", &args.key)] {
            if let (Some(value), false) = (value, fields.contains_key(name)) {
                fields.insert(name.to_owned(), serde_json::value::to_raw_value(value)?);
            }
        }
        let there = headers_of(&fields)?;
        let mut missing = args.headers.iter().filter(|(name, _)| !there.contains(name)).peekable();
        if missing.peek().is_some() {
            let metadata = fields.get("metadata").map(|metadata| serde_json::from_str(metadata.get())).transpose()?;
            let mut metadata: Fields = metadata.unwrap_or_default();
            for (name, value) in missing {
                metadata.insert(name.clone(), serde_json::value::to_raw_value(value)?);
            }
            fields.insert("metadata".to_owned(), serde_json::value::to_raw_value(&metadata)?);
        }
        serde_json::to_vec(&fields)
    };
    add().unwrap_or_else(|_| line.to_vec())
}

/// Names of a message's headers: they may stand in two places, in one of them as pairs.
fn headers_of(fields: &Fields) -> serde_json::Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Headers {
        Named(BTreeMap<String, Value>),
        Pairs(Vec<(String, Value)>),
    }
    let mut names = BTreeSet::new();
    for place in ["headers", "metadata"] {
        match fields.get(place).map(|there| serde_json::from_str(there.get())).transpose()? {
            Some(Headers::Named(headers)) => names.extend(headers.into_keys()),
            Some(Headers::Pairs(headers)) => names.extend(headers.into_iter().map(|(name, _)| name)),
            None => {}
        }
    }
    Ok(names)
}

/// Lines of one request.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Of each line in `bytes`, its number in the input.
    numbers: Vec<usize>,
    too_long: Vec<usize>,
}

impl Batch {
    fn push(&mut self, number: usize, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.bytes.push(b'\n');
        self.numbers.push(number);
    }

    fn map(self, change: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let mut changed = Self { too_long: self.too_long, ..Self::default() };
        for (number, line) in self.numbers.into_iter().zip(self.bytes.split(|byte| *byte == b'\n')) {
            changed.push(number, &change(line));
        }
        changed
    }
}

/// The input, line by line.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    /// Lines so far.
    number: usize,
    /// Bytes so far.
    read: u64,
    /// Whether lines may be waited for, so that what is there should not wait with them.
    live: bool,
}

impl Lines {
    /// What is there, bounded by count and bytes; nothing at the end.
    fn next_batch(&mut self) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut line = Vec::new();
        while batch.numbers.len() < LINES_MAX && batch.bytes.len() < REQUEST_BYTES {
            let may_wait = self.live && !self.input.buffer().contains(&b'\n');
            if may_wait && !(batch.numbers.is_empty() && batch.too_long.is_empty()) {
                break;
            }
            line.clear();
            let limit = u64::try_from(LINE_BYTES_MAX + 1).unwrap_or(u64::MAX);
            let read = Read::by_ref(&mut self.input).take(limit).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            self.number += 1;
            self.read += u64::try_from(read).unwrap_or_default();
            if line.last() == Some(&b'\n') {
                line.pop();
                line.pop_if(|byte| *byte == b'\r');
            } else if line.len() > LINE_BYTES_MAX {
                self.read += u64::try_from(self.input.skip_until(b'\n')?).unwrap_or_default();
                batch.too_long.push(self.number);
                continue;
            }
            if !line.trim_ascii().is_empty() {
                batch.push(self.number, &line);
            }
        }
        Ok(batch)
    }
}

/// The input, and its length where that is known.
fn open(file: Option<&Path>, context: &Context) -> Result<(Lines, Option<u64>), Failure> {
    let lines = |input, live| Lines { input: BufReader::with_capacity(1 << 20, input), number: 0, read: 0, live };
    match file.filter(|file| *file != Path::new("-")) {
        Some(path) => {
            let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
            let (metadata, file) = opened.map_err(|error| unreadable(Some(path), &error))?;
            Ok((lines(Box::new(file), !metadata.is_file()), metadata.is_file().then_some(metadata.len())))
        }
        None => {
            if io::stdin().is_terminal() {
                context.output.note("reading messages from standard input, one a line; Ctrl-D ends");
            }
            Ok((lines(Box::new(io::stdin()), true), None))
        }
    }
}

fn unreadable(file: Option<&Path>, error: &io::Error) -> Failure {
    let name = file.map_or("standard input".to_owned(), |file| file.display().to_string());
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
    Failure::new(
        exit,
        "INPUT_UNREADABLE",
        format!("{name} cannot be read: {error}"),
        "let --file name a file that you may read",
    )
}

/// Progress, where standard error is a terminal.
fn bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, style) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {bytes}/{total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}"),
    };
    bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static [u8], live: bool) -> Lines {
        Lines { input: BufReader::new(Box::new(text)), number: 0, read: 0, live }
    }

    #[test]
    fn empty_lines_are_left_out_and_the_others_keep_their_numbers() {
        let mut lines = lines(b"a\n\n \r\nb\r\nc", false);
        let batch = lines.next_batch().unwrap();
        assert_eq!((batch.numbers, batch.bytes), (vec![1, 4, 5], b"a\nb\nc\n".to_vec()));
        assert!(lines.next_batch().unwrap().numbers.is_empty());
    }

    #[test]
    fn what_is_there_does_not_wait_for_what_is_not() {
        let mut lines = lines(b"a\nb\nc", true);
        assert_eq!(lines.next_batch().unwrap().numbers, [1, 2]);
        assert_eq!(lines.next_batch().unwrap().numbers, [3]);
    }

    #[test]
    fn a_line_beyond_every_bound_is_named_and_the_next_one_goes_on() {
        let long: &'static [u8] =
            Box::leak([vec![b'x'; LINE_BYTES_MAX + 9], b"\nb\n".to_vec()].concat().into_boxed_slice());
        let batch = lines(long, false).next_batch().unwrap();
        assert_eq!((batch.too_long, batch.numbers), (vec![1], vec![2]));
    }

    #[test]
    fn arguments_fill_in_what_a_line_does_not_say() {
        let args = Args {
            to: clap_place(),
            file: None,
            kind: Some("order".to_owned()),
            key: Some("k".to_owned()),
            headers: vec![("a".to_owned(), "1".to_owned())],
            raw: false,
        };
        let check = |line: &str, wanted: &str| {
            assert_eq!(String::from_utf8(with_defaults(line.as_bytes(), &args)).unwrap(), wanted);
        };
        check(
            r#"{"type":"x","n":12345678901234567890123}"#,
            r#"{"key":"k","metadata":{"a":"1"},"n":12345678901234567890123,"type":"x"}"#,
        );
        check(r#"{"headers":[["a","2"]],"key":null}"#, r#"{"headers":[["a","2"]],"key":null,"type":"order"}"#);
        check(r#"{"metadata":{"b":2},"key":"x"}"#, r#"{"key":"x","metadata":{"a":"1","b":2},"type":"order"}"#);
        check("[1]", "[1]");
        check("{", "{");
    }

    fn clap_place() -> Place {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            to: Place,
        }
        <Wrapper as clap::Parser>::parse_from(["x", "--queue", "a"]).to
    }
}
