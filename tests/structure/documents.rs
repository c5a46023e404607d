//! Documents name what there is, and nothing else.

use std::{collections::BTreeMap, fs, path::Path};

use helixmq::{config, message::ReasonCode, telemetry};

use super::names;

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every page.
fn pages() -> Vec<String> {
    let root = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "plugins-enabled/README.md",
        "wit/README.md",
    ];
    let docs = names("docs").into_iter().filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    root.into_iter().map(str::to_owned).chain(docs).collect()
}

/// Cells of the rows of a page's tables, without code quotes.
fn rows(path: &str) -> Vec<Vec<String>> {
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    text(path).lines().filter(|line| line.starts_with("| ")).skip(1).map(cells).collect()
}

#[test]
fn every_folder_of_the_source_is_on_the_map() {
    let map = text("ARCHITECTURE.md");
    for folder in names("src").iter().filter(|name| !name.ends_with(".rs")) {
        assert!(map.contains(&format!("src/{folder}/")), "ARCHITECTURE.md does not name src/{folder}/");
    }
}

#[test]
fn every_example_configuration_is_pointed_at() {
    let all: String = pages().iter().map(|page| text(page)).collect();
    for name in names("configs").iter().filter(|name| name.ends_with(".yaml")) {
        assert!(all.contains(&format!("configs/{name}")), "no page names configs/{name}");
    }
}

#[test]
fn every_reason_code_is_explained() {
    let explained: BTreeMap<String, Vec<String>> =
        rows("docs/reason-codes.md").into_iter().map(|row| (row[0].clone(), row)).collect();
    for code in ReasonCode::ALL {
        let row = explained.get(code.as_str());
        let whole = row.is_some_and(|row| row.len() == 3 && row.iter().all(|cell| !cell.is_empty()));
        assert!(whole, "docs/reason-codes.md must say what {code} means, and what to do");
    }
    assert_eq!(explained.len(), ReasonCode::ALL.len(), "docs/reason-codes.md has codes that do not exist");
}

#[test]
fn every_metric_is_explained() {
    let mut explained: BTreeMap<String, Vec<String>> =
        rows("docs/metrics.md").into_iter().map(|row| (row[0].clone(), row)).collect();
    for (name, labels) in telemetry::NAMES {
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let row = explained.remove(*name).unwrap_or_default();
        let right = row.len() == 4 && row[2] == labels && !row[3].is_empty();
        assert!(
            right,
            "docs/metrics.md must have a row for {name} with its type, the labels {labels:?}, and what it counts"
        );
    }
    assert!(explained.is_empty(), "docs/metrics.md has metrics that do not exist: {:?}", explained.keys());
}

#[test]
fn every_test_of_outages_is_in_their_table() {
    let (table, tests) = (text("docs/operations.md"), text("tests/outages/main.rs"));
    let all = tests.split("scenarios![").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    for name in all.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        assert!(table.contains(&format!("`{name}`")), "docs/operations.md does not say what people see in {name}");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let folder = Path::new(&page).parent().unwrap();
        for target in text(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_configuration_in_the_readme_is_right() {
    let readme = text("README.md");
    let yaml = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let env = |name: &str| (name == "HELIXMQ_TOKEN").then(|| "a-token-of-more-than-sixteen-characters".to_owned());
    let loaded = config::load_text(Path::new("README.md"), yaml, &env).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.routes.iter().count(), 1);
}
