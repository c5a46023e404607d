//! What the operator decides about plugins.

use std::{collections::BTreeMap, time::Duration};

use super::LimitsPatch;

/// What the operator gives one plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginSettings {
    /// What it reads through `wasi:config/store`.
    pub config: BTreeMap<String, String>,
    /// Limits of all its routes that do not set their own.
    pub limits: LimitsPatch,
    /// Refuse any file but the one with this SHA-256, in hex.
    pub sha256: Option<String>,
}

/// What loading a plugin may cost. Source of the defaults: SPEC §14, "loading".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loading {
    /// Longest file, in bytes.
    pub file_bytes_max: u64,
    /// CPU time of the compiling child process.
    pub compile_cpu_max: Duration,
    /// Address space of the compiling child process, in bytes.
    pub compile_memory_bytes_max: u64,
    /// Time for `init`.
    pub init_timeout: Duration,
}

impl Default for Loading {
    fn default() -> Self {
        Self {
            file_bytes_max: 64 << 20,
            compile_cpu_max: Duration::from_secs(20),
            compile_memory_bytes_max: 1 << 30,
            init_timeout: Duration::from_secs(5),
        }
    }
}
