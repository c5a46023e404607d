//! The command line: `helixmq VERB`. In: arguments. Out: results on standard output, everything else on standard error,
//! and an exit code. What a verb does is done elsewhere; here it is asked for and shown.
//!
//! Start at [`run`] and [`Command`]; each verb has a file of its name.

mod arguments;
pub mod bench;
mod client;
mod config;
mod context;
mod dlq;
mod doctor;
mod failure;
mod output;
mod plugin;
mod publish;
mod route;
mod serve;
mod shown;
mod store;
mod tail;
#[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
mod topology;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

pub use crate::handler::component::COMPILE_VERB;
pub use context::Context;
pub use failure::{Exit, Failure};
pub use output::Output;

/// What `--help` says last.
const AFTER_HELP: &str = "\
Results go to standard output, logs and progress to standard error. The token for a running engine comes from \
HELIXMQ_TOKEN, else from the configuration, else from the file `token` in the engine's data directory.

Exit codes:
    0  done
    1  failed while doing it
    2  called wrongly
    3  configuration or plugin refused
    4  engine or broker not reachable
    5  not found
    6  not allowed
  130  interrupted, after a clean drain";

/// A message processing engine whose handlers are sandboxed WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "helixmq", version, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: configs/messaging.yaml, else a built-in one for development]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON document, or a JSON document a line for streams
    #[arg(long, global = true)]
    json: bool,
    /// The running engine to speak to [default: that of the configuration]
    #[arg(long, global = true, value_name = "URL")]
    api: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the engine
    Serve(serve::Args),
    /// Publish a message for each line of a file
    Publish(publish::Args),
    /// Show messages without consuming them
    Tail(tail::Args),
    /// Check the configuration, or show what is in force
    #[command(subcommand)]
    Config(config::Command),
    /// List routes, or explain which one a message would take
    #[command(subcommand)]
    Route(route::Command),
    /// List, check and begin plugins
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// List and show dead letters
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Verify, measure and copy what lies on disk
    #[command(subcommand)]
    Store(store::Command),
    /// Compare what RabbitMQ, Kafka and Redis have with the configuration, or make what is missing
    #[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
    #[command(subcommand)]
    Topology(topology::Command),
    /// Look for what would keep the engine from doing its work
    Doctor,
    /// Measure how fast it is here
    Bench(bench::Args),
    /// Compiles a plugin under limits: the engine calls it for itself.
    #[command(name = COMPILE_VERB, hide = true)]
    CompileComponent { input: PathBuf, output: PathBuf, cpu_seconds: u64, memory_bytes: u64 },
}

/// The command line as clap knows it, for documents that must not drift.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the arguments ask for; the first is the program's own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error, arguments.iter().any(|argument| argument == "--json")),
    };
    let output = Output::new(cli.json);
    let context = Context { config: cli.config, api: cli.api, output, plugins: None };
    let exit = done(cli.command, context).unwrap_or_else(|failure| {
        output.failure(&failure);
        failure.exit()
    });
    ExitCode::from(exit.code())
}

fn done(command: Command, context: Context) -> Result<Exit, Failure> {
    match command {
        Command::Serve(args) => serve::run(&args, context),
        Command::Publish(args) => publish::run(&args, &context),
        Command::Tail(args) => tail::run(&args, &context),
        Command::Route(command) => route::run(&command, &context),
        Command::Plugin(command) => plugin::run(&command, &context),
        Command::Dlq(command) => dlq::run(&command, &context),
        Command::Store(command) => store::run(&command, &context),
        #[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
        Command::Topology(command) => topology::run(&command, &context),
        Command::Doctor => doctor::run(&context),
        Command::Config(command) => config::run(&command, &context),
        Command::Bench(args) => {
            let measured = bench::run(&args, &context).map_err(|error| {
                // What says by itself what to do is left as it is.
                error.downcast::<Failure>().unwrap_or_else(|error| {
                    Failure::new(
                        Exit::Failed,
                        "NOT_MEASURED",
                        format!("nothing was measured: {error:#}"),
                        "correct what it names",
                    )
                })
            })?;
            if context.output.json() {
                context.output.value(&measured)?
            } else {
                context.output.line(&measured)?
            }
            Ok(Exit::Done)
        }
        Command::CompileComponent { input, output, cpu_seconds, memory_bytes } => {
            crate::handler::component::run_compile_child(&input, &output, cpu_seconds, memory_bytes)
                .map(|()| Exit::Done)
                .map_err(|error| {
                    // The engine quotes it, so it stays as it is.
                    context.output.note(format_args!("{error:#}"));
                    Failure::silent(Exit::Failed)
                })
        }
    }
}

/// `--help` and `--version`, or arguments that make no sense.
fn misunderstood(error: &clap::Error, json: bool) -> ExitCode {
    // Nobody may be listening.
    error.print().ok();
    if !error.use_stderr() {
        return ExitCode::from(Exit::Done.code());
    }
    if json {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let failure = Failure::new(Exit::Usage, "USAGE", message, "see `helixmq --help`");
        Output::new(true).value(&failure.to_json()).ok();
    }
    ExitCode::from(Exit::Usage.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        command().debug_assert();
    }

    #[test]
    fn help_names_every_exit_code() {
        let exits = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Refused,
            Exit::Unreachable,
            Exit::NotFound,
            Exit::NotAllowed,
            Exit::Interrupted,
        ];
        for exit in exits {
            assert!(AFTER_HELP.contains(&format!("\n{:>5}  ", exit.code())), "{exit:?} is missing");
        }
    }
}
