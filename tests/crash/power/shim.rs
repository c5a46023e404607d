//! The shim (`shim.c`, whose head says what it records and which faults it knows): built once, put in front of a process.
//!
//! A test that needs it re-runs its own binary, with one test that plays the other part: [`Shim::role`]. That test is
//! ignored otherwise.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Where the other part finds the directory that it works in.
pub(crate) const DIRECTORY: &str = "HELIXMQ_SHIM_DIRECTORY";
const TRACE: &str = "HELIXMQ_SHIM_TRACE";
const FAULTS: &str = "HELIXMQ_SHIM_FAULTS";

/// A directory whose changes are written down, and faults that can be switched on and off.
#[derive(Debug)]
pub(crate) struct Shim {
    around: tempfile::TempDir,
}

/// A fault; what it does is at the head of `shim.c`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Full,
    SyncFails,
    ReadOnly,
    Denied,
}

impl Shim {
    pub(crate) fn new() -> Self {
        let around = tempfile::tempdir().unwrap();
        for folder in ["work", "faults"] {
            fs::create_dir(around.path().join(folder)).unwrap();
        }
        Self { around }
    }

    /// The directory, as the process sees it.
    pub(crate) fn directory(&self) -> PathBuf {
        self.around.path().canonicalize().unwrap().join("work")
    }

    pub(crate) fn trace(&self) -> PathBuf {
        self.around.path().join("trace")
    }

    /// Puts it in front of a process that is about to start.
    pub(crate) fn before(&self, command: &mut Command) {
        command.env("LD_PRELOAD", library()).env(DIRECTORY, self.directory()).env(TRACE, self.trace());
        command.env(FAULTS, self.around.path().join("faults"));
    }

    /// This binary again, to run one of its tests, named by its path, with the shim in front of it.
    pub(crate) fn role(&self, test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", test]).stdin(Stdio::null());
        self.before(&mut command);
        command
    }

    /// Runs such a part to its end, which has to be a good one.
    pub(crate) fn play(&self, test: &str, with: &[(&str, &OsStr)]) {
        let output = self.role(test).envs(with.iter().copied()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && text.contains("1 passed"), "{test}: {}\n{text}", output.status);
    }

    /// The shim of a part that is being played.
    pub(crate) fn faults_here() -> Faults {
        Faults(PathBuf::from(std::env::var_os(FAULTS).expect("this test is a part of another; run that")))
    }

    pub(crate) fn faults(&self) -> Faults {
        Faults(self.around.path().join("faults"))
    }
}

/// The switches.
#[derive(Debug)]
pub(crate) struct Faults(PathBuf);

impl Faults {
    pub(crate) fn on(&self, fault: Fault) {
        fs::write(self.file(fault), []).unwrap();
    }

    pub(crate) fn off(&self, fault: Fault) {
        fs::remove_file(self.file(fault)).unwrap();
    }

    /// Whether it is switched on; one that is good for once is not, after it has struck.
    pub(crate) fn is_on(&self, fault: Fault) -> bool {
        self.file(fault).exists()
    }

    fn file(&self, fault: Fault) -> PathBuf {
        self.0.join(match fault {
            Fault::Full => "full",
            Fault::SyncFails => "sync-fails",
            Fault::ReadOnly => "read-only",
            Fault::Denied => "denied",
        })
    }
}

/// The directory of a part that is being played.
pub(crate) fn directory_here() -> PathBuf {
    PathBuf::from(std::env::var_os(DIRECTORY).expect("this test is a part of another; run that"))
}

/// The shim, compiled.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(folder).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/power/shim.c");
        // Under a name of its own first: another run may be using the one that is there.
        let made = folder.join(format!("shim-{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1", "-o"]).arg(&made).arg(&source);
        cc.args(["-ldl", "-lpthread"]);
        let output = cc.output().unwrap_or_else(|error| {
            panic!("A C COMPILER IS NEEDED for the tests of power loss, and `cc` cannot be run ({error}); install one, such as the package build-essential")
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let library = folder.join("shim.so");
        fs::rename(&made, &library).unwrap();
        library
    })
}
