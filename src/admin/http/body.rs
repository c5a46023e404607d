//! Request bodies, bounded in size, in memory and in time.

use std::{sync::Arc, time::Duration};

use axum::{
    body::BodyDataStream,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Context, problem::Problem};

/// What of a refused body is still read, so that the client, which may be writing, gets to read the answer.
const DISCARD_BYTES_MAX: usize = 256 << 20;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes of a body that are held, taken from what all bodies together may hold.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) from: Arc<Semaphore>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    pub(super) fn none(context: &Context) -> Self {
        Self { from: Arc::clone(&context.api.buffers), permit: None }
    }

    /// Holds this many, if there is room.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Problem> {
        let wanted = bytes.div_ceil(1024);
        let missing = wanted.saturating_sub(self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if missing == 0 {
            return Ok(());
        }
        let more =
            u32::try_from(missing).ok().and_then(|missing| Arc::clone(&self.from).try_acquire_many_owned(missing).ok());
        let Some(more) = more else {
            return Err(Problem::busy("too many large messages are being received; send it again in a moment"));
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }

    pub(super) fn release(&mut self) {
        self.permit = None;
    }
}

/// What came of a body.
pub(super) enum Part {
    /// More of it.
    Bytes(Bytes),
    /// All of it was read.
    End,
}

/// The next part of a body.
///
/// # Errors
/// The client sent nothing for too long, is gone, or the engine stops.
pub(super) async fn next(context: &Context, body: &mut BodyDataStream) -> Result<Part, Problem> {
    let part = tokio::select! {
        biased;
        part = timeout(context.api.options.idle_timeout, body.next()) => part,
        () = context.stop.cancelled() => return Err(Problem::stopping()),
    };
    match part {
        Ok(None) => Ok(Part::End),
        Ok(Some(Ok(bytes))) => Ok(Part::Bytes(bytes)),
        Ok(Some(Err(error))) => Err(Problem::invalid(format!("the body ended before its end: {error}"))),
        Err(_) => {
            let waited = context.api.options.idle_timeout;
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "TIMEOUT", format!("nothing came for {waited:?}")))
        }
    }
}

/// The whole body, if it is no longer than this.
pub(super) async fn whole(context: &Context, request: Request, bytes_max: usize) -> Result<Vec<u8>, Refused> {
    let bytes_max = bytes_max.min(context.api.options.body_bytes_max);
    let too_large = || Problem::too_large(format!("the body is longer than the {bytes_max} bytes that are allowed"));
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    if length(&parts.headers).is_some_and(|length| length > bytes_max as u64) {
        return Err(Refused::new(too_large(), parts.headers, body));
    }
    let mut held = Held::none(context);
    let mut bytes = Vec::new();
    loop {
        let problem = match next(context, &mut body).await {
            Ok(Part::End) => return Ok(bytes),
            Ok(Part::Bytes(more)) if bytes.len() + more.len() > bytes_max => too_large(),
            Ok(Part::Bytes(more)) => match held.grow_to(bytes.len() + more.len()) {
                Ok(()) => {
                    bytes.extend_from_slice(&more);
                    continue;
                }
                Err(problem) => problem,
            },
            Err(problem) => problem,
        };
        return Err(Refused::new(problem, parts.headers, body));
    }
}

/// A refusal, and what of the body was not read.
pub(super) struct Refused {
    problem: Problem,
    headers: HeaderMap,
    body: BodyDataStream,
}

impl Refused {
    pub(super) fn new(problem: Problem, headers: HeaderMap, body: BodyDataStream) -> Self {
        Self { problem, headers, body }
    }

    /// Reads on for a while, so that the client gets to read the answer, and answers.
    pub(super) async fn answer(mut self) -> Response {
        let mut left = DISCARD_BYTES_MAX;
        let waits = self.headers.contains_key(header::EXPECT);
        let hopeless = length(&self.headers).is_some_and(|length| length > DISCARD_BYTES_MAX as u64);
        if !waits && !hopeless && self.problem.status != StatusCode::REQUEST_TIMEOUT {
            let discard = async {
                while let Some(Ok(bytes)) = self.body.next().await {
                    left = left.saturating_sub(bytes.len());
                    if left == 0 {
                        break;
                    }
                }
            };
            // Whether it was read to its end or not: the answer is the same.
            timeout(DISCARD_TIME_MAX, discard).await.ok();
        }
        self.problem.into_response()
    }
}

/// Answers without having looked at the body.
pub(super) async fn refuse(request: Request, problem: Problem) -> Response {
    let (parts, body) = request.into_parts();
    Refused::new(problem, parts.headers, body.into_data_stream()).answer().await
}

/// The length that the client announced.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
