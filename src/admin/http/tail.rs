//! Shows what is in a queue or topic, and what comes, without consuming it. Between the messages it says when it cannot
//! read on and when it can again, in lines that have no `id`.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Context,
    params::{Params, time},
    problem::Problem,
};
use crate::{
    broker::{Browse, BrowseAt, Browsed, Page, Start},
    codec::json::write_line,
    message::{Address, Kind, UnixMs},
};

/// How often to look whether something came.
const POLL: Duration = Duration::from_millis(100);
/// How often to look whether what cannot be read now is back.
const RETRY: Duration = Duration::from_secs(1);
/// Messages looked at in one go.
const PAGE: usize = 256;
/// Bytes after which what was read is sent.
const CHUNK_BYTES: usize = 64 * 1024;

/// `GET /v1/messaging/tail`
pub(super) async fn tail(State(context): State<Context>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["queue", "topic", "from", "limit", "follow"], &[])?;
    let from = params.source()?;
    let follow = params.flag("follow")?;
    let left = params.number("limit", 0..=u64::MAX)?;
    let start = match params.get("from") {
        None if follow => Start::Latest,
        None | Some("beginning") => Start::Earliest,
        Some("now") => Start::Latest,
        Some(text) => Start::Time(
            time("from", text)
                .map_err(|problem| Problem::invalid(format!("{}; or \"beginning\" or \"now\"", problem.detail)))?,
        ),
    };
    let Ok(permit) = std::sync::Arc::clone(&context.api.streams).try_acquire_owned() else {
        return Err(Problem::busy("as many look on as may; try again when one of them has ended"));
    };
    // What a queue holds is not found by time: it is passed over.
    let not_before = if let (Kind::Queue, Start::Time(at)) = (from.kind, start) { at } else { 0 };
    let mut tail = Tail {
        context,
        from,
        at: BrowseAt::Start(start),
        follow,
        left,
        bounded: None,
        not_before,
        read: VecDeque::new(),
        lost: None,
        has_failed: false,
        _permit: permit,
    };
    // Where there is nothing to read from, the status says so.
    tail.read_on().await?;
    let lines = stream::unfold(Some(tail), |tail| async move {
        let mut tail = tail?;
        let chunk = tail.next().await?;
        Some((Ok::<_, Infallible>(chunk), Some(tail)))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// What there is to send next.
enum More {
    /// Messages, which have been read.
    Messages,
    /// A line that says something else.
    Notice(Value),
    /// Nothing: this is the end.
    Nothing,
}

/// Whether waiting helps. It was there when this began: it is away, being connected anew, or being made again.
fn may_pass(problem: &Problem) -> bool {
    !matches!(problem.status, StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED)
}

fn said(problem: &Problem) -> Value {
    json!({ "code": problem.code, "message": problem.detail })
}

struct Tail {
    context: Context,
    from: Address,
    at: BrowseAt,
    follow: bool,
    /// Lines that may still be sent; `None`: any number.
    left: Option<u64>,
    /// Not following: messages that may still be read, so that it ends where others publish faster than we read.
    bounded: Option<u64>,
    not_before: UnixMs,
    read: VecDeque<Browsed>,
    /// The code of why it cannot be read now, which has been said.
    lost: Option<&'static str>,
    /// It cannot be read on, which has been said.
    has_failed: bool,
    _permit: OwnedSemaphorePermit,
}

impl Tail {
    /// The next lines; `None`: there are no more.
    async fn next(&mut self) -> Option<Bytes> {
        let mut chunk = Vec::new();
        loop {
            while self.left != Some(0) && chunk.len() < CHUNK_BYTES {
                let Some(item) = self.read.pop_front() else { break };
                if item.message.timestamp < self.not_before {
                    continue;
                }
                if let Err(error) = write_line(&item.message, self.from.kind, item.position, &mut chunk) {
                    tracing::error!("a message cannot be shown: {error}");
                }
                self.left = self.left.map(|left| left - 1);
            }
            if !chunk.is_empty() {
                return Some(chunk.into());
            }
            if self.left == Some(0) || self.context.stop.is_cancelled() {
                return None;
            }
            match self.more().await {
                More::Messages => {}
                More::Notice(notice) => return Some(format!("{notice}\n").into()),
                More::Nothing => return None,
            }
        }
    }

    /// Reads on, waiting where nothing is there.
    async fn more(&mut self) -> More {
        loop {
            if self.has_failed || !self.follow && self.bounded == Some(0) {
                return More::Nothing;
            }
            let pause = match self.read_on().await {
                Ok(()) if self.lost.take().is_some() => return More::Notice(json!({ "resumed": true })),
                Ok(()) if !self.read.is_empty() => return More::Messages,
                Ok(()) if !self.follow => return More::Nothing,
                Ok(()) => POLL,
                // The engine is closing it.
                Err(_) if self.context.stop.is_cancelled() => return More::Nothing,
                Err(problem) if self.follow && may_pass(&problem) => {
                    if self.lost.replace(problem.code) != Some(problem.code) {
                        return More::Notice(json!({ "interrupted": said(&problem) }));
                    }
                    RETRY
                }
                Err(problem) => {
                    self.has_failed = true;
                    return More::Notice(json!({ "error": said(&problem) }));
                }
            };
            tokio::select! {
                () = self.context.stop.cancelled() => return More::Nothing,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn read_on(&mut self) -> Result<(), Problem> {
        let limit = self
            .bounded
            .map_or(PAGE, |bounded| usize::try_from(bounded).map_or(PAGE, |bounded| bounded.clamp(1, PAGE)));
        let request = Browse { from: self.from.clone(), at: self.at.clone(), limit };
        let Page { items, next, total } = self.context.hub().broker().browse(request).await?;
        self.at = BrowseAt::Cursor(next);
        if !self.follow {
            self.bounded = Some(self.bounded.unwrap_or(total).saturating_sub(items.len() as u64));
        }
        self.read.extend(items);
        Ok(())
    }
}
