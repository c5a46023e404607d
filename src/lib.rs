//! helixmq: a message processing engine whose handlers are sandboxed WebAssembly components.
pub mod broker;
pub mod message;
