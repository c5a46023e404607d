//! helixmq: a message processing engine whose handlers are sandboxed WebAssembly components.
pub mod admin;
pub mod broker;
pub mod cli;
pub mod codec;
pub mod config;
pub mod handler;
pub mod hub;
pub mod message;
pub mod route;
pub mod settle;
pub mod store;
pub mod telemetry;
