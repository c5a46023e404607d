//! Handlers that are WebAssembly components: the only place that knows wasmtime. In: a file. Out: a [`Handler`] whose
//! walls hold whatever the guest does. When files are looked at and which version serves is not decided here.
//!
//! A file passes, in this order: [`inspect`] (is it a handler, without compiling it), [`compile`] (in a child process
//! with limits, or from the cache), [`version`] (link, instantiate once, `init`). A lane then runs it by [`runner`],
//! which arms [`clock`] and [`budget`]. [`host`] is what a guest may call.
//!
//! [`Handler`]: super::Handler

mod bindings;
mod budget;
mod clock;
mod compile;
mod engine;
mod host;
mod inspect;
mod runner;
mod stderr;
mod version;
mod views;

pub use compile::{COMPILE_VERB, CompileChild, run_compile_child};
pub use engine::ComponentEngine;
pub use inspect::{Inspected, LoadError, digest, inspect};
pub use version::{Component, Load};
