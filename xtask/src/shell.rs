//! Runs programs: says which before, and what to make of it after.

use std::{
    fmt::Write as _,
    process::{Command, Stdio},
};

use crate::Result;

/// A command whose words are separated by spaces, in a folder relative to the root.
pub(crate) fn command(folder: &str, words: &str) -> Command {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(folder);
    // Plugins and programs are looked for in the folders that they belong to.
    command.env_remove("CARGO_TARGET_DIR");
    command
}

/// Prints the command and runs it.
pub(crate) fn run(folder: &str, words: &str) -> Result {
    finish(command(folder, words))
}

/// As [`run`], for a command with more to it than words.
pub(crate) fn finish(mut command: Command) -> Result {
    let shown = shown(&command);
    println!("\n$ {shown}");
    let status = command.status().map_err(|error| format!("`{shown}` cannot be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{shown}` failed ({status})").into()) }
}

/// Whether the command ends well; what it prints is not shown.
pub(crate) fn succeeds(words: &str) -> bool {
    let quiet = command(".", words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

/// What the command prints to standard output.
pub(crate) fn output(words: &str) -> Result<String> {
    let output = command(".", words).output().map_err(|error| format!("`{words}` cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{words}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The command as it would be typed at the root.
fn shown(command: &Command) -> String {
    let mut text = String::new();
    if let Some(folder) = command.get_current_dir().filter(|folder| *folder != ".") {
        // Writing to a String cannot fail.
        write!(text, "cd {} && ", folder.display()).ok();
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            write!(text, "{}={:?} ", name.display(), value).ok();
        }
    }
    text.push_str(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        write!(text, " {}", argument.display()).ok();
    }
    text
}
