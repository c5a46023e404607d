//! Where the server is and who connects: a URL, or its parts as keys, or both where they say the same.

use std::time::Duration;

use super::{
    super::{
        finding::Origin,
        kind::{self, Kind, Wrong},
        nodes::Words,
        section::{Given, Section},
        url::{encrypted, merged, password, shown},
    },
    url::{self, Url},
};
use crate::{
    broker::rabbitmq::{Credentials, Host, Settings, Tls},
    config::Secret,
};

const PORT: u16 = 5672;
/// With TLS. Source: RabbitMQ, "TLS Support".
const PORT_TLS: u16 = 5671;
/// Longest name of a virtual host, user or password. Source: AMQP 0-9-1, short strings.
const TEXT_BYTES_MAX: usize = 255;
const NODES: Words = Words { node: url::node, port: "5672, with TLS 5671", several: "[rabbit1:5672, rabbit2:5672]" };

/// Reads it into `settings`.
pub(super) fn read(section: &mut Section<'_, '_, '_>, settings: &mut Settings) {
    let url = section.unshown("url", &url_kind(), "- (its parts)");
    let nodes = NODES.read(section);
    let user = section.unshown("username", &short_text("the name of a user"), "-");
    let password = section.unshown("password", &password(), "-");
    let vhost = section.unshown("vhost", &short_text("the name of a virtual host"), "/");
    let auth = section.value("auth", &auth(), Auth::Plain);
    let (enabled, tls) = section.section("tls", tls);

    let from_url = url.as_ref().map(|url| &url.origin);
    let parts = url.as_ref().map(|url| &url.value);
    if let Some(url) = &url {
        let path = section.path_of("url");
        section.reader.show(&path, url.value.shown(), url.origin.clone());
    }
    let scheme = url.as_ref().map(|url| (url.value.tls, &url.origin));
    let with_tls = encrypted(section, enabled.as_ref(), scheme, ["amqp", "amqps"]);
    settings.tls = with_tls.then_some(tls);

    let theirs = parts.map(|url| url.nodes.clone());
    let nodes = nodes.joined(section, theirs, from_url, if with_tls { PORT_TLS } else { PORT });
    settings.hosts = nodes.into_iter().map(|(name, port)| Host { name, port }).collect();

    if let Some((vhost, origin)) = merged(section, "vhost", vhost, parts.and_then(|url| url.vhost.clone()), from_url) {
        shown(section, "vhost", vhost.clone(), origin);
        settings.vhost = vhost;
    } else {
        shown(section, "vhost", settings.vhost.clone(), Origin::Default);
    }
    let user = merged(section, "username", user, parts.and_then(|url| url.user.clone()), from_url);
    let password = merged(section, "password", password, parts.and_then(|url| url.password.clone()), from_url);
    if let Some(credentials) = credentials(section, auth, user, password, settings.tls.as_ref()) {
        settings.credentials = credentials;
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Auth {
    Plain,
    External,
}

fn auth() -> Kind<Auth> {
    kind::choice(&[("plain", Auth::Plain), ("external", Auth::External)], |auth| match auth {
        Auth::Plain => "plain".to_owned(),
        Auth::External => "external".to_owned(),
    })
}

fn credentials(
    section: &mut Section<'_, '_, '_>,
    auth: Auth,
    user: Option<(String, Origin)>,
    password: Option<(Secret, Origin)>,
    tls: Option<&Tls>,
) -> Option<Credentials> {
    if auth == Auth::External {
        if tls.is_none_or(|tls| tls.cert_file.is_none()) {
            let (path, origin) = (section.path_of("auth"), section.origin_of("auth"));
            let problem = "is external, where the server takes the user from a certificate, and there is none";
            section.reader.refuse(origin, &path, problem, "set tls.enabled to true, tls.cert_file and tls.key_file");
        }
        for (key, origin) in [("username", user.map(|user| user.1)), ("password", password.map(|word| word.1))] {
            let Some(origin) = origin else { continue };
            let path = section.path_of(key);
            section.reader.refuse(origin, &path, "is not used where auth is external", "remove it, or auth");
        }
        return Some(Credentials::External);
    }
    for (key, variable, given) in
        [("username", "RABBITMQ_USER", user.is_some()), ("password", "RABBITMQ_PASSWORD", password.is_some())]
    {
        if !given {
            let (path, origin) = (section.path_of(key), section.origin());
            let fix = format!("set {variable}, or write `{key}: ${{{variable}}}`; nobody has a password by default");
            section.reader.refuse(origin, &path, "is missing", fix);
        }
    }
    let ((user, user_origin), (password, password_origin)) = user.zip(password)?;
    shown(section, "username", user.clone(), user_origin);
    shown(section, "password", "***".to_owned(), password_origin);
    Some(Credentials::Plain { user, password })
}

/// Whether it is enabled, and how it is then.
fn tls(section: &mut Section<'_, '_, '_>) -> (Option<Given<bool>>, Tls) {
    let written = super::super::tls::read(section, "- (Mozilla's list, built in)", "false");
    let server_name = section.optional("server_name", &short_text("a name"), "- (the host's)").map(|given| given.value);
    let super::super::tls::Written { enabled, ca_file, cert_file, key_file, skip_verify } = written;
    (enabled, Tls { ca_file, cert_file, key_file, skip_verify, server_name })
}

fn url_kind() -> Kind<Url> {
    Kind { secret: true, ..kind::parsed("a URL such as amqp://user:password@host:5672/vhost", url::parse, Url::shown) }
}

pub(super) fn short_text(takes: &'static str) -> Kind<String> {
    let read = move |text: &str| {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            let problem = format!("{} is not {takes}", super::super::words::quoted(text));
            return Err(Wrong::new(problem, format!("write 1 to {TEXT_BYTES_MAX} bytes")));
        }
        Ok(text.to_owned())
    };
    kind::parsed(takes, read, Clone::clone)
}

/// Whole seconds, as the protocol has them.
pub(super) fn heartbeat() -> Kind<Duration> {
    let time = kind::time(0..=u64::from(u16::MAX) * 1000);
    let (takes, show) = (format!("{}, whole seconds; 0: none", time.takes), time.show);
    let read = move |text: &str| {
        let value = (time.read)(text)?;
        if value.subsec_nanos() > 0 {
            let problem = format!("{} is not whole seconds", super::super::words::quoted(text));
            return Err(Wrong::new(problem, "write seconds: 10s"));
        }
        Ok(value)
    };
    kind::parsed(&takes, read, show)
}
