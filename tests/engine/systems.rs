//! Several systems at once: what an address says decides which has it, and one is exchanged while the others go on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use helixmq::{
    broker::{Broker, BrokerError, embedded},
    hub::{Exchange, ExchangedSystem, StartError},
    message::{Address, Outbound, Outcome, ReasonCode, Settlement},
};

use crate::support::*;

fn tap() -> Arc<Tap> {
    Arc::new(Tap::new(embedded::Settings { auto_create: true, ..embedded::Settings::default() }))
}

fn to(destination: &'static str) -> impl Fn(&helixmq::handler::Call<'_>) -> Outcome {
    move |call| {
        let result = Outbound { destination: destination.into(), message: message(text(call.message)) };
        Outcome::Done(vec![result])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_on_one_system_is_confirmed_before_its_message_on_another_is_settled() {
    let billing = tap();
    let route = route(Address::queue("work").on("billing"), "send").attempts(1000);
    let (engine, _) = Plan::new().native("send", to("out")).route(route).start_joined(&[("billing", &billing)]).await;
    let refused = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&refused);
    engine.broker.refuse(move |to, _| {
        seen.store(true, Ordering::SeqCst);
        *to == Address::queue("out")
    });
    billing.inner.publish(&Address::queue("work"), vec![Arc::new(message("one"))]).await.unwrap();
    eventually("the result was refused", || refused.load(Ordering::SeqCst)).await;
    let is_accepted = |passed: &Passed| matches!(passed, Passed::Settled(.., Settlement::Accept));
    assert!(!billing.ledger().iter().any(is_accepted), "nothing may be accepted while nothing is confirmed");
    engine.broker.recover();
    eventually("it was accepted", || billing.ledger().iter().any(is_accepted)).await;
    assert_eq!(engine.out(), ["one"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_that_is_not_there_is_named() {
    let (engine, joined) = Plan::new().start_joined(&[]).await;
    let there = Address::queue("work").on("billing");
    let failures = joined.publish(&there, vec![Arc::new(message("one"))]).await.unwrap_err();
    assert_eq!(failures.0[0].1.to_string(), "there is no billing:queue:work");
    assert_eq!(failures.0[0].1.code(), ReasonCode::QueueNotFound);
    engine.hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_is_exchanged_while_the_others_go_on() {
    let (before, after) = (tap(), tap());
    let of_billing = route(Address::queue("work").on("billing"), "send");
    let of_embedded = from_queue("other", "copy").to("copied", Address::queue("copied"));
    let plan = Plan::new().native("send", to("out")).native("copy", to("copied")).route(of_billing).route(of_embedded);
    let (engine, joined) = plan.start_joined(&[("billing", &before)]).await;
    before.inner.publish(&Address::queue("work"), vec![Arc::new(message("before"))]).await.unwrap();
    eventually("the first is handled", || engine.out() == ["before"]).await;

    let exchange = |after: Result<Arc<Tap>, BrokerError>, before: &Arc<Tap>| {
        let before = Arc::clone(before) as Arc<dyn Broker>;
        let after = async move { after.map(|tap| tap as Arc<dyn Broker>) };
        let system =
            ExchangedSystem::new("billing".into(), Some(Box::pin(after)), Some(Box::pin(async move { Ok(before) })));
        Some(Exchange { joined: Arc::clone(&joined), systems: vec![system] })
    };
    let refused = BrokerError::Refused { reason: "wrong password".into(), code: ReasonCode::AuthenticationFailed };
    let result = engine.hub.apply(engine.hub.settings(), exchange(Err(refused), &before)).await;
    assert!(matches!(&result, Err(StartError::Broker { broker, .. }) if broker == "billing"), "{result:?}");

    engine.hub.apply(engine.hub.settings(), exchange(Ok(Arc::clone(&after)), &before)).await.expect("exchanged");
    after.inner.publish(&Address::queue("work"), vec![Arc::new(message("after"))]).await.unwrap();
    engine.send_to_queue("other", [message("other")]).await;
    eventually("both are handled", || engine.out() == ["before", "after"] && engine.published("copied").len() == 1)
        .await;
    engine.hub.stop().await;
}
