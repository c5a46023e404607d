//! A circuit that nobody publishes through.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    super::{Fallback, Guarded},
    MAX,
    double::{Mood, System, guarded},
    publish,
};
use crate::{
    broker::{Broker, BrokerStatus, Circuit, ConnectionState},
    message::Address,
};

/// Waits until it is so, and says how long that took.
async fn until(guarded: &Guarded, wanted: Circuit) -> Duration {
    let begin = Instant::now();
    guarded.shared.watched().wait_for(|circuit| *circuit == wanted).await.unwrap();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn it_closes_by_itself_when_the_system_answers_again() {
    for fallback in [Fallback::None, Fallback::Memory] {
        let system = System::new();
        let (guarded, _embedded) = guarded(&system, fallback, MAX, None);
        system.says(ConnectionState::Away);
        until(&guarded, Circuit::Open).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(system.asked.load(SeqCst), 0, "one that says that it is away is not asked");
        system.says(ConnectionState::Ready);
        until(&guarded, Circuit::HalfOpen).await;
        let BrokerStatus::Degraded { reason } = guarded.status() else { panic!("{:?}", guarded.status()) };
        assert!(reason.contains("its connection is away; whether it is again is tried now"), "{reason}");
        assert!(until(&guarded, Circuit::Closed).await < Duration::from_secs(2));
        assert_eq!((guarded.status(), system.calls.load(SeqCst)), (BrokerStatus::Ready, 0), "nothing was published");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_stays_open_and_is_asked_again() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::None, MAX, None);
    system.is(Mood::Frozen);
    let lost = (0..5).map(|_| publish(&guarded, &queue, "lost"));
    futures_util::future::join_all(lost).await;
    for asked in 1..4 {
        until(&guarded, Circuit::HalfOpen).await;
        // Who publishes while it is asked does not wait for the answer.
        until(&guarded, Circuit::Open).await;
        assert_eq!(system.asked.load(SeqCst), asked);
    }
    system.is(Mood::Well);
    assert!(until(&guarded, Circuit::Closed).await < Duration::from_secs(32));
}

/// That it answers says less than that it takes a message.
#[tokio::test(start_paused = true)]
async fn one_that_only_answers_is_not_trusted_with_more_than_one_message() {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::None, MAX, None);
    system.says(ConnectionState::Away);
    until(&guarded, Circuit::Open).await;
    system.says(ConnectionState::Ready);
    until(&guarded, Circuit::Closed).await;
    system.is(Mood::Losing("lost"));
    publish(&guarded, &queue, "lost").await.unwrap_err();
    assert_eq!(guarded.shared.circuit(), Circuit::Open);
    until(&guarded, Circuit::Closed).await;
    publish(&guarded, &queue, "well").await.unwrap();
    for _ in 0..4 {
        publish(&guarded, &queue, "lost").await.unwrap_err();
    }
    assert_eq!(guarded.shared.circuit(), Circuit::Closed, "once it has confirmed one, all is as before");
}
