//! Limits of calls: a route's over its plugin's over the defaults.

use std::collections::BTreeMap;

use super::{finding::Origin, kind, section::Section};
use crate::handler::{Limits, LimitsPatch};

/// Shortest and longest time that a call, or anything else that waits, may be given, in milliseconds.
pub(super) const WAIT_MS: std::ops::RangeInclusive<u64> = 1..=24 * 60 * 60 * 1000;
/// Less than one page of WebAssembly memory is none.
const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 30;
/// Sizes of messages, and of what carries or makes them: they are held in memory.
pub(super) const MESSAGE_BYTES: std::ops::RangeInclusive<u64> = 1..=1 << 30;
/// Counts of things.
const COUNT_MAX: u32 = 1_000_000_000;

/// Limits, and who named those that are not the defaults.
#[derive(Clone, Debug, Default)]
pub(super) struct Base {
    pub(super) limits: Limits,
    pub(super) patch: LimitsPatch,
    origins: BTreeMap<&'static str, Origin>,
}

impl Base {
    /// With the section's own over these; `plugin`: for a plugin, whose time for a call lies here too.
    pub(super) fn read(&self, section: &mut Section<'_, '_, '_>, plugin: bool) -> Self {
        let mut next = self.clone();
        macro_rules! take {
            ($($field:ident $key:literal: $kind:expr,)+) => {$(
                let inherited = &self.limits.$field;
                if let Some(given) = section.inherited($key, &$kind, inherited, self.origins.get($key)) {
                    next.limits.$field = given.value.clone();
                    next.patch.$field = Some(given.value);
                    next.origins.insert($key, given.origin);
                }
            )+};
        }
        if plugin {
            take! { timeout "timeout_ms": kind::millis(WAIT_MS), }
        } else {
            section.forbid("timeout_ms", "is not under limits in a route", "move it one level up, beside `handler`");
        }
        take! {
            extend_factor_max "extend_factor_max": kind::integer(1..=1000_u32),
            memory_bytes_max "memory_bytes_max": kind::bytes(MEMORY_BYTES),
            resources_max "resources_max": kind::integer(1..=1_000_000_usize),
            results_max "results_max": kind::integer(0..=1_000_000_usize),
            results_bytes_max "results_bytes_max": kind::bytes(0..=*MESSAGE_BYTES.end()),
            message_bytes_max "message_bytes_max": kind::bytes(MESSAGE_BYTES),
            log_lines_per_second_max "log_lines_per_second_max": kind::integer(0..=COUNT_MAX),
            hops_max "hops_max": kind::integer(1..=1000_u32),
            instance_messages_max "instance_messages_max": kind::integer(1..=COUNT_MAX),
        }
        next
    }

    /// With a route's `timeout_ms`, which stands beside `limits`.
    pub(super) fn read_timeout(&self, section: &mut Section<'_, '_, '_>) -> Self {
        let mut next = self.clone();
        let kind = kind::millis(WAIT_MS);
        if let Some(given) =
            section.inherited("timeout_ms", &kind, &self.limits.timeout, self.origins.get("timeout_ms"))
        {
            next.limits.timeout = given.value;
            next.patch.timeout = Some(given.value);
        }
        next
    }
}
