//! Source files, without their comments and texts.

use std::{fs, path::Path};

/// A file of Rust.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    /// As long as the file is.
    pub(crate) lines: usize,
    /// The file with comments, and what stands in quotes, taken out; line breaks are kept.
    pub(crate) code: String,
}

impl Source {
    /// Every file below a folder, in order; what was built is left out.
    pub(crate) fn all(folder: &str) -> Vec<Self> {
        let mut all = Vec::new();
        collect(Path::new(folder), &mut all);
        all.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(!all.is_empty(), "{folder} has no source; are the tests run at the root?");
        all
    }

    /// Lines, counted from 1, with a path that begins with this name, or that import it.
    pub(crate) fn lines_that_name(&self, name: &str) -> impl Iterator<Item = usize> {
        let begins = move |line: &str| {
            line.match_indices(name).any(|(at, _)| {
                let (before, after) = (&line[..at], &line[at + name.len()..]);
                let alone = !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '.'));
                alone && (after.starts_with("::") || before.trim() == "use" && after.starts_with([';', ' ']))
            })
        };
        self.code.lines().enumerate().filter(move |(_, line)| begins(line)).map(|(place, _)| place + 1)
    }

    /// The line, counted from 1, that a place in `code` is on.
    pub(crate) fn line_of(&self, place: usize) -> usize {
        self.code[..place].matches('\n').count() + 1
    }
}

fn collect(folder: &Path, all: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.to_str().unwrap().replace('\\', "/");
            all.push(Source { path, lines: text.lines().count(), code: code(&text) });
        }
    }
}

/// Takes out line comments, and what stands between quotes on one line. Enough for what is looked for here: paths.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        let mut quoted = false;
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if quoted => drop(characters.next()),
                // Of a character, not of a text.
                '\'' if !quoted && characters.peek() == Some(&'"') => drop(characters.next()),
                '"' => quoted = !quoted,
                '/' if !quoted && characters.peek() == Some(&'/') => break,
                _ if !quoted => code.push(character),
                _ => {}
            }
        }
        code.push('\n');
    }
    code
}

#[test]
fn comments_and_texts_are_not_code() {
    let text = "use a; // use b;\nlet x = \"c::d // \\\" e\"; f('\"', \"g\");\n//! h";
    assert_eq!(code(text), "use a; \nlet x = ; f(', );\n\n");
}

#[test]
fn a_name_counts_where_a_path_begins_with_it() {
    let named = |code: &str| {
        let source = Source { path: String::new(), lines: 1, code: code.to_owned() };
        source.lines_that_name("clap").count() == 1
    };
    assert!(named("use clap::Parser;") && named("#[derive(clap::Args)]") && named("use clap;"));
    assert!(!named("my_clap::Parser") && !named("a::clap::b") && !named("let clap = 1;") && !named("x.clap::<u8>()"));
}
