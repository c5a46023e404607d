//! Compiles a component in a child process of our own binary, under limits on CPU time and address space, and keeps the
//! result by content. A hostile file costs a child, never the engine; a known file costs a look-up.

use std::{
    ffi::OsString,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use wasmtime::{Engine, component::Component};

use super::{
    engine,
    inspect::{LoadError, digest},
};
use crate::handler::limits::bounded_text;

/// The first argument of a child that compiles: a program that embeds the engine gives such arguments to
/// `cli::run`.
pub const COMPILE_VERB: &str = "compile-component";

/// How a component is compiled.
#[derive(Clone, Debug)]
pub struct CompileChild {
    /// Our own binary. It is run as `PROGRAM compile-component …`.
    pub program: PathBuf,
    /// Where compiled code is kept; only we may write there.
    pub cache: PathBuf,
    /// CPU time it may use.
    pub cpu_max: Duration,
    /// Address space it may use, in bytes.
    pub memory_bytes_max: u64,
}

/// Address space that the child has before it compiles anything: the binary, its stacks and the allocator's arena.
const BASELINE_BYTES: u64 = 512 << 20;
/// On a machine that is busy with other things a child gets less than a core: how much longer than its CPU time it may
/// take by the clock.
const WALL_FACTOR: u32 = 6;
const POLL: Duration = Duration::from_millis(2);

impl CompileChild {
    /// The component of that file, from the cache or by the child. Returns whether it was cached.
    ///
    /// # Errors
    /// [`LoadError::Compile`] says what went wrong, in the child's words.
    pub(super) fn compile(
        &self,
        engine: &Engine,
        wasm: &[u8],
        wasm_digest: &str,
    ) -> Result<(Component, bool), LoadError> {
        fs::create_dir_all(&self.cache).map_err(|error| cannot("the compile cache", &self.cache, &error))?;
        let compiled = self.cache.join(format!("{wasm_digest}-{}.cwasm", compatibility(engine)));
        if let Some(component) = load(engine, &compiled) {
            return Ok((component, true));
        }
        // One file may be compiled twice at a time, under two names.
        static COMPILED: AtomicU64 = AtomicU64::new(0);
        let ours = format!("{}-{}", std::process::id(), COMPILED.fetch_add(1, Ordering::Relaxed));
        let input = self.cache.join(format!("{wasm_digest}-{ours}.wasm"));
        let output = compiled.with_extension(format!("{ours}.part"));
        fs::write(&input, wasm).map_err(|error| cannot("the compile cache", &input, &error))?;
        let ran = self.run(&input, &output);
        // Whatever is left of a failed child is of no use; a file that cannot be removed is found again by name.
        drop(fs::remove_file(&input));
        if let Err(error) = ran {
            drop(fs::remove_file(&output));
            return Err(error);
        }
        fs::rename(&output, &compiled).map_err(|error| cannot("the compile cache", &compiled, &error))?;
        let component = load(engine, &compiled).ok_or_else(|| {
            LoadError::Compile("made code that this engine does not take; remove the compile cache".to_owned())
        })?;
        Ok((component, false))
    }

    fn run(&self, input: &Path, output: &Path) -> Result<(), LoadError> {
        let mut command = Command::new(&self.program);
        command
            .arg(COMPILE_VERB)
            .args([input.as_os_str(), output.as_os_str()])
            .args([OsString::from(self.cpu_max.as_secs().max(1).to_string()), self.memory_bytes_max.to_string().into()])
            // The allocator would reserve more address space than the child may have.
            .env("MIMALLOC_ARENA_RESERVE", "65536")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| cannot("the compiling child", &self.program, &error))?;
        let end = Instant::now() + self.cpu_max * WALL_FACTOR;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < end => std::thread::sleep(POLL),
                Ok(None) => {
                    drop(child.kill());
                    drop(child.wait());
                    return Err(LoadError::Compile(format!(
                        "took longer than {:?} on a busy machine",
                        self.cpu_max * WALL_FACTOR
                    )));
                }
                Err(error) => return Err(cannot("the compiling child", &self.program, &error)),
            }
        };
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            drop(Read::by_ref(&mut stderr).take(4096).read_to_string(&mut said));
        }
        if status.success() {
            return Ok(());
        }
        use std::os::unix::process::ExitStatusExt;
        Err(LoadError::Compile(match status.signal() {
            // The kernel ends a process at its CPU limit with SIGXCPU, then SIGKILL.
            Some(24 | 9) => format!(
                "used more than {} s of CPU time; simplify it, or raise plugins.loading.compile_cpu_ms_max",
                self.cpu_max.as_secs()
            ),
            // An allocation that fails aborts.
            Some(6) => format!(
                "wanted more than {} MiB of memory; simplify it, or raise plugins.loading.compile_memory_bytes_max",
                self.memory_bytes_max >> 20
            ),
            Some(signal) => format!("ended by signal {signal}: {}", bounded_text(said.trim(), 512, false)),
            None => format!("failed: {}", bounded_text(said.trim(), 1024, false)),
        }))
    }
}

/// What the child does, called by `main` for [`COMPILE_VERB`]. Returns its exit code.
///
/// # Errors
/// For people, on standard error.
pub fn run_compile_child(
    input: &Path,
    output: &Path,
    cpu_seconds: u64,
    memory_bytes: u64,
) -> Result<(), anyhow::Error> {
    use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
    let limit = |max| Rlimit { current: Some(max), maximum: Some(max) };
    setrlimit(Resource::Cpu, limit(cpu_seconds))?;
    setrlimit(Resource::As, limit(memory_bytes.saturating_add(BASELINE_BYTES)))?;
    setrlimit(Resource::Core, limit(0))?;
    // Serving comes first. A system that refuses this compiles at the same priority.
    setpriority_process(None, 10).ok();
    let wasm = fs::read(input)?;
    let engine = Engine::new(&engine::compiling_config()).map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let compiled = engine.precompile_component(&wasm).map_err(|error| anyhow::anyhow!("{error:#}"))?;
    fs::write(output, compiled)?;
    Ok(())
}

fn load(engine: &Engine, compiled: &Path) -> Option<Component> {
    if !compiled.exists() {
        return None;
    }
    #[allow(
        unsafe_code,
        reason = "deserialize_file runs the file's code as ours. Proof that it is ours: the directory is made by and \
                  writable for this user only, the file was written by our own binary's precompile_component under a \
                  temporary name and renamed when whole, its name is the SHA-256 of the component that was compiled, \
                  and wasmtime itself checks version and settings before it uses it. Whoever can write there can \
                  already run code as this user. A file is never changed after its rename, so the mapping is stable."
    )]
    let component = unsafe { Component::deserialize_file(engine, compiled) };
    component
        .map_err(|error| tracing::debug!(path = %compiled.display(), "compiled code is of another version: {error:#}"))
        .ok()
}

/// Names what must be equal for compiled code to fit: wasmtime's version and our settings.
fn compatibility(engine: &Engine) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    digest(&hasher.finish().to_be_bytes()).chars().take(16).collect()
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> LoadError {
    LoadError::Compile(format!("failed: {what} {} cannot be used: {error}", path.display()))
}
