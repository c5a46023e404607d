//! `plugin check`: whether a file would serve, and if not, why.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::load::Loader;
use crate::{
    cli::{Context, Exit, Failure},
    config::Config,
    handler::{
        component::{Inspected, LoadError},
        reload::is_plugin_name,
    },
};

/// What `plugin check` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// A component, as it would be dropped into the plugins directory
    file: PathBuf,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let file = &args.file;
    if !file.exists() {
        let message = format!("there is no file {}", file.display());
        return Err(Failure::new(
            Exit::NotFound,
            "PLUGIN_NOT_FOUND",
            message,
            "build the plugin, and name the file that the build made",
        ));
    }
    let config = config(context);
    let scratch = tempfile::Builder::new().prefix("helixmq-check-").tempdir().map_err(|error| {
        let message = format!("no temporary directory can be made: {error}");
        Failure::new(Exit::Failed, "NO_SCRATCH", message, "let TMPDIR name a directory that you may write")
    })?;
    let name = name(file);
    let (component, took) =
        Loader::new(&config, scratch.path().to_owned())?.load(&name, file).map_err(|error| refused(file, &error))?;
    show(context, file, component.inspected(), took)?;
    if !is_plugin_name(&name) {
        context.output.note(format_args!(
            "warning: in the plugins directory it needs another name: 1 to 128 letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(Exit::Done)
}

/// What the operator decides about plugins. An author may have no configuration, or one with mistakes elsewhere.
fn config(context: &Context) -> Config {
    match context.load() {
        Ok(loaded) => loaded.config,
        Err(failure) => {
            context.output.note(format_args!("warning: checked by the defaults, as {}", failure.message()));
            Config::default()
        }
    }
}

/// The plugin's name: of its file, without `.wasm`.
fn name(file: &Path) -> String {
    file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Why a file would not serve.
pub(in crate::cli) fn refused(file: &Path, error: &LoadError) -> Failure {
    let (code, hint) = match error {
        LoadError::NotWasm => ("NOT_WASM", "name a component, built with `--target wasm32-wasip2`"),
        LoadError::Truncated(_) => ("NOT_WHOLE", "build it again, and copy it whole"),
        LoadError::CoreModule => ("CORE_MODULE", "see `helixmq plugin new` for a project that builds a component"),
        LoadError::NoHandler { .. } => ("NO_HANDLER", "let it export one of the handlers in wit/"),
        LoadError::OtherVersion { .. } => ("OTHER_VERSION", "build it against the wit/ of this engine"),
        LoadError::NotOffered { .. } => ("NOT_OFFERED", "build it without what needs that import"),
        LoadError::TooLarge { .. } => ("TOO_LARGE", "make it smaller, with `opt-level`, `lto` and `strip`"),
        LoadError::OtherDigest { .. } => {
            ("OTHER_DIGEST", "bring the file that was agreed on, or change sha256 in its settings")
        }
        LoadError::Compile(_) => ("NOT_COMPILED", "see docs/configuration.md for plugins.loading"),
        LoadError::Link(_) => ("NOT_LINKED", "build it against the wit/ of this engine"),
        LoadError::Start(_) => ("NOT_STARTED", "look at its `init` and at its settings under plugins.settings"),
        LoadError::Read(_) => ("UNREADABLE", "name a file that you may read"),
    };
    // What a parser says may have lines of its own.
    let why = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Failure::new(Exit::Refused, code, format!("{} would not serve: {why}", file.display()), hint)
}

fn show(context: &Context, file: &Path, inspected: &Inspected, took: Duration) -> Result<(), Failure> {
    let handles: Vec<_> = [
        (inspected.handles_tasks, "tasks"),
        (inspected.handles_events, "events"),
        (inspected.handles_event_batches, "event-batches"),
    ]
    .into_iter()
    .filter_map(|(handles, what)| handles.then_some(what))
    .collect();
    let took_ms = (took.as_secs_f64() * 1e6).round() / 1e3;
    if context.output.json() {
        return context.output.value(&json!({
            "file": file,
            "serves": true,
            "digest": inspected.digest,
            "bytes": inspected.bytes,
            "version": inspected.version,
            "handles": handles,
            "exports": inspected.exports,
            "imports": inspected.imports,
            "load_ms": took_ms,
        }));
    }
    let mut rows = vec![
        ["file".to_owned(), file.display().to_string()],
        ["handles".to_owned(), handles.join(", ")],
        ["digest".to_owned(), inspected.digest.clone()],
        ["size".to_owned(), format!("{} bytes", inspected.bytes)],
        ["version".to_owned(), inspected.version.clone().unwrap_or_else(|| "-".to_owned())],
        ["loaded".to_owned(), format!("in {took_ms} ms: compiled in a child process, linked, started")],
    ];
    for (what, names) in [("exports", &inspected.exports), ("imports", &inspected.imports)] {
        rows.extend(names.iter().map(|name| [what.to_owned(), name.clone()]));
    }
    context.output.fields(&rows)
}
