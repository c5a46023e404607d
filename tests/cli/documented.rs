//! `docs/cli.md` names every verb, with an example, and every exit code.

use std::fs;

use crate::{help, sandbox::Sandbox};

#[test]
fn every_verb_has_a_section_with_an_example() {
    let text = fs::read_to_string("docs/cli.md").unwrap();
    let leaves = help::verbs();
    let leaves =
        leaves.iter().filter(|words| !leaves.iter().any(|other| other.len() > words.len() && other.starts_with(words)));
    for words in leaves {
        let verb = words.join(" ");
        let section = text
            .split_once(&format!("\n## {verb}\n"))
            .unwrap_or_else(|| panic!("docs/cli.md has no section ## {verb}"))
            .1;
        let section = section.split("\n## ").next().unwrap();
        assert!(section.contains(&format!("helixmq {verb}")), "## {verb} has no example");
        // Every option has a word, too.
        for option in options(words) {
            assert!(section.contains(&format!("`{option}")), "## {verb} does not say what {option} does");
        }
    }
}

/// The options of a verb that are not those of all verbs.
fn options(words: &[String]) -> Vec<String> {
    let mut command = &helixmq::cli::command();
    for word in words {
        command = command.find_subcommand(word).unwrap();
    }
    command.get_arguments().filter_map(|argument| argument.get_long()).map(|long| format!("--{long}")).collect()
}

#[test]
fn every_exit_code_is_in_the_document_as_in_the_help() {
    let (text, help) = (fs::read_to_string("docs/cli.md").unwrap(), Sandbox::new().run(&["--help"]).ended(0).stdout);
    let codes: Vec<_> =
        help.split_once("Exit codes:\n").unwrap().1.lines().map(|line| line.trim().split_once("  ").unwrap()).collect();
    assert_eq!(codes.len(), 8);
    for (code, meaning) in codes {
        assert!(text.contains(&format!("| {code} | {meaning}")), "docs/cli.md does not say that {code} is {meaning}");
    }
}
