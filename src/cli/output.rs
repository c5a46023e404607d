//! What is printed, and where: results to standard output, everything else to standard error.

use std::{
    fmt::Display,
    io::{IsTerminal, Write, stderr, stdout},
};

use serde::Serialize;

use super::failure::Failure;

/// Prints, as people or as programs read.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// With `json`, results are JSON.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are JSON.
    #[must_use]
    pub fn json(self) -> bool {
        self.json
    }

    /// A line of a result.
    ///
    /// # Errors
    /// See [`Failure::output`].
    pub fn line(self, text: impl Display) -> Result<(), Failure> {
        writeln!(stdout().lock(), "{text}").map_err(|error| Failure::output(&error))
    }

    /// A result as JSON, on one line.
    ///
    /// # Errors
    /// See [`Failure::output`].
    pub fn value(self, value: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(value).map_err(|error| Failure::output(&error.into()))?;
        text.push(b'\n');
        stdout().lock().write_all(&text).map_err(|error| Failure::output(&error))
    }

    /// Rows under a head, in columns as wide as they need; the last one is not padded.
    ///
    /// # Errors
    /// See [`Failure::output`].
    pub fn table<const N: usize>(self, head: [&str; N], rows: &[[String; N]]) -> Result<(), Failure> {
        self.columns(std::iter::once(&head.map(str::to_owned)).chain(rows))
    }

    /// A value a line behind its name.
    ///
    /// # Errors
    /// See [`Failure::output`].
    pub fn fields(self, rows: &[[String; 2]]) -> Result<(), Failure> {
        self.columns(rows.iter())
    }

    fn columns<'r, const N: usize>(self, rows: impl Iterator<Item = &'r [String; N]>) -> Result<(), Failure> {
        let rows: Vec<_> = rows.map(|row| row.each_ref().map(|cell| safe(cell))).collect();
        let mut widths = [0; N];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &rows {
            let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            self.line(cells.join("  ").trim_end())?;
        }
        Ok(())
    }

    /// Something to know besides the result. Nobody may be listening.
    pub fn note(self, text: impl Display) {
        writeln!(stderr().lock(), "{text}").ok();
    }

    /// Says what failed, where people and, with `--json`, programs look for it.
    pub fn failure(self, failure: &Failure) {
        if failure.is_silent() {
            return;
        }
        let label = if colours() { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" };
        self.note(format_args!("{label} {failure}"));
        if self.json {
            // The exit code says it too.
            self.value(&failure.to_json()).ok();
        }
    }
}

/// Text from elsewhere, so that it cannot move the cursor: control characters are escaped.
#[must_use]
pub(super) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { safe.extend(character.escape_default()) } else { safe.push(character) }
    }
    safe
}

/// Source: <https://no-color.org>.
fn colours() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_move_the_cursor() {
        assert_eq!(safe("a\u{1b}[2J\tb\r\nö"), "a\\u{1b}[2J\\tb\\r\\nö");
    }
}
