//! What routes must agree on with each other and with the rest.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    path::Path,
    sync::Arc,
};

use super::{Draft, OnKafka, ROUTES_MAX, Said, on_kafka};
use crate::{
    broker::{Aside, Start},
    config::{finding::Origin, section::Reader, words::join},
    message::Address,
    route::{RouteTable, Source, TableError},
};

/// Something that the routes of one source have in common.
struct Common<T> {
    /// Its key, below the route.
    key: &'static str,
    /// In front of where another route says otherwise.
    otherwise: &'static str,
    /// What to do.
    fix: &'static str,
    said: fn(&Draft) -> &Said<T>,
    set: fn(&mut Source, T),
}

const START: Common<Start> = Common {
    key: "start",
    otherwise: "another route of this topic begins elsewhere",
    fix: "routes of one topic share one start",
    said: |draft| &draft.start,
    set: |source, start| source.start = start,
};
const WAIT: Common<Aside> = Common {
    key: "retry.wait",
    otherwise: "retries of another route of this source wait elsewhere",
    fix: "routes of one source share one retry.wait",
    said: |draft| &draft.wait,
    set: |source, aside| source.aside = aside,
};

/// Joins the routes; every conflict between two of them is a mistake of the later.
pub(in crate::config) fn join_all(reader: &mut Reader<'_>, mut drafts: Vec<Draft>, kafka: &OnKafka) -> RouteTable {
    if let Some(draft) = drafts.get(ROUTES_MAX) {
        let problem = format!("there are more than {ROUTES_MAX} routes");
        reader.refuse(draft.origin.clone(), &draft.path, problem, "join some: a route's `match` may name many types");
        drafts.truncate(ROUTES_MAX);
    }
    share(reader, &mut drafts, &START);
    share(reader, &mut drafts, &WAIT);
    on_kafka::refuse_shared(reader, &drafts, kafka);
    let mut first: BTreeMap<Arc<str>, Origin> = BTreeMap::new();
    let mut joined = Vec::new();
    let mut places: BTreeMap<Arc<str>, (String, Origin)> = BTreeMap::new();
    for draft in drafts {
        let name = Arc::clone(&draft.route.name);
        if let Some(earlier) = first.get(&name) {
            let problem = format!("{:?} is the name of another route: {earlier}", &*name);
            reader.refuse(draft.origin, &join(&draft.path, "name"), problem, "give each route a name of its own");
            continue;
        }
        first.insert(Arc::clone(&name), draft.origin.clone());
        if draft.sound {
            places.insert(name, (draft.path, draft.origin));
            joined.push(draft.route);
        }
    }
    match RouteTable::new(joined) {
        Ok(table) => table,
        Err(conflicts) => {
            let mut said = BTreeSet::new();
            for conflict in conflicts {
                let (later, fix) = match &conflict {
                    TableError::SameName(name) => (name, "give each route a name of its own"),
                    TableError::DifferentGroups(_, later) => (later, "name the same `group` in both, or in neither"),
                    TableError::Unreachable { later, .. } => {
                        (later, "put it before the other, or give the other a `match`")
                    }
                    TableError::MixedDelivery(_, later) => (later, "use one `delivery` for all routes of the source"),
                    TableError::MixedPartitionOrder(_, later) => {
                        (later, "use one `order` for all routes of the source")
                    }
                };
                // One word about a route is enough: more of them say the same.
                if !said.insert(Arc::clone(later)) {
                    continue;
                }
                if let Some((path, origin)) = places.get(later) {
                    reader.refuse(origin.clone(), path, conflict.to_string(), fix);
                }
            }
            RouteTable::default()
        }
    }
}

/// What only some routes of a source name holds for all of them; those that name it must agree.
fn share<T: Copy + PartialEq>(reader: &mut Reader<'_>, drafts: &mut [Draft], common: &Common<T>) {
    let mut named: BTreeMap<Address, (T, Origin)> = BTreeMap::new();
    for draft in drafts.iter() {
        let Some((value, origin)) = (common.said)(draft) else { continue };
        match named.entry(draft.route.source.address.clone()) {
            btree_map::Entry::Vacant(vacant) => drop(vacant.insert((*value, origin.clone()))),
            btree_map::Entry::Occupied(other) if other.get().0 == *value => {}
            btree_map::Entry::Occupied(other) => {
                let problem = format!("{}: {}", common.otherwise, other.get().1);
                reader.refuse(origin.clone(), &format!("{}.{}", draft.path, common.key), problem, common.fix);
            }
        }
    }
    for draft in drafts {
        if let Some((value, _)) = named.get(&draft.route.source.address) {
            (common.set)(&mut draft.route.source, *value);
        }
    }
}

/// Says which handlers are not there yet: their messages wait.
pub(in crate::config) fn look_for_handlers(reader: &mut Reader<'_>, drafts: &[Draft], directory: &Path) {
    if !directory.is_dir() {
        return;
    }
    let mut said = BTreeSet::new();
    for draft in drafts {
        let file = directory.join(format!("{}.wasm", draft.route.handler));
        if !file.exists() && said.insert(&draft.route.handler) {
            let problem = format!("there is no {}; messages of this route wait until there is", file.display());
            reader.warn(
                draft.origin.clone(),
                &join(&draft.path, "handler"),
                problem,
                "copy the plugin there under that name",
            );
        }
    }
}

/// Refuses each address on a system that is not configured, or that `refused` says why and what to do.
pub(in crate::config) fn require_systems(
    reader: &mut Reader<'_>,
    drafts: &[Draft],
    refused: &dyn Fn(&Address) -> Option<(String, String)>,
) {
    for draft in drafts {
        for address in draft.addresses() {
            if let Some((problem, fix)) = refused(address) {
                reader.refuse(draft.origin.clone(), &draft.path, problem, fix);
            }
        }
    }
}

/// Refuses each address that a route names and that is not declared; `broker` is the section that declares it.
pub(in crate::config) fn require_declared(
    reader: &mut Reader<'_>,
    drafts: &[Draft],
    broker: &str,
    declared: &dyn Fn(&Address) -> bool,
) {
    for draft in drafts {
        for address in draft.addresses().into_iter().filter(|address| !declared(address)) {
            let problem = format!("{address} is not declared, and {broker}.auto_create is false");
            let fix = format!("add it under {broker}.{}s, or set {broker}.auto_create to true", address.kind);
            reader.refuse(draft.origin.clone(), &draft.path, problem, fix);
        }
    }
}
