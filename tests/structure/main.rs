//! The repository is built as ARCHITECTURE.md says: who imports whom, who knows which library, how long a file may be,
//! and documents that name what there is. Read from the files, so that a mistake is named with its line.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it has to say"
)]

mod documents;
mod layers;
mod source;

use std::{fs, path::Path};

use source::Source;

/// Longest file of code, in lines: beyond it there is a second concept to be found.
const LINES_MAX: usize = 500;

/// Which folder is the only one to name a library. A trait of its own hides it from the others.
const LIBRARIES: &[(&str, &str)] = &[
    ("wasmtime", "src/handler/component"),
    ("wasmtime_wasi", "src/handler/component"),
    ("clap", "src/cli"),
    ("ureq", "src/cli"),
    ("indicatif", "src/cli"),
    ("axum", "src/admin"),
    ("tower_http", "src/admin"),
    ("notify", "src/hub"),
    ("rusqlite", "src/store"),
    ("lapin", "src/broker/rabbitmq"),
    ("rdkafka", "src/broker/kafka"),
    ("saphyr_parser", "src/config"),
    ("toml", "src/config"),
];

#[test]
fn a_library_is_named_by_one_folder() {
    let mut wrong = Vec::new();
    for source in Source::all("src") {
        for (library, folder) in LIBRARIES.iter().filter(|(_, folder)| !source.path.starts_with(folder)) {
            let lines = source.lines_that_name(library);
            wrong.extend(lines.map(|line| format!("{}:{line} names {library}; only {folder} does", source.path)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_one_concept() {
    let folders = ["src", "tests", "benches", "xtask/src", "plugins"];
    let sources = folders.iter().flat_map(|folder| Source::all(folder));
    let long: Vec<_> = sources
        .map(|source| (source.lines, source.path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{path} has {lines} lines; look for its second concept"))
        .collect();
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

#[test]
fn no_folder_has_a_file_of_its_name_beside_it() {
    for source in Source::all("src") {
        let folder = source.path.trim_end_matches(".rs");
        assert!(!Path::new(folder).is_dir(), "{} belongs into {folder}/mod.rs", source.path);
    }
}

/// Names of what lies in a folder.
fn names(folder: &str) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
