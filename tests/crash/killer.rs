//! A message that takes the whole process down with it, at every attempt.

use std::{collections::BTreeSet, time::Instant};

use serde_json::{Value, json};

use crate::{
    api::Api,
    kills::ON_DISK,
    random::say,
    site::{Engine, PATIENCE, Site},
};

const ATTEMPTS_MAX: u64 = 4;
const INNOCENT: usize = 50;
/// Lives after which it is held for endless: one for each attempt, and those to take up what is left.
const LIVES_MAX: u64 = ATTEMPTS_MAX + 4;

/// Attempts that handlers have begun on the killer, so far.
fn runs_of_the_killer(api: &Api) -> Vec<u64> {
    let mut runs = Vec::new();
    api.tail("topic=runs", |event| {
        if event["data"]["id"] == "killer" {
            runs.push(event["data"]["attempt"].as_u64().unwrap());
        }
    });
    runs
}

fn letter_of_the_killer(api: &Api) -> Option<Value> {
    api.dead_letters().into_iter().find(|letter| letter["id"] == "killer")
}

/// Waits for the killer to begin once more, or to be given up.
fn next_of_the_killer(api: &Api, engine: &Engine, before: usize) -> Result<Vec<u64>, Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let runs = runs_of_the_killer(api);
        if runs.len() > before {
            return Ok(runs);
        }
        if let Some(letter) = letter_of_the_killer(api) {
            return Err(letter);
        }
        assert!(Instant::now() < end, "the killer is neither begun nor given up\n{}", engine.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn ends_in_the_dead_letters(source: &str, path: &str, handler: &str) {
    let site = Site::new(&format!(
        "embedded:\n  standard_topology: false\n  dead_letter: dead\n{ON_DISK}  topics: {{runs: {{partitions: 1}}}}\n\
         routes:\n  - {{name: work, {source}: work, handler: {handler}, concurrency: 2, \
         destinations: {{out: 'queue:handled', runs: 'topic:runs'}}, retry: {{attempts_max: {ATTEMPTS_MAX}, delay_ms: 10}}}}\n"
    ));
    site.plug(handler, handler, 0);
    let innocent =
        |number: usize| json!({"id": format!("innocent.{number}"), "key": number.to_string()}).to_string() + "\n";
    let mut lines: String = (0..INNOCENT / 2).map(innocent).collect();
    lines += &(json!({"id": "killer", "key": "k", "headers": {"ends": "linger"}}).to_string() + "\n");
    lines.extend((INNOCENT / 2..INNOCENT).map(innocent));

    let (mut engine, mut api) = site.start();
    let published = api.publish(path, lines);
    assert!(published.confirmed.len() == INNOCENT + 1 && published.whole, "{published:?}");
    let mut runs = Vec::new();
    let mut lives = 1;
    let letter = loop {
        match next_of_the_killer(&api, &engine, runs.len()) {
            Ok(begun) => runs = begun,
            Err(letter) => break letter,
        }
        engine.kill();
        lives += 1;
        assert!(lives <= LIVES_MAX, "it takes the process down for ever; begun at attempts {runs:?}");
        (engine, api) = site.start();
    };
    say(&format!("the killer in a {source}: begun at attempts {runs:?}, {lives} lives, {}", letter["reason"]));
    assert_eq!(runs, (1..=ATTEMPTS_MAX).collect::<Vec<_>>(), "N attempts mean N");
    assert_eq!(letter["attempts_count"], ATTEMPTS_MAX, "{letter}");
    assert!(letter["reason"].is_string() && letter["text"].as_str().is_some_and(|text| !text.is_empty()), "{letter}");

    // From here on all is as it was, and nobody else paid for it.
    assert_eq!(api.publish(path, innocent(INNOCENT)).confirmed.len(), 1);
    let wanted: BTreeSet<String> = (0..=INNOCENT).map(|number| format!("innocent.{number}")).collect();
    let end = Instant::now() + PATIENCE;
    loop {
        let mut handled = BTreeSet::new();
        api.tail("queue=handled", |message| {
            handled.insert(message["payload"]["id"].as_str().unwrap().to_owned());
        });
        let dead: Vec<Value> = api.dead_letters().into_iter().filter(|letter| letter["id"] != "killer").collect();
        assert!(dead.is_empty(), "dead because of another: {dead:?}");
        if handled == wanted {
            break;
        }
        let missing: Vec<_> = wanted.difference(&handled).collect();
        assert!(Instant::now() < end, "not handled: {missing:?}\n{}", engine.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(engine.runs());
    assert_eq!(runs_of_the_killer(&api).len() as u64, ATTEMPTS_MAX);
    engine.stop();
}

#[test]
fn a_task_that_kills_the_host_ends_in_the_dead_letters_and_takes_nobody_with_it() {
    ends_in_the_dead_letters("queue", "/v1/messaging/tasks/work", "witness");
}

#[test]
fn an_event_that_kills_the_host_ends_in_the_dead_letters_and_takes_nobody_with_it() {
    ends_in_the_dead_letters("topic", "/v1/messaging/events/work", "witness-event");
}
