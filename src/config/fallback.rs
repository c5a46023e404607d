//! What becomes of messages for a system that is away, and when it counts as away: the same keys for every system.

use super::{environment, finding::Origin, kind, limits::WAIT_MS, section::Section};
use crate::broker::guarded::{CircuitSettings, Fallback, GuardSettings, SpoolSettings};

/// What a spool may hold: with less, one message of usual size fills it.
const BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=u64::MAX;
/// How old messages may become in it, in milliseconds.
const AGE_MS: std::ops::RangeInclusive<u64> = 1000..=100 * 365 * 24 * 60 * 60 * 1000;

/// What the environment asks for.
pub(super) struct Asked {
    pub(super) variable: Option<&'static str>,
    /// Of all systems that say nothing else.
    pub(super) fallback: Fallback,
}

/// What holds for all systems, in the section `messaging`: the environment switches it on, and the file says which it is.
pub(super) fn of_all(section: &mut Section<'_, '_, '_>) -> Asked {
    let asked = environment::fallback(section.reader);
    match asked {
        Some((true, variable)) if !section.has("fallback") => {
            section.reader.overrides.insert("messaging.fallback", ("spool".to_owned(), variable));
        }
        Some((false, variable)) => {
            section.reader.overrides.insert("messaging.fallback", ("none".to_owned(), variable));
        }
        _ => {}
    }
    let fallback = section.value("fallback", &fallback(), Fallback::None);
    Asked { variable: asked.filter(|(is_wanted, _)| *is_wanted).map(|(_, variable)| variable), fallback }
}

/// Says that it was asked for in vain.
pub(super) fn warn_of_no_system(section: &mut Section<'_, '_, '_>, asked: &Asked) {
    if let Some(variable) = asked.variable {
        let problem = "has no effect: the embedded broker runs inside the engine and is never away";
        section.reader.warn(Origin::Environment(variable), "", problem, "unset it, or configure another system");
    }
}

/// How one system is guarded, in its own section.
pub(super) fn read(section: &mut Section<'_, '_, '_>, of_all: Fallback) -> GuardSettings {
    let fallback = section.value("fallback", &fallback(), of_all);
    let circuit = section.section("circuit", |section| {
        let default = CircuitSettings::default();
        CircuitSettings {
            failures_max: section.value("failures_max", &kind::integer(1..=1_000_000), default.failures_max),
            open_for: section.value("open_ms", &kind::millis(WAIT_MS), default.open_for),
        }
    });
    let spool = section.section("spool", |section| {
        let default = SpoolSettings::of(fallback);
        SpoolSettings {
            bytes_max: section.value("bytes_max", &kind::bytes(BYTES), default.bytes_max),
            messages_max: section.value("messages_max", &kind::integer(1..=u64::MAX), default.messages_max),
            age_max: section.bound("age_max_ms", &kind::millis(AGE_MS), default.age_max),
            drain_per_second: section.bound("drain_per_second", &kind::integer(1..=u32::MAX), default.drain_per_second),
        }
    });
    GuardSettings { circuit, fallback, spool }
}

fn fallback() -> kind::Kind<Fallback> {
    const WORDS: &[(&str, Fallback)] =
        &[("none", Fallback::None), ("memory", Fallback::Memory), ("spool", Fallback::Spool)];
    kind::choice(WORDS, |fallback| {
        match fallback {
            Fallback::None => "none",
            Fallback::Memory => "memory",
            Fallback::Spool => "spool",
        }
        .to_owned()
    })
}
