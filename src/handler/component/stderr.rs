//! The end of what a guest wrote to its standard error: where languages put the words of a panic.

use std::sync::{Arc, Mutex};

/// The end of what a guest wrote to its standard error.
#[derive(Debug, Default)]
pub(super) struct StderrTail(Vec<u8>);

/// Shared between a store and the stream it hands to the guest.
pub(super) type SharedTail = Arc<Mutex<StderrTail>>;

impl StderrTail {
    pub(super) const BYTES_MAX: usize = 1024;

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes.get(bytes.len().saturating_sub(Self::BYTES_MAX)..).unwrap_or_default());
        let surplus = self.0.len().saturating_sub(Self::BYTES_MAX);
        self.0.drain(..surplus);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("note: run with `RUST_BACKTRACE"))
            .collect();
        lines.join(" ")
    }
}
