//! The store as those who build on it use it, on real files.

mod bad_input;
mod failing;
mod rows;
mod support;
mod tools;
