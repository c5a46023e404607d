//! Where the servers are, who connects, and how it is encrypted.

use super::super::{
    finding::Origin,
    kind::{self, Kind, Wrong},
    section::{Given, Section},
    tls,
    tree::{Node, Value},
    words::quoted,
};
use crate::{
    broker::kafka::{
        Settings,
        settings::{Mechanism, Sasl, Tls},
    },
    config::Secret,
};

/// Where Kafka listens. Source: Kafka, "Listeners".
const PORT: u16 = 9092;
/// Most servers to begin with.
const BROKERS_MAX: usize = 100;

/// Reads it into `settings`.
pub(super) fn read(section: &mut Section<'_, '_, '_>, settings: &mut Settings) {
    if let Some(brokers) = brokers(section) {
        settings.brokers = brokers;
    }
    settings.client_id = section.value("client_id", &super::id("a name"), settings.client_id.clone());
    settings.tls = section.section("tls", |section| tls(section));
    let encrypted = settings.tls.is_some();
    settings.sasl = section.section("sasl", |section| sasl(section, encrypted));
}

/// A list, or text with commas, which variables can be.
fn brokers(section: &mut Section<'_, '_, '_>) -> Option<Vec<String>> {
    let takes = "a list of servers, or one text with commas between them: kafka1:9092,kafka2:9092";
    let default = || vec![format!("localhost:{PORT}")];
    let kind = servers(takes);
    let node = section.ask("brokers", takes, &default().join(","));
    let path = section.path_of("brokers");
    let from_file = node.map(|node| listed(section, &path, node, &kind));
    let variable = section.reader.overrides.get(path.as_str()).cloned();
    let (brokers, origin) = match variable {
        Some((text, variable)) => {
            let origin = Origin::Environment(variable);
            match (kind.read)(&text) {
                Ok(brokers) => (brokers, origin),
                Err(wrong) => {
                    section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
                    return None;
                }
            }
        }
        None => match from_file {
            Some(given) => (given?, section.origin_of("brokers")),
            None => (default(), Origin::Default),
        },
    };
    section.reader.show(&path, (kind.show)(&brokers), origin);
    Some(brokers)
}

/// `None`: it is wrong, which has been said.
fn listed(section: &mut Section<'_, '_, '_>, path: &str, node: &Node, kind: &Kind<Vec<String>>) -> Option<Vec<String>> {
    let Value::List(items) = &node.value else {
        if node.is_null() {
            let origin = section.origin_of("brokers");
            section.reader.refuse(origin, path, "has no value", "write [localhost:9092], or remove the key");
            return None;
        }
        return section.reader.one(path, node, kind).map(|given| given.value);
    };
    let mut brokers = Vec::new();
    for (place, item) in items.iter().take(BROKERS_MAX).enumerate() {
        // A variable in the list may stand for several.
        brokers.extend(section.reader.one(&format!("{path}[{place}]"), item, kind)?.value);
    }
    if brokers.is_empty() {
        let origin = section.origin_of("brokers");
        section.reader.refuse(origin, path, "is an empty list", "write [localhost:9092]");
        return None;
    }
    Some(brokers)
}

fn servers(takes: &str) -> Kind<Vec<String>> {
    let read = |text: &str| text.split(',').take(BROKERS_MAX).map(|one| server(one.trim())).collect();
    kind::parsed(takes, read, |brokers| brokers.join(","))
}

/// `host`, `host:port` or `[::1]:port`; with its port.
fn server(text: &str) -> Result<String, Wrong> {
    let wrong = |fix: &str| Wrong::new(format!("{} is not a server of Kafka", quoted(text)), fix);
    const FORM: &str = "write a name or an address and the port: kafka1.example.org:9092, [::1]:9092";
    if let Some((_, rest)) = text.split_once("://") {
        return Err(wrong(&format!("write it without a protocol: {rest}; `tls:` and `sasl:` say how it is reached")));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (inside, rest) = inner.split_once(']').ok_or_else(|| wrong(FORM))?;
            (
                format!("[{inside}]"),
                rest.strip_prefix(':').or(rest.is_empty().then_some("")).ok_or_else(|| wrong(FORM))?,
            )
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            (host.to_owned(), port)
        }
    };
    let inside = host.trim_matches(['[', ']']);
    let address = host.starts_with('[');
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || c == ':' && address;
    if inside.is_empty() || !inside.chars().all(allowed) {
        return Err(wrong(FORM));
    }
    if port.is_empty() && !text.ends_with(':') {
        return Ok(format!("{host}:{PORT}"));
    }
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong(FORM))?;
    Ok(format!("{host}:{port}"))
}

/// Whether a section is on: as it says, else where anything is written in it, so that nothing is left out by an omission.
fn on(section: &mut Section<'_, '_, '_>, enabled: Option<Given<bool>>, written: bool) -> bool {
    let (value, origin) = match enabled {
        Some(given) => (given.value, given.origin),
        None if written => (true, section.origin()),
        None => (false, Origin::Default),
    };
    let path = section.path_of("enabled");
    section.reader.show(&path, value.to_string(), origin);
    value
}

const ON: &str = "true where anything else is written here";

fn tls(section: &mut Section<'_, '_, '_>) -> Option<Tls> {
    let keys = ["ca_file", "cert_file", "key_file", "verify_peer", "skip_verify", "key_password"];
    let written = keys.iter().any(|key| section.has(key));
    let tls::Written { enabled, ca_file, cert_file, key_file, skip_verify } =
        tls::read(section, "- (the machine's)", ON);
    let key_password = section.optional("key_password", &password(), "-").map(|given| given.value);
    let tls = Tls { ca_file, cert_file, key_file, key_password, skip_verify };
    on(section, enabled, written).then_some(tls)
}

fn sasl(section: &mut Section<'_, '_, '_>, encrypted: bool) -> Option<Sasl> {
    let enabled = section.unshown("enabled", &kind::flag(), ON);
    let mechanism = section.optional("mechanism", &mechanism(), "-");
    let user = section.optional("username", &user(), "-");
    let password = section.optional("password", &password(), "-");
    let written = mechanism.is_some() || user.is_some() || password.is_some();
    if !on(section, enabled, written) {
        return None;
    }
    let mut missing = |key: &'static str, variable: &str, given: bool| {
        // What is there and wrong has been said.
        if !given && !section.has(key) {
            let (path, origin) = (section.path_of(key), section.origin());
            section.reader.refuse(origin, &path, "is missing", format!("set {variable}, or write `{key}:`"));
        }
    };
    missing("mechanism", "KAFKA_SASL_MECHANISM", mechanism.is_some());
    missing("username", "KAFKA_SASL_USERNAME", user.is_some());
    missing("password", "KAFKA_SASL_PASSWORD", password.is_some());
    let (mechanism, user, password) = (mechanism?, user?.value, password?.value);
    if mechanism.value == Mechanism::Plain && !encrypted {
        let path = section.path_of("mechanism");
        let problem = "is PLAIN without TLS: whoever is in between can read the password";
        section.reader.warn(mechanism.origin, &path, problem, "use SCRAM-SHA-512, or tls");
    }
    Some(Sasl { mechanism: mechanism.value, user, password })
}

fn mechanism() -> Kind<Mechanism> {
    const TAKES: &str = "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512";
    let read = |text: &str| match text.to_ascii_uppercase().as_str() {
        "PLAIN" => Ok(Mechanism::Plain),
        "SCRAM-SHA-256" => Ok(Mechanism::ScramSha256),
        "SCRAM-SHA-512" => Ok(Mechanism::ScramSha512),
        _ => Err(Wrong::new(format!("{} is not {TAKES}", quoted(text)), format!("write {TAKES}"))),
    };
    kind::parsed(TAKES, read, |mechanism| {
        match mechanism {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
        .to_owned()
    })
}

fn user() -> Kind<String> {
    let read = |text: &str| match text {
        "" => Err(Wrong::new("the name of the user is empty", "name one")),
        _ => Ok(text.to_owned()),
    };
    kind::parsed("the name of a user", read, Clone::clone)
}

fn password() -> Kind<Secret> {
    let read = |text: &str| match text {
        "" => Err(Wrong::new("the password is empty", "set one")),
        _ => Ok(Secret::new(text)),
    };
    Kind { secret: true, ..kind::parsed("text", read, |_| "***".to_owned()) }
}
