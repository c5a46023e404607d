//! Says whether the repository is as it should be.

use std::{env, fs, path::PathBuf, process::Command, time::Instant};

use crate::{Result, demo, needs, needs::GUEST_TARGET, plugins, servers, shell, shell::run};

/// Where the plugin template is written out and built.
const TEMPLATE_FOLDER: &str = "target/xtask/template";
/// Where cargo-deny goes if it is not there.
const TOOLS_FOLDER: &str = "target/tools";
/// The version that `deny.toml` is written for.
const DENY_VERSION: &str = "0.20.2";

/// Every test: of the plugins as ordinary programs, then of the engine, which runs the plugins that were built, and meets
/// real servers, which are there for as long as it takes.
pub(crate) fn test() -> Result {
    needs::servers()?;
    plugins::all()?;
    run("plugins", "cargo test --locked --quiet")?;
    run(".", &servers::with("cargo test --locked --workspace --features real-brokers"))
}

/// Everything, cheapest first.
pub(crate) fn ci() -> Result {
    let began = Instant::now();
    // Not after half of the checks.
    needs::servers()?;
    format()?;
    lint()?;
    document()?;
    test()?;
    demo::unattended()?;
    template()?;
    let advisories = dependencies()?;
    println!("\nAll checks passed in {} min{advisories}.", began.elapsed().as_secs().div_ceil(60));
    Ok(())
}

fn format() -> Result {
    for folder in [".", "plugins", "tests/fixtures/plugins"] {
        run(folder, "cargo fmt --all --check")?;
    }
    // As it is formatted where it ends up, beyond the reach of our own settings.
    run(".", "rustfmt --check --edition 2024 --config max_width=100 plugins/template/rust/src/lib.rs")
}

fn lint() -> Result {
    run(".", "cargo clippy --locked --workspace --all-targets --all-features -- -D warnings")?;
    // With the embedded broker alone.
    run(".", "cargo clippy --locked --no-default-features -- -D warnings")?;
    run("plugins", &format!("cargo clippy --locked --target {GUEST_TARGET} -- -D warnings"))?;
    run("tests/fixtures/plugins", &format!("cargo clippy --locked --examples --target {GUEST_TARGET} -- -D warnings"))
}

fn document() -> Result {
    let mut command = shell::command(".", "cargo doc --locked --workspace --no-deps");
    command.env("RUSTDOCFLAGS", "-D warnings");
    shell::finish(command)
}

/// What `plugin new` writes is a project that tests, builds and would be taken into service.
fn template() -> Result {
    let folder = PathBuf::from(TEMPLATE_FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let engine = env::current_dir()?.join(demo::ENGINE);
    let helixmq = |arguments: &[&str]| {
        let mut command = Command::new(&engine);
        command.args(arguments).current_dir(&folder);
        shell::finish(command)
    };
    helixmq(&["plugin", "new", "hello", "--lang", "rust"])?;
    let project = format!("{TEMPLATE_FOLDER}/hello");
    run(&project, "cargo test --quiet")?;
    run(&project, &format!("cargo build --release --target {GUEST_TARGET}"))?;
    helixmq(&["plugin", "check", "hello/target/wasm32-wasip2/release/hello.wasm"])
}

/// Licences, sources and duplicates of what is depended on, and known vulnerabilities of it. Gives what to say at the
/// end: the list of vulnerabilities comes from GitHub, and without it they are not checked.
fn dependencies() -> Result<&'static str> {
    let deny = deny()?;
    run(".", &format!("{deny} --locked check bans licenses sources"))?;
    if run(".", &format!("{deny} --locked fetch db")).is_err() {
        return Ok(", WITHOUT looking for known vulnerabilities: their list could not be fetched");
    }
    run(".", &format!("{deny} --locked check advisories"))?;
    Ok("")
}

/// The program cargo-deny: the installed one, or one of our own.
fn deny() -> Result<String> {
    if shell::succeeds("cargo-deny --version") {
        return Ok("cargo-deny".to_owned());
    }
    let own = format!("{TOOLS_FOLDER}/bin/cargo-deny");
    if !shell::succeeds(&format!("{own} --version")) {
        // Unoptimised: it takes longer to build than it ever runs.
        run(".", &format!("cargo install --locked --debug --root {TOOLS_FOLDER} cargo-deny@{DENY_VERSION}"))?;
    }
    Ok(own)
}
