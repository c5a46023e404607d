//! URLs of servers, and the keys that say the same as a part of one: what the sections of systems have in common. Errors quote
//! nothing of a URL: there may be a password in any part that is wrong.

use super::{
    finding::Origin,
    kind::{Kind, Wrong},
    section::{Given, Section},
    words::quoted,
};
use crate::{codec::bytes::percent_encoded, config::Secret};

/// A host, and its port where one is named.
pub(super) type Node = (String, Option<u16>);

/// What stands between `://` and the first `/` behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    /// What is behind the `@`.
    pub(super) host: String,
}

/// `user:password@host`.
pub(super) fn authority(text: &str) -> Result<Authority, Wrong> {
    let (before, host) = match text.rsplit_once('@') {
        None => return Ok(Authority { user: None, password: None, host: text.to_owned() }),
        Some((before, _)) if before.contains('@') => {
            return Err(Wrong::new("has more than one \"@\"", "write %40 for an \"@\" in a user or password"));
        }
        Some(both) => both,
    };
    let (user, password) = match before.split_once(':') {
        Some((_, password)) if password.contains(':') => {
            return Err(Wrong::new(
                "has more than one \":\" in front of the \"@\"",
                "write %3A for those in a password",
            ));
        }
        Some((user, password)) => (user, Some(Secret::new(decoded(password)?))),
        None => (before, None),
    };
    Ok(Authority { user: Some(decoded(user)?), password, host: host.to_owned() })
}

impl Authority {
    /// What stands in front of the host, without the password.
    pub(super) fn shown_user(user: Option<&str>, password: Option<&Secret>) -> String {
        match (user, password) {
            (Some(user), Some(_)) => format!("{}:***@", percent_encoded(user)),
            (Some(user), None) => format!("{}@", percent_encoded(user)),
            (None, Some(_)) => ":***@".to_owned(),
            (None, None) => String::new(),
        }
    }
}

/// `host`, `host:port` or `[::1]:port`. `example`: one with its port, for people.
pub(super) fn node(text: &str, example: &str) -> Result<Node, Wrong> {
    let wrong = || {
        let problem = format!("{} is not a host", quoted(text));
        Wrong::new(problem, format!("write a name or an address, with a port where it is another: {example}"))
    };
    let (name, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(wrong)?,
        None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(wrong()),
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
    };
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || c == ':' && text.starts_with('[');
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(wrong());
    }
    Ok((name.to_owned(), port))
}

pub(super) fn shown_node((name, port): &Node) -> String {
    let name = if name.contains(':') { format!("[{name}]") } else { name.clone() };
    port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"))
}

pub(super) fn decoded(text: &str) -> Result<String, Wrong> {
    let wrong =
        || Wrong::new("has a \"%\" that is no percent-encoding", "write %25 for a \"%\", and two hex digits behind it");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(*byte).to_digit(16)).ok_or_else(wrong);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| wrong())?);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// What nobody is shown.
pub(super) fn password() -> Kind<Secret> {
    let read = |text: &str| match text {
        "" => Err(Wrong::new("the password is empty", "set one")),
        _ => Ok(Secret::new(text)),
    };
    Kind { secret: true, ..super::kind::parsed("text", read, |_| "***".to_owned()) }
}

pub(super) fn is_environment(origin: &Origin) -> bool {
    matches!(origin, Origin::Environment(_))
}

/// One of a key and the same part of the URL. The environment wins over the file; where both come from the same of the
/// two they must agree.
pub(super) fn merged<T: PartialEq>(
    section: &mut Section<'_, '_, '_>,
    key: &str,
    own: Option<Given<T>>,
    url: Option<T>,
    from_url: Option<&Origin>,
) -> Option<(T, Origin)> {
    let url = url.zip(from_url.cloned());
    let (own, url) = match (own, url) {
        (Some(own), Some(url)) => (own, url),
        (Some(own), None) => return Some((own.value, own.origin)),
        (None, url) => return url,
    };
    match (is_environment(&own.origin), is_environment(&url.1)) {
        (true, false) => return Some((own.value, own.origin)),
        (false, true) => return Some(url),
        _ => {}
    }
    if own.value != url.0 {
        let (path, problem) = (section.path_of(key), "differs from what the URL says".to_owned());
        section.reader.refuse(own.origin.clone(), &path, problem, "keep one of the two");
    }
    Some((own.value, own.origin))
}

/// Whether there is TLS, by `tls.enabled` and the URL, whose schemes are these without it and with it. Never decided by who
/// wins: what was to be encrypted would not be.
pub(super) fn encrypted(
    section: &mut Section<'_, '_, '_>,
    enabled: Option<&Given<bool>>,
    url: Option<(bool, &Origin)>,
    [plain, with_tls]: [&str; 2],
) -> bool {
    let (value, origin) = match (enabled, url) {
        (Some(enabled), Some((tls, _))) if enabled.value != tls => {
            let scheme = if tls { with_tls } else { plain };
            let problem = format!("is {}, and the URL begins with {scheme}://", enabled.value);
            let fix = format!("write {with_tls}:// and enabled: true for TLS, {plain}:// and enabled: false without");
            section.reader.refuse(enabled.origin.clone(), &section.path_of("tls.enabled"), problem, fix);
            (true, enabled.origin.clone())
        }
        (Some(enabled), _) => (enabled.value, enabled.origin.clone()),
        (None, Some((tls, origin))) => (tls, origin.clone()),
        (None, None) => (false, Origin::Default),
    };
    let path = format!("{}.enabled", section.path_of("tls"));
    section.reader.show(&path, value.to_string(), origin);
    value
}

/// Shows what is in force, whoever named it.
pub(super) fn shown(section: &mut Section<'_, '_, '_>, key: &str, value: String, origin: Origin) {
    let path = section.path_of(key);
    section.reader.show(&path, value, origin);
}
