//! A topic, page by page: all partitions together in the order of publishing.

use std::sync::Arc;

use super::state::{State, offset_of};
use crate::broker::{BrokerError, BrowseAt, Browsed, Page, Position};

/// A cursor names the next offset of each partition: `4.0.17`.
pub(super) fn browse(state: &State, at: &BrowseAt, limit: usize) -> Result<Page, BrokerError> {
    let mut next: Vec<u64> = match at {
        BrowseAt::Start(start) => state.logs.iter().map(|log| offset_of(log, *start)).collect(),
        BrowseAt::Cursor(text) => {
            let offsets: Option<Vec<u64>> = text.split('.').map(|offset| offset.parse().ok()).collect();
            let offsets = offsets.filter(|offsets| offsets.len() == state.logs.len());
            offsets.ok_or_else(|| BrokerError::Invalid(format!("{text:?} is not a cursor of {}", state.address)))?
        }
    };
    // What retention took since the last page is passed over.
    for (next, log) in next.iter_mut().zip(&state.logs) {
        *next = (*next).clamp(log.start(), log.end());
    }
    let mut items = Vec::new();
    while items.len() < limit.max(1) {
        let heads = next.iter().zip(&state.logs).enumerate();
        let heads = heads.filter_map(|(partition, (offset, log))| log.get(*offset).map(|entry| (partition, entry)));
        let Some((partition, entry)) = heads.min_by_key(|(_, entry)| entry.appended) else { break };
        let Some(offset) = next.get_mut(partition) else { break };
        let position = Some(Position { partition: partition as u32, offset: *offset });
        items.push(Browsed { message: Arc::clone(&entry.message), position });
        *offset += 1;
    }
    let next = next.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
    Ok(Page { items, next, total: state.kept() })
}
