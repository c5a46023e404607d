//! Files that something happened to while no store was open.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use helixmq::store::{Store, StoreError, check};
use rusqlite::Connection;

use super::{DATABASE, LOG, crashed, files, is_a_sentence, read, settings, worked};
use crate::{
    power::model::{Content, Model, Places},
    random::{Random, say, seed},
};

const PAGE: usize = 8192;

/// A store that was closed in good order, and what is in it.
fn closed(seed: u64, steps: u64) -> (tempfile::TempDir, Content) {
    let directory = tempfile::tempdir().unwrap();
    let (store, model) = worked(directory.path(), seed, steps);
    store.close();
    (directory, model.content)
}

/// Changes a file.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(path).unwrap();
    change(&mut content);
    fs::write(path, content).unwrap();
}

/// Whatever page is overwritten: it is noticed when it is read, or at the latest by who has the store checked. SQLite has
/// no sums over pages, so garbage within the bytes of one message is that message.
#[test]
fn a_page_of_garbage_is_noticed() {
    const PAGES: usize = 60;
    let seed = seed("pages of garbage");
    let mut random = Random::new(seed);
    let (directory, content) = closed(seed, 40);
    let pages = fs::metadata(directory.path().join(DATABASE)).unwrap().len() as usize / PAGE;
    let (mut harmless, mut at_once, mut by_check, mut payload, mut silent) = (0, 0, 0, 0, Vec::new());
    for _ in 0..PAGES {
        let page = random.between(0, pages as u64) as usize;
        // A torn write leaves a part of the page as it was.
        let from = page * PAGE + if random.once_in(2) { PAGE / 2 } else { 0 };
        let copy = crashed(directory.path());
        edit(&copy.path().join(DATABASE), |bytes| {
            let garbage = random.bytes((page + 1) * PAGE - from);
            bytes[from..(page + 1) * PAGE].copy_from_slice(&garbage);
        });
        let found = match read(copy.path()) {
            // A page that nothing is on.
            Ok(found) if found == content => {
                harmless += 1;
                continue;
            }
            Ok(found) => found,
            Err(error) => {
                at_once += 1;
                match &error {
                    StoreError::Damaged { .. } => is_a_sentence(&error, "damaged"),
                    StoreError::Unreadable { .. } => assert!(error.to_string().contains("cannot be read"), "{error}"),
                    // The first page says whose it is.
                    StoreError::Foreign { .. } if page == 0 => is_a_sentence(&error, DATABASE),
                    // The writer met it, and the next opening verifies every page.
                    StoreError::Failed { .. } => {
                        let again = read(copy.path()).unwrap_err();
                        assert!(matches!(again, StoreError::Damaged { .. }), "page {page}: {error:?}, then {again:?}");
                    }
                    error => panic!("page {page}: {error:?}"),
                }
                continue;
            }
        };
        let checked = check(copy.path());
        if !checked.is_ok_and(|checked| checked.findings.is_empty()) {
            by_check += 1;
        } else if found.has_the_same_rows(&content) {
            payload += 1;
        } else {
            silent.push((page, found.difference(&content)));
        }
    }
    say(&format!(
        "pages of garbage: {at_once} of {PAGES} noticed when read, {by_check} by a check, {payload} within a message, \
         {harmless} where nothing was"
    ));
    assert!(at_once > 0 && silent.is_empty(), "of {pages} pages: {silent:?}");
}

#[test]
fn a_database_that_was_cut_off_is_said_to_be_damaged() {
    let (directory, _) = closed(1, 40);
    let length = fs::metadata(directory.path().join(DATABASE)).unwrap().len() as usize;
    for left in [length / 2, length - PAGE, length - 1, PAGE, 100, 0] {
        let copy = crashed(directory.path());
        edit(&copy.path().join(DATABASE), |bytes| bytes.truncate(left));
        let error = read(copy.path()).expect_err(&format!("{left} bytes of {length} are left"));
        assert!(matches!(error, StoreError::Damaged { .. }), "{left} bytes of {length}: {error:?}");
        is_a_sentence(&error, "damaged");
    }
}

/// What a crash may leave at the end of the log was never confirmed.
#[test]
fn garbage_at_the_end_of_the_log_costs_nothing() {
    let seed = seed("garbage behind the log");
    let mut random = Random::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let (store, model) = worked(directory.path(), seed, 30);
    let image = crashed(directory.path());
    drop(store);
    for length in [1, 24, 4096, PAGE + 24, 100_000] {
        let copy = crashed(image.path());
        edit(&copy.path().join(LOG), |bytes| bytes.extend(random.bytes(length)));
        assert_eq!(read(copy.path()).unwrap().difference(&model.content), None);
    }
}

/// The log was cut off or deleted, which is not what a crash does to what is confirmed, and cannot be seen afterwards:
/// whatever is left is whole steps.
#[test]
fn of_a_log_that_was_cut_off_whole_steps_are_left() {
    let seed = seed("a log that was cut off");
    let mut random = Random::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let (store, model) = worked(directory.path(), seed, 30);
    let places = Places::make(&store).unwrap();
    let image = crashed(directory.path());
    drop(store);
    let length = fs::metadata(image.path().join(LOG)).unwrap().len();
    for round in 0..8 {
        let copy = crashed(image.path());
        if round == 0 {
            fs::remove_file(copy.path().join(LOG)).unwrap();
        } else {
            let left = random.between(0, length) as usize;
            edit(&copy.path().join(LOG), |bytes| bytes.truncate(left));
        }
        let found = match read(copy.path()) {
            Ok(found) => found,
            Err(error) => {
                is_a_sentence(&error, "damaged");
                continue;
            }
        };
        let mut wanted = Model::new(seed, places.clone());
        while wanted.content.steps < found.steps {
            wanted.step();
        }
        // Of a store that was just made not even the places may be left.
        assert!(found == Content::default() || found.difference(&wanted.content).is_none(), "round {round}");
        assert!(found.steps <= model.content.steps);
        assert_eq!(check(copy.path()).unwrap().findings, [""; 0]);
    }
}

/// A database that is gone while its log is there was not deleted by us.
#[test]
fn a_database_that_is_gone_is_missed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = worked(directory.path(), 3, 30);
    let image = crashed(directory.path());
    drop(store);
    fs::remove_file(image.path().join(DATABASE)).unwrap();
    let before = files(image.path());
    let error = read(image.path()).expect_err("what was confirmed is gone");
    is_a_sentence(&error, "damaged");
    assert_eq!(before.get(LOG), files(image.path()).get(LOG), "the log may be all that is left");
}

#[test]
fn what_is_someone_elses_is_left_alone() {
    let text = |directory: &Path| fs::write(directory.join(DATABASE), "a text, of somebody").unwrap();
    let other = |directory: &Path| {
        let connection = Connection::open(directory.join(DATABASE)).unwrap();
        connection.execute_batch("PRAGMA application_id = 7; CREATE TABLE accounts (name TEXT)").unwrap();
    };
    let nameless = |directory: &Path| {
        let connection = Connection::open(directory.join(DATABASE)).unwrap();
        connection.execute_batch("CREATE TABLE accounts (name TEXT)").unwrap();
    };
    for make in [&text as &dyn Fn(&Path), &other, &nameless] {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path());
        let before = files(directory.path());
        let error = read(directory.path()).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
        is_a_sentence(&error, DATABASE);
        let after = files(directory.path());
        assert!(before.iter().all(|(name, content)| after.get(name) == Some(content)), "{:?}", after.keys());
    }
}

#[test]
fn what_a_newer_version_made_is_left_alone() {
    let (directory, _) = closed(1, 3);
    let database = directory.path().join(DATABASE);
    let connection = Connection::open(&database).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    drop(connection);
    let before = fs::read(&database).unwrap();
    let error = read(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 999, .. }), "{error:?}");
    is_a_sentence(&error, "newer");
    assert!(fs::read(&database).unwrap() == before, "not a byte is touched");
}

#[test]
fn a_file_is_not_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "a text").unwrap();
    let error = Store::open(settings(&file)).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"a text");
}

/// Where a part that is played finds its directory.
const HELD: &str = "HELIXMQ_CRASH_HELD";

#[test]
#[ignore = "the part of another process; the next test starts it"]
fn holds_a_store() {
    let store = Store::open(settings(Path::new(&std::env::var_os(HELD).unwrap()))).unwrap();
    println!("it is held");
    // Until the other hangs up.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    drop(store);
}

#[test]
fn a_second_process_is_told_who_has_it_and_a_kill_frees_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--ignored", "--exact", "--nocapture", "damage::files::holds_a_store"]).env(HELD, directory.path());
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("it is held")));
    let error = Store::open(settings(directory.path())).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    is_a_sentence(&error, &holder.id().to_string());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(read(directory.path()).unwrap(), Content::default());
}
