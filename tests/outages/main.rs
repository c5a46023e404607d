//! The whole engine, as its own binary between real systems, while these come and go: every message is counted, at the far
//! end, by clients that know nothing of the engine. `docs/operations.md` has a table of what people see meanwhile; it names
//! each of these.
//!
//! Not libtest's harness: it would run as many at a time as there are cores, and these do little but wait ([`runner`]).
//! [`yard`] has the servers, [`site`] an engine between them, [`load`] publishes, [`far`] reads, [`verdict`] counts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells how it went"
)]

#[path = "../support/mod.rs"]
mod support;

mod draining;
mod far;
mod flapping;
mod full;
mod load;
mod runner;
mod singly;
mod site;
mod together;
mod verdict;
mod yard;

/// Each with its name, as `docs/operations.md` has it.
macro_rules! scenarios {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |yard| Box::pin($module::$name(yard)))),*]
    };
}

fn main() -> std::process::ExitCode {
    runner::run(scenarios![
        singly::rabbitmq_is_killed,
        singly::kafka_is_killed,
        singly::redis_is_killed,
        singly::rabbitmq_is_frozen,
        singly::kafka_is_frozen,
        singly::redis_is_frozen,
        singly::rabbitmq_is_cut_off,
        singly::kafka_is_cut_off,
        singly::redis_is_cut_off,
        together::rabbitmq_and_redis_are_cut_off,
        together::rabbitmq_and_kafka_are_killed_and_frozen,
        together::rabbitmq_and_kafka_are_cut_off_and_nothing_stands_in_for_them,
        flapping::rabbitmq_comes_and_goes,
        flapping::kafka_comes_and_goes,
        flapping::redis_comes_and_goes,
        full::the_spool_is_full,
        full::the_disk_of_the_spool_is_full,
        draining::the_engine_is_killed_while_the_spool_drains,
        draining::what_waits_in_memory_is_lost_with_the_engine_and_that_is_noticed,
    ])
}
