//! Looks at a plugin's file without compiling it: is it a component, does it export a handler of ours, does it import
//! only what is offered, is it small enough to be compiled. Milliseconds, where compiling may take seconds.

use sha2::{Digest, Sha256};
use wasmparser::{BinaryReaderError, ComponentExternalKind, Encoding, Operator, Parser, Payload};

use crate::handler::limits::bounded_text;

/// Version of the contract that is offered; any 0.1.x of a guest fits.
const CONTRACT: &str = "0.1";
/// Functions a component may have in all. A Python interpreter has 20 000.
const FUNCTIONS_MAX: usize = 200_000;
/// Longest body of one function, in bytes.
const FUNCTION_BYTES_MAX: usize = 4 << 20;
/// How deep loops may be nested: compile time grows with it faster than linearly (an 84 KB file took 33 s).
const LOOP_DEPTH_MAX: usize = 64;
/// Core modules a component may hold.
const MODULES_MAX: usize = 128;

/// What every WebAssembly file begins with. Source: WebAssembly specification, "Binary Format", modules.
const MAGIC: &[u8] = b"\0asm";

/// Interfaces whose import is answered, by package: name, the version's prefix, and what is offered of it.
const OFFERED: &[(&str, &str)] = &[
    ("helix:messaging", "0.1."),
    ("wasi:cli", "0.2."),
    ("wasi:clocks", "0.2."),
    ("wasi:random", "0.2."),
    ("wasi:io", "0.2."),
    ("wasi:filesystem", "0.2."),
    ("wasi:sockets", "0.2."),
    ("wasi:config", "0.2.0-rc.1"),
    ("wasi:logging", "0.1.0-draft"),
];

/// What a file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Inspected {
    /// SHA-256 of the file, in hex.
    pub digest: String,
    /// Its length in bytes.
    pub bytes: usize,
    /// Handles messages from queues.
    pub handles_tasks: bool,
    /// Handles messages from topics, one by one.
    pub handles_events: bool,
    /// Handles messages from topics, many at a time.
    pub handles_event_batches: bool,
    /// Exports `lifecycle`.
    pub has_lifecycle: bool,
    /// Every interface it imports.
    pub imports: Vec<String>,
    /// Every interface it exports.
    pub exports: Vec<String>,
    /// Its own version, from its metadata.
    pub version: Option<String>,
}

/// Why a plugin does not serve. The version before it goes on serving.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Another kind of file has this name.
    #[error("it is not a WebAssembly file: it does not begin with `\\0asm`")]
    NotWasm,
    /// Copy it again, or wait until it is whole.
    #[error("it is not a whole WebAssembly file: {0}")]
    Truncated(String),
    /// Build a component.
    #[error("it is a core module, not a component; build it with `--target wasm32-wasip2`")]
    CoreModule,
    /// Build it for one of our worlds.
    #[error(
        "it exports none of helix:messaging/{{task-handler,event-handler,event-batch-handler}}@{CONTRACT}; it exports {exports}"
    )]
    NoHandler {
        /// What it exports instead.
        exports: String,
    },
    /// Build it against the version that is offered.
    #[error("it was built for {found}; this engine offers helix:messaging@{CONTRACT}")]
    OtherVersion {
        /// The interface with its version.
        found: String,
    },
    /// Do without it, or ask for it.
    #[error(
        "it imports {import}, which is not offered; offered are helix:messaging@{CONTRACT}, wasi 0.2 (cli, clocks, random, io, filesystem, sockets), wasi:config@0.2.0-rc.1 and wasi:logging@0.1.0-draft"
    )]
    NotOffered {
        /// The interface with its version.
        import: String,
    },
    /// Make it smaller, or raise the limit.
    #[error("{what} is {value}, at most {max} is allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large.
        value: usize,
        /// The limit.
        max: usize,
    },
    /// It is not what the operator pinned.
    #[error("its SHA-256 is {found}, and {wanted} is what the settings allow")]
    OtherDigest {
        /// Of the file.
        found: String,
        /// In the settings.
        wanted: String,
    },
    /// Simplify it, or raise the limit.
    #[error("compiling it {0}")]
    Compile(String),
    /// Its types do not fit the contract.
    #[error("it does not fit the contract: {0}")]
    Link(String),
    /// `init` refused or failed, or no instance could be made.
    #[error("{0}")]
    Start(String),
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(String),
}

/// Looks at a whole file.
///
/// # Errors
/// The first reason why it cannot be a handler.
pub fn inspect(bytes: &[u8]) -> Result<Inspected, LoadError> {
    if bytes.len() >= MAGIC.len() && !bytes.starts_with(MAGIC) {
        return Err(LoadError::NotWasm);
    }
    measure(bytes)?;
    let (imports, exports) = names(bytes).map_err(|error| LoadError::Truncated(error.to_string()))?;
    let mut inspected =
        Inspected { digest: digest(bytes), bytes: bytes.len(), version: wasm_version(bytes), ..Inspected::default() };
    let mut other_version = None;
    for export in &exports {
        let Some((interface, version)) = ours(export) else { continue };
        if !version.starts_with("0.1.") {
            other_version = Some(export.clone());
            continue;
        }
        match interface {
            "task-handler" => inspected.handles_tasks = true,
            "event-handler" => inspected.handles_events = true,
            "event-batch-handler" => inspected.handles_event_batches = true,
            "lifecycle" => inspected.has_lifecycle = true,
            _ => {}
        }
    }
    if !(inspected.handles_tasks || inspected.handles_events || inspected.handles_event_batches) {
        return Err(match other_version {
            Some(found) => LoadError::OtherVersion { found },
            None => LoadError::NoHandler {
                exports: if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") },
            },
        });
    }
    if let Some(import) = imports.iter().find(|import| !is_offered(import)) {
        return Err(match ours(import) {
            Some((_, version)) if !version.starts_with("0.1.") => LoadError::OtherVersion { found: import.clone() },
            _ => LoadError::NotOffered { import: import.clone() },
        });
    }
    inspected.imports = imports;
    inspected.exports = exports;
    Ok(inspected)
}

/// SHA-256 in hex.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn ours(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("helix:messaging/")?.split_once('@')
}

fn is_offered(import: &str) -> bool {
    let Some((name, version)) = import.split_once('@') else { return false };
    let package = name.split('/').next().unwrap_or_default();
    OFFERED.iter().any(|(offered, prefix)| package == *offered && version.starts_with(prefix))
}

/// What the component itself imports and exports, types aside. Read from its own sections: a WIT text cannot be made of
/// every component that wasmtime links.
fn names(bytes: &[u8]) -> Result<(Vec<String>, Vec<String>), BinaryReaderError> {
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    let shown = |name: &str| bounded_text(name, 256, false);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let import = import?;
                    if import.ty.kind() != ComponentExternalKind::Type {
                        imports.push(shown(import.name.name));
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export?;
                    if export.kind != ComponentExternalKind::Type {
                        exports.push(shown(export.name.name));
                    }
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

/// Walks the file once, so that nothing that takes long to compile reaches the compiler.
fn measure(bytes: &[u8]) -> Result<(), LoadError> {
    let (mut functions, mut modules) = (0_usize, 0_usize);
    for (place, payload) in Parser::new(0).parse_all(bytes).enumerate() {
        let payload = payload.map_err(|error| LoadError::Truncated(error.to_string()))?;
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } if place == 0 => return Err(LoadError::CoreModule),
            Payload::Version { encoding: Encoding::Module, .. } => {
                modules += 1;
                at_most("the number of its core modules", modules, MODULES_MAX)?;
            }
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                at_most("the number of its functions", functions, FUNCTIONS_MAX)?;
                at_most("the length of one of its functions in bytes", body.range().len(), FUNCTION_BYTES_MAX)?;
                measure_nesting(&body).map_err(|error| LoadError::Truncated(error.to_string()))??;
            }
            _ => {}
        }
    }
    Ok(())
}

fn measure_nesting(
    body: &wasmparser::FunctionBody<'_>,
) -> Result<Result<(), LoadError>, wasmparser::BinaryReaderError> {
    let mut open: Vec<bool> = Vec::new();
    let mut loops = 0_usize;
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Loop { .. } => {
                open.push(true);
                loops += 1;
                if let Err(error) = at_most("the depth of nested loops in one of its functions", loops, LOOP_DEPTH_MAX)
                {
                    return Ok(Err(error));
                }
            }
            Operator::Block { .. } | Operator::If { .. } | Operator::TryTable { .. } => open.push(false),
            Operator::End if open.pop() == Some(true) => loops -= 1,
            _ => {}
        }
    }
    Ok(Ok(()))
}

fn at_most(what: &'static str, value: usize, max: usize) -> Result<(), LoadError> {
    if value > max { Err(LoadError::TooLarge { what, value, max }) } else { Ok(()) }
}

/// The `version` section that `wasm-tools metadata` and build tools write.
fn wasm_version(bytes: &[u8]) -> Option<String> {
    Parser::new(0).parse_all(bytes).find_map(|payload| match payload {
        Ok(Payload::CustomSection(section)) if section.name() == "version" => {
            std::str::from_utf8(section.data()).ok().map(|text| bounded_text(text, 64, false))
        }
        _ => None,
    })
}
