//! `${NAME}` and `${NAME:-default}` in values. `$$` is one `$`; a `$` before anything else stays as it is. What an
//! environment variable holds is taken as it is: it cannot add keys, and is not looked through again.

use std::collections::BTreeSet;

/// Longest result, in bytes: variables may be long, and a text may name one often.
const BYTES_MAX: usize = 1 << 20;
/// How deep defaults may nest.
const DEPTH_MAX: usize = 8;

/// A value with its variables filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interpolated {
    pub(super) text: String,
    /// The variables that were looked at.
    pub(super) names: BTreeSet<String>,
}

/// Why a value cannot be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InterpolationError {
    #[error("the environment variable {0} is not set")]
    Unset(String),
    #[error("a \"${{\" is never closed")]
    Unclosed,
    #[error("\"${{{0}}}\" does not name a variable")]
    BadName(String),
    #[error("more than {DEPTH_MAX} defaults inside each other")]
    TooDeep,
    #[error("longer than {BYTES_MAX} bytes with its variables filled in")]
    TooLong,
}

impl InterpolationError {
    pub(super) fn fix(&self) -> String {
        match self {
            Self::Unset(name) => format!("set {name}, or give a default as in ${{{name}:-default}}"),
            Self::Unclosed => "close it with \"}\"; write \"$$\" for a plain \"$\"".to_owned(),
            Self::BadName(_) => {
                "write ${NAME} or ${NAME:-default} with letters, digits and '_' in NAME; \"$$\" is a plain \"$\""
                    .to_owned()
            }
            Self::TooDeep | Self::TooLong => "make it shorter".to_owned(),
        }
    }
}

/// Fills in every variable; all mistakes at once.
pub(super) fn interpolate(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Interpolated, Vec<InterpolationError>> {
    let mut run = Run { env, names: BTreeSet::new(), errors: Vec::new() };
    let (result, _) = run.fill(text, false, true, 0);
    if result.len() > BYTES_MAX {
        run.errors.push(InterpolationError::TooLong);
    }
    if run.errors.is_empty() { Ok(Interpolated { text: result, names: run.names }) } else { Err(run.errors) }
}

struct Run<'e> {
    env: &'e dyn Fn(&str) -> Option<String>,
    names: BTreeSet<String>,
    errors: Vec<InterpolationError>,
}

impl Run<'_> {
    /// Fills `text`; with `inside`, only up to the `}` that ends a default. Returns what follows. A default that is not
    /// `used` is read for its end only.
    fn fill<'t>(&mut self, text: &'t str, inside: bool, used: bool, depth: usize) -> (String, &'t str) {
        let mut result = String::new();
        let mut rest = text;
        loop {
            let Some(at) = rest.find(['$', '}']) else {
                result.push_str(rest);
                if inside {
                    self.errors.push(InterpolationError::Unclosed);
                }
                return (result, "");
            };
            let (before, from) = rest.split_at(at);
            result.push_str(before);
            if let Some(after) = from.strip_prefix('}') {
                if inside {
                    return (result, after);
                }
                result.push('}');
                rest = after;
            } else if let Some(after) = from.strip_prefix("$$") {
                result.push('$');
                rest = after;
            } else if let Some(after) = from.strip_prefix("${") {
                let (value, after) = self.variable(after, used, depth);
                result.push_str(&value);
                rest = after;
            } else {
                result.push('$');
                rest = from.strip_prefix('$').unwrap_or_default();
            }
            if result.len() > BYTES_MAX {
                return (result, "");
            }
        }
    }

    /// What stands for a variable; `text` begins behind its `${`.
    fn variable<'t>(&mut self, text: &'t str, used: bool, depth: usize) -> (String, &'t str) {
        let name_end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let (name, rest) = text.split_at(name_end);
        let sound = !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit());
        if let (true, Some(after)) = (sound, rest.strip_prefix('}')) {
            return (if used { self.look_up(name, None) } else { String::new() }, after);
        }
        if let (true, Some(default)) = (sound, rest.strip_prefix(":-")) {
            if depth >= DEPTH_MAX {
                self.errors.push(InterpolationError::TooDeep);
                return (String::new(), "");
            }
            let needed = used && (self.env)(name).is_none_or(|value| value.is_empty());
            let (default, after) = self.fill(default, true, needed, depth + 1);
            return (if used { self.look_up(name, Some(default)) } else { String::new() }, after);
        }
        match text.split_once('}') {
            None => {
                self.errors.push(InterpolationError::Unclosed);
                (String::new(), "")
            }
            Some((wrong, after)) => {
                self.errors.push(InterpolationError::BadName(wrong.chars().take(64).collect()));
                (String::new(), after)
            }
        }
    }

    fn look_up(&mut self, name: &str, default: Option<String>) -> String {
        self.names.insert(name.to_owned());
        match ((self.env)(name), default) {
            (Some(value), None) => value,
            (Some(value), Some(_)) if !value.is_empty() => value,
            (_, Some(default)) => default,
            (None, None) => {
                self.errors.push(InterpolationError::Unset(name.to_owned()));
                String::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{InterpolationError::*, *};

    fn check(text: &str, wanted: Result<&str, &[InterpolationError]>) {
        let env = |name: &str| match name {
            "HOST" => Some("db".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${HOST}: [x]".to_owned()),
            _ => None,
        };
        let got = interpolate(text, &env).map(|filled| filled.text);
        assert_eq!(got, wanted.map(str::to_owned).map_err(<[_]>::to_vec), "{text}");
    }

    #[test]
    fn a_table_of_texts() {
        for (text, wanted) in [
            ("plain", "plain"),
            ("", ""),
            ("${HOST}", "db"),
            ("http://${HOST}:80/${HOST}", "http://db:80/db"),
            ("${NONE:-localhost}", "localhost"),
            ("${HOST:-localhost}", "db"),
            ("${NONE:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-default}", "default"),
            ("${NONE:-${HOST}}", "db"),
            ("${NONE:-a${ALSO_NONE:-b}c}", "abc"),
            ("${HOST:-${NONE}}", "db"),
            ("${NONE:-a:-b}", "a:-b"),
            ("$$", "$"),
            ("$${HOST}", "${HOST}"),
            ("$$${HOST}", "$db"),
            ("5$", "5$"),
            ("$HOST", "$HOST"),
            ("a}b", "a}b"),
            ("${TRICKY}", "${HOST}: [x]"),
            ("ä${HOST}ö", "ädbö"),
        ] {
            check(text, Ok(wanted));
        }
    }

    #[test]
    fn a_table_of_mistakes() {
        check("${NONE}", Err(&[Unset("NONE".into())]));
        check("${NONE}-${OTHER}", Err(&[Unset("NONE".into()), Unset("OTHER".into())]));
        check("${NONE:-${OTHER}}", Err(&[Unset("OTHER".into())]));
        check("${HOST", Err(&[Unclosed]));
        check("${NONE:-x", Err(&[Unclosed]));
        check("${}", Err(&[BadName(String::new())]));
        check("${1A}", Err(&[BadName("1A".into())]));
        check("${HOST-x}", Err(&[BadName("HOST-x".into())]));
        check("${ HOST }", Err(&[BadName(" HOST ".into())]));
        check(
            &"${A:-".repeat(100),
            Err(&[TooDeep, Unclosed, Unclosed, Unclosed, Unclosed, Unclosed, Unclosed, Unclosed, Unclosed]),
        );
    }
}
