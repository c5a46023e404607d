//! What comes again later, as a copy in the retry topic: its partition goes on, its attempts go with it.

use std::{sync::Arc, time::Duration};

use helixmq::{
    broker::{Aside, BatchMax, Broker, Deliveries, Start, Subscribe, Subscription},
    message::{Address, FailedAttempt, ReasonCode, Settlement, now_ms},
};

use crate::{
    raw::Record,
    server::Server,
    site::{Site, topic},
    support::soon,
};

const ALL: BatchMax = BatchMax { count: 1000, bytes: usize::MAX };

async fn site(server: &Server) -> Site {
    let mut site = Site::new(server).await;
    site.settings.retry_topic = server.name("retry").as_str().into();
    let broker = site.broker().await;
    let retry = Address::topic(Arc::clone(&site.settings.retry_topic));
    broker.declare(&[topic(&site.work, 2), topic(&retry, 2)]).await.unwrap();
    broker.close().await;
    site
}

async fn subscribe(site: &Site, broker: &Arc<dyn Broker>, group: &str) -> Box<dyn Subscription> {
    let request = Subscribe {
        from: site.work.clone(),
        group: group.into(),
        start: Start::Earliest,
        prefetch: 1000,
        workers: 1,
        aside: Aside::Topic,
    };
    broker.subscribe(request).await.unwrap()
}

async fn take(reader: &mut Box<dyn Subscription>) -> Deliveries {
    soon("messages", reader.next(ALL)).await.unwrap().unwrap()
}

fn again(after: Duration, attempt: u32) -> Settlement {
    let text = format!("attempt {attempt} failed");
    let failure = FailedAttempt { attempt, at: now_ms(), code: ReasonCode::HandlerTimeout, text };
    Settlement::Redeliver { after, failure: Box::new(failure) }
}

#[tokio::test]
async fn a_copy_waits_and_its_partition_goes_on() {
    let server = Server::shared();
    let site = site(&server).await;
    let raw = site.raw();
    let broker = site.broker().await;
    let (one, other) = (format!("{}.one", site.group), format!("{}.other", site.group));
    let mut reader = subscribe(&site, &broker, &one).await;
    // Another group has retries of its own in the same topic.
    let mut others = subscribe(&site, &broker, &other).await;
    raw.publish(&site.work.name, vec![Record::new("works").key("a").on(1), Record::new("fails").key("b").on(1)]).await;
    let mut first = take(&mut reader).await;
    while first.len() < 2 {
        first.append(take(&mut reader).await).unwrap();
    }
    let begin = std::time::Instant::now();
    first.settle(vec![Settlement::Accept, again(Duration::from_millis(600), 1)]).await.unwrap();
    raw.commits_all(&one, &site.work.name).await;
    let copies = raw.read(&site.settings.retry_topic).await;
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].key.as_deref(), Some(&b"b"[..]));
    for attempt in 2..4 {
        let copy = take(&mut reader).await;
        assert!(begin.elapsed() >= Duration::from_millis(600), "it came after {:?}", begin.elapsed());
        let delivery = &copy.as_slice()[0];
        assert_eq!((copy.len(), &delivery.message.payload[..], delivery.attempt), (1, &b"fails"[..], attempt));
        let at = delivery.position.unwrap();
        assert_eq!((at.partition, at.offset), (1, 1), "of the original");
        assert_eq!(delivery.failures.len() as u32, attempt - 1);
        assert!(delivery.message.headers.iter().all(|(name, _)| !name.starts_with("x-helix-retry")), "{delivery:?}");
        copy.settle(vec![again(Duration::from_millis(100), attempt)]).await.unwrap();
    }
    // The other group has had nothing of that.
    let mut others_first = take(&mut others).await;
    while others_first.len() < 2 {
        others_first.append(take(&mut others).await).unwrap();
    }
    assert!(others_first.as_slice().iter().all(|delivery| delivery.attempt == 1));
    // What waits is there for whoever comes next: another process, with another store.
    drop(reader);
    broker.close().await;
    let next = site.elsewhere().await;
    let broker = next.broker().await;
    let mut reader = subscribe(&next, &broker, &one).await;
    let copy = take(&mut reader).await;
    assert_eq!((&copy.as_slice()[0].message.payload[..], copy.as_slice()[0].attempt), (&b"fails"[..], 4));
    copy.settle(vec![Settlement::Accept]).await.unwrap();
    broker.close().await;
}
