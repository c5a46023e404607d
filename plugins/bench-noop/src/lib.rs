//! A handler of tasks and events that answers *done* without looking at them: what is left is the cost of the call itself.

#[cfg(target_family = "wasm")]
#[global_allocator]
static ALLOCATOR: bump_alloc::BumpAlloc = bump_alloc::BumpAlloc::new();

#[cfg(target_family = "wasm")]
mod component {
    #![allow(missing_docs, reason = "the bindings are generated; wit/ documents them")]

    wit_bindgen::generate!({
        path: "../../wit",
        inline: r"
            package helix:bench;
            world both {
                include helix:messaging/task@0.1.0;
                include helix:messaging/event@0.1.0;
            }
        ",
        world: "helix:bench/both",
        generate_all,
    });

    use exports::helix::messaging::{event_handler, task_handler};
    use helix::messaging::types::{Event, Failure, OutboundMessage, Task};

    struct Noop;

    impl task_handler::Guest for Noop {
        fn handle(_task: Task) -> Result<Vec<OutboundMessage>, Failure> {
            Ok(Vec::new())
        }
    }

    impl event_handler::Guest for Noop {
        fn handle(_event: Event) -> Result<Vec<OutboundMessage>, Failure> {
            Ok(Vec::new())
        }
    }

    export!(Noop);
}
