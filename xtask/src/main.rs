//! `cargo xtask TASK`: what is done with this repository, each step printed before it runs. In: a task's name. Out: exit
//! code 0, or 1 with one sentence that says what to do, or 2 for a call that makes no sense.
//!
//! [`plugins`] builds components, [`check`] tests and lints, [`crash`] kills the engine, [`servers`] has real ones beside
//! it, [`demo`] shows it at work.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "telling people what happens is what this program does")]

mod check;
mod crash;
mod demo;
mod needs;
mod plugins;
mod servers;
mod shell;

use std::{env, error::Error, path::Path, process::ExitCode};

/// What every step returns: nothing, or a sentence for people.
type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
cargo xtask TASK

  demo [--keep-running]       builds the engine and its plugins, runs a week of earthquakes through them, counts
  test                        builds all plugins, starts the real servers, runs every test
  rabbitmq-versions           runs the tests of RabbitMQ on other versions of it, as root: trixie's and sid's
  crash [--kills N] [--seed S]
                              kills the engine under traffic, cuts the power, and counts what is lost
  plugins [--examples-only]   builds plugins/ and, unless told otherwise, the plugins that tests use
  ci                          formatting, lints, documentation, test, plugin template, demo, dependencies";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        ["demo"] => at_root(|| demo::run(false)),
        ["demo", "--keep-running"] => at_root(|| demo::run(true)),
        ["test"] => at_root(check::test),
        ["crash", rest @ ..] if let Some(options) = crash::Options::parse(rest) => at_root(|| crash::run(&options)),
        ["plugins"] => at_root(plugins::all),
        ["plugins", "--examples-only"] => at_root(plugins::examples),
        ["rabbitmq-versions"] => at_root(servers::rabbitmq_versions),
        ["ci"] => at_root(check::ci),
        _ => {
            eprintln!("error: there is no task `{}`\n\n{HELP}", arguments.join(" "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a task where its paths mean what they say, once everything is there that all tasks need.
fn at_root(task: impl FnOnce() -> Result) -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask/ has no folder around it")?;
    env::set_current_dir(root).map_err(|error| format!("{} cannot be entered: {error}", root.display()))?;
    needs::check()?;
    task()
}
