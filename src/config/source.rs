//! A configuration file's text, within bounds.

use std::{fs::File, io::Read, path::Path};

use super::tree::{Place, SyntaxError};

/// Longest configuration file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads it. There is one error at most.
pub(super) fn text(file: &Path) -> Result<String, Vec<SyntaxError>> {
    let refuse = |problem: String, fix: &str| vec![SyntaxError { place: Place::NONE, problem, fix: fix.to_owned() }];
    let unreadable =
        |error: &std::io::Error| refuse(format!("cannot be read: {error}"), "name a file that the engine may read");
    let metadata = std::fs::metadata(file).map_err(|error| unreadable(&error))?;
    // A pipe would be waited for, a device could be endless.
    if !metadata.is_file() {
        return Err(refuse("is not a file".to_owned(), "name a file"));
    }
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|error| unreadable(&error))?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    checked(bytes)
}

/// The same bounds for a text that did not come from a file.
pub(super) fn checked(bytes: Vec<u8>) -> Result<String, Vec<SyntaxError>> {
    let refuse = |place, problem: String, fix: &str| vec![SyntaxError { place, problem, fix: fix.to_owned() }];
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        let problem = format!("is longer than {FILE_BYTES_MAX} bytes");
        return Err(refuse(Place::NONE, problem, "make it shorter: no configuration needs that much"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        refuse(Place { line, column: 1 }, "this line is not UTF-8 text".to_owned(), "save the file as UTF-8")
    })
}
