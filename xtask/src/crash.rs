//! The crash suite in its long form: the engine killed again and again under traffic, the power cut at many moments of a
//! store's life. In: how often, and the seed, or one is made. Out: a table on standard output, and failure for anything
//! that was confirmed and is gone. Its short form is a part of `cargo test`: see `tests/crash/main.rs`.

use crate::{Result, plugins, shell};

/// Kills, where no number is given.
const KILLS: u64 = 120;
/// Moments at which the power fails for each kill; each is looked at in three states of the disk.
const POINTS_PER_KILL: u64 = 2;

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    kills: u64,
    seed: Option<u64>,
}

impl Options {
    /// `None`: that makes no sense.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { kills: KILLS, seed: None };
        let mut rest = arguments;
        while let [name, value, more @ ..] = rest {
            let value = value.parse().ok()?;
            match *name {
                "--kills" => options.kills = value,
                "--seed" => options.seed = Some(value),
                _ => return None,
            }
            rest = more;
        }
        rest.is_empty().then_some(options)
    }
}

pub(crate) fn run(options: &Options) -> Result {
    plugins::all()?;
    // One after the other, so that the tables stay in one piece and nothing else takes the disk's time.
    let mut command = shell::command(".", "cargo test --locked --release --test crash -- --nocapture --test-threads=1");
    command.env("HELIXMQ_CRASH_KILLS", options.kills.to_string());
    command.env("HELIXMQ_CRASH_POINTS", (options.kills * POINTS_PER_KILL).to_string());
    if let Some(seed) = options.seed {
        command.env("HELIXMQ_CRASH_SEED", seed.to_string());
    }
    shell::finish(command)
}

#[test]
fn takes_a_number_of_kills_and_a_seed() {
    let kills = |kills, seed| Some(Options { kills, seed });
    assert_eq!(Options::parse(&[]), kills(KILLS, None));
    assert_eq!(Options::parse(&["--seed", "7", "--kills", "300"]), kills(300, Some(7)));
    for wrong in [&["--kills"][..], &["--kills", "many"], &["--often", "3"], &["7"]] {
        assert_eq!(Options::parse(wrong), None, "{wrong:?}");
    }
}
