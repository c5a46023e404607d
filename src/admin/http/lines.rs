//! Divides a body that comes in parts into its lines.

use bytes::{Buf, Bytes};

use super::{body::Held, problem::Problem};

/// Lines of a body, without what ends them.
#[derive(Debug)]
pub(super) struct Lines {
    bytes_max: usize,
    /// What came last and is not divided yet.
    part: Bytes,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    held: Held,
    /// The line that is being read is refused; the rest of it is passed over.
    refused: Option<Problem>,
    number: u64,
}

/// One line.
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: u64,
    /// The line, or why it cannot be had.
    pub(super) bytes: Result<Bytes, Problem>,
}

impl Lines {
    pub(super) fn new(bytes_max: usize, held: Held) -> Self {
        Self { bytes_max, part: Bytes::new(), begun: Vec::new(), held, refused: None, number: 0 }
    }

    /// The number of the line that comes next.
    pub(super) fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// More of the body. What came before must have been divided.
    pub(super) fn push(&mut self, part: Bytes) {
        self.part = part;
    }

    /// The next line that is there and not blank. `None`: more of the body is needed.
    pub(super) fn next(&mut self) -> Option<Line> {
        loop {
            let Some(end) = self.part.iter().position(|byte| *byte == b'\n') else {
                let rest = std::mem::take(&mut self.part);
                self.begin(&rest);
                return None;
            };
            let rest = self.part.split_to(end);
            self.part.advance(1);
            let line = if self.begun.is_empty() && self.refused.is_none() && rest.len() <= self.bytes_max {
                self.line(rest)
            } else {
                self.begin(&rest);
                self.end()
            };
            if line.is_some() {
                return line;
            }
        }
    }

    /// What stands behind the last line break, when the body has ended.
    pub(super) fn last(&mut self) -> Option<Line> {
        if self.begun.is_empty() && self.refused.is_none() { None } else { self.end() }
    }

    fn begin(&mut self, bytes: &[u8]) {
        if self.refused.is_some() || bytes.is_empty() {
            return;
        }
        let length = self.begun.len() + bytes.len();
        let room = if length > self.bytes_max {
            Err(Problem::too_large(format!("the line is longer than the {} bytes that are allowed", self.bytes_max)))
        } else {
            self.held.grow_to(length)
        };
        match room {
            Ok(()) => self.begun.extend_from_slice(bytes),
            Err(problem) => {
                self.refused = Some(problem);
                self.begun = Vec::new();
                self.held.release();
            }
        }
    }

    fn end(&mut self) -> Option<Line> {
        self.held.release();
        let begun = std::mem::take(&mut self.begun);
        match self.refused.take() {
            None => self.line(begun.into()),
            Some(problem) => {
                self.number += 1;
                Some(Line { number: self.number, bytes: Err(problem) })
            }
        }
    }

    fn line(&mut self, mut bytes: Bytes) -> Option<Line> {
        self.number += 1;
        if bytes.last() == Some(&b'\r') {
            bytes.truncate(bytes.len() - 1);
        }
        let blank = bytes.iter().all(u8::is_ascii_whitespace);
        (!blank).then_some(Line { number: self.number, bytes: Ok(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::sync::Semaphore;

    use super::*;

    fn divide(parts: &[&[u8]], bytes_max: usize) -> Vec<(u64, Option<Vec<u8>>)> {
        let held = Held { from: Arc::new(Semaphore::new(1024)), permit: None };
        let mut lines = Lines::new(bytes_max, held);
        let mut all = Vec::new();
        for part in parts {
            lines.push(Bytes::copy_from_slice(part));
            all.extend(std::iter::from_fn(|| lines.next()));
        }
        all.extend(lines.last());
        all.into_iter().map(|line| (line.number, line.bytes.ok().map(|bytes| bytes.to_vec()))).collect()
    }

    fn some(number: u64, text: &str) -> (u64, Option<Vec<u8>>) {
        (number, Some(text.as_bytes().to_vec()))
    }

    #[test]
    fn passes_over_blank_lines_and_counts_them() {
        assert_eq!(divide(&[b"a\n\n \r\nb\r\n", b"c"], 8), [some(1, "a"), some(4, "b"), some(5, "c")]);
        assert_eq!(divide(&[b""], 8), []);
        assert_eq!(divide(&[b"\n"], 8), []);
    }

    #[test]
    fn a_line_that_is_too_long_costs_only_itself() {
        assert_eq!(divide(&[b"123456789\nb\n"], 8), [(1, None), some(2, "b")]);
        assert_eq!(divide(&[b"12345", b"678", b"9", b"0\nb"], 8), [(1, None), some(2, "b")]);
        assert_eq!(divide(&[b"a\n12345678901"], 8), [some(1, "a"), (2, None)]);
    }

    proptest! {
        #[test]
        fn where_the_body_is_cut_makes_no_difference(text in "[ab\n]{0,40}", cuts in proptest::collection::vec(0..40_usize, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            parts.push(&text.as_bytes()[from..]);
            prop_assert_eq!(divide(&parts, 5), divide(&[text.as_bytes()], 5));
        }
    }
}
