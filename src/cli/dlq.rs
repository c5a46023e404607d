//! `dlq`: the dead letters, and all that is known of one.

use clap::Subcommand;
use serde_json::{Value, value::RawValue};

use super::{
    Context, Exit, Failure, arguments,
    client::{Client, Query},
    shown::{beginning, flat, items, payload, text},
};

/// Characters of a reason that fit a column.
const REASON_CHARACTERS: usize = 80;

/// What can be asked of the dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters
    List(Filter),
    /// Show one with its cause, attempts and payload
    Show {
        /// As `dlq list` shows it
        id: String,
    },
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Go on where the page before ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// Only of this route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Only of this handler
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
    /// Only with this reason code
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only messages whose type matches, such as `order.*`
    #[arg(long = "type", value_name = "PATTERN")]
    kind: Option<String>,
    /// Not from before this time
    #[arg(long, value_name = "TIME", value_parser = arguments::time)]
    since: Option<String>,
    /// Only from before this time
    #[arg(long, value_name = "TIME", value_parser = arguments::time)]
    until: Option<String>,
}

impl Filter {
    fn query(&self) -> Query {
        let texts = [
            ("cursor", &self.cursor),
            ("route", &self.route),
            ("handler", &self.handler),
            ("reason", &self.reason),
            ("type", &self.kind),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let texts = texts.into_iter().filter_map(|(name, value)| value.clone().map(|value| (name, value)));
        self.limit.map(|limit| ("limit", limit.to_string())).into_iter().chain(texts).collect()
    }
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::List(filter) => list_letters(filter, context),
        Command::Show { id } => show(id, context),
    }
}

fn list_letters(filter: &Filter, context: &Context) -> Result<Exit, Failure> {
    let page = Client::new(context)?.get("/v1/messaging/dlq", &filter.query())?;
    if context.output.json() {
        context.output.line(page.text.trim())?;
        return Ok(Exit::Done);
    }
    let page = page.value;
    let rows: Vec<_> = items(&page)
        .iter()
        .map(|item| {
            [
                text(item, &["/at"]),
                text(item, &["/id"]),
                text(item, &["/reason"]),
                text(item, &["/route"]),
                text(item, &["/handler/name"]),
                beginning(&text(item, &["/text"]), REASON_CHARACTERS),
            ]
        })
        .collect();
    if rows.is_empty() {
        context.output.note("no dead letters");
    } else {
        context.output.table(["AT", "ID", "REASON", "ROUTE", "HANDLER", "TEXT"], &rows)?;
    }
    let total = page.get("total").and_then(Value::as_u64);
    if let Some(total) = total.filter(|total| usize::try_from(*total).is_ok_and(|total| total > rows.len())) {
        context.output.note(format_args!("{} of {total}", rows.len()));
    }
    if let Some(cursor) = page.get("next_cursor").and_then(Value::as_str) {
        context.output.note(format_args!("go on with --cursor {cursor}"));
    }
    Ok(Exit::Done)
}

fn show(id: &str, context: &Context) -> Result<Exit, Failure> {
    // It becomes part of a path.
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':')) {
        let hint = "copy it from `helixmq dlq list`";
        return Err(Failure::new(Exit::Usage, "BAD_ID", format!("{id:?} is not the id of a dead letter"), hint));
    }
    let letter = Client::new(context)?.get(&format!("/v1/messaging/dlq/{id}"), &Query::new())?;
    if context.output.json() {
        context.output.line(letter.text.trim())?;
        return Ok(Exit::Done);
    }
    #[derive(serde::Deserialize)]
    struct Record<'l> {
        #[serde(borrow)]
        message: Option<&'l RawValue>,
    }
    let is_payload = |path: &str| path.starts_with("message.payload") || path.starts_with("message.data");
    let mut rows: Vec<_> = flat(&letter.value).into_iter().filter(|[path, _]| !is_payload(path)).collect();
    if let Ok(Record { message: Some(message) }) = serde_json::from_str(&letter.text) {
        rows.push(["message.payload".to_owned(), payload(message.get())]);
    }
    context.output.fields(&rows)?;
    Ok(Exit::Done)
}
