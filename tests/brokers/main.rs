//! One suite for every messaging system: what a broker promises, each promise a sentence and a test.
//!
//! The guarantees are written once, against the seam. A system is a type in a file of its own, and a line below.
//! What a system does not claim it lists, and the list is compared with what it says of itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod browsing;
mod declaring;
mod durable;
mod embedded;
mod forgetful;
mod guarded;
mod interrupting;
#[cfg(feature = "real-brokers")]
mod kafka;
mod queueless;
mod queues;
#[cfg(feature = "real-brokers")]
mod rabbitmq;
#[cfg(feature = "real-brokers")]
mod redis;
mod settling;
mod system;
mod topics;

/// Makes a test of each guarantee for one system. `paused`: time moves on when nothing else can happen.
macro_rules! conformance {
    ($module:ident, $system:expr, paused = $paused:tt) => {
        mod $module {
            conformance! { @each $system, (start_paused = $paused),
                queues::keeps_the_order_of_arrival,
                queues::delivers_higher_priorities_first,
                queues::counts_a_priority_above_the_highest_as_the_highest,
                queues::does_not_deliver_before_the_time,
                queues::wakes_who_waits_when_something_earlier_is_published,
                queues::delivers_what_has_expired_marked_by_its_time,
                queues::gives_a_batch_no_larger_than_asked_for,
                queues::rejects_what_does_not_fit_and_says_which,
                queues::bounds_a_queue_by_bytes,
                queues::drops_the_oldest_of_the_lowest_priority_where_told_to,
                queues::bounds_what_waits_for_its_time_as_well,
                queues::evicts_what_has_expired_at_the_head_of_each_priority,
                queues::evicts_the_oldest_of_the_lowest_priority_beyond_the_limit,
                queues::evicts_nothing_where_nothing_has_to_leave,
                queues::gives_each_message_to_one_of_the_competing_readers,
                queues::wakes_every_reader_that_waits_when_there_is_enough,
                settling::accepts_many_and_forgets_them,
                settling::redelivers_what_was_dropped_unsettled_as_the_same_attempt,
                settling::gives_back_what_a_settlement_leaves_out,
                settling::redelivers_what_was_released_after_its_time_as_the_same_attempt,
                settling::redelivers_after_the_delay_with_what_went_wrong,
                settling::delivers_what_came_back_ahead_of_what_is_new,
                settling::counts_every_attempt_exactly,
                settling::counts_an_attempt_made_without_giving_it_back,
                settling::forgets_a_dead_letter_and_counts_it,
                settling::has_no_more_out_than_its_prefetch,
                settling::redelivers_as_the_next_attempt_when_a_lease_runs_out,
                settling::wakes_who_waits_when_a_redelivery_is_due_earlier,
                settling::sees_a_lease_run_out_that_began_while_it_waited,
                settling::ends_each_lease_in_its_own_time,
                settling::hands_to_another_what_a_stuck_reader_holds,
                settling::keeps_leases_while_there_are_signs_of_life,
                settling::settles_what_outlives_its_subscription,
                declaring::claims_what_it_says_it_claims,
                declaring::declares_the_same_twice,
                declaring::names_every_setting_that_differs,
                declaring::refuses_settings_that_cannot_work,
                declaring::says_what_is_not_there,
                declaring::makes_what_is_not_there_where_told_to,
                declaring::refuses_one_that_is_too_large_and_publishes_the_others,
                topics::puts_a_key_where_kafka_would,
                topics::keeps_the_order_within_each_partition,
                topics::spreads_messages_without_a_key,
                topics::lets_no_partition_wait_for_another_to_run_dry,
                topics::wakes_who_waits_for_any_of_its_partitions,
                topics::gives_every_group_every_message,
                topics::shares_partitions_among_the_members_of_a_group,
                topics::passes_partitions_on_when_a_member_leaves,
                topics::keeps_a_partition_from_its_next_reader_until_what_is_out_has_ended,
                topics::resumes_where_the_group_left_and_keeps_its_attempts,
                topics::does_not_hold_up_a_partition_for_one_that_waits,
                topics::begins_where_a_new_group_asks,
                topics::forgets_a_group_without_a_name_with_its_reader,
                topics::forgets_messages_by_age,
                topics::forgets_messages_by_size,
                browsing::shows_all_pages_and_follows,
                browsing::keeps_a_cursor_while_messages_are_consumed,
                browsing::shows_a_queue_in_the_order_of_arrival_wherever_messages_are,
                browsing::refuses_a_cursor_that_is_none,
                interrupting::loses_nothing_when_waiting_is_cancelled,
                interrupting::passes_a_wake_up_on_when_the_woken_is_cancelled,
                interrupting::ends_everything_when_it_is_closed,
                durable::keeps_everything_over_a_restart,
                durable::uses_up_the_attempt_of_what_was_out_when_it_was_killed,
                durable::tries_what_may_have_killed_it_apart,
                durable::reads_a_backlog_that_is_larger_than_its_memory,
            }
            // Threads that really run at once.
            conformance! { @each $system, (flavor = "multi_thread", worker_threads = 4),
                interrupting::accepts_each_message_once_under_stress,
                interrupting::what_was_sent_is_accepted_or_pending_after_an_interruption,
                interrupting::loses_nothing_when_leases_run_out_under_stress,
            }
        }
    };
    (@each $system:expr, $how:tt, $($group:ident::$name:ident,)+) => {
        $(conformance! { @one $system, $how, $group, $name })+
    };
    (@one $system:expr, ($($how:tt)*), $group:ident, $name:ident) => {
        #[tokio::test($($how)*)]
        async fn $name() {
            crate::$group::$name(&$system).await;
        }
    };
}

conformance!(embedded_memory, crate::embedded::Memory, paused = true);
conformance!(embedded_disk, crate::embedded::Disk::default(), paused = false);
conformance!(embedded_with_guard, crate::guarded::Memory, paused = true);
conformance!(embedded_with_ledger, crate::forgetful::WithLedger::default(), paused = false);
#[cfg(feature = "real-brokers")]
conformance!(rabbitmq_classic, crate::rabbitmq::Server::classic(), paused = false);
#[cfg(feature = "real-brokers")]
conformance!(rabbitmq_quorum, crate::rabbitmq::Server::quorum(), paused = false);
#[cfg(feature = "real-brokers")]
conformance!(kafka_classic, crate::kafka::Server::classic(), paused = false);
#[cfg(feature = "real-brokers")]
conformance!(kafka_consumer, crate::kafka::Server::consumer(), paused = false);
#[cfg(feature = "real-brokers")]
conformance!(redis_streams, crate::redis::Server::new(), paused = false);
