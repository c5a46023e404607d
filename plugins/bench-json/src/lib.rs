//! A handler of tasks and events that does the work of `bench-work` and returns its receipt as one message to `results`.

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
    use helix::messaging::types::{Event, Failure, Message, OutboundMessage, Rejection, Task};

    struct PriceOrder;

    impl task_handler::Guest for PriceOrder {
        fn handle(task: Task) -> Result<Vec<OutboundMessage>, Failure> {
            price(task.message)
        }
    }

    impl event_handler::Guest for PriceOrder {
        fn handle(event: Event) -> Result<Vec<OutboundMessage>, Failure> {
            price(event.message)
        }
    }

    fn price(message: Message) -> Result<Vec<OutboundMessage>, Failure> {
        match bench_work::price_order(&message.payload) {
            Ok(payload) => Ok(vec![OutboundMessage {
                destination: "results".to_owned(),
                type_: "order.priced".to_owned(),
                payload,
                content_type: Some("application/json".to_owned()),
                key: None,
                headers: Vec::new(),
                attributes: Vec::new(),
                correlation_id: message.correlation_id,
                reply_to: None,
            }]),
            Err(error) => Err(Failure::Reject(Rejection {
                reason: format!("not an order: {error}"),
                code: Some("BAD_ORDER".to_owned()),
            })),
        }
    }

    export!(PriceOrder);
}
