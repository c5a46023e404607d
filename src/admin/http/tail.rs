//! Shows what is in a queue or topic, and what comes, without consuming it.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
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
            if self.left == Some(0) || self.context.stop.is_cancelled() || !self.more().await {
                return None;
            }
        }
    }

    /// Reads on, waiting where nothing is there; `false`: this is the end.
    async fn more(&mut self) -> bool {
        loop {
            if !self.follow && self.bounded == Some(0) {
                return false;
            }
            match self.read_on().await {
                Ok(()) if !self.read.is_empty() => return true,
                Ok(()) if !self.follow => return false,
                Ok(()) => {}
                // It was there when this began: the engine is closing it.
                Err(_) => return false,
            }
            tokio::select! {
                () = self.context.stop.cancelled() => return false,
                () = tokio::time::sleep(POLL) => {}
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
