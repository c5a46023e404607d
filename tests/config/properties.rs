//! Laws: whatever the text, the loader answers; what it accepts, it shows.

use std::path::Path;

use helixmq::config::{self, Config};
use proptest::prelude::*;

fn env(name: &str) -> Option<String> {
    (name == "SET").then(|| "set".to_owned())
}

/// Pieces that configurations are made of, in any order.
fn soup(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(pieces), 0..60).prop_map(|pieces| pieces.concat())
}

const YAML: &[&str] = &[
    "routes:",
    "http:",
    "embedded:",
    "queues:",
    "plugins:",
    "limits:",
    "match:",
    "retry:",
    "name: a",
    "queue: b",
    "handler: c",
    "destinations: [",
    "]",
    "{",
    "}",
    "- ",
    "\n",
    "\n  ",
    "\n    ",
    "\n      ",
    ": ",
    ", ",
    "\"",
    "'",
    "${SET}",
    "${UNSET:-",
    "$$",
    "&a ",
    "*a",
    "? ",
    "| ",
    "> ",
    "#",
    "\t",
    "!!str ",
    "---\n",
    "null",
    "true",
    "64 MiB",
    "-1",
    "1e999",
    "\u{feff}",
    "é",
    "%YAML 1.2\n",
    "<<: ",
];

const TOML: &[&str] = &[
    "[limits]",
    "[config]",
    "[[routes]]",
    "[routes.retry]",
    "name",
    "queue",
    " = ",
    "\"a\"",
    "'b'",
    "5",
    "0x10",
    "1.5",
    "true",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "\n",
    "\"\"\"",
    "2026-01-01",
    "${SET}",
    ".",
    "#",
    "\\u00e9",
    "é",
    "-inf",
    "results_max",
];

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        drop(config::load_text(Path::new("any.yaml"), &text, &env));
    }

    #[test]
    fn any_yaml_is_answered(text in soup(YAML)) {
        match config::load_text(Path::new("any.yaml"), &text, &env) {
            Ok(loaded) => prop_assert!(!loaded.values.is_empty()),
            Err(errors) => prop_assert!(!errors.mistakes().is_empty() && !errors.to_string().is_empty()),
        }
    }

    #[test]
    fn any_toml_is_answered(text in soup(TOML)) {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("any.toml");
        std::fs::write(&file, text)?;
        drop(config::read_plugin_toml(&file, &Config::default(), &env));
    }
}
