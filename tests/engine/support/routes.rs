//! Routes, as tests write them.

use std::{sync::Arc, time::Duration};

use helixmq::{
    broker::{Aside, Start},
    handler::{Isolation, Limits, Terms},
    message::Address,
    route::{CrashBudget, Delivery, Match, Order, OutageBrake, Route, Source},
    settle::RetryPolicy,
};

use super::DEAD;

/// A route from a source to a handler, which may publish to `out`, is tried three times at once, and never braked.
pub(crate) fn route(source: Address, handler: &str) -> Route {
    let name: Arc<str> = format!("{}-{handler}", source.name).into();
    Route {
        name: Arc::clone(&name),
        source: Source { address: source, group: "engine".into(), start: Start::Earliest, aside: Aside::default() },
        matches: Match::default(),
        handler: handler.into(),
        order: Order::None,
        delivery: Delivery::default(),
        concurrency: 1,
        terms: Arc::new(Terms {
            route: name,
            isolation: Isolation::Instance,
            limits: Limits::default(),
            destinations: [("out".into(), Address::queue("out"))].into_iter().collect(),
            may_reply: false,
        }),
        retry: RetryPolicy {
            attempts_max: 3,
            delay: Duration::from_millis(10),
            factor: 1.0,
            delay_max: Duration::from_millis(10),
            jitter: 0.0,
        },
        dead_letter: Address::queue(DEAD),
        crash_budget: CrashBudget { failures_max: u32::MAX, ..CrashBudget::default() },
        outage: OutageBrake { failures_max: 0, ..OutageBrake::default() },
    }
}

/// A route from a queue.
pub(crate) fn from_queue(queue: &str, handler: &str) -> Route {
    route(Address::queue(queue), handler)
}

/// A route from a topic.
pub(crate) fn from_topic(topic: &str, handler: &str) -> Route {
    route(Address::topic(topic), handler)
}

/// What tests say of a route, in a chain.
pub(crate) trait RouteExt: Sized {
    fn named(self, name: &str) -> Self;
    fn ordered(self, order: Order) -> Self;
    fn lanes(self, concurrency: usize) -> Self;
    fn transactional(self) -> Self;
    fn attempts(self, attempts_max: u32) -> Self;
    fn limits(self, set: impl FnOnce(&mut Limits)) -> Self;
    fn terms(self, set: impl FnOnce(&mut Terms)) -> Self;
    fn types(self, patterns: &[&str]) -> Self;
    fn timeout(self, ms: u64) -> Self {
        self.limits(|limits| limits.timeout = Duration::from_millis(ms))
    }
    fn to(self, name: &str, address: Address) -> Self {
        self.terms(|terms| drop(terms.destinations.insert(name.into(), address)))
    }
    fn isolated(self, isolation: Isolation) -> Self {
        self.terms(|terms| terms.isolation = isolation)
    }
}

impl RouteExt for Route {
    fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self.terms(|terms| terms.route = name.into())
    }

    fn ordered(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    fn lanes(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    fn transactional(mut self) -> Self {
        self.delivery = Delivery::Transactional;
        self
    }

    fn attempts(mut self, attempts_max: u32) -> Self {
        self.retry.attempts_max = attempts_max;
        self
    }

    fn limits(self, set: impl FnOnce(&mut Limits)) -> Self {
        self.terms(|terms| set(&mut terms.limits))
    }

    fn terms(mut self, set: impl FnOnce(&mut Terms)) -> Self {
        set(Arc::make_mut(&mut self.terms));
        self
    }

    fn types(mut self, patterns: &[&str]) -> Self {
        self.matches.types = patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
        self
    }
}
