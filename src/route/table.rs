//! All routes, grouped by source: the first route of a source, in the order of the file, that takes a message has it.

use std::{collections::BTreeMap, sync::Arc};

use super::{Order, Pattern, Route, Source};
use crate::message::{Address, Message};

/// The routes in force. Replaced as a whole when the configuration changes.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    by_source: BTreeMap<Address, Vec<Arc<Route>>>,
}

/// Why routes do not make a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Rename one of them.
    #[error("two routes are called {0:?}")]
    SameName(Arc<str>),
    /// Give them the same group, or let them read different topics.
    #[error("routes {0:?} and {1:?} read the same topic by different groups; routes of one topic share one group")]
    DifferentGroups(Arc<str>, Arc<str>),
    /// Reorder or drop it.
    #[error("route {later:?} never gets a message: {earlier:?}, before it, takes everything from {source_address}")]
    Unreachable {
        /// Takes all.
        earlier: Arc<str>,
        /// Gets none.
        later: Arc<str>,
        /// Of this source.
        source_address: Address,
    },
    /// Use one order for all of them.
    #[error("routes {0:?} and {1:?} share a source; either both or neither may keep order by partition")]
    MixedPartitionOrder(Arc<str>, Arc<str>),
    /// Use one kind of delivery for all of them: their progress is committed together.
    #[error("routes {0:?} and {1:?} share a source; either both or neither may be transactional")]
    MixedDelivery(Arc<str>, Arc<str>),
}

impl RouteTable {
    /// Joins routes, in the order of the file.
    ///
    /// # Errors
    /// Every conflict between two routes.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<TableError>> {
        let mut errors = Vec::new();
        let mut table = Self::default();
        let mut names = std::collections::BTreeSet::new();
        for route in routes {
            if !names.insert(Arc::clone(&route.name)) {
                errors.push(TableError::SameName(Arc::clone(&route.name)));
            }
            let beside = table.by_source.entry(route.source.address.clone()).or_default();
            for earlier in beside.iter() {
                errors.extend(conflict(earlier, &route));
            }
            beside.push(Arc::new(route));
        }
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    /// The route that takes this message from this source; `None` where none does.
    #[must_use]
    pub fn find(&self, source: &Address, message: &Message) -> Option<&Arc<Route>> {
        self.of(source).iter().find(|route| route.matches.takes(message))
    }

    /// The routes of one source, in the order in which they are asked.
    #[must_use]
    pub fn of(&self, source: &Address) -> &[Arc<Route>] {
        self.by_source.get(source).map_or(&[], Vec::as_slice)
    }

    /// The routes that get what is published to an address: those of the source of that name, else of the first whose name
    /// is a pattern that matches it. Groups of their own may read it besides.
    #[must_use]
    pub fn reading(&self, address: &Address) -> &[Arc<Route>] {
        let matches = |source: &Address| {
            source.kind == address.kind
                && source.name.contains(['*', '#'])
                && source.name.parse::<Pattern>().is_ok_and(|pattern| pattern.matches(&address.name))
        };
        let by_pattern = || self.by_source.iter().find(|(source, _)| matches(source)).map(|(_, routes)| routes);
        self.by_source.get(address).or_else(by_pattern).map_or(&[], Vec::as_slice)
    }

    /// Every source with its routes.
    pub fn sources(&self) -> impl Iterator<Item = (&Source, &[Arc<Route>])> {
        self.by_source.values().filter_map(|routes| routes.first().map(|first| (&first.source, routes.as_slice())))
    }

    /// Every route.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_source.values().flatten()
    }
}

fn conflict(earlier: &Route, later: &Route) -> Option<TableError> {
    let names = || (Arc::clone(&earlier.name), Arc::clone(&later.name));
    if earlier.source.group != later.source.group {
        let (earlier, later) = names();
        return Some(TableError::DifferentGroups(earlier, later));
    }
    if earlier.matches.takes_all() {
        let (earlier, later_name) = names();
        return Some(TableError::Unreachable {
            earlier,
            later: later_name,
            source_address: later.source.address.clone(),
        });
    }
    if (earlier.order == Order::Partition) != (later.order == Order::Partition) {
        let (earlier, later) = names();
        return Some(TableError::MixedPartitionOrder(earlier, later));
    }
    if earlier.delivery != later.delivery {
        let (earlier, later) = names();
        return Some(TableError::MixedDelivery(earlier, later));
    }
    None
}
