//! `amqp://user:password@host:port/vhost`. Source: RabbitMQ, "URI Specification". Errors quote nothing of it: there may
//! be a password in any part that is wrong.

use super::super::{
    kind::Wrong,
    url::{Authority, Node, authority, decoded, shown_node},
};
use crate::{codec::bytes::percent_encoded, config::Secret};

/// What a URL says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    /// Never empty.
    pub(super) nodes: Vec<Node>,
    pub(super) vhost: Option<String>,
}

pub(super) fn parse(text: &str) -> Result<Url, Wrong> {
    const FORM: &str = "write amqp://user:password@host:port/vhost, or amqps:// for TLS; several hosts with commas";
    let wrong = |problem: &str| Wrong::new(problem, FORM);
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is not a URL"))?;
    let tls = match scheme {
        "amqp" => false,
        "amqps" => true,
        _ => return Err(wrong("begins neither with amqp:// nor with amqps://")),
    };
    if rest.contains(['?', '#']) {
        let fix =
            "write what stands there as keys under rabbitmq:, or %3F and %23 where it is part of a name or password";
        return Err(Wrong::new("has parameters behind \"?\" or \"#\", which are not read", fix));
    }
    let (before, vhost) = match rest.split_once('/') {
        None => (rest, None),
        Some((_, "")) => {
            let fix = "write /%2F for the virtual host \"/\", or leave the \"/\" out";
            return Err(Wrong::new("names a virtual host without a name", fix));
        }
        Some((_, path)) if path.contains('/') => {
            return Err(Wrong::new(
                "has more than one \"/\" behind the host",
                "write %2F for a \"/\" in a virtual host",
            ));
        }
        Some((before, path)) => (before, Some(decoded(path)?)),
    };
    let Authority { user, password, host: nodes } = authority(before)?;
    let each = nodes.split(',').map(|one| node(one).map_err(|_| wrong("has a host or port that is none")));
    Ok(Url { tls, user, password, nodes: each.collect::<Result<_, _>>()?, vhost })
}

impl Url {
    /// Without the password.
    pub(super) fn shown(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(shown_node).collect();
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let user = Authority::shown_user(self.user.as_deref(), self.password.as_ref());
        let vhost = self.vhost.as_ref().map(|vhost| format!("/{}", percent_encoded(vhost))).unwrap_or_default();
        format!("{scheme}://{user}{}{vhost}", nodes.join(","))
    }
}

/// `host`, `host:port` or `[::1]:port`.
pub(super) fn node(text: &str) -> Result<Node, Wrong> {
    super::super::url::node(text, "rabbit1:5672, [::1]:5672")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_the_password() {
        for (text, wanted) in [
            ("amqp://h", "amqp://h"),
            ("amqps://u:p@h:5671/v", "amqps://u:***@h:5671/v"),
            ("amqp://u%40x:p%2F%3A@h/%2f", "amqp://u%40x:***@h/%2F"),
            ("amqp://u@h1:1,h2,[::1]:3/a%20b", "amqp://u@h1:1,h2,[::1]:3/a%20b"),
        ] {
            assert_eq!(parse(text).unwrap().shown(), wanted, "{text}");
        }
        let url = parse("amqp://u%40x:p%2F%3A@h/%2f").unwrap();
        assert_eq!((url.user.as_deref(), url.vhost.as_deref()), (Some("u@x"), Some("/")));
        assert_eq!(url.password.unwrap().reveal(), "p/:");
        assert!(!format!("{:?}", parse("amqp://u:hunter2@h").unwrap()).contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        for (text, words) in [
            ("hunter2", "is not a URL"),
            ("http://u:hunter2@h", "begins neither"),
            ("amqp://u:hunter2@h/", "without a name"),
            ("amqp://u:hunter2@h/a/b", "more than one \"/\""),
            ("amqp://u:hunter2@h?heartbeat=1", "parameters"),
            ("amqp://u:hun@ter2@h", "more than one \"@\""),
            ("amqp://u:hun:ter2@h", "more than one \":\""),
            ("amqp://u:hunter2%@h", "percent-encoding"),
            ("amqp://u:hunter2%zz@h", "percent-encoding"),
            ("amqp://u:hunter2@h:0", "host or port"),
            ("amqp://u:hunter2@", "host or port"),
            ("amqp://u:hunter2@h:99999", "host or port"),
            ("amqp://u:hunter2@h,,i", "host or port"),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.problem.contains(words), "{text}: {wrong:?}");
            assert!(!format!("{wrong:?}").contains("hunter2"), "{wrong:?}");
        }
    }
}
