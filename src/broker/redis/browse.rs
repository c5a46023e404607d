//! A queue or topic, page by page, without consuming from it.

use std::sync::Arc;

use redis::{RedisError, Value};

use super::{
    errors,
    link::Up,
    place::Place,
    settings::Settings,
    wire::{self, EntryId},
};
use crate::{
    broker::{BrokerError, Browse, BrowseAt, Browsed, Page, Start},
    message::{Address, Kind, Position},
};

/// Entries that are asked for at a time.
const TOGETHER: usize = 500;

/// One page.
///
/// # Errors
/// As [`Broker::browse`](crate::broker::Broker::browse).
pub(super) async fn page(up: &Up, place: &Place, settings: &Settings, request: &Browse) -> Result<Page, BrokerError> {
    let wrong = |error: RedisError| errors::seam(settings, &error);
    let streams: Vec<String> = place.streams().iter().map(|name| place.key(name)).collect();
    let (total, last) = ends(up, &streams).await.map_err(wrong)?;
    let begin = match &request.at {
        BrowseAt::Cursor(text) => EntryId::parse(text.as_bytes())
            .ok_or_else(|| BrokerError::Invalid(format!("{text:?} is not a cursor of {}", place.address)))?,
        BrowseAt::Start(Start::Latest) => last,
        BrowseAt::Start(Start::Offset(offset)) if place.address.kind == Kind::Topic => EntryId { ms: *offset, seq: 0 },
        BrowseAt::Start(_) => EntryId::default(),
    };
    let first = match &request.at {
        BrowseAt::Start(Start::Time(at)) if place.address.kind == Kind::Topic => *at,
        _ => 0,
    };
    let (mut items, mut next) = (Vec::new(), begin);
    while items.len() < request.limit {
        let count = (request.limit - items.len()).min(TOGETHER);
        let found = behind(up, &streams, next, count, &place.address).await.map_err(wrong)?;
        let is_last = found.len() < count;
        for (id, item) in found {
            next = id;
            if item.message.timestamp >= first {
                items.push(item);
            }
        }
        if is_last {
            break;
        }
    }
    Ok(Page { items, next: next.to_string(), total })
}

/// How many there are, and the last id that was given.
async fn ends(up: &Up, streams: &[String]) -> Result<(u64, EntryId), RedisError> {
    let mut pipeline = redis::pipe();
    for key in streams {
        pipeline.cmd("XLEN").arg(key);
        pipeline.cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    }
    let (mut total, mut last) = (0, EntryId::default());
    for answer in up.ask_all(&pipeline).await? {
        match errors::of(answer)? {
            Value::Int(count) => total += u64::try_from(count).unwrap_or(0),
            Value::Array(entries) => {
                last = entries.into_iter().filter_map(entry).map(|(id, _)| id).fold(last, Ord::max);
            }
            _ => {}
        }
    }
    Ok((total, last))
}

/// The next of all streams together, in the order of arrival.
async fn behind(
    up: &Up,
    streams: &[String],
    after: EntryId,
    count: usize,
    address: &Address,
) -> Result<Vec<(EntryId, Browsed)>, RedisError> {
    let mut pipeline = redis::pipe();
    for key in streams {
        pipeline.cmd("XRANGE").arg(key).arg(format!("({after}")).arg("+").arg("COUNT").arg(count);
    }
    let mut found = Vec::new();
    for answer in up.ask_all(&pipeline).await? {
        if let Value::Array(entries) = errors::of(answer)? {
            found.extend(entries.into_iter().filter_map(entry));
        }
    }
    found.sort_by_key(|(id, _)| *id);
    found.truncate(count);
    let shown = |(id, fields): (EntryId, Vec<Value>)| {
        let message = Arc::new(wire::incoming_of(&fields, &address.name, id));
        let position =
            (address.kind == Kind::Topic).then(|| Position { partition: 0, offset: id.ms.saturating_sub(1) });
        (id, Browsed { message, position })
    };
    Ok(found.into_iter().map(shown).collect())
}

fn entry(value: Value) -> Option<(EntryId, Vec<Value>)> {
    let Value::Array(parts) = value else { return None };
    let [Value::BulkString(id), Value::Array(fields)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
    Some((EntryId::parse(&id)?, fields))
}
