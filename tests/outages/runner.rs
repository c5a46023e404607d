//! Runs several scenarios at once, whatever the number of cores: what they do most of the time is wait. In: their names, and the
//! words of `cargo test -- …`. Out: an exit code, and what failed.
//!
//! With `OUTAGES=long` in the environment outages last a minute, too, and what comes and goes does so for two: that takes a
//! quarter of an hour. Without, all scenarios run with the shorter ones.

use std::{collections::BTreeMap, env, process::ExitCode, sync::Arc};

use futures_util::future::LocalBoxFuture;
use tokio::{
    runtime::Builder,
    sync::Semaphore,
    task::{JoinSet, LocalSet},
    time::Instant,
};

use crate::yard::Yard;

/// A name, as it stands in tables, and what proves it.
pub(crate) type Scenario = (&'static str, fn(Arc<Yard>) -> LocalBoxFuture<'static, ()>);

/// What was asked for: the part of libtest's options that chooses.
#[derive(Debug, Default)]
struct Asked {
    names: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
}

impl Asked {
    fn read() -> Self {
        let (mut asked, mut words) = (Self::default(), env::args().skip(1));
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => asked.list = true,
                "--exact" => asked.exact = true,
                "--skip" => asked.skipped.extend(words.next()),
                // Options with a value that change nothing here.
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(words.next()),
                option if option.starts_with('-') => {}
                _ => asked.names.push(word),
            }
        }
        asked
    }

    fn wants(&self, name: &str) -> bool {
        let is = |word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        (self.names.is_empty() || self.names.iter().any(is)) && !self.skipped.iter().any(is)
    }
}

/// At a time: each has an engine of its own, which has to keep up.
const AT_ONCE: usize = 6;

/// Whether outages are to last as long as they may.
pub(crate) fn is_long() -> bool {
    env::var("OUTAGES").is_ok_and(|word| word == "long")
}

/// Runs those that were asked for.
pub(crate) fn run(all: &[Scenario]) -> ExitCode {
    let asked = Asked::read();
    let wanted: Vec<_> = all.iter().filter(|(name, _)| asked.wants(name)).collect();
    if asked.list {
        wanted.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let lasting = if is_long() { "as long as they may" } else { "up to 10 s; OUTAGES=long has those of a minute, too" };
    println!("\nrunning {} tests, {AT_ONCE} at a time; outages last {lasting}", wanted.len());
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let failed = LocalSet::new().block_on(&runtime, async {
        let (yard, mut running, mut names) = (Arc::new(Yard::default()), JoinSet::new(), BTreeMap::new());
        let room = Arc::new(Semaphore::new(AT_ONCE));
        for (name, scenario) in wanted {
            let (yard, room, scenario) = (Arc::clone(&yard), Arc::clone(&room), *scenario);
            let task = running.spawn_local(async move {
                let _turn = room.acquire_owned().await.expect("never closed");
                scenario(yard).await;
            });
            names.insert(task.id(), *name);
        }
        let (begin, mut failed) = (Instant::now(), 0);
        while let Some(ended) = running.join_next_with_id().await {
            let (id, how) = match &ended {
                Ok((id, ())) => (*id, "ok"),
                Err(error) => (error.id(), "FAILED"),
            };
            failed += usize::from(ended.is_err());
            println!("test {} ... {how} ({:.0} s)", names[&id], begin.elapsed().as_secs_f64());
        }
        // Servers of our own end here, which blocks.
        drop(yard);
        failed
    });
    println!("\ntest result: {}. {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
