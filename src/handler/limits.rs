//! What a call may cost, with the defaults of SPEC §14. Reached limits are failures of the call, never of the engine.

use std::time::Duration;

use serde::Serialize;

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr,)+) => {
        /// What one call, and one instance, may cost.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        pub struct Limits { $($(#[$doc])* pub $name: $type,)+ }

        impl Default for Limits {
            fn default() -> Self { Self { $($name: $default,)+ } }
        }

        /// Limits as a plugin's or a route's section names them: those it does not name stay as they are.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct LimitsPatch { $($(#[$doc])* pub $name: Option<$type>,)+ }

        impl LimitsPatch {
            /// These limits over those of `base`.
            #[must_use]
            pub fn over(&self, base: &Limits) -> Limits {
                Limits { $($name: self.$name.clone().unwrap_or_else(|| base.$name.clone()),)+ }
            }
        }
    };
}

limits! {
    /// Time for one call, host calls included.
    timeout: Duration = Duration::from_secs(30),
    /// How many times `timeout` a guest may ask for in all by `delivery.extend`.
    extend_factor_max: u32 = 10,
    /// All memories and tables of an instance together, in bytes.
    memory_bytes_max: usize = 64 << 20,
    /// Host resources (timers, streams, …) an instance may hold.
    resources_max: usize = 1024,
    /// Messages that one call may return.
    results_max: usize = 1000,
    /// Bytes of all messages that one call returns.
    results_bytes_max: usize = 16 << 20,
    /// Bytes of one message: payload, headers and key.
    message_bytes_max: usize = 8 << 20,
    /// Log lines a handler may write a second, all its lanes together.
    log_lines_per_second_max: u32 = 1000,
    /// Messages that a chain of handlers' results may be long.
    hops_max: u32 = 16,
    /// Messages an instance handles before it is replaced.
    instance_messages_max: u32 = 256,
}

/// Longest reason that is kept of a guest, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 1024;
/// Longest code that is kept of a guest, in bytes.
pub(super) const CODE_BYTES_MAX: usize = 64;
/// Longest trap text and backtrace that is kept, in bytes.
pub(super) const TRAP_BYTES_MAX: usize = 8 * 1024;
/// Longest log line that is kept of a guest, in bytes.
pub(super) const LOG_LINE_BYTES_MAX: usize = 4 * 1024;

/// Text from a guest, made safe to show: control characters escaped, line breaks only where `lines` allows, and cut.
#[must_use]
pub(super) fn bounded_text(text: &str, bytes_max: usize, lines: bool) -> String {
    let mut safe = String::with_capacity(text.len().min(bytes_max));
    for character in text.chars() {
        let keep = !character.is_control() || (lines && matches!(character, '\n' | '\t'));
        let start = safe.len();
        if keep {
            safe.push(character);
        } else {
            safe.extend(character.escape_default());
        }
        if safe.len() > bytes_max {
            safe.truncate(start);
            break;
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_only_what_it_names() {
        let patch = LimitsPatch { results_max: Some(5), ..LimitsPatch::default() };
        assert_eq!(patch.over(&Limits::default()), Limits { results_max: 5, ..Limits::default() });
    }

    #[test]
    fn text_is_cut_at_a_character_and_cannot_move_the_cursor() {
        assert_eq!(bounded_text("a\u{1b}[2Jb", 64, false), "a\\u{1b}[2Jb");
        assert_eq!(bounded_text("äöü", 3, false), "ä");
        assert_eq!(bounded_text("a\nb", 64, false), "a\\nb");
        assert_eq!(bounded_text("a\nb", 64, true), "a\nb");
    }
}
