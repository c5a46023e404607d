//! A topic, page by page: all partitions together in the order of publishing, read from disk.

use std::{collections::VecDeque, sync::Arc};

use super::{DiskTopic, log::Log, unusable};
use crate::{
    broker::{BrokerError, Browse, BrowseAt, Browsed, Page, Position, Start},
    message::UnixMs,
    store::{PartitionId, Reader, StoreError, StoredRecord},
};

/// What is read of a partition at a time.
const CHUNK_MAX: usize = 256;
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// What of one partition is still to be shown.
#[derive(Debug)]
struct Head {
    id: PartitionId,
    next: u64,
    end: u64,
    ahead: VecDeque<StoredRecord>,
}

impl DiskTopic {
    /// Gives what is on disk. A cursor names the next offset of each partition: `4.0.17`.
    pub(in crate::broker::embedded) async fn browse(self: &Arc<Self>, request: &Browse) -> Result<Page, BrokerError> {
        self.retain();
        let from = match &request.at {
            BrowseAt::Start(start) => self.starts(*start).await?,
            BrowseAt::Cursor(text) => self.cursor(text)?,
        };
        let (heads, total): (Vec<Head>, u64) = {
            let state = self.lock();
            // What retention took since the last page is passed over.
            let head = |(from, log): (u64, &Log)| {
                let next = from.clamp(log.start(), log.end());
                Head { id: log.id, next, end: log.end(), ahead: VecDeque::new() }
            };
            (from.into_iter().zip(&state.logs).map(head).collect(), state.kept())
        };
        let limit = request.limit.max(1);
        let read = self.store.read_async(move |reader| show(reader, heads, limit)).await;
        let (items, heads) = read.map_err(|error| unusable(Arc::new(error)))?;
        let next = heads.iter().map(|head| head.next.to_string()).collect::<Vec<_>>().join(".");
        Ok(Page { items, next, total })
    }

    /// Where a reader begins that begins there, in each partition.
    pub(super) async fn starts(&self, start: Start) -> Result<Vec<u64>, BrokerError> {
        let bounds: Vec<(PartitionId, u64, u64)> =
            self.lock().logs.iter().map(|log| (log.id, log.start(), log.end())).collect();
        Ok(match start {
            Start::Earliest => bounds.into_iter().map(|(_, start, _)| start).collect(),
            Start::Latest => bounds.into_iter().map(|(_, _, end)| end).collect(),
            Start::Offset(offset) => bounds.into_iter().map(|(_, start, end)| offset.clamp(start, end)).collect(),
            Start::Time(at) => self.starts_at(bounds, at).await?,
        })
    }

    /// Where a message first has a timestamp that is not before `at`; timestamps are the publishers', and need not ascend.
    async fn starts_at(&self, bounds: Vec<(PartitionId, u64, u64)>, at: UnixMs) -> Result<Vec<u64>, BrokerError> {
        // The disk counts to half of what a timestamp can be.
        let at = at.min(u64::MAX >> 1);
        let read = self.store.read_async(move |reader| {
            let since = |(id, start, end)| {
                let found = reader.log_since(id, start, at)?;
                // What is not visible yet is not found either.
                Ok((end, found.filter(|offset| *offset < end)))
            };
            bounds.into_iter().map(since).collect::<Result<Vec<_>, StoreError>>()
        });
        let read = read.await.map_err(|error| unusable(Arc::new(error)))?;
        let state = self.lock();
        // What has become visible since.
        let newest = |((end, found), log): ((u64, Option<u64>), &Log)| {
            found.or_else(|| log.newest_since(end, at)).unwrap_or_else(|| log.end())
        };
        Ok(read.into_iter().zip(&state.logs).map(newest).collect())
    }

    fn cursor(&self, text: &str) -> Result<Vec<u64>, BrokerError> {
        let offsets: Option<Vec<u64>> = text.split('.').map(|offset| offset.parse().ok()).collect();
        let state = self.lock();
        let offsets = offsets.filter(|offsets| offsets.len() == state.logs.len());
        offsets.ok_or_else(|| BrokerError::Invalid(format!("{text:?} is not a cursor of {}", state.address)))
    }
}

/// The next of all partitions together, in the order of publishing.
fn show(reader: &Reader<'_>, mut heads: Vec<Head>, limit: usize) -> Result<(Vec<Browsed>, Vec<Head>), StoreError> {
    let mut items = Vec::new();
    while items.len() < limit {
        for head in &mut heads {
            head.fill(reader)?;
        }
        let first = |head: &Head| head.ahead.front().map(|record| record.appended);
        let firsts = heads.iter().enumerate().filter_map(|(place, head)| first(head).map(|appended| (appended, place)));
        let Some((_, place)) = firsts.min() else { break };
        let Some(head) = heads.get_mut(place) else { break };
        let Some(record) = head.ahead.pop_front() else { break };
        head.next = record.offset + 1;
        let position = Some(Position { partition: place as u32, offset: record.offset });
        items.push(Browsed { message: record.message, position });
    }
    Ok((items, heads))
}

impl Head {
    fn fill(&mut self, reader: &Reader<'_>) -> Result<(), StoreError> {
        if self.ahead.is_empty() && self.next < self.end {
            self.ahead = reader.log_page(self.id, self.next, self.end, CHUNK_MAX, CHUNK_BYTES_MAX)?.into();
            if self.ahead.is_empty() {
                // No message has these offsets.
                self.next = self.end;
            }
        }
        Ok(())
    }
}
