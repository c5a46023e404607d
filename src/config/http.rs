//! How the engine is reached over HTTP, and with which tokens.

use std::net::SocketAddr;

use super::{
    ApiRole, ApiToken, Http, Secret,
    finding::Origin,
    kind::{self, Kind, Wrong},
    limits::MESSAGE_BYTES,
    section::{Given, Section},
};

/// A token that can be guessed is as good as none.
const TOKEN_BYTES_MIN: usize = 16;
/// What the audit log calls the one of `http.token`.
const MAIN: &str = crate::config::MAIN_TOKEN;

pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Http {
    let default = Http::default();
    let listen = section.value("listen", &listen(), default.listen);
    let written = section.optional("token", &kind::token(), "HELIXMQ_TOKEN, else one is made");
    let open = section.value("open", &kind::flag(), default.open);
    let tokens = tokens(section, written.as_ref().map(|token| token.value.clone()));
    let token = written.or_else(|| if open { None } else { token_of_environment(section) });
    let body_bytes_max = section.value("body_bytes_max", &kind::bytes(MESSAGE_BYTES), default.body_bytes_max);
    if let (true, Some(token)) = (open, &token) {
        let (path, origin) = (section.path_of("token"), token.origin.clone());
        section.reader.refuse(
            origin,
            &path,
            "nobody is asked for a token where http.open is true",
            "remove one of the two",
        );
    }
    if let Some(token) = token.as_ref().filter(|token| token.value.reveal().len() < TOKEN_BYTES_MIN) {
        let (path, origin) = (section.path_of("token"), token.origin.clone());
        let problem = format!("is shorter than {TOKEN_BYTES_MIN} characters and can be guessed");
        section.reader.warn(origin, &path, problem, "use a long random one, as `openssl rand -hex 32` prints");
    }
    if open && !listen.ip().is_loopback() {
        let (path, origin) = (section.path_of("open"), section.origin_of("open"));
        let problem = format!("everybody who reaches {listen} may publish, read and discard");
        section.reader.warn(origin, &path, problem, "set it to false, or listen on 127.0.0.1");
    }
    Http { listen, token: token.map(|token| token.value), tokens, open, body_bytes_max }
}

/// Further tokens, each with a name and what it may do.
fn tokens(section: &mut Section<'_, '_, '_>, main: Option<Secret>) -> Vec<ApiToken> {
    let mut tokens: Vec<ApiToken> = Vec::new();
    section.list("tokens", |section| {
        let name = section.required("name", &kind::name());
        let token = section.required("token", &kind::token());
        let role = section.value("role", &role(), ApiRole::Read);
        let (Some(name), Some(token)) = (name, token) else { return };
        let path = section.path_of("name");
        if name.value == MAIN || tokens.iter().any(|other| *other.name == *name.value) {
            let problem =
                format!("{:?} is the name of another token, and the audit log could not tell them apart", name.value);
            section.reader.refuse(name.origin, &path, problem, "give each a name of its own");
            return;
        }
        let path = section.path_of("token");
        let is_same = |other: &Secret| other.reveal() == token.value.reveal();
        if main.as_ref().is_some_and(is_same) || tokens.iter().any(|other| is_same(&other.token)) {
            section.reader.refuse(token.origin, &path, "is the same as another token", "make one for each name");
            return;
        }
        if token.value.reveal().len() < TOKEN_BYTES_MIN {
            let problem = format!("is shorter than {TOKEN_BYTES_MIN} characters and can be guessed");
            section.reader.warn(
                token.origin,
                &path,
                problem,
                "use a long random one, as `openssl rand -hex 32` prints",
            );
        }
        tokens.push(ApiToken { name: name.value.as_str().into(), token: token.value, role });
    });
    tokens
}

fn role() -> Kind<ApiRole> {
    kind::choice(&[("read", ApiRole::Read), ("operate", ApiRole::Operate)], |role| role.as_str().to_owned())
}

/// The token that the command line uses too, where the file names none.
fn token_of_environment(section: &mut Section<'_, '_, '_>) -> Option<Given<Secret>> {
    const VARIABLE: &str = "HELIXMQ_TOKEN";
    let path = section.path_of("token");
    let text = section.reader.variable(VARIABLE).filter(|_| !section.has("token"))?;
    let origin = Origin::Environment(VARIABLE);
    match (kind::token().read)(&text) {
        Ok(value) => {
            section.reader.show(&path, "***".to_owned(), origin.clone());
            Some(Given { value, origin, from_environment: true })
        }
        Err(wrong) => {
            section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
            None
        }
    }
}

fn listen() -> Kind<SocketAddr> {
    let read = |text: &str| {
        text.parse::<SocketAddr>().map_err(|_| {
            let port = text.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_ok());
            let fix = match (text.starts_with("localhost:"), port) {
                (true, Some(port)) => format!("write 127.0.0.1:{port}"),
                (_, Some(port)) => format!("write 127.0.0.1:{port} for this machine only, 0.0.0.0:{port} for all"),
                _ => "write an IP address and a port, as in 127.0.0.1:7061 or [::1]:7061".to_owned(),
            };
            Wrong::new(format!("{} is not an IP address with a port", super::words::quoted(text)), fix)
        })
    };
    kind::parsed("an IP address with a port", read, ToString::to_string)
}
