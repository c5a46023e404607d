//! Bytes as a short string that is text.

use sha2::{Digest, Sha256};

use crate::codec::bytes::to_base64url;

/// Longest short string. Source: AMQP 0-9-1, section 4.2.5.3.
const BYTES_MAX: usize = 255;
/// Before the bytes themselves, in base64url without padding.
const PREFIX: &str = "base64url:";
/// Before the SHA-256 of bytes that are too many, likewise.
const PREFIX_DIGEST: &str = "sha256:";

/// Bytes that are no UTF-8, as text.
pub(super) struct Escaped {
    pub(super) text: String,
    /// Whether the text says which bytes they were; else they have to be kept somewhere.
    pub(super) reversible: bool,
}

/// `base64url:` and the bytes where that fits, which it does up to 183 of them; else `sha256:` and their digest. The same
/// bytes are always the same text, so an id made of them stays an id.
///
/// A publisher could write such a text himself; it then means those bytes, which nobody else can send as text.
pub(super) fn escape(bytes: &[u8]) -> Escaped {
    let text = format!("{PREFIX}{}", to_base64url(bytes));
    if text.len() <= BYTES_MAX {
        return Escaped { text, reversible: true };
    }
    Escaped { text: format!("{PREFIX_DIGEST}{}", to_base64url(&Sha256::digest(bytes))), reversible: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_short_string_fits_and_differs_from_others() {
        let mut seen = std::collections::HashSet::new();
        for length in 0..=255 {
            let escaped = escape(&vec![0xff; length]);
            assert!(escaped.text.len() <= BYTES_MAX);
            assert_eq!(escaped.reversible, length <= 183, "{length}");
            assert!(seen.insert(escaped.text));
        }
        assert_eq!(escape(b"\xff\x00").text, "base64url:_wA");
    }
}
