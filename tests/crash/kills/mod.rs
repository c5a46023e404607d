//! The engine killed with SIGKILL at random moments, under traffic of every kind, on one store that goes on.
//!
//! This process publishes, keeps the [ledger](crate::ledger), kills and starts again. In: how often, and the seed. Out: a
//! table, and a failure for anything that is not so: *what was confirmed was handled, is a dead letter, or still waits*;
//! no handler and no dead letter has an attempt above the route's number; ordered routes kept their order; a queue has
//! nothing twice; a topic keeps the latest it was given, without a gap.
//!
//! [`phases`] says what is sent, [`evidence`] what is left, [`verdict`] what to make of it.

mod evidence;
mod phases;
mod verdict;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use phases::Phase;
use verdict::Verdict;

use crate::{
    api::Api,
    ledger::Ledger,
    random::{Random, say, seed},
    site::{Engine, PATIENCE, Site},
};

/// How often the engine is killed, where a number is wanted that is not the short form's.
const KILLS: &str = "HELIXMQ_CRASH_KILLS";
const KILLS_SHORT: u64 = 12;
/// Longest time between the first confirmed message of a life and its end.
const LIFE_MAX: Duration = Duration::from_millis(600);
pub(crate) const ON_DISK: &str = "  storage: disk\n  disk: {directory: store}\n";

/// One store, what was done to it, and what was confirmed meanwhile.
struct Run {
    site: Site,
    phases: Vec<Phase>,
    kills: Vec<u64>,
    ledger: Ledger,
    random: Random,
    /// How long the last start took that was waited for.
    start: Duration,
    versions: AtomicU64,
}

impl Run {
    fn new(storage: &str, seed: u64) -> Self {
        let site = Site::new(&phases::configuration(storage));
        for (fixture, name) in [("witness", "witness"), ("witness", "reloaded"), ("witness-event", "witness-event")] {
            site.plug(fixture, name, 0);
        }
        let phases = phases::all();
        Self {
            ledger: Ledger::new(site.path("ledger")),
            kills: vec![0; phases.len()],
            phases,
            site,
            random: Random::new(seed),
            start: Duration::from_millis(200),
            versions: AtomicU64::new(0),
        }
    }

    /// One life of an engine, and its end.
    fn live_and_die(&mut self, phase: usize) {
        self.kills[phase] += 1;
        let mut engine = self.site.spawn();
        let first = self.kills[phase] == 1;
        if self.random.once_in(8) && !first {
            // While it opens its store, loads its plugins or takes up what was left.
            let moment = self.random.between(0, self.start.as_micros() as u64);
            thread::sleep(Duration::from_micros(moment));
            return engine.kill();
        }
        let began = Instant::now();
        let api = engine.ready();
        self.start = began.elapsed();
        let random = self.random.fork();
        self.traffic(&self.phases[phase], engine, &api, random, first);
    }

    /// Publishes until the engine is killed, which is soon; where it is the first time, not before something was confirmed.
    fn traffic(&self, phase: &Phase, engine: Engine, api: &Api, mut random: Random, first: bool) {
        let over = AtomicBool::new(false);
        let confirmed = AtomicU64::new(0);
        let wait_for_the_first = !random.once_in(4) || first;
        let moment = Duration::from_micros(random.between(0, LIFE_MAX.as_micros() as u64));
        thread::scope(|scope| {
            for publisher in 0..phase.attempted.len() {
                let (random, over, confirmed) = (random.fork(), &over, &confirmed);
                scope.spawn(move || self.publish(phase, publisher, api, random, over, confirmed));
            }
            if phase.reloads {
                let (mut random, over) = (random.fork(), &over);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        self.site.plug("witness", "reloaded", 1 + self.versions.fetch_add(1, Ordering::SeqCst));
                        thread::sleep(Duration::from_millis(random.between(10, 200)));
                    }
                });
            }
            let end = Instant::now() + PATIENCE;
            while wait_for_the_first && confirmed.load(Ordering::SeqCst) == 0 {
                assert!(Instant::now() < end, "{}: nothing is confirmed\n{}", phase.name, engine.log());
                thread::sleep(Duration::from_millis(1));
            }
            // The moment of death is what chance decides here.
            thread::sleep(moment);
            engine.kill();
            over.store(true, Ordering::SeqCst);
        });
    }

    fn publish(
        &self,
        phase: &Phase,
        publisher: usize,
        api: &Api,
        mut random: Random,
        over: &AtomicBool,
        confirmed: &AtomicU64,
    ) {
        let mut left = phase.round_max / phase.attempted.len() as u64;
        while left > 0 && !over.load(Ordering::SeqCst) {
            let count = random.between(1, phase.batch_max + 1).min(left);
            left -= count;
            let published = api.publish(&phase.path(), phase.lines(publisher, count, &mut random));
            self.ledger.record(&published.confirmed);
            confirmed.fetch_add(published.confirmed.len() as u64, Ordering::SeqCst);
            // One that stops says so; nothing else may be refused.
            let refused = published.refused.first();
            assert!(refused.is_none(), "{}: {}", phase.name, refused.unwrap());
            if !published.whole {
                return;
            }
        }
    }

    /// Starts once more, lets the engine finish, and counts.
    fn judge(&self) -> Verdict {
        let (engine, api) = self.site.start();
        evidence::drain(&api, &self.phases);
        let found = evidence::collect(&api, &self.phases);
        engine.stop();
        verdict::judge(&self.phases, &self.kills, &self.ledger.read(), &found)
    }
}

/// The short form; `cargo xtask crash` sets the number of kills for the long one.
#[test]
fn nothing_that_was_confirmed_is_lost_however_often_the_engine_is_killed() {
    let kills = std::env::var(KILLS).map_or(KILLS_SHORT, |text| text.parse().expect("a number of kills"));
    let mut run = Run::new(ON_DISK, seed("kills"));
    let (began, mut largest) = (Instant::now(), 0);
    for kill in 0..kills {
        run.live_and_die(kill as usize % run.phases.len());
        largest = largest.max(run.site.store_bytes());
        if (kill + 1) % 10 == 0 {
            say(&format!(
                "{} kills, {:.0} s, the store has {largest} bytes at most",
                kill + 1,
                began.elapsed().as_secs_f64()
            ));
        }
    }
    let verdict = run.judge();
    let (took, left) = (began.elapsed().as_secs_f64(), run.site.store_bytes());
    say(&format!("\n{verdict}in {took:.0} s; the store had {largest} bytes at most, and has {left}"));
    assert!(verdict.wrong.is_empty(), "{verdict}");
    assert_eq!(verdict.rows.iter().map(|row| row.kills).sum::<u64>(), kills);
    let idle = verdict.rows.iter().find(|row| row.kills > 0 && row.published == 0);
    assert!(idle.is_none(), "{idle:?} did nothing");
}

/// Nobody is killed here: what is handed over ahead on disk must not overtake what comes back.
#[test]
fn keys_keep_their_order_while_some_are_tried_again() {
    let seed = seed("order");
    let mut run = Run::new(ON_DISK, seed);
    let ordered = run.phases.iter().position(|phase| phase.name == "ordered").unwrap();
    run.phases[ordered].round_max = 1500;
    let (engine, api) = run.site.start();
    let (over, confirmed) = (AtomicBool::new(false), AtomicU64::new(0));
    let phase = &run.phases[ordered];
    thread::scope(|scope| {
        for publisher in 0..phase.attempted.len() {
            let (run, api, random, over, confirmed) =
                (&run, &api, Random::new(seed + publisher as u64), &over, &confirmed);
            scope.spawn(move || run.publish(phase, publisher, api, random, over, confirmed));
        }
    });
    engine.stop();
    let verdict = run.judge();
    assert!(verdict.wrong.is_empty(), "{verdict}");
    let row = &verdict.rows[ordered];
    assert!(row.published == 1500 && row.handled > 1000 && row.dead_lettered > 0 && row.redelivered > 0, "{verdict}");
}

/// So that it is known that losses would be seen.
#[test]
fn a_broker_in_memory_loses_messages_and_that_is_noticed() {
    let mut run = Run::new("", seed("kills in memory"));
    while run.ledger.read().is_empty() {
        run.live_and_die(0);
    }
    let verdict = run.judge();
    let published = verdict.rows.iter().map(|row| row.published).sum::<usize>();
    assert!(published > 0 && verdict.lost() == published, "{verdict}");
}
