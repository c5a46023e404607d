//! The store as those who build on it use it, on real files.

mod bad_input;
mod failing;
mod files;
mod model;
mod rows;
mod support;
mod tools;
