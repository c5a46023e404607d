//! The disk at many moments of a store's life, opened and compared.

use std::{collections::BTreeMap, ffi::OsStr, fs};

use helixmq::store::{Batch, Need, Settings, Store, check};

use super::{
    disk::{self, Disk, Unsynced},
    model::{Content, Model, Places},
    shim::Shim,
    trace::{Op, Trace},
    work::{SEED, STEPS, STORE, SYNC_FAILS, SYNCHRONOUS, Said, said},
};
use crate::random::{Random, say, seed};

const ROLE: &str = "power::work::works_on_a_store";
/// At how many moments the power fails, where a number is wanted that is not the short form's. Each gives three images.
const POINTS: &str = "HELIXMQ_CRASH_POINTS";
const POINTS_SHORT: u64 = 20;
/// Changes of files after a failed sync until the store has been opened anew, about.
const WHILE_OPENED: u64 = 400;

/// A life under the shim, and all that is known of it.
struct Life {
    trace: Trace,
    said: Vec<Said>,
    /// What the store holds after each number of steps.
    models: Vec<Model>,
}

impl Life {
    fn lived(seed: u64, steps: u64, with: &[(&str, &str)]) -> Self {
        let shim = Shim::new();
        let (work_seed, steps) = (seed.to_string(), steps.to_string());
        let mut all: Vec<(&str, &OsStr)> = vec![(SEED, work_seed.as_ref()), (STEPS, steps.as_ref())];
        all.extend(with.iter().map(|(name, value)| (*name, OsStr::new(*value))));
        shim.play(ROLE, &all);
        let trace = Trace::read(&shim.trace());
        disk::is_whole(&trace, &shim.directory());
        let said = said(&trace);
        let last = said.last().copied().unwrap_or_default();
        assert!(last.made && last.confirmed > 0, "{last:?}");
        Self { models: models(seed, last.submitted), trace, said }
    }

    /// Lets the power fail at random moments, right after confirmations, and soon after a sync failed; gives what is wrong.
    fn fail(&self, points: u64, random: &mut Random) -> Vec<String> {
        let confirmations: Vec<usize> =
            (1..self.said.len()).filter(|at| self.said[*at].confirmed > self.said[at - 1].confirmed).collect();
        let all = self.said.len() as u64;
        let failed = self.trace.ops.iter().position(|op| matches!(op, Op::SyncFailed { .. }));
        let mut moments: Vec<usize> = (0..points)
            .map(|point| match (point % 3, failed) {
                (0, _) => confirmations[random.between(0, confirmations.len() as u64) as usize],
                // While the store is opened anew: what is in doubt must not spread.
                (1, Some(failed)) => failed + random.between(0, WHILE_OPENED.min(all - failed as u64)) as usize,
                _ => random.between(0, all) as usize,
            })
            .collect();
        moments.sort_unstable();
        let (mut disk, mut next, mut wrong) = (Disk::default(), 0, Vec::new());
        for moment in moments {
            while next <= moment {
                disk.apply(&self.trace.ops[next], &self.trace.bytes);
                next += 1;
            }
            for unsynced in [Unsynced::Dropped, Unsynced::Mixed { grain: 4096 }, Unsynced::Mixed { grain: 512 }] {
                let mut image = disk.image(unsynced, &self.trace.bytes, random);
                image.retain(|name, _| name.starts_with(STORE));
                if let Some(what) = self.look(&image, self.said[moment]) {
                    wrong.push(format!("at {moment} of {}, {unsynced:?}: {what}", self.said.len()));
                }
            }
        }
        wrong
    }

    /// The log was moved into the database while there was work, and the database became shorter again.
    fn had_a_bit_of_everything(&self) {
        let (mut database, mut moved, mut longest, mut shortest) = (None, 0, 0, u64::MAX);
        for op in &self.trace.ops {
            match op {
                Op::Opened { file, name } | Op::Made { file, name } if name.ends_with(".db") => database = Some(*file),
                Op::Written { file, offset, .. } if Some(*file) == database => {
                    moved += 1;
                    longest = longest.max(*offset);
                }
                Op::Length { file, length } if Some(*file) == database => shortest = shortest.min(*length),
                _ => {}
            }
        }
        let (bytes, steps) = (self.trace.bytes.len() / 1_000_000, self.models.len() - 1);
        say(&format!(
            "power loss: {steps} steps, {bytes} MB written, {moved} pages moved, {longest} bytes long, then {shortest}"
        ));
        assert!(moved > 1000 && shortest + (1 << 20) < longest, "the work does not do what it is for");
    }

    /// Opens what was found after the power failed.
    fn look(&self, image: &BTreeMap<String, Vec<u8>>, said: Said) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        disk::write(image, directory.path());
        fs::create_dir_all(directory.path().join(STORE)).unwrap();
        let wrong = self.compare(&directory.path().join(STORE), said);
        if wrong.is_some() && std::env::var_os("HELIXMQ_CRASH_KEEP").is_some() {
            say(&format!("kept: {}", directory.keep().display()));
        }
        wrong
    }

    fn compare(&self, directory: &std::path::Path, said: Said) -> Option<String> {
        let mut settings = Settings::new(directory);
        settings.free_min = 0;
        let store = match Store::open(settings) {
            Ok(store) => store,
            Err(error) => return Some(format!("it does not open: {error}")),
        };
        let found = match Content::read(&store) {
            Ok(Some(found)) => found,
            Ok(None) if !said.made => return None,
            Ok(None) => return Some("the places are gone".to_owned()),
            Err(error) => return Some(format!("it cannot be read: {error}")),
        };
        if found.steps < said.confirmed {
            return Some(format!("lost what was confirmed: {} steps of {}", found.steps, said.confirmed));
        }
        if found.steps > said.submitted {
            return Some(format!("{} steps were made of {}", found.steps, said.submitted));
        }
        let model = &self.models[found.steps as usize];
        if let Some(difference) = found.difference(&model.content) {
            return Some(difference);
        }
        if let Some(wrong) = goes_on(&store, model.clone()) {
            return Some(wrong);
        }
        match check(directory) {
            Ok(checked) if checked.findings.is_empty() => None,
            checked => Some(format!("the check of the store says {checked:?}")),
        }
    }
}

/// The next step can be made, safely.
fn goes_on(store: &Store, mut model: Model) -> Option<String> {
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    let then = Box::new(move |result| answer.send(result).unwrap());
    store.submit(Batch { changes: model.step(), need: Need::MustHappen, permit: None, then: Some(then) });
    if let Err(error) = answered.recv().unwrap() {
        return Some(format!("the next step fails: {error}"));
    }
    let found = Content::read(store).map(Option::unwrap_or_default);
    found.map_or_else(|error| Some(error.to_string()), |found| found.difference(&model.content))
}

/// After 0, 1, … steps. Places have the same numbers in every store that is made anew.
fn models(seed: u64, steps: u64) -> Vec<Model> {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Settings { free_min: 0, ..Settings::new(directory.path()) }).unwrap();
    let mut models = vec![Model::new(seed, Places::make(&store).unwrap())];
    for _ in 0..steps {
        let mut next = models[models.len() - 1].clone();
        next.step();
        models.push(next);
    }
    models
}

fn points() -> u64 {
    std::env::var(POINTS).map_or(POINTS_SHORT, |text| text.parse().expect("a number of moments"))
}

#[track_caller]
fn nothing(wrong: &[String], images: u64) {
    say(&format!("power loss: {images} images, {} bad", wrong.len()));
    assert!(wrong.is_empty(), "{} of {images} images:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn nothing_that_was_confirmed_is_lost_with_the_power() {
    let seed = seed("power loss");
    let life = Life::lived(seed, 100, &[]);
    life.had_a_bit_of_everything();
    let points = points();
    nothing(&life.fail(points, &mut Random::new(seed)), points * 3);
}

/// So that it is known that losses would be seen.
#[test]
fn a_store_that_does_not_wait_for_the_disk_loses_messages_and_that_is_noticed() {
    let seed = seed("power loss without waiting for the disk");
    let life = Life::lived(seed, 40, &[(SYNCHRONOUS, "normal")]);
    let wrong = life.fail(POINTS_SHORT, &mut Random::new(seed));
    say(&format!("power loss without waiting for the disk: {} images, {} bad", POINTS_SHORT * 3, wrong.len()));
    assert!(wrong.iter().any(|wrong| wrong.contains("lost what was confirmed")), "{wrong:?}");
}

#[test]
fn nothing_is_confirmed_after_a_sync_failed_until_the_store_is_opened_anew() {
    let seed = seed("a sync that fails");
    let mut random = Random::new(seed);
    for _ in 0..2 {
        let at = random.between(1, 25).to_string();
        let life = Life::lived(random.next() >> 32, 30, &[(SYNC_FAILS, &at)]);
        let failed = life.trace.ops.iter().filter(|op| matches!(op, Op::SyncFailed { .. })).count();
        assert_eq!(failed, 1, "one sync fails");
        let points = points() / 2;
        nothing(&life.fail(points, &mut random), points * 3);
    }
}

/// The trace of the whole life, every change kept, is what the process left behind; so a write that the shim does not see
/// fails here, and so does any of the others.
#[test]
fn the_shim_sees_every_change() {
    let shim = Shim::new();
    shim.play(ROLE, &[(SEED, OsStr::new("1")), (STEPS, OsStr::new("9"))]);
    let trace = Trace::read(&shim.trace());
    assert!(trace.ops.iter().any(|op| matches!(op, Op::DirectorySynced { .. })), "names are made safe");
    fs::write(shim.directory().join("marks"), "something else").unwrap();
    let whole = std::panic::catch_unwind(|| disk::is_whole(&trace, &shim.directory()));
    assert!(whole.is_err(), "a change that is not in the trace is noticed");
}
