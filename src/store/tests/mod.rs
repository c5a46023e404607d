//! The store as those who build on it use it, on real files.

mod rows;
mod support;
