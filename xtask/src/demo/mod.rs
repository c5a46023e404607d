//! The demo: a week of earthquakes through a sandboxed handler, and an account of every one of them. In: `data/`,
//! `configs/quakes.yaml`, `plugins/quake-triage`. Out: a summary whose numbers come from the running engine, and exit
//! code 1 if they do not add up.

mod count;
mod engine;
mod input;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::Command,
};

use self::{
    count::{Counts, FarEnd},
    engine::Engine,
    input::Input,
};
use crate::{Result, plugins, shell::run as shell_run};

/// The engine as it is built here.
pub(crate) const ENGINE: &str = "target/release/helixmq";
const CONFIG: &str = "configs/quakes.yaml";
const FOLDER: &str = "target/demo";
const PLUGIN: &str = "plugins/target/wasm32-wasip2/release/quake_triage.wasm";
const PLUGIN_SERVED: &str = "plugins-enabled/quake-triage.wasm";

/// Builds, runs, counts, explains.
pub(crate) fn run(keep_running: bool) -> Result {
    plugins::examples()?;
    shell_run(".", "cargo build --locked --release --bin helixmq")?;
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    serve_plugin()?;
    let events = folder.join("quakes.ndjson");
    let input = input::write(&events)?;

    println!("\n$ {ENGINE} --config {CONFIG} serve");
    let engine = Engine::start(&folder.join("engine.log"))?;
    println!("ready at http://{}, log in {FOLDER}/engine.log", engine.address());

    let mut progress = Progress::default();
    publish(&engine, &events, input.events)?;
    let counts = count::settled(&engine, input.events, &mut progress)?;
    progress.end();
    let end = count::far_end(&engine)?;
    let adds_up = summary(&input, &counts, &end);
    if keep_running {
        print_next(true);
        println!("\nThe engine runs; Ctrl-C ends it.");
        engine.wait()?;
    } else {
        engine.stop()?;
        print_next(false);
    }
    if adds_up { Ok(()) } else { Err("the numbers do not add up: see the lines marked with !".into()) }
}

/// Runs the demo as [`run`] does, beside an engine that may be in use: on a port and in a data directory of its own.
pub(crate) fn unattended() -> Result {
    let program = env::current_exe()?;
    let mut command = Command::new(program);
    command.arg("demo").env("HELIXMQ_LISTEN", "127.0.0.1:0").env("HELIXMQ_DATA", "target/demo/data");
    crate::shell::finish(command)
}

/// Copies the plugin to where it is served from, whole or not at all.
fn serve_plugin() -> Result {
    let part = format!("{PLUGIN_SERVED}.part");
    let copied = fs::copy(PLUGIN, &part).and_then(|_| fs::rename(&part, PLUGIN_SERVED));
    copied.map_err(|error| format!("{PLUGIN} cannot be copied to {PLUGIN_SERVED}: {error}"))?;
    println!("\n$ cp {PLUGIN} {PLUGIN_SERVED}");
    Ok(())
}

/// Publishes the events, and makes sure that each was confirmed.
fn publish(engine: &Engine, events: &Path, count: u64) -> Result {
    let file = events.display().to_string();
    println!("\n$ {ENGINE} --config {CONFIG} publish --topic quakes --file {file}");
    let replies = engine.ask(&["publish", "--topic", "quakes", "--file", &file])?;
    let confirmed = replies.iter().filter(|reply| reply.get("id").is_some()).count() as u64;
    if confirmed != count {
        return Err(engine.failure(&format!("{confirmed} of {count} events were confirmed")));
    }
    println!("{} confirmed", grouped(confirmed));
    Ok(())
}

/// Says what came of it, beside what the data says is due. Gives whether both are the same and nothing is missing.
fn summary(input: &Input, counts: &Counts, end: &FarEnd) -> bool {
    let dead: u64 = end.causes.values().sum();
    let lost = i128::from(input.events) - i128::from(counts.handled + dead + counts.pending);
    let mut table = Table { adds_up: true };
    println!("\n{:<26}{:>10}{:>10}", "", "engine", "due");
    table.row("handled", counts.handled, input.earthquakes);
    table.row("  alerts sent", end.alerts, input.strong);
    table.row("dead letters", dead, input.others.values().sum());
    for cause in end.causes.keys().chain(input.others.keys().filter(|cause| !end.causes.contains_key(*cause))) {
        let count = |causes: &BTreeMap<String, u64>| causes.get(cause).copied().unwrap_or_default();
        table.row(&format!("  {cause}"), count(&end.causes), count(&input.others));
    }
    table.row("pending", counts.pending, 0);
    table.row("lost", lost, 0);
    table.row("together", i128::from(input.events) - lost, i128::from(input.events));
    println!("engine: as it counted, alerts and dead letters message by message; due: what the data itself says");
    table.adds_up
}

struct Table {
    adds_up: bool,
}

impl Table {
    fn row<N: Into<i128> + Copy>(&mut self, name: &str, engine: N, due: N) {
        let (engine, due): (i128, i128) = (engine.into(), due.into());
        let mark = if engine == due { "" } else { " !" };
        println!("{name:<26}{:>10}{:>10}{mark}", grouped(engine), grouped(due));
        self.adds_up &= engine == due;
    }
}

fn print_next(running: bool) {
    let helixmq = format!("{ENGINE} --config {CONFIG}");
    println!("\nWhat to try next");
    if !running {
        println!(
            "  run it again, and keep the engine running for the commands below:\n    cargo xtask demo --keep-running"
        );
    }
    println!(
        "  look at the dead letters, and at the alerts:
    {helixmq} dlq list --limit 5
    {helixmq} tail --queue helixagent.tasks.notifications --limit 5
  write a handler of your own, while the engine runs:
    {ENGINE} plugin new hello --lang rust
    (cd hello && cargo build --release --target wasm32-wasip2)
    cp hello/target/wasm32-wasip2/release/hello.wasm plugins-enabled/
    printf '[[routes]]\\nname = \"hello\"\\nqueue = \"hello\"\\ndestinations = [\"queue:results\"]\\n' > plugins-enabled/hello.toml
    echo '{{\"type\":\"greeting\",\"payload\":{{\"to\":\"you\"}}}}' | {helixmq} publish --queue hello
    {helixmq} tail --queue results"
    );
}

/// One line that is written over, on a terminal; nothing elsewhere.
#[derive(Debug, Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, what: &str, done: u64, of: u64) {
        if io::stderr().is_terminal() {
            self.shown = true;
            eprint!("\r{what} {} of {}", grouped(done), grouped(of));
            // Progress that cannot be shown is not worth stopping for.
            io::stderr().flush().ok();
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprintln!();
        }
    }
}

/// A number with its thousands apart.
fn grouped(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_owned() } else { String::new() };
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_threes() {
        for (number, text) in [(0, "0"), (85, "85"), (1707, "1 707"), (-1_234_567, "-1 234 567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
