//! Who imports whom (Invariant 3).

use super::{names, source::Source};

/// For each folder of `src/`, the others that it may import. What is not here is not allowed; a new folder finds its
/// place by the seven questions of CONTRIBUTING.md.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("message", &[]),
    ("codec", &["message"]),
    ("store", &["message"]),
    ("telemetry", &["message"]),
    ("broker", &["message", "codec", "telemetry", "store"]),
    ("handler", &["message", "codec", "telemetry"]),
    ("settle", &["message", "codec", "telemetry"]),
    ("route", &["message", "broker", "handler", "settle"]),
    ("hub", &["message", "codec", "telemetry", "broker", "handler", "settle", "route"]),
    ("config", &["message", "codec", "telemetry", "broker", "handler", "settle", "route"]),
    ("admin", &["message", "codec", "telemetry", "broker", "handler", "settle", "route", "hub", "config"]),
    (
        "cli",
        &["message", "codec", "telemetry", "broker", "handler", "settle", "route", "hub", "config", "admin", "store"],
    ),
];

#[test]
fn folders_import_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for source in Source::all("src") {
        let Some((folder, _)) = source.path.trim_start_matches("src/").split_once('/') else { continue };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == folder) else {
            wrong.push(format!("src/{folder}/ has no place among the layers: tests/structure/layers.rs"));
            continue;
        };
        for (place, imported) in imports(&source) {
            if imported != folder && !allowed.contains(&imported.as_str()) {
                wrong.push(format!(
                    "{}:{} imports {imported}; {folder} may import {}",
                    source.path,
                    source.line_of(place),
                    if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") }
                ));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_layer_is_a_folder_that_the_library_names() {
    let library = std::fs::read_to_string("src/lib.rs").unwrap();
    for folder in names("src").iter().filter(|name| !name.ends_with(".rs")) {
        assert!(library.contains(&format!("mod {folder};")), "src/lib.rs does not name {folder}");
    }
}

/// Folders that a file imports by `crate::…` or by as many `super::` as lead to the root, each with its place.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (place, _) in code.match_indices("crate::") {
        let whole = !code[..place].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if whole {
            found.extend(heads(&code[place + "crate::".len()..]).into_iter().map(|head| (place, head)));
        }
    }
    let depth = source.path.trim_start_matches("src/").trim_end_matches("/mod.rs").split('/').count();
    let to_root = "super::".repeat(depth);
    for (place, _) in code.match_indices(&to_root) {
        let heads = heads(&code[place + to_root.len()..]);
        // A module inside a file is one deeper: what it finds there is no folder of `src/`.
        let folders = heads.into_iter().filter(|head| MAY_IMPORT.iter().any(|(name, _)| name == head));
        found.extend(folders.map(|head| (place, head)));
    }
    found
}

/// First words of what follows `crate::`: one, or those of a group in braces.
fn heads(rest: &str) -> Vec<String> {
    let word =
        |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut depth, mut begin, mut heads) = (0_usize, 0, Vec::new());
    for (place, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                heads.push(word(&group[begin..place]));
                begin = place + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

#[test]
fn sees_imports_of_every_form() {
    let code = "use crate::{\n    broker::{A, B},\n    message,\n};\nlet x = crate::route::Y;\npub(crate) fn f() {}\nuse super::super::hub::Z;\n";
    let source = Source { path: "src/handler/native.rs".to_owned(), lines: 7, code: code.to_owned() };
    let found: Vec<_> = imports(&source).into_iter().map(|(place, name)| (source.line_of(place), name)).collect();
    let wanted = [(1, "broker"), (1, "message"), (5, "route"), (7, "hub")].map(|(line, name)| (line, name.to_owned()));
    assert_eq!(found, wanted);
}
