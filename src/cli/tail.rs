//! `tail`: shows messages without consuming them.

use super::{
    Context, Exit, Failure,
    arguments::{self, Place},
    client::{Client, Document, Query},
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
    let left = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let client = Client::new(context)?;
    for message in client.get_lines("/v1/messaging/tail", &query)?.take(left) {
        let message = message?;
        if context.output.json() { context.output.line(&message.text)? } else { context.output.line(line(&message))? }
    }
    Ok(Exit::Done)
}

/// Time, place, id, type, key and the beginning of the payload.
fn line(message: &Document) -> String {
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
        assert_eq!(line(&message), r#"T  2/3  1  a\u{1b}  -  {"n":12345678901234567890123}"#);
    }

    #[test]
    fn begins_where_it_can() {
        assert_eq!(start("now"), Ok("now".to_owned()));
        assert!(start("soon").unwrap_err().contains("`beginning` or `now`"));
    }
}
