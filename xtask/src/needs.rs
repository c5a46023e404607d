//! What has to be there before anything is built, and the command that brings it.

use std::{env, path::Path};

use crate::{Result, shell};

/// The target that plugins are built for.
pub(crate) const GUEST_TARGET: &str = "wasm32-wasip2";

/// Says everything that is missing at once.
pub(crate) fn check() -> Result {
    let sysroot = shell::output("rustc --print sysroot")?;
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let needs = [
        (
            Path::new(sysroot.trim()).join("lib/rustlib").join(GUEST_TARGET).is_dir(),
            "the Rust target wasm32-wasip2",
            "rustup target add wasm32-wasip2",
        ),
        (shell::succeeds(&format!("{compiler} --version")), "a C compiler", "apt-get install build-essential"),
        (shell::succeeds("gzip --version"), "gzip", "apt-get install gzip"),
    ];
    let missing: Vec<String> = needs
        .iter()
        .filter(|(there, ..)| !there)
        .map(|(_, what, how)| format!("\n  {what}: install it with `{how}`"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("this is missing:{}", missing.concat()).into()) }
}
