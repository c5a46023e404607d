//! `tail`: shows messages without consuming them.

use serde_json::Value;

use super::{
    Context, Exit, Failure,
    arguments::{self, Place},
    client::{Client, Document, Query},
    output::safe,
    shown::{beginning, payload, text},
};
use crate::message::Kind;

/// Characters of a payload, or of another text of the publisher's, that fit a line for people.
const TEXT_CHARACTERS: usize = 200;

/// What `tail` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    from_place: Place,
    /// Where to begin: `beginning`, `now`, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHERE", value_parser = start)]
    from: Option<String>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Wait for further messages
    #[arg(long)]
    follow: bool,
}

fn start(text: &str) -> Result<String, String> {
    match text {
        "beginning" | "now" => Ok(text.to_owned()),
        text => arguments::time(text).map_err(|error| format!("{error}, `beginning` or `now`")),
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let address = args.from_place.address()?;
    let kind = match address.kind {
        Kind::Queue => "queue",
        Kind::Topic => "topic",
    };
    let mut query: Query = vec![(kind, address.place())];
    query.extend(args.from.iter().map(|from| ("from", from.clone())));
    query.extend(args.limit.map(|limit| ("limit", limit.to_string())));
    query.extend(args.follow.then(|| ("follow", "true".to_owned())));
    let mut left = args.limit;
    let client = Client::new(context)?;
    let mut lines = client.get_lines("/v1/messaging/tail", &query)?;
    while left != Some(0) {
        let Some(line) = lines.next().transpose()? else { break };
        match notice(&line.value) {
            None => {
                let text = if context.output.json() { line.text } else { shown(&line) };
                context.output.line(text)?;
                left = left.map(|left| left - 1);
            }
            Some(Notice::Interrupted(why)) => {
                context.output.note(safe(&format!("{address} cannot be read, going on once it can: {why}")));
            }
            Some(Notice::Resumed) => context.output.note(format_args!("{address} can be read again, going on")),
            Some(Notice::Failed(code, why)) => {
                return Err(Failure::new(Exit::Unreachable, code, format!("{address} cannot be read on: {why}"), ""));
            }
        }
    }
    match left {
        Some(0) => Ok(Exit::Done),
        _ if !args.follow => Ok(Exit::Done),
        _ => {
            let message = "the engine is stopping, and shows nothing more";
            Err(Failure::new(Exit::Unreachable, "ENGINE_STOPPED", message, "call again once it runs"))
        }
    }
}

/// A line that is no message.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    /// Nothing can be read for now, and why.
    Interrupted(String),
    Resumed,
    /// Nothing more can be read: a code, and why.
    Failed(String, String),
}

fn notice(line: &Value) -> Option<Notice> {
    if line.get("id").is_some() {
        return None;
    }
    if line.get("resumed").is_some() {
        return Some(Notice::Resumed);
    }
    if let Some(why) = line.get("interrupted") {
        return Some(Notice::Interrupted(text(why, &["/message"])));
    }
    let why = line.get("error")?;
    Some(Notice::Failed(text(why, &["/code"]), text(why, &["/message"])))
}

/// Time, place, id, type, key and the beginning of the payload.
fn shown(message: &Document) -> String {
    let value = &message.value;
    let place = match (value.get("partition"), value.get("offset")) {
        (Some(partition), Some(offset)) => format!("{partition}/{offset}  "),
        _ => String::new(),
    };
    format!(
        "{}  {place}{}  {}  {}  {}",
        text(value, &["/timestamp", "/created_at"]),
        beginning(&text(value, &["/id"]), TEXT_CHARACTERS),
        beginning(&text(value, &["/type"]), TEXT_CHARACTERS),
        beginning(&text(value, &["/key", "/key_base64"]), TEXT_CHARACTERS),
        beginning(&payload(&message.text), TEXT_CHARACTERS),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line() {
        let text = r#"{"id":"1","type":"a\u001b","timestamp":"T","partition":2,"offset":3,"data":{"n":12345678901234567890123}}"#;
        let message = Document { text: text.to_owned(), value: serde_json::from_str(text).unwrap() };
        assert_eq!(shown(&message), r#"T  2/3  1  a\u{1b}  -  {"n":12345678901234567890123}"#);
    }

    #[test]
    fn a_line_that_is_no_message_is_told_apart() {
        let read = |text: &str| notice(&serde_json::from_str(text).unwrap());
        assert_eq!(read(r#"{"id":"1","error":{"code":"A"},"resumed":true}"#), None);
        assert_eq!(read(r#"{"resumed":true}"#), Some(Notice::Resumed));
        let away = r#"{"interrupted":{"code":"A","message":"it is away"}}"#;
        assert_eq!(read(away), Some(Notice::Interrupted("it is away".to_owned())));
        let gone = r#"{"error":{"code":"A","message":"it is gone"}}"#;
        assert_eq!(read(gone), Some(Notice::Failed("A".to_owned(), "it is gone".to_owned())));
    }

    #[test]
    fn begins_where_it_can() {
        assert_eq!(start("now"), Ok("now".to_owned()));
        assert!(start("soon").unwrap_err().contains("`beginning` or `now`"));
    }
}
