//! Dead letters, read where they lie: in the queues and topics that routes send them to.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Context,
    params::{self, Params},
    problem::Problem,
};
use crate::{
    broker::{Broker, BrokerError, Browse, BrowseAt, Browsed, Page, Start},
    codec::{json::View, time::rfc3339},
    hub::Hub,
    message::{Address, Kind, Message, ReasonCode, UnixMs},
    route::Pattern,
    settle::DeadLetter,
};

/// Letters of a page where nothing is said.
const LIMIT: usize = 50;
/// Most letters of a page.
const LIMIT_MAX: usize = 1000;
/// Letters looked at in one go.
const PAGE: usize = 256;
/// Longest text in a list, in characters; the record has all of it.
const TEXT_MAX: usize = 240;

/// `GET /v1/messaging/dlq`
pub(super) async fn list(State(context): State<Context>, uri: Uri) -> Result<Json<Value>, Problem> {
    let params = Params::read(&uri, &["limit", "cursor", "route", "handler", "reason", "type", "since", "until"], &[])?;
    let limit = params.number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT);
    let filter = Filter::read(&params)?;
    let hub = context.hub();
    let kept = Kept::of(hub);
    let begin = params.get("cursor").map_or(Ok((0, earliest())), |cursor| kept.resume(cursor))?;
    let mut items = Vec::new();
    let mut resume = None;
    let mut more = false;
    kept.each(begin, |place, page_at, index, letter| {
        if !filter.takes(letter) {
            return true;
        }
        if items.len() == limit {
            more = true;
            return false;
        }
        items.push(summary(kept.at(place), &letter.message));
        if items.len() == limit {
            resume = Some((place, page_at.clone(), index + 1));
        }
        true
    })
    .await?;
    let next_cursor = match resume.filter(|_| more) {
        None => None,
        Some((place, at, count)) => Some(kept.cursor(place, at, count).await?),
    };
    let total = kept.count(&filter).await?;
    Ok(Json(json!({ "count": items.len(), "total": total, "items": items, "next_cursor": next_cursor })))
}

/// `GET /v1/messaging/dlq/{id}`
pub(super) async fn show(
    State(context): State<Context>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Params::read(&uri, &[], &[])?;
    let id = params::name(path)?;
    let kept = Kept::of(context.hub());
    let mut found = None;
    kept.each((0, earliest()), |place, _, _, letter| {
        if letter.message.id.to_string() == id {
            found = Some(record(kept.at(place), &letter.message));
        }
        found.is_none()
    })
    .await?;
    match found {
        Some(record) => {
            let text = record.map_err(|error| Problem::internal(error.to_string()))?;
            Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
        }
        None => Err(Problem::not_found(format!("no dead letter has the id {id:?}"))),
    }
}

/// Where dead letters are kept.
struct Kept<'a> {
    broker: &'a dyn Broker,
    addresses: Vec<Address>,
}

fn earliest() -> BrowseAt {
    BrowseAt::Start(Start::Earliest)
}

impl<'a> Kept<'a> {
    fn of(hub: &'a Hub) -> Self {
        let settings = hub.settings();
        let of_routes = settings.routes.iter().map(|route| route.dead_letter.clone());
        let mut addresses: Vec<Address> = of_routes.filter(|address| *address != settings.dead_letter).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.insert(0, settings.dead_letter);
        Self { broker: &**hub.broker(), addresses }
    }

    fn at(&self, place: usize) -> Option<&Address> {
        self.addresses.get(place)
    }

    /// Shows every letter from a place on, the oldest of each address first, until `visit` has seen enough. It is told
    /// which address, where the page began and how far into the page the letter is.
    async fn each(
        &self,
        (first, mut at): (usize, BrowseAt),
        mut visit: impl FnMut(usize, &BrowseAt, usize, &Browsed) -> bool,
    ) -> Result<(), Problem> {
        for (place, address) in self.addresses.iter().enumerate().skip(first) {
            loop {
                let page = self.page(address, at.clone(), PAGE).await?;
                for (index, letter) in page.items.iter().enumerate() {
                    if !visit(place, &at, index, letter) {
                        return Ok(());
                    }
                }
                if page.items.len() < PAGE {
                    break;
                }
                at = BrowseAt::Cursor(page.next);
                // Others may be waiting while many letters are looked through.
                tokio::task::yield_now().await;
            }
            at = earliest();
        }
        Ok(())
    }

    /// How many there are that a filter takes.
    async fn count(&self, filter: &Filter) -> Result<u64, Problem> {
        let mut total = 0;
        if filter.takes_all() {
            for address in &self.addresses {
                total += self.page(address, earliest(), 1).await?.total;
            }
        } else {
            self.each((0, earliest()), |_, _, _, letter| {
                total += u64::from(filter.takes(letter));
                true
            })
            .await?;
        }
        Ok(total)
    }

    async fn page(&self, address: &Address, at: BrowseAt, limit: usize) -> Result<Page, Problem> {
        match self.broker.browse(Browse { from: address.clone(), at, limit }).await {
            // One that is made when it is first needed.
            Err(BrokerError::NotFound(_)) => Ok(Page::default()),
            page => Ok(page?),
        }
    }

    /// Names the place behind `count` letters of the page that begins at `at`.
    async fn cursor(&self, place: usize, at: BrowseAt, count: usize) -> Result<String, Problem> {
        let Some(address) = self.at(place) else { return Err(Problem::internal("a page of no address")) };
        let page = self.page(address, at, count).await?;
        Ok(format!("{address}~{}", page.next))
    }

    fn resume(&self, cursor: &str) -> Result<(usize, BrowseAt), Problem> {
        let wrong = || Problem::invalid(format!("\"cursor\" is {cursor:?}; give the next_cursor of an earlier answer"));
        let (address, at) = cursor.split_once('~').ok_or_else(wrong)?;
        let address: Address = address.parse().map_err(|_| wrong())?;
        let place = self.addresses.iter().position(|other| *other == address).ok_or_else(wrong)?;
        Ok((place, BrowseAt::Cursor(at.to_owned())))
    }
}

/// Which letters are wanted.
struct Filter {
    route: Option<String>,
    handler: Option<String>,
    reason: Option<ReasonCode>,
    kind: Option<Pattern>,
    since: Option<UnixMs>,
    until: Option<UnixMs>,
}

impl Filter {
    fn read(params: &Params) -> Result<Self, Problem> {
        let reason = params.get("reason").map(|text| {
            text.parse().map_err(|_| {
                let known = ReasonCode::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
                Problem::invalid(format!("\"reason\" is {text:?}; it is one of {known}"))
            })
        });
        let kind =
            params.get("type").map(|text| text.parse().map_err(|error| Problem::invalid(format!("\"type\": {error}"))));
        Ok(Self {
            route: params.get("route").map(str::to_owned),
            handler: params.get("handler").map(str::to_owned),
            reason: reason.transpose()?,
            kind: kind.transpose()?,
            since: params.time("since")?,
            until: params.time("until")?,
        })
    }

    fn takes_all(&self) -> bool {
        let Self { route, handler, reason, kind, since, until } = self;
        route.is_none() && handler.is_none() && reason.is_none() && kind.is_none() && since.is_none() && until.is_none()
    }

    fn takes(&self, letter: &Browsed) -> bool {
        let message = &letter.message;
        if self.takes_all() {
            return true;
        }
        if self.kind.as_ref().is_some_and(|kind| !kind.matches(&message.kind)) {
            return false;
        }
        let record = DeadLetter::read(message);
        let record = record.as_ref();
        let at = record.map_or(message.timestamp, |record| record.at);
        let handler = record.and_then(|record| record.handler.as_ref()).map(|handler| &handler.name);
        (self.route.is_none() || self.route.as_ref() == record.and_then(|record| record.route.as_ref()))
            && (self.handler.is_none() || self.handler.as_ref() == handler)
            && (self.reason.is_none() || self.reason == record.map(|record| record.code))
            && self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
    }
}

/// What a list shows of a letter. What others put there has no record: only the message is known.
fn summary(kept_in: Option<&Address>, letter: &Message) -> Value {
    let record = DeadLetter::read(letter);
    Value::Object(shown(kept_in, letter, record.as_ref(), TEXT_MAX))
}

fn shown(
    kept_in: Option<&Address>,
    letter: &Message,
    record: Option<&DeadLetter>,
    text_max: usize,
) -> Map<String, Value> {
    let mut shown = Map::new();
    let mut show = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    show("id", json!(letter.id.to_string()));
    show("type", json!(letter.kind));
    show("kept_in", json!(kept_in));
    show("at", json!(record.and_then(|record| rfc3339(record.at))));
    show("reason", json!(record.map(|record| record.code)));
    show("text", json!(record.map(|record| record.text.chars().take(text_max).collect::<String>())));
    show("handler_code", json!(record.and_then(|record| record.handler_code.as_ref())));
    show("route", json!(record.and_then(|record| record.route.as_ref())));
    show(
        "handler",
        json!(record.and_then(|record| record.handler.as_ref()).map(|handler| json!({
            "name": handler.name,
            "version": handler.version,
            "digest": Some(&handler.digest).filter(|digest| !digest.is_empty()),
        }))),
    );
    show("broker", json!(record.map(|record| &record.broker)));
    show("source", json!(record.map(|record| &record.source)));
    show("partition", json!(record.and_then(|record| record.partition)));
    show("offset", json!(record.and_then(|record| record.offset)));
    show("attempts_count", json!(record.and_then(|record| record.attempts.last()).map_or(0, |last| last.attempt)));
    show("trace_id", json!(letter.trace_id()));
    show("payload_bytes", json!(letter.payload.len()));
    shown
}

/// Everything about a letter.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    shown: Map<String, Value>,
    attempts: Vec<Value>,
    backtrace: Option<&'a str>,
    /// As it was received. Not by way of a `Value`, which would not keep the payload's text.
    message: View<'a>,
}

fn record(kept_in: Option<&Address>, letter: &Message) -> serde_json::Result<Vec<u8>> {
    let record = DeadLetter::read(letter);
    let attempts = record.as_ref().map_or(&[][..], |record| &record.attempts);
    let attempts = attempts.iter().map(|attempt| {
        json!({ "attempt": attempt.attempt, "at": rfc3339(attempt.at), "code": attempt.code, "text": attempt.text })
    });
    let original = DeadLetter::unwrap(letter);
    serde_json::to_vec(&Record {
        shown: shown(kept_in, letter, record.as_ref(), usize::MAX),
        attempts: attempts.collect(),
        backtrace: record.as_ref().and_then(|record| record.backtrace.as_deref()),
        message: View { message: &original, shape: Kind::Queue, position: None, exact: true },
    })
}
