//! Builds components. Each folder has its own workspace and `.cargo/config.toml`, so it is built from there.

use crate::{Result, shell::run};

/// The plugins that ship with the engine, into `plugins/target/wasm32-wasip2/release/`.
pub(crate) fn examples() -> Result {
    run("plugins", "cargo build --locked --release --target wasm32-wasip2")
}

/// These, and those that tests use, into `tests/fixtures/plugins/target/plugins/`.
pub(crate) fn all() -> Result {
    examples()?;
    run("tests/fixtures/plugins", "cargo build --locked --release --examples --target wasm32-wasip2")?;
    run("tests/fixtures/plugins", "cargo run --locked --quiet --features generate --bin generate")
}
