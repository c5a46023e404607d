//! The hub as people and programs see it. Nothing here handles a message or decides what becomes of one.

pub mod http;
