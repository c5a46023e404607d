//! Takes messages and answers when the broker has confirmed them: one by one, or line by line in confirmed batches.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::{
    Context,
    body::{self, Held, Part, Refused},
    lines::{Line, Lines},
    params::{self, Params},
    problem::Problem,
};
use crate::{
    broker::PublishError,
    codec::json,
    message::{Address, Headers, Kind, Message, Text, UnixMs, header as own, now_ms},
    telemetry::metrics,
};

/// Most messages that are published as one. Source: the batch of the engine.
const BATCH_MAX: usize = 256;
/// Most bytes of lines that are published as one.
const BATCH_BYTES_MAX: usize = 4 << 20;

const NDJSON: &str = "application/x-ndjson";

/// `POST /v1/messaging/tasks/{queue}`
pub(super) async fn task(
    State(context): State<Context>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    publish(context, Kind::Queue, path, request).await
}

/// `POST /v1/messaging/events/{topic}`
pub(super) async fn event(
    State(context): State<Context>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    publish(context, Kind::Topic, path, request).await
}

async fn publish(
    context: Context,
    kind: Kind,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let asked = Asked::read(&context, kind, path, &request);
    let (asked, by_line) = match asked {
        Ok(asked) => asked,
        Err(problem) => return body::refuse(request, problem).await,
    };
    if by_line {
        return Answers::begin(context, asked, request).await;
    }
    let bytes = match body::whole(&context, request, asked.document_bytes_max()).await {
        Ok(bytes) => bytes,
        Err(refused) => return refused.answer().await,
    };
    match one(&context, &asked, bytes).await {
        Ok(id) => (StatusCode::ACCEPTED, Json(json!({ "id": id }))).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn one(context: &Context, asked: &Asked, bytes: Vec<u8>) -> Result<String, Problem> {
    let message = asked.message(bytes.into(), now_ms())?;
    let id = message.id.to_string();
    match asked.publish(context, vec![Arc::new(message)]).await.first() {
        None => Ok(id),
        Some((_, error)) => Err(error.into()),
    }
}

/// What one request wants published, and where.
#[derive(Debug)]
struct Asked {
    to: Address,
    /// Given as bare payloads: what they have in common.
    bare: Option<Bare>,
    message_bytes_max: usize,
}

/// What all bare payloads of a request have in common.
#[derive(Debug)]
struct Bare {
    kind: Text,
    key: Option<Bytes>,
    headers: Headers,
    content_type: Option<Text>,
}

impl Asked {
    /// Also whether the body is read line by line.
    fn read(
        context: &Context,
        kind: Kind,
        path: Result<Path<String>, PathRejection>,
        request: &Request,
    ) -> Result<(Self, bool), Problem> {
        if context.hub().is_stopping() {
            return Err(Problem::stopping());
        }
        let to = Address::checked(kind, &params::name(path)?)?;
        let params = Params::read(request.uri(), &["raw", "type", "key"], &["header"])?;
        let media = media_type(request.headers())?;
        let by_line = matches!(
            media.as_deref(),
            Some(NDJSON | "application/ndjson" | "application/jsonl" | "application/x-jsonlines")
        );
        let bare = if params.flag("raw")? {
            let content_type = if by_line { None } else { request.headers().get(header::CONTENT_TYPE) };
            Some(Bare::read(&params, content_type.and_then(|value| value.to_str().ok()))?)
        } else {
            if let Some(name) = ["type", "key", "header"].into_iter().find(|name| params.get(name).is_some()) {
                let detail = format!("{name:?} goes with raw=true; without it the message says so itself");
                return Err(Problem::invalid(detail));
            }
            None
        };
        let message_bytes_max = context.hub().broker().capabilities().message_bytes_max;
        Ok((Self { to, bare, message_bytes_max }, by_line))
    }

    /// How long the text of one message may be.
    fn document_bytes_max(&self) -> usize {
        match self.bare {
            Some(_) => self.message_bytes_max,
            None => json::document_bytes_max(self.message_bytes_max),
        }
    }

    fn message(&self, bytes: Bytes, now: UnixMs) -> Result<Message, Problem> {
        let Some(bare) = &self.bare else {
            let read = json::read(&bytes, self.to.kind, now, self.message_bytes_max)?;
            metrics().priority_clamped.inc_by(u64::from(read.priority_clamped));
            metrics().publisher_headers_dropped.inc_by(read.headers_dropped as u64);
            return Ok(read.message);
        };
        let mut message = Message::new(bare.kind.clone(), bytes, now);
        message.key.clone_from(&bare.key);
        message.headers.clone_from(&bare.headers);
        message.content_type.clone_from(&bare.content_type);
        if message.size() > self.message_bytes_max {
            let (bytes, max) = (message.size(), self.message_bytes_max);
            return Err(Problem::too_large(format!("the message takes {bytes} bytes, at most {max} are allowed")));
        }
        Ok(message)
    }

    /// Publishes, counts, and gives what was not confirmed, by place.
    async fn publish(&self, context: &Context, messages: Vec<Arc<Message>>) -> Vec<(usize, PublishError)> {
        let broker = context.hub().broker();
        let count = messages.len();
        let failures = match broker.publish(&self.to, messages).await {
            Ok(()) => Vec::new(),
            Err(failures) => failures.0,
        };
        let confirmed = count.saturating_sub(failures.len());
        if confirmed > 0 {
            metrics()
                .published
                .with_label_values(&[&*broker.name_of(&self.to), &self.to.to_string()])
                .inc_by(confirmed as u64);
        }
        for (_, error) in &failures {
            metrics().publish_failures.with_label_values(&[&*broker.name_of(&self.to), error.code().as_str()]).inc();
        }
        failures
    }
}

impl Bare {
    fn read(params: &Params, content_type: Option<&str>) -> Result<Self, Problem> {
        let short = |name: &str, text: &str| {
            if text.len() > json::SHORT_BYTES_MAX {
                return Err(Problem::invalid(format!(
                    "{name:?} takes {} bytes; at most {} are allowed",
                    text.len(),
                    json::SHORT_BYTES_MAX
                )));
            }
            Ok(Text::from(text))
        };
        let mut headers = Headers::default();
        for header in params.all("header") {
            let Some((name, value)) = header.split_once('=') else {
                return Err(Problem::invalid(format!("\"header\" is {header:?}; write NAME=VALUE")));
            };
            if own::is_own(name) {
                metrics().publisher_headers_dropped.inc();
            } else {
                headers.append(name, value);
            }
        }
        headers.check().map_err(|error| Problem::too_large(error.to_string()))?;
        Ok(Self {
            kind: params.get("type").map_or(Ok(Text::default()), |kind| short("type", kind))?,
            key: params.get("key").map(|key| Bytes::copy_from_slice(key.as_bytes())),
            headers,
            content_type: content_type.map(|media| short("Content-Type", media)).transpose()?,
        })
    }
}

/// The media type without its parameters; the body must be as it says.
fn media_type(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let detail = format!("bodies are taken as they are, not in Content-Encoding {encoding:?}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "MEDIA_TYPE_REFUSED", detail));
    }
    let Some(media) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let media = media.to_str().map_err(|_| Problem::invalid("the Content-Type is not text"))?;
    Ok(media.split(';').next().map(|media| media.trim().to_ascii_lowercase()))
}

/// Answers line by line. A batch is what is there, at most [`BATCH_MAX`] lines: it is published when it is answered.
struct Answers {
    context: Context,
    asked: Asked,
    body: BodyDataStream,
    lines: Lines,
    /// Nothing more will come of the body.
    ended: bool,
}

/// What became of one line: its id, or why there is none.
type Answer = (u64, Result<String, Problem>);

impl Answers {
    async fn begin(context: Context, asked: Asked, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let lines = Lines::new(asked.document_bytes_max(), Held::none(&context));
        let mut answers = Self { context, asked, body: body.into_data_stream(), lines, ended: false };
        // The first batch decides the status: where there is no such queue, no line has a chance.
        let first = answers.next().await.unwrap_or_default();
        let missing = first.iter().find_map(|(_, answer)| match answer {
            Err(problem) if problem.status == StatusCode::NOT_FOUND => Some(problem.clone()),
            _ => None,
        });
        if let Some(problem) = missing {
            return Refused::new(problem, parts.headers, answers.body).answer().await;
        }
        let rest = stream::unfold(answers, |mut answers| async move {
            let batch = answers.next().await?;
            Some((Ok::<_, std::convert::Infallible>(render(batch)), answers))
        });
        let first = stream::iter([Ok(render(first))]);
        let body = Body::from_stream(futures_util::StreamExt::chain(first, rest));
        (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, NDJSON)], body).into_response()
    }

    /// The next batch, published; `None`: there is none.
    async fn next(&mut self) -> Option<Vec<Answer>> {
        loop {
            let lines = self.batch();
            if !lines.is_empty() {
                return Some(self.publish(lines).await);
            }
            if self.ended {
                return None;
            }
            match body::next(&self.context, &mut self.body).await {
                Ok(Part::Bytes(bytes)) => self.lines.push(bytes),
                Ok(Part::End) => {
                    self.ended = true;
                    let last: Vec<Line> = self.lines.last().into_iter().collect();
                    if !last.is_empty() {
                        return Some(self.publish(last).await);
                    }
                }
                Err(problem) => {
                    self.ended = true;
                    return Some(vec![(self.lines.next_number(), Err(problem))]);
                }
            }
        }
    }

    /// The lines that are there.
    fn batch(&mut self) -> Vec<Line> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
            let Some(line) = self.lines.next() else { break };
            bytes += line.bytes.as_ref().map_or(0, Bytes::len);
            lines.push(line);
        }
        lines
    }

    async fn publish(&mut self, lines: Vec<Line>) -> Vec<Answer> {
        let now = now_ms();
        let mut messages = Vec::with_capacity(lines.len());
        // Where in the answers each message has its place.
        let mut places = Vec::with_capacity(lines.len());
        let mut answers: Vec<Answer> = Vec::with_capacity(lines.len());
        for Line { number, bytes } in lines {
            let message = bytes.and_then(|bytes| self.asked.message(bytes, now));
            let id = message.map(|message| {
                let id = message.id.to_string();
                places.push(answers.len());
                messages.push(Arc::new(message));
                id
            });
            answers.push((number, id));
        }
        if !messages.is_empty() {
            for (place, error) in self.asked.publish(&self.context, messages).await {
                if let Some((_, answer)) = places.get(place).and_then(|place| answers.get_mut(*place)) {
                    *answer = Err((&error).into());
                }
            }
        }
        answers
    }
}

fn render(answers: Vec<Answer>) -> Bytes {
    let mut text = String::with_capacity(answers.len() * 64);
    for (line, answer) in answers {
        let answer: Value = match answer {
            Ok(id) => json!({ "line": line, "id": id }),
            Err(problem) => json!({ "line": line, "error": { "code": problem.code, "message": problem.detail } }),
        };
        text.push_str(&answer.to_string());
        text.push('\n');
    }
    text.into()
}
