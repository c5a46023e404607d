//! `plugin list`: what the running engine has loaded.

use crate::cli::{
    Context, Exit, Failure,
    client::{Client, Query},
    shown::{beginning, items, text},
};

/// Digits of a digest that tell versions apart.
const DIGEST_CHARACTERS: usize = 12;
/// Characters of a reason that fit a column.
const REASON_CHARACTERS: usize = 100;

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    let answer = Client::new(context)?.get("/v1/messaging/plugins", &Query::new())?;
    if context.output.json() {
        context.output.line(answer.text.trim())?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = items(&answer.value)
        .iter()
        .map(|plugin| {
            let change = format!("{} {}", text(plugin, &["/receipts/0/result"]), text(plugin, &["/receipts/0/at"]));
            [
                text(plugin, &["/name"]),
                text(plugin, &["/state"]),
                text(plugin, &["/version"]),
                text(plugin, &["/digest"]).chars().take(DIGEST_CHARACTERS).collect(),
                text(plugin, &["/since"]),
                if change == "- -" { "-".to_owned() } else { change },
                beginning(&text(plugin, &["/reason"]), REASON_CHARACTERS),
            ]
        })
        .collect();
    if rows.is_empty() {
        context.output.note("no plugins; drop one into the plugins directory");
    } else {
        context.output.table(["PLUGIN", "STATE", "VERSION", "DIGEST", "SINCE", "LAST CHANGE", "WHY"], &rows)?;
    }
    Ok(Exit::Done)
}
