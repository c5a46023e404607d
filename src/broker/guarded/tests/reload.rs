//! The fallback changes while messages wait: a guard takes over what another one kept, in the same engine.

use std::sync::Arc;

use tempfile::TempDir;

use super::{
    super::{Fallback, GuardSettings, Guarded},
    MAX,
    double::{Mood, System, eventually, guarded},
    numbered, publish,
};
use crate::{
    broker::{Broker, Storage, embedded::Embedded, guarded::spool::Place},
    message::Address,
};

/// Another guard takes the place of this one, as a reload does it.
async fn exchanged(before: Guarded, embedded: &Arc<Embedded>, system: &Arc<System>, fallback: Fallback) -> Guarded {
    before.close().await;
    drop(before);
    let settings = GuardSettings { fallback, spool: MAX, ..GuardSettings::default() };
    Guarded::new(Arc::clone(system) as Arc<dyn Broker>, Arc::clone(embedded), settings)
}

fn spooled(guarded: &Guarded) -> (u64, bool) {
    let spool = guarded.systems().remove(0).spool.unwrap();
    (spool.messages, spool.is_durable)
}

#[tokio::test]
async fn whatever_the_fallback_was_everything_follows_in_order() {
    use Fallback::{Memory, None, Spool};
    for fallbacks in [[Memory, Spool, Memory], [Spool, Memory, Spool], [Memory, Spool, None], [Memory, None, Spool]] {
        let (system, queue, directory) = (System::new(), Address::queue("q"), TempDir::new().unwrap());
        let [first, others @ ..] = fallbacks;
        let (mut guard, embedded) = guarded(&system, first, MAX, Some(directory.path()));
        system.is(Mood::Away);
        let mut sent = 0;
        for (place, fallback) in [first].into_iter().chain(others).enumerate() {
            if place > 0 {
                guard = exchanged(guard, &embedded, &system, fallback).await;
            }
            for _ in 0..100 {
                match publish(&guard, &queue, &sent.to_string()).await {
                    Ok(()) => sent += 1,
                    // Nothing more is kept.
                    Err(_) if fallback == None => break,
                    Err(error) => panic!("{fallbacks:?}, {fallback:?}: {error}"),
                }
            }
            assert_eq!(spooled(&guard).0, u64::from(sent));
        }
        system.is(Mood::Well);
        eventually("all of it is there", || guard.shared.is_calm()).await;
        assert_eq!(system.has(&queue), numbered(0..sent), "{fallbacks:?}");
        assert!(sent >= 200, "{fallbacks:?}");
        publish(&guard, &queue, "last").await.unwrap();
        assert_eq!(system.has(&queue).last().map(String::as_str), Some("last"), "straight to it");
    }
}

#[tokio::test]
async fn it_says_what_is_gone_with_the_engine() {
    let (system, queue, directory) = (System::new(), Address::queue("q"), TempDir::new().unwrap());
    let (guard, embedded) = guarded(&system, Fallback::Memory, MAX, Some(directory.path()));
    assert_eq!(spooled(&guard), (0, false));
    system.is(Mood::Away);
    publish(&guard, &queue, "0").await.unwrap();
    let guard = exchanged(guard, &embedded, &system, Fallback::Spool).await;
    assert_eq!((spooled(&guard), guard.shared.in_memory()), ((1, false), 1), "it still is in memory");
    publish(&guard, &queue, "1").await.unwrap();
    assert_eq!((spooled(&guard), guard.shared.in_memory()), ((2, false), 1));
    let on_disk = Place::new("double", &queue, Fallback::Spool);
    assert_eq!((on_disk.held(&embedded).messages, on_disk.storage), (1, Storage::Disk), "the next is safe");
    system.is(Mood::Well);
    eventually("all of it is there", || guard.shared.is_calm()).await;
    assert_eq!(spooled(&guard), (0, true));
    system.is(Mood::Away);
    publish(&guard, &queue, "2").await.unwrap();
    let guard = exchanged(guard, &embedded, &system, Fallback::Memory).await;
    assert_eq!((spooled(&guard), guard.shared.in_memory()), ((1, true), 0), "what is on disk stays there");
}
