//! From where to which handler by what policy. Pure data and pure look-ups (Invariant 5).
//!
//! Start at [`Route`], then [`RouteTable::find`].

mod brakes;
mod pattern;
mod table;

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

pub use brakes::{CrashBudget, OutageBrake, Watchdog};
pub use pattern::{Pattern, PatternError};
pub use table::{RouteTable, TableError};

use crate::{
    broker::{Aside, Start, topology},
    handler::{Isolation, Limits, Terms},
    message::{Address, Message},
    settle::RetryPolicy,
};

/// One line of the operator's plan: which messages go to which handler, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// Unique; shown in logs, metrics and dead letters. The same as in its terms.
    pub name: Arc<str>,
    /// Where its messages are read.
    pub source: Source,
    /// Which of them it takes.
    pub matches: Match,
    /// Who handles them.
    pub handler: Arc<str>,
    /// What is kept in order.
    pub order: Order,
    /// What a crash can repeat.
    pub delivery: Delivery,
    /// How many messages may be in handlers at a time: each is a lane with a thread and an instance of its own.
    pub concurrency: usize,
    /// What the handler may cost and where it may publish.
    #[serde(flatten)]
    pub terms: Arc<Terms>,
    /// How often and when it is tried again.
    pub retry: RetryPolicy,
    /// Where its dead letters go.
    pub dead_letter: Address,
    /// Failed calls in a row, each a trap, timeout or exhausted memory, after which the route slows to a probe.
    pub crash_budget: CrashBudget,
    /// When it slows to a probe because different messages fail alike.
    pub outage: OutageBrake,
}

impl Route {
    /// A route with the defaults of the configuration, and a handler of its own name: everything from a queue or topic, one
    /// at a time, without order, to no destination; dead letters to the standard queue. Change what should be otherwise.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, source: Address) -> Self {
        let name = name.into();
        Self {
            source: Source {
                address: source,
                group: topology::GROUP.into(),
                start: Start::default(),
                aside: Aside::default(),
            },
            matches: Match::default(),
            handler: Arc::clone(&name),
            order: Order::default(),
            delivery: Delivery::default(),
            concurrency: 1,
            terms: Arc::new(Terms {
                route: Arc::clone(&name),
                isolation: Isolation::default(),
                limits: Limits::default(),
                destinations: BTreeMap::new(),
                may_reply: false,
            }),
            retry: RetryPolicy::default(),
            dead_letter: Address::queue(topology::DEAD_LETTER_QUEUE),
            crash_budget: CrashBudget::default(),
            outage: OutageBrake::default(),
            name,
        }
    }
}

/// Where a route's messages are read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// Queue or topic.
    pub address: Address,
    /// Topics: the group whose progress is shared; the routes of one source share one group.
    pub group: Arc<str>,
    /// Topics: where a new group begins.
    #[serde(skip)]
    pub start: Start,
    /// Topics of systems that do not delay by themselves: where what is to be tried again later waits. The routes of one
    /// source share it.
    #[serde(skip)]
    pub aside: Aside,
}

/// Which messages of the source a route takes: all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Match {
    /// Any of these; empty: any type.
    pub types: Vec<Pattern>,
    /// Each header must be there and its value match.
    pub headers: BTreeMap<String, Pattern>,
}

/// What is kept in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Nothing: fastest.
    #[default]
    None,
    /// Messages with one key. A retrying message holds those behind it with its key, and nobody else.
    Key,
    /// Everything in one partition of a topic, or in a whole queue. A retrying message holds all behind it.
    Partition,
}

/// What a crash can repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// A message whose results were published and that was not settled yet is handled again, and its results are there
    /// twice.
    #[default]
    AtLeastOnce,
    /// Nothing that readers of committed messages see: results, dead letters and progress are one transaction. The handler
    /// itself may still run twice.
    Transactional,
}

impl Match {
    /// Whether it takes everything, so that no message need be looked at.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.types.is_empty() && self.headers.is_empty()
    }

    /// Whether it takes this message.
    #[must_use]
    pub fn takes(&self, message: &Message) -> bool {
        (self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(&message.kind)))
            && self.headers.iter().all(|(name, pattern)| {
                message.headers.iter().any(|(other, value)| other == name && pattern.matches(value))
            })
    }

    /// Why it does not take this message; `None` where it does. For people.
    #[must_use]
    pub fn objection(&self, message: &Message) -> Option<String> {
        if !self.types.is_empty() && !self.types.iter().any(|pattern| pattern.matches(&message.kind)) {
            let wanted: Vec<_> = self.types.iter().map(ToString::to_string).collect();
            return Some(format!("type {:?} matches none of {}", message.kind, wanted.join(", ")));
        }
        self.headers.iter().find_map(|(name, pattern)| match message.headers.get(name) {
            None => Some(format!("header {name:?} is missing")),
            Some(_) if message.headers.iter().any(|(other, value)| other == name && pattern.matches(value)) => None,
            Some(value) => Some(format!("header {name:?} is {value:?}, wanted {pattern}")),
        })
    }
}
