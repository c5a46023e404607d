//! A task handler that does the work of `bench-work` and returns its receipt as one message to `results`.

#[cfg(target_family = "wasm")]
#[global_allocator]
static ALLOCATOR: bump_alloc::BumpAlloc = bump_alloc::BumpAlloc::new();

#[cfg(target_family = "wasm")]
mod component {
    #![allow(missing_docs, reason = "the bindings are generated; wit/ documents them")]

    wit_bindgen::generate!({ path: "../../wit", world: "task", generate_all });

    use exports::helix::messaging::task_handler::{Failure, Guest, OutboundMessage, Task};
    use helix::messaging::types::Rejection;

    struct PriceOrder;

    impl Guest for PriceOrder {
        fn handle(task: Task) -> Result<Vec<OutboundMessage>, Failure> {
            let message = task.message;
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
    }

    export!(PriceOrder);
}
