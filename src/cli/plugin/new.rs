//! `plugin new`: a plugin to begin with, and the contract beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde_json::json;

use crate::cli::{Context, Exit, Failure};

/// Stands for the plugin's name.
const PLACEHOLDER: &str = "{{name}}";

macro_rules! files {
    ($directory:literal: $($path:literal,)+) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $directory, "/", $path)))),+]
    };
}

/// Files with their place in the new plugin.
type Files = &'static [(&'static str, &'static str)];

const RUST: Files = files! { "plugins/template/rust":
    ".gitignore",
    "Cargo.toml",
    "README.md",
    "rust-toolchain.toml",
    "src/lib.rs",
};

const WIT: Files = files! { "wit":
    "README.md",
    "deps/wasi-config/store.wit",
    "deps/wasi-config/world.wit",
    "deps/wasi-logging/package.wit",
    "handlers.wit",
    "imports.wit",
    "types.wit",
    "worlds.wit",
};

/// What `plugin new` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Name of the plugin and of the directory that is made: letters, digits, `-` and `_`
    name: String,
    /// What it is written in
    #[arg(long = "lang", value_enum, default_value = "rust")]
    language: Language,
}

/// What a plugin can be written in, of those that there is a template for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let (name, template) = (
        &args.name,
        match args.language {
            Language::Rust => RUST,
        },
    );
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.len() > 64 || !name.chars().all(allowed) {
        let hint = "begin with a letter and use letters, digits, '-' and '_', at most 64";
        return Err(Failure::new(Exit::Usage, "BAD_NAME", format!("{name:?} is not a name for a plugin"), hint));
    }
    let directory = PathBuf::from(name);
    write(&directory, name, template).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(
            Exit::Failed,
            "EXISTS",
            format!("{name} is there already"),
            "choose another name, or move it away",
        ),
        _ => Failure::new(
            Exit::Failed,
            "NOT_WRITTEN",
            format!("{name} cannot be written: {error}"),
            "go to a directory that you may write",
        ),
    })?;
    let steps = steps(name);
    if context.output.json() {
        context.output.value(&json!({ "directory": directory, "next": steps }))?;
    } else {
        context.output.line(format_args!("{name}/ is written. Next:"))?;
        for step in steps {
            context.output.line(format_args!("  {step}"))?;
        }
    }
    Ok(Exit::Done)
}

/// Makes the directory, which must not be there, and everything in it.
fn write(directory: &Path, name: &str, template: Files) -> io::Result<()> {
    fs::create_dir(directory)?;
    let wit = WIT.iter().map(|(path, text)| (Path::new("wit").join(path), (*text).to_owned()));
    let template = template.iter().map(|(path, text)| (PathBuf::from(path), text.replace(PLACEHOLDER, name)));
    for (path, text) in template.chain(wit) {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

/// What to do next, as commands.
fn steps(name: &str) -> Vec<String> {
    // Cargo names the file as the crate is named in code.
    let built = format!("target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"));
    vec![
        format!("cd {name}"),
        "cargo test".to_owned(),
        "cargo build --release --target wasm32-wasip2".to_owned(),
        format!("helixmq plugin check {built}"),
        format!("cp {built} ../plugins-enabled/{name}.wasm"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in a directory that a build did not put there.
    fn on_disk(directory: &Path, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type().unwrap().is_dir() {
                true if name == "target" => {}
                true => found.extend(on_disk(&entry.path(), &format!("{name}/"))),
                false if name == "Cargo.lock" => {}
                false => found.push(name),
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_new_plugin_has_every_file_of_the_template_and_of_the_contract() {
        for (directory, files) in [("plugins/template/rust", RUST), ("wit", WIT)] {
            let listed: Vec<_> = files.iter().map(|(path, _)| (*path).to_owned()).collect();
            assert_eq!(on_disk(Path::new(directory), ""), listed, "{directory}");
        }
    }

    #[test]
    fn a_new_plugin_bears_its_name_and_an_old_one_stays() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("triage");
        write(&directory, "triage", RUST).unwrap();
        assert!(fs::read_to_string(directory.join("Cargo.toml")).unwrap().contains("name = \"triage\""));
        assert!(fs::read_to_string(directory.join("src/lib.rs")).unwrap().contains("triage.handled"));
        for (path, _) in RUST {
            assert!(!fs::read_to_string(directory.join(path)).unwrap().contains(PLACEHOLDER), "{path}");
        }
        assert!(directory.join("wit/deps/wasi-config/store.wit").exists());
        assert_eq!(write(&directory, "triage", RUST).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
