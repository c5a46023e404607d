//! Headers in one allocation: the text of all names and values end to end, and where each ends.

use smallvec::SmallVec;

/// Most headers a message may have. Source: SPEC §14.
pub const HEADERS_MAX: usize = 64;
/// Longest name and value together, in bytes. Source: SPEC §14.
pub const HEADER_BYTES_MAX: usize = 8 * 1024;

/// Names and values in the order they were given; a name may appear more than once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    text: String,
    /// End of each name and each value in `text`: two entries a header.
    ends: SmallVec<[u32; 12]>,
}

/// Why headers are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// Send fewer.
    #[error("{count} headers, at most {HEADERS_MAX} are allowed")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Put it into the payload.
    #[error("header {name:?} takes {bytes} bytes, at most {HEADER_BYTES_MAX} are allowed")]
    TooLarge {
        /// Which one.
        name: String,
        /// Its name and value together.
        bytes: usize,
    },
}

impl Headers {
    /// None yet, with room for `bytes` of text.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: SmallVec::new() }
    }

    /// Adds one at the end, beside any of the same name.
    pub fn append(&mut self, name: &str, value: &str) {
        self.text.push_str(name);
        self.end_here();
        self.text.push_str(value);
        self.end_here();
    }

    /// Replaces every header of that name by this one, at the end.
    pub fn set(&mut self, name: &str, value: &str) {
        if self.get(name).is_some() {
            self.retain(|other, _| other != name);
        }
        self.append(name, value);
    }

    /// Keeps those for which `keep(name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &str) -> bool) {
        let mut kept = Self::with_capacity(self.text.len());
        for (name, value) in self.iter() {
            if keep(name, value) {
                kept.append(name, value);
            }
        }
        *self = kept;
    }

    /// The first value under that name, written exactly so.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        // Compares lengths first: most look-ups find nothing, and then no text is touched.
        let mut start = 0;
        for (name_end, value_end) in self.places() {
            if name_end - start == name.len() && self.text.get(start..name_end) == Some(name) {
                return self.text.get(name_end..value_end);
            }
            start = value_end;
        }
        None
    }

    /// Name and value of each, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        let mut start = 0;
        self.places().map(move |(name_end, value_end)| {
            let text = |from: usize, to: usize| self.text.get(from..to).unwrap_or_default();
            let pair = (text(start, name_end), text(name_end, value_end));
            start = value_end;
            pair
        })
    }

    /// Where each name and each value ends.
    fn places(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + Clone {
        self.ends.chunks_exact(2).map(|ends| match ends {
            [name_end, value_end] => (*name_end as usize, *value_end as usize),
            _ => (0, 0),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// Checks the bounds that every message from outside must keep.
    ///
    /// # Errors
    /// The publisher has to send fewer or smaller ones.
    pub fn check(&self) -> Result<(), HeadersError> {
        if self.len() > HEADERS_MAX {
            return Err(HeadersError::TooMany { count: self.len() });
        }
        match self.iter().find(|(name, value)| name.len() + value.len() > HEADER_BYTES_MAX) {
            Some((name, value)) => {
                Err(HeadersError::TooLarge { name: name.chars().take(64).collect(), bytes: name.len() + value.len() })
            }
            None => Ok(()),
        }
    }

    fn end_here(&mut self) {
        // Headers are bounded far below 4 GiB wherever they enter (`check`); a longer text saturates and reads cut.
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.append(name.as_ref(), value.as_ref());
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repeated_names() {
        let headers: Headers = [("a", "1"), ("b", ""), ("a", "2")].into_iter().collect();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "1"), ("b", ""), ("a", "2")]);
        assert_eq!(headers.get("a"), Some("1"));
        assert_eq!((headers.len(), headers.size()), (3, 5));
    }

    #[test]
    fn set_replaces_every_one_of_that_name() {
        let mut headers: Headers = [("a", "1"), ("b", "x"), ("a", "2")].into_iter().collect();
        headers.set("a", "3");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", "x"), ("a", "3")]);
    }

    #[test]
    fn refuses_too_many_and_too_large() {
        let many: Headers = (0..65).map(|n| (format!("h{n}"), "v")).collect();
        assert_eq!(many.check(), Err(HeadersError::TooMany { count: 65 }));
        let large: Headers = [("big", "x".repeat(HEADER_BYTES_MAX))].into_iter().collect();
        assert!(matches!(large.check(), Err(HeadersError::TooLarge { .. })));
    }
}
