//! Real messaging systems beside the tests: `scripts/brokers` starts and stops them. In: a command that needs them. Out:
//! what it gives, once they are gone again. The longer run on versions of RabbitMQ that this machine has not installed is
//! here as well: each from a Debian release of its own, in a folder.

use std::{fs, io::Read as _, path::Path, process::Stdio};

use crate::{Result, needs, shell};

/// Where the trees are kept between runs.
const TREES: &str = "target/brokers/debian";
/// Debian releases whose RabbitMQ counts attempts in other ways than 3.x: 4.0, and 4.3 or what came after it.
const RELEASES: [&str; 2] = ["trixie", "sid"];
/// What is asked of each version: what every broker promises, then what only RabbitMQ is asked.
const SUITES: [&str; 2] = ["brokers", "rabbitmq"];

/// The same command, with the servers there for as long as it runs.
pub(crate) fn with(words: &str) -> String {
    format!("scripts/brokers run {words}")
}

/// One line of the table.
struct Row {
    release: &'static str,
    version: String,
    suite: &'static str,
    passed: u64,
    failed: Vec<String>,
}

/// The tests of RabbitMQ on each of [`RELEASES`], all of them whatever fails, and a table.
pub(crate) fn rabbitmq_versions() -> Result {
    needs::servers()?;
    needs::trees()?;
    let mut rows = Vec::new();
    for release in RELEASES {
        let root = tree(release)?;
        let version = version(&root)?;
        for suite in SUITES {
            rows.push(run(release, &root, &version, suite)?);
        }
    }
    println!("\n{:<10}{:<12}{:<12}{:>8}{:>8}", "release", "rabbitmq", "suite", "passed", "failed");
    for Row { release, version, suite, passed, failed } in &rows {
        println!("{release:<10}{version:<12}{suite:<12}{passed:>8}{:>8}", failed.len());
        failed.iter().for_each(|name| println!("  {name}"));
    }
    let all_passed = rows.iter().all(|row| row.failed.is_empty());
    if all_passed { Ok(()) } else { Err("not every version passed: see the table".into()) }
}

/// A Debian release with its RabbitMQ, made once.
fn tree(release: &str) -> Result<String> {
    let root = format!("{TREES}/{release}");
    let complete = Path::new(&root).join("complete");
    if !complete.exists() {
        if Path::new(&root).exists() {
            // What an interrupted run left.
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(TREES)?;
        shell::run(".", &format!("debootstrap --variant=minbase --include=rabbitmq-server {release} {root}"))?;
        // It has to know itself by name.
        fs::copy("/etc/hosts", Path::new(&root).join("etc/hosts"))?;
        fs::write(complete, "")?;
    }
    Ok(root)
}

/// The version of the RabbitMQ in a tree.
fn version(root: &str) -> Result<String> {
    let installed = shell::output(&format!("dpkg-query --admindir={root}/var/lib/dpkg --show rabbitmq-server"))?;
    let version = installed.split_whitespace().last().and_then(|version| version.split(['-', '+', '~']).next());
    Ok(version.unwrap_or("unknown").to_owned())
}

/// One suite on one version. What it prints is shown when it has ended.
fn run(release: &'static str, root: &str, version: &str, suite: &'static str) -> Result<Row> {
    // On the embedded broker it is the same wherever the servers come from.
    let filter = if suite == "brokers" { " -- rabbitmq" } else { "" };
    let words = with(&format!("cargo test --locked --features real-brokers --test {suite}{filter}"));
    println!("\n$ RABBITMQ_ROOT={root} {words}");
    let mut command = shell::command(".", &words);
    command.env("RABBITMQ_ROOT", root).stdout(Stdio::piped());
    let mut running = command.spawn().map_err(|error| format!("`{words}` cannot be started: {error}"))?;
    let mut printed = String::new();
    if let Some(stdout) = &mut running.stdout {
        stdout.read_to_string(&mut printed)?;
    }
    let status = running.wait()?;
    print!("{printed}");
    let (passed, failed) = results(&printed);
    if passed == 0 && failed.is_empty() {
        return Err(format!("`{words}` ran no test ({status})").into());
    }
    if !status.success() && failed.is_empty() {
        return Err(format!("`{words}` ended early ({status})").into());
    }
    Ok(Row { release, version: version.to_owned(), suite, passed, failed })
}

/// How many tests passed, and the names of those that did not, from what a test binary prints.
fn results(printed: &str) -> (u64, Vec<String>) {
    let each = printed.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, result) in each {
        match result.trim_end() {
            "ok" => passed += 1,
            "FAILED" => failed.push(name.to_owned()),
            _ => {}
        }
    }
    (passed, failed)
}

#[test]
fn counts_what_passed_and_names_what_failed() {
    let printed =
        "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ignored\n\ntest result: FAILED. 1\n";
    assert_eq!(results(printed), (1, vec!["a::c".to_owned()]));
}
