//! Speaks to a running engine over HTTP. In: a path and a body. Out: its answer, or a [`Failure`] with the exit code that
//! its status means.

use std::{
    io::{self, BufRead, BufReader},
    net::IpAddr,
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent, Body,
    http::{Response, StatusCode, Uri},
};

use super::{
    Context,
    context::{engine_address, engine_token},
    failure::{Exit, Failure},
};
use crate::config::Config;

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long to wait until an answer begins.
const ANSWER: Duration = Duration::from_secs(60);
/// No connection was made, so that the engine knows nothing of the call.
pub(super) const UNREACHABLE: &str = "UNREACHABLE";
/// The connection ended in the midst of the call.
pub(super) const CUT_OFF: &str = "CUT_OFF";
const START_ONE: &str = "start one with `helixmq serve`, or name another with --api";
/// Longest answer that is read as a whole, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A running engine.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// A document as the engine wrote it: its text is passed on unchanged, as numbers in it may be longer than ours.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// JSON.
    pub text: String,
    /// The same, to look into.
    pub value: Value,
}

impl Document {
    fn read(text: String) -> Result<Self, serde_json::Error> {
        serde_json::from_str(&text).map(|value| Self { text, value })
    }
}

/// Names and values behind the `?`.
pub(super) type Query = Vec<(&'static str, String)>;

impl Client {
    /// The engine that `--api` names, else the one of the configuration.
    ///
    /// # Errors
    /// The configuration is needed to find it, and refused; or the URL is none.
    pub(super) fn new(context: &Context) -> Result<Self, Failure> {
        let token = std::env::var("HELIXMQ_TOKEN").ok().filter(|token| !token.is_empty());
        let (base, token) = match &context.api {
            // The configuration could only add a token.
            Some(url) => {
                let token = token.or_else(|| context.load().ok().and_then(|loaded| engine_token(&loaded.config)));
                (url.trim_end_matches('/').to_owned(), token)
            }
            None => {
                let config = context.load()?.config;
                let address = engine_address(&config);
                if address.port() == 0 {
                    return Err(not_running(&config));
                }
                (format!("http://{address}"), token.or_else(|| engine_token(&config)))
            }
        };
        let wrong = || {
            let message = format!("{base:?} is not the URL of an engine");
            Failure::new(Exit::Usage, "BAD_URL", message, "write one such as http://127.0.0.1:7061")
        };
        let uri: Uri = base.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']);
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() {
            return Err(wrong());
        }
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .user_agent(concat!("helixmq/", env!("CARGO_PKG_VERSION")));
        if here {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().new_agent(), base, token })
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// What the status means.
    pub(super) fn get(&self, path: &str, query: &Query) -> Result<Document, Failure> {
        self.document(self.ask(path, query)?)
    }

    /// Asks for a document a line, read as they come.
    ///
    /// # Errors
    /// What the status means; while reading, that the engine is gone.
    pub(super) fn get_lines(
        &self,
        path: &str,
        query: &Query,
    ) -> Result<impl Iterator<Item = Result<Document, Failure>>, Failure> {
        Ok(self.lines(self.ask(path, query)?))
    }

    /// Sends a document, asks for one.
    ///
    /// # Errors
    /// What the status means.
    pub(super) fn post(&self, path: &str, document: &Value) -> Result<Document, Failure> {
        let request = self.agent.post(self.url(path)).content_type("application/json");
        let answer = self.authorized(request).send(document.to_string());
        self.document(self.checked(path, answer)?)
    }

    /// Sends lines, asks for a document a line.
    ///
    /// # Errors
    /// What the status means; while reading, that the engine is gone.
    pub(super) fn post_lines(
        &self,
        path: &str,
        query: &Query,
        lines: &[u8],
    ) -> Result<impl Iterator<Item = Result<Document, Failure>>, Failure> {
        let request = self.agent.post(self.url(path)).query_pairs(pairs(query)).content_type("application/x-ndjson");
        let answer = self.authorized(request).header("accept", "application/x-ndjson").send(lines);
        Ok(self.lines(self.checked(path, answer)?))
    }

    fn ask(&self, path: &str, query: &Query) -> Result<Response<Body>, Failure> {
        let request = self.authorized(self.agent.get(self.url(path)).query_pairs(pairs(query)));
        self.checked(path, request.call())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn authorized<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn checked(&self, path: &str, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let response = answer.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // A body that cannot be read says nothing more than the status.
        let text = response.into_body().into_with_config().limit(1 << 20).read_to_string().unwrap_or_default();
        Err(self.refused(path, status, &serde_json::from_str(&text).unwrap_or_default()))
    }

    fn document(&self, mut response: Response<Body>) -> Result<Document, Failure> {
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.map_err(|error| self.unreachable(&error))?;
        Document::read(text).map_err(|error| self.strange(&error))
    }

    fn lines(&self, response: Response<Body>) -> impl Iterator<Item = Result<Document, Failure>> {
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        lines.filter(|line| line.as_ref().map_or(true, |line| !line.trim().is_empty())).map(|line| {
            let line = line.map_err(|error| self.cut_off(&error))?;
            Document::read(line).map_err(|error| self.strange(&error))
        })
    }

    /// Nothing was sent: [`UNREACHABLE`]. Otherwise it is not known what the engine did: [`CUT_OFF`].
    fn unreachable(&self, error: &ureq::Error) -> Failure {
        use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
        let nothing_was_sent = match error {
            ureq::Error::Io(error) => {
                matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable)
            }
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) => true,
            ureq::Error::Timeout(phase) => matches!(phase, ureq::Timeout::Connect | ureq::Timeout::Resolve),
            _ => false,
        };
        if nothing_was_sent {
            let message = format!("no engine answers at {} ({error})", self.base);
            return Failure::new(Exit::Unreachable, UNREACHABLE, message, START_ONE);
        }
        self.cut_off(error)
    }

    fn cut_off(&self, error: &dyn std::fmt::Display) -> Failure {
        let message = format!("the connection to {} ended before the answer did ({error})", self.base);
        Failure::new(Exit::Unreachable, CUT_OFF, message, "look whether the engine runs, and call again")
    }

    fn strange(&self, error: &serde_json::Error) -> Failure {
        Failure::new(
            Exit::Failed,
            "STRANGE_ANSWER",
            format!("what answers at {} does not speak as an engine does ({error})", self.base),
            "look whether --api or http.listen names a helixmq engine of this version",
        )
    }

    /// What a status and its problem document mean. Source: RFC 9457.
    fn refused(&self, path: &str, status: StatusCode, problem: &Value) -> Failure {
        let text =
            |name: &str| problem.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let (exit, hint) = match status.as_u16() {
            401 => (Exit::NotAllowed, "set HELIXMQ_TOKEN to the engine's token"),
            403 => (Exit::NotAllowed, "use a token that may do this"),
            404 => (Exit::NotFound, "look whether the name is written as it is listed"),
            429 => (Exit::Failed, "try again later"),
            507 => (Exit::Failed, "make room on the engine's disk, and try again"),
            502..=504 => (Exit::Unreachable, "look at GET /health for what is away, and try again"),
            500.. => (Exit::Failed, "look into the engine's log"),
            _ => (Exit::Failed, "correct what it names"),
        };
        let code = text("code").unwrap_or_else(|| format!("HTTP_{}", status.as_u16()));
        let message = text("detail").or_else(|| text("title")).unwrap_or_else(|| match exit {
            Exit::NotFound => format!("the engine at {} does not know {path}", self.base),
            _ => format!("the engine at {} answers {status} to {path}", self.base),
        });
        Failure::new(exit, code, message, text("hint").unwrap_or_else(|| hint.to_owned()))
    }
}

/// With port 0 the engine writes down which one it was given, and takes that away when it stops.
fn not_running(config: &Config) -> Failure {
    let message = format!(
        "no engine of this configuration runs: it would write its address into {}",
        config.data_directory.display()
    );
    Failure::new(Exit::Unreachable, UNREACHABLE, message, START_ONE)
}

fn pairs(query: &Query) -> impl Iterator<Item = (&str, &str)> {
    query.iter().map(|(name, value)| (*name, value.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::Output;

    fn client(url: &str) -> Result<Client, Failure> {
        let api = Some(url.to_owned());
        Client::new(&Context { config: None, api, output: Output::new(false), plugins: None })
    }

    #[test]
    fn a_problem_becomes_its_exit_code_and_keeps_its_words() {
        let client = client("http://127.0.0.1:1/").unwrap();
        assert_eq!(client.base, "http://127.0.0.1:1");
        let check = |status: u16, problem: Value| client.refused("/x", StatusCode::from_u16(status).unwrap(), &problem);
        for (status, exit) in [(401, 6), (403, 6), (404, 5), (400, 1), (409, 1), (500, 1), (502, 4), (503, 4), (507, 1)]
        {
            assert_eq!(check(status, Value::Null).exit().code(), exit, "{status}");
        }
        let said =
            check(404, json!({"title": "Not Found", "detail": "there is no queue \"a\"", "code": "QUEUE_NOT_FOUND"}));
        assert_eq!(said.to_json()["error"]["code"], "QUEUE_NOT_FOUND");
        assert_eq!(said.message(), "there is no queue \"a\"");
        assert_eq!(check(404, Value::Null).message(), "the engine at http://127.0.0.1:1 does not know /x");
    }

    #[test]
    fn refuses_what_is_not_a_url_of_an_engine() {
        for url in ["", "127.0.0.1:7061", "ftp://a", "http://", "http://a?b"] {
            assert_eq!(client(url).unwrap_err().exit(), Exit::Usage, "{url:?}");
        }
        for url in ["http://[::1]:7061", "https://mq.example.com/prefix"] {
            client(url).unwrap();
        }
    }
}
