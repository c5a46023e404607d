//! How servers are known and who we are to them: the keys that every system's `tls:` has.

use std::path::PathBuf;

use super::{
    kind::{self, Kind},
    section::{Given, Section},
};

/// What `tls:` says.
pub(super) struct Written {
    /// Whether it is on; `None`: it is not said.
    pub(super) enabled: Option<Given<bool>>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) skip_verify: bool,
}

/// Reads it. `trusted`: who is, where no authority is named.
pub(super) fn read(section: &mut Section<'_, '_, '_>, trusted: &str, enabled_by_default: &str) -> Written {
    let enabled = section.unshown("enabled", &kind::flag(), enabled_by_default);
    let file =
        |section: &mut Section<'_, '_, '_>, key| section.optional(key, &file(), "-").and_then(|given| given.value);
    let (cert_file, key_file) = (file(section, "cert_file"), file(section, "key_file"));
    let ca_file = section.optional("ca_file", &self::file(), trusted).and_then(|given| given.value);
    let verify = section.optional("verify_peer", &kind::flag(), "true");
    let skip = section.optional("skip_verify", &kind::flag(), "false");
    if cert_file.is_some() != key_file.is_some() {
        let (path, origin) = (section.path.clone(), section.origin());
        section.reader.refuse(origin, &path, "has one of cert_file and key_file", "give both, or none");
    }
    if let (Some(verify), Some(skip)) = (&verify, &skip)
        && verify.value == skip.value
    {
        let (path, origin) = (section.path_of("skip_verify"), skip.origin.clone());
        let problem = format!("contradicts verify_peer: {}", verify.value);
        section.reader.refuse(origin, &path, problem, "keep one of them");
    }
    let skip_verify = skip.as_ref().map(|skip| skip.value).or(verify.as_ref().map(|verify| !verify.value));
    let skip_verify = skip_verify.unwrap_or_default();
    let on = enabled.as_ref().is_none_or(|enabled| enabled.value);
    if skip_verify && on {
        let origin = skip.or(verify).map_or(section.origin(), |given| given.origin);
        let problem = "whoever is between here and the server can read and change everything";
        let path = section.path.clone();
        section.reader.warn(origin, &path, problem, "verify, and name the authority as ca_file");
    }
    Written { enabled, ca_file, cert_file, key_file, skip_verify }
}

/// A path; nothing, as other systems' configurations have it, is none.
fn file() -> Kind<Option<PathBuf>> {
    let read = |text: &str| match text {
        "" => Ok(None),
        _ => (kind::path().read)(text).map(Some),
    };
    kind::parsed("a path", read, |path| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default())
}
