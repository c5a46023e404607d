//! `redis://user:password@host:port/database`. Source: IANA, "redis" URI scheme. Errors quote nothing of it: there may be a
//! password in any part that is wrong.

use super::super::{
    kind::Wrong,
    url::{Authority, Node, authority, shown_node},
};
use crate::config::Secret;

/// What a URL says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    /// Never empty.
    pub(super) nodes: Vec<Node>,
    pub(super) database: Option<u16>,
}

pub(super) fn parse(text: &str) -> Result<Url, Wrong> {
    const FORM: &str =
        "write redis://user:password@host:port/database, or rediss:// for TLS; several hosts with commas";
    let wrong = |problem: &str| Wrong::new(problem, FORM);
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is not a URL"))?;
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return Err(wrong("begins neither with redis:// nor with rediss://")),
    };
    if rest.contains(['?', '#']) {
        let fix = "write what stands there as keys under redis:, or %3F and %23 where it is part of a name or password";
        return Err(Wrong::new("has parameters behind \"?\" or \"#\", which are not read", fix));
    }
    let (before, database) = match rest.split_once('/') {
        None | Some((_, "")) => (rest.trim_end_matches('/'), None),
        Some((before, path)) => {
            let number = path.parse().map_err(|_| wrong("has no number of a database behind the \"/\""))?;
            (before, Some(number))
        }
    };
    let Authority { user, password, host } = authority(before)?;
    let each = host.split(',').map(|one| node(one).map_err(|_| wrong("has a host or port that is none")));
    // A password without a user, as before there were users.
    let user = user.filter(|user| !user.is_empty());
    Ok(Url { tls, user, password, nodes: each.collect::<Result<_, _>>()?, database })
}

impl Url {
    /// Without the password.
    pub(super) fn shown(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(shown_node).collect();
        let scheme = if self.tls { "rediss" } else { "redis" };
        let user = Authority::shown_user(self.user.as_deref(), self.password.as_ref());
        let database = self.database.map(|number| format!("/{number}")).unwrap_or_default();
        format!("{scheme}://{user}{}{database}", nodes.join(","))
    }
}

/// `host`, `host:port` or `[::1]:port`.
pub(super) fn node(text: &str) -> Result<Node, Wrong> {
    super::super::url::node(text, "redis1:6379, [::1]:6379")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_the_password() {
        for (text, wanted) in [
            ("redis://h", "redis://h"),
            ("redis://h/", "redis://h"),
            ("rediss://u:p@h:6380/3", "rediss://u:***@h:6380/3"),
            ("redis://:p%2F%3A@h", "redis://:***@h"),
            ("redis://u@h1:1,h2,[::1]:3/15", "redis://u@h1:1,h2,[::1]:3/15"),
        ] {
            assert_eq!(parse(text).unwrap().shown(), wanted, "{text}");
        }
        let url = parse("redis://:p%2F%3A@h").unwrap();
        assert_eq!((url.user, url.password.unwrap().reveal()), (None, "p/:"));
        assert!(!format!("{:?}", parse("redis://u:hunter2@h").unwrap()).contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        for (text, words) in [
            ("hunter2", "is not a URL"),
            ("http://u:hunter2@h", "begins neither"),
            ("redis+unix:///hunter2", "begins neither"),
            ("redis://u:hunter2@h/a", "number of a database"),
            ("redis://u:hunter2@h/65536", "number of a database"),
            ("redis://u:hunter2@h?protocol=3", "parameters"),
            ("redis://u:hun@ter2@h", "more than one \"@\""),
            ("redis://u:hun:ter2@h", "more than one \":\""),
            ("redis://u:hunter2%@h", "percent-encoding"),
            ("redis://u:hunter2@h:0", "host or port"),
            ("redis://u:hunter2@", "host or port"),
            ("redis://u:hunter2@h,,i", "host or port"),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.problem.contains(words), "{text}: {wrong:?}");
            assert!(!format!("{wrong:?}").contains("hunter2"), "{wrong:?}");
        }
    }
}
