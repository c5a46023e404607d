//! Patterns over dotted words, as AMQP topic exchanges have them: `*` is exactly one word, `#` is any number of
//! words, none included. Source: AMQP 0-9-1, section 3.1.3.3.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// A pattern such as `order.*.created` or `audit.#`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    words: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Exactly(Box<str>),
    One,
    Any,
}

/// Why text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Say `#` for "anything".
    #[error("a pattern cannot be empty; write \"#\" to match anything")]
    Empty,
    /// Put the wildcard between dots.
    #[error("{0:?}: '*' and '#' stand for whole words between dots, as in \"order.*\" or \"audit.#\"")]
    InsideWord(String),
    /// Simplify it.
    #[error("more than one '#' behind another makes matching slow; at most 4 are allowed")]
    TooManyHashes,
}

impl Pattern {
    /// Whether some text matches both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        overlap(&self.words, &other.words)
    }

    /// Whether the text, read as words between dots, matches. Empty text has no words.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        if let [Word::Exactly(word)] = self.words.as_slice() {
            return &**word == text;
        }
        let words: smallvec::SmallVec<[&str; 8]> =
            if text.is_empty() { [].into_iter().collect() } else { text.split('.').collect() };
        matches(&self.words, &words)
    }
}

fn matches(pattern: &[Word], words: &[&str]) -> bool {
    match pattern.split_first() {
        None => words.is_empty(),
        Some((Word::Any, rest)) => {
            (0..=words.len()).any(|skip| words.get(skip..).is_some_and(|left| matches(rest, left)))
        }
        Some((Word::One, rest)) => words.split_first().is_some_and(|(_, left)| matches(rest, left)),
        Some((Word::Exactly(wanted), rest)) => {
            words.split_first().is_some_and(|(word, left)| **wanted == **word && matches(rest, left))
        }
    }
}

/// Word by word from the end, so that it takes no longer than the product of their lengths.
fn overlap(one: &[Word], other: &[Word]) -> bool {
    // Whether nothing is left of the one, and this much of the other; then for each word more of the one. Shortest first.
    let mut ends: Vec<bool> = std::iter::once(true)
        .chain(other.iter().rev().scan(true, |all, word| {
            *all &= *word == Word::Any;
            Some(*all)
        }))
        .collect();
    for word in one.iter().rev() {
        let mut longer = *word == Word::Any && ends.first() == Some(&true);
        let mut next = vec![longer];
        for (wanted, pair) in other.iter().rev().zip(ends.windows(2)) {
            let [both_shorter, one_shorter] = pair else { break };
            longer = match (word, wanted) {
                (Word::Any, _) | (_, Word::Any) => longer || *one_shorter,
                (Word::One, _) | (_, Word::One) => *both_shorter,
                (word, wanted) => word == wanted && *both_shorter,
            };
            next.push(longer);
        }
        ends = next;
    }
    ends.last() == Some(&true)
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        let mut words: Vec<Word> = Vec::new();
        for word in text.split('.') {
            match word {
                "*" => words.push(Word::One),
                // `#.#` means what `#` means.
                "#" if words.last() == Some(&Word::Any) => {}
                "#" => words.push(Word::Any),
                word if word.contains(['*', '#']) => return Err(PatternError::InsideWord(text.to_owned())),
                word => words.push(Word::Exactly(word.into())),
            }
        }
        if words.iter().filter(|word| **word == Word::Any).count() > 4 {
            return Err(PatternError::TooManyHashes);
        }
        Ok(Self { words })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, word) in self.words.iter().enumerate() {
            if place > 0 {
                f.write_str(".")?;
            }
            f.write_str(match word {
                Word::Exactly(word) => word,
                Word::One => "*",
                Word::Any => "#",
            })?;
        }
        Ok(())
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let pattern: Pattern = pattern.parse().expect("a pattern");
        for text in yes {
            assert!(pattern.matches(text), "{pattern} should match {text:?}");
        }
        for text in no {
            assert!(!pattern.matches(text), "{pattern} should not match {text:?}");
        }
    }

    #[test]
    fn words_match_as_in_amqp() {
        check("order.created", &["order.created"], &["order", "order.created.eu", "orders.created", ""]);
        check("order.*", &["order.created", "order."], &["order", "order.created.eu"]);
        check("*", &["order"], &["", "order.created"]);
        check("#", &["", "order", "order.created.eu"], &[]);
        check("order.#", &["order", "order.created", "order.created.eu"], &["orders", ""]);
        check("#.eu", &["eu", "order.eu", "order.created.eu"], &["order.eu.x"]);
        check("a.#.z", &["a.z", "a.b.z", "a.b.c.z"], &["a", "a.b", "z"]);
        check("*.*.#", &["a.b", "a.b.c"], &["a"]);
        check("#.#", &["", "a"], &[]);
    }

    #[test]
    fn two_patterns_overlap_where_some_text_matches_both() {
        let overlaps = |one: &str, other: &str| {
            let (one, other): (Pattern, Pattern) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.overlaps(&other), other.overlaps(&one), "{one} {other}");
            one.overlaps(&other)
        };
        for (one, other) in [
            ("a.b", "a.b"),
            ("a.*", "*.b"),
            ("a.#", "#.b"),
            ("#", "a.b.c"),
            ("#", "#"),
            ("a.#", "a"),
            ("a.#.z", "a.*.y.#"),
            ("#.a.#", "b.#.c"),
        ] {
            assert!(overlaps(one, other), "{one} {other}");
        }
        for (one, other) in [("a", "b"), ("a.*", "a"), ("a.*", "b.#"), ("a.b.#", "a.c.#"), ("#.y", "#.z"), ("*", "a.b")]
        {
            assert!(!overlaps(one, other), "{one} {other}");
        }
    }

    #[test]
    fn refuses_what_would_not_mean_what_it_looks_like() {
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!("order*".parse::<Pattern>(), Err(PatternError::InsideWord("order*".into())));
        assert_eq!("#.a.#.b.#.c.#.d.#".parse::<Pattern>(), Err(PatternError::TooManyHashes));
    }

    #[test]
    fn reads_back_as_it_was_written() {
        for text in ["a.*.#", "a", "#", "a..b"] {
            assert_eq!(text.parse::<Pattern>().map(|pattern| pattern.to_string()), Ok(text.to_owned()));
        }
    }
}
