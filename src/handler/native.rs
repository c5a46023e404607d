//! Handlers that are Rust functions, for users of the library crate. They pass the same checks as components, and a
//! panic costs one attempt; what they cannot be is interrupted: a timeout is noticed only when they return.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{Call, Handler, LaneContext, OpenError, Runner};
use crate::message::{FailureKind, HandlerIdentity, Kind, Outcome};

/// A function from a call to an outcome.
pub struct Native<F> {
    identity: HandlerIdentity,
    run: F,
}

impl<F> Native<F>
where
    F: Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
{
    /// A handler of that name. Work that waits may use `tokio::runtime::Handle::block_on`: lanes are threads of their
    /// own, outside the runtime.
    pub fn new(name: impl Into<String>, run: F) -> Arc<Self> {
        let identity = HandlerIdentity { name: name.into(), version: None, digest: String::new() };
        Arc::new(Self { identity, run })
    }
}

impl<F> fmt::Debug for Native<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl<F> Handler for Native<F>
where
    F: Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
{
    fn identity(&self) -> &HandlerIdentity {
        &self.identity
    }

    fn handles(&self, _: Kind) -> bool {
        true
    }

    fn open(self: Arc<Self>, lane: &LaneContext, _: Kind) -> Result<Box<dyn Runner>, OpenError> {
        Ok(Box::new(NativeRunner { handler: self, lane: lane.clone() }))
    }
}

struct NativeRunner<F> {
    handler: Arc<Native<F>>,
    lane: LaneContext,
}

impl<F> Runner for NativeRunner<F>
where
    F: Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
{
    fn handle(&mut self, call: &Call<'_>) -> Outcome {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.handler.run)(call)))
            .unwrap_or_else(|panic| Outcome::failed(FailureKind::Trapped, panic_text(&*panic)));
        match outcome {
            Outcome::Done(results) if !results.is_empty() => {
                self.lane.terms.accept(results).map_or_else(|failed| failed, Outcome::Done)
            }
            outcome => outcome,
        }
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a message"))
}
