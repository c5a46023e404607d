//! The command line as people and programs meet it: the built binary, its exit codes, and what it prints where.

mod configuration;
mod documented;
mod engine;
mod help;
mod messages;
mod plugins;
mod sandbox;
mod usage;
