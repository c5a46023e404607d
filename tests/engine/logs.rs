//! What guests and engine wrote to the log, for tests that look.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

/// One line of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) plugin: String,
    pub(crate) route: String,
    pub(crate) text: String,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// From now on the lines of guests are kept. One subscriber a process: called by every test that looks.
pub(crate) fn keep() {
    static KEPT: OnceLock<()> = OnceLock::new();
    KEPT.get_or_init(|| tracing_subscriber::registry().with(Keep).init());
}

/// What guests of one route wrote.
pub(crate) fn of_route(route: &str) -> Vec<Line> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|line| line.route == route).cloned().collect()
}

struct Keep;

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "helixmq::guest" {
            let mut line = Line::default();
            event.record(&mut line);
            LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "plugin" => self.plugin = value.to_owned(),
            "route" => self.route = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        }
    }
}
