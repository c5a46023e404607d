//! `--help` of every verb, word for word.

use crate::sandbox::Sandbox;

/// Every verb with the words that lead to it.
pub(crate) fn verbs() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, words: &[String], verbs: &mut Vec<Vec<String>>) {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let words: Vec<_> = words.iter().cloned().chain([verb.get_name().to_owned()]).collect();
            walk(verb, &words, verbs);
            verbs.push(words);
        }
    }
    let mut verbs = Vec::new();
    walk(&helixmq::cli::command(), &[], &mut verbs);
    verbs
}

#[test]
fn says_the_same_as_before() {
    let sandbox = Sandbox::new();
    let mut verbs = verbs();
    verbs.push(Vec::new());
    for words in verbs {
        let arguments: Vec<_> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let help = sandbox.run(&arguments).ended(0);
        assert_eq!(help.stderr, "");
        let name = if words.is_empty() { "helixmq".to_owned() } else { words.join("-") };
        insta::assert_snapshot!(name, help.stdout);
    }
}
