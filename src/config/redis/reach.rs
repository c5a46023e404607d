//! Where the servers are and who connects: a URL, or its parts as keys, or both where they say the same.

use super::{
    super::{
        finding::Origin,
        kind::{self, Kind, Wrong},
        nodes::Words,
        section::{Given, Section},
        url::{encrypted, merged, password, shown},
        words::quoted,
    },
    url::{self, Url},
};
use crate::broker::redis::{Host, Settings, Tls};

/// Where Redis listens, with TLS or without. Source: Redis, redis.conf.
const PORT: u16 = 6379;
/// Longest name of a user.
const USER_BYTES_MAX: usize = 255;
const NODES: Words = Words { node: url::node, port: "6379", several: "[redis1:6379, redis2:6379]" };

/// Reads it into `settings`.
pub(super) fn read(section: &mut Section<'_, '_, '_>, settings: &mut Settings) {
    let url = section.unshown("url", &url_kind(), "- (its parts)");
    let nodes = NODES.read(section);
    let user = section.unshown("username", &user(), "- (the server's default user)");
    let password = section.unshown("password", &password(), "-");
    let database = section.unshown("database", &kind::integer(0..=u16::MAX), "0");
    let (enabled, tls) = section.section("tls", tls);

    let from_url = url.as_ref().map(|url| &url.origin);
    let parts = url.as_ref().map(|url| &url.value);
    if let Some(url) = &url {
        shown(section, "url", url.value.shown(), url.origin.clone());
    }
    let scheme = url.as_ref().map(|url| (url.value.tls, &url.origin));
    let with_tls = encrypted(section, enabled.as_ref(), scheme, ["redis", "rediss"]);
    settings.tls = with_tls.then_some(tls);

    let nodes = nodes.joined(section, parts.map(|url| url.nodes.clone()), from_url, PORT);
    settings.hosts = nodes.into_iter().map(|(name, port)| Host { name, port }).collect();

    let database = merged(section, "database", database, parts.and_then(|url| url.database), from_url);
    let (database, origin) = database.unwrap_or((settings.database, Origin::Default));
    shown(section, "database", database.to_string(), origin);
    settings.database = database;

    let user = merged(section, "username", user, parts.and_then(|url| url.user.clone()), from_url);
    let password = merged(section, "password", password, parts.and_then(|url| url.password.clone()), from_url);
    if let (Some((_, origin)), None) = (&user, &password) {
        let path = section.path_of("password");
        let fix = "set the password, or remove the user: without both, the server's default user is used";
        section.reader.refuse(origin.clone(), &path, "is missing, and there is a user", fix);
    }
    if let Some((user, origin)) = user {
        shown(section, "username", user.clone(), origin);
        settings.username = Some(user);
    }
    if let Some((password, origin)) = password {
        if settings.tls.is_none() && !settings.hosts.iter().all(is_here) {
            let path = section.path_of("password");
            let problem = "goes over the network without TLS: whoever is in between can read it";
            section.reader.warn(origin.clone(), &path, problem, "set tls.enabled to true, or write rediss://");
        }
        shown(section, "password", "***".to_owned(), origin);
        settings.password = Some(password);
    }
}

/// Whether it is this machine.
fn is_here(host: &Host) -> bool {
    let address: Option<std::net::IpAddr> = host.name.parse().ok();
    host.name == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// Whether it is enabled, and how it is then.
fn tls(section: &mut Section<'_, '_, '_>) -> (Option<Given<bool>>, Tls) {
    let written = super::super::tls::read(section, "- (Mozilla's list, built in)", "false");
    let server_name = section.optional("server_name", &server_name(), "- (the host's)").map(|given| given.value);
    let super::super::tls::Written { enabled, ca_file, cert_file, key_file, skip_verify } = written;
    (enabled, Tls { ca_file, cert_file, key_file, skip_verify, server_name })
}

fn url_kind() -> Kind<Url> {
    Kind { secret: true, ..kind::parsed("a URL such as redis://user:password@host:6379/0", url::parse, Url::shown) }
}

fn server_name() -> Kind<String> {
    let read = |text: &str| match url::node(text) {
        Ok((name, None)) => Ok(name),
        _ => Err(Wrong::new(format!("{} is not a name", quoted(text)), "write the name in the server's certificate")),
    };
    kind::parsed("a name", read, Clone::clone)
}

fn user() -> Kind<String> {
    let read = |text: &str| {
        // Source: Redis, "ACL": no spaces, no null.
        if text.is_empty() || text.len() > USER_BYTES_MAX || text.contains(|c: char| c.is_whitespace() || c == '\0') {
            let problem = format!("{} is not the name of a user", quoted(text));
            return Err(Wrong::new(problem, format!("write 1 to {USER_BYTES_MAX} bytes without spaces")));
        }
        Ok(text.to_owned())
    };
    kind::parsed("the name of a user", read, Clone::clone)
}
