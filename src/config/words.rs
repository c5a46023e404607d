//! Small things about the names of keys: joining them to a path, and finding the one that was probably meant.

/// Text of the operator in an error: quoted, and cut.
pub(super) fn quoted(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let cut: String = text.chars().take(CHARACTERS_MAX).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}

/// `a.b`, with names that hold dots in brackets.
pub(super) fn join(path: &str, key: &str) -> String {
    let simple = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    match (path.is_empty(), simple) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[{}]", quoted(key)),
    }
}

/// `a, b or c`, with the word between the last two.
pub(super) fn listed(words: &[impl AsRef<str>], last: &str) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        Some((end, rest)) if !rest.is_empty() => format!("{} {last} {end}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// The known word that was most likely meant, if any is near.
pub(super) fn nearest<'w>(text: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // The distance costs the product of the lengths.
    if text.len() > 64 {
        return None;
    }
    let near = text.chars().count() / 3 + 1;
    // `delay` for `delay_ms`, `max_attempts` for `attempts_max`: the words are right, their number or order is not.
    let part = |word: &str| {
        let begins = text.len() >= 3 && (word.starts_with(text) || text.starts_with(word));
        let words = text.contains('_') && text.split('_').all(|one| word.split('_').any(|other| one == other));
        begins || words
    };
    known
        .map(|word| (if part(word) { 1 } else { strsim::damerau_levenshtein(text, word) }, word))
        .filter(|(distance, _)| *distance <= near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_near_and_nothing_else() {
        let known = || ["delay_ms", "delay_max_ms", "factor", "jitter", "attempts_max"].into_iter();
        for (text, wanted) in [
            ("delay", Some("delay_ms")),
            ("delay_ns", Some("delay_ms")),
            ("max_attempts", Some("attempts_max")),
            ("attempt_max", Some("attempts_max")),
            ("factro", Some("factor")),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, known()), wanted, "{text}");
        }
    }
}
