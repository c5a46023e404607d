//! Publishers, a moody system, cancelled publishes and drains at once: the order of each key holds, and nothing that was
//! confirmed is missing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use tokio::time::{sleep, timeout};

use super::{
    super::Fallback,
    MAX,
    double::{Mood, System, eventually, guarded, message},
};
use crate::{
    broker::{Broker, ConnectionState},
    message::Address,
};

#[derive(Clone, Copy, Debug)]
enum Turn {
    Well,
    Away,
    /// Gone, and said so.
    Lost,
    Frozen,
    Erratic,
}

fn turn() -> impl Strategy<Value = (Turn, u64)> {
    let turn = prop_oneof![
        4 => Just(Turn::Well),
        2 => Just(Turn::Away),
        2 => Just(Turn::Lost),
        1 => Just(Turn::Frozen),
        3 => Just(Turn::Erratic),
    ];
    (turn, 1_u64..400)
}

/// What a publisher does next: so many messages at once, and how long it waits for the answer.
fn steps() -> impl Strategy<Value = Vec<(u32, Option<u64>, u64)>> {
    let patience = prop_oneof![5 => Just(None), 1 => (0_u64..30).prop_map(Some)];
    vec((1_u32..6, patience, 0_u64..40), 5..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn each_key_keeps_its_order_and_nothing_is_lost(turns in vec(turn(), 2..12), publishers in vec(steps(), 1..5)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(turns, publishers));
    }
}

async fn run(turns: Vec<(Turn, u64)>, publishers: Vec<Vec<(u32, Option<u64>, u64)>>) {
    let (system, queue) = (System::new(), Address::queue("q"));
    let (guarded, _embedded) = guarded(&system, Fallback::Memory, MAX, None);
    let moods = async {
        for (turn, ms) in turns {
            let (mood, connection) = match turn {
                Turn::Well => (Mood::Well, ConnectionState::Ready),
                Turn::Away => (Mood::Away, ConnectionState::Ready),
                Turn::Lost => (Mood::Away, ConnectionState::Away),
                Turn::Frozen => (Mood::Frozen, ConnectionState::Ready),
                Turn::Erratic => (Mood::Erratic, ConnectionState::Ready),
            };
            system.is(mood);
            system.says(connection);
            sleep(Duration::from_millis(ms)).await;
        }
        system.is(Mood::Well);
        system.says(ConnectionState::Ready);
    };
    // One after the other, each waits for its answer before the next: that is what order means.
    let publisher = |key: usize, steps: Vec<(u32, Option<u64>, u64)>| {
        let (guarded, queue) = (&guarded, &queue);
        async move {
            let (mut number, mut confirmed) = (0_u32, Vec::new());
            for (count, patience, pause) in steps {
                let texts: Vec<String> = (number..number + count).map(|number| format!("{key}:{number}")).collect();
                number += count;
                let batch = texts.iter().map(|text| message(text, &key.to_string())).collect();
                let publish = guarded.publish(queue, batch);
                let published = match patience {
                    None => Ok(publish.await),
                    Some(ms) => timeout(Duration::from_millis(ms), publish).await,
                };
                match published {
                    Ok(published) => {
                        published.expect("an outage fails nobody");
                        confirmed.extend(texts);
                    }
                    // Whoever goes away knows nothing, and goes on under a key of its own.
                    Err(_) => break,
                }
                sleep(Duration::from_millis(pause)).await;
            }
            (key.to_string(), confirmed)
        }
    };
    let all = publishers.into_iter().enumerate().map(|(key, steps)| publisher(key, steps));
    let (confirmed, ()) = tokio::join!(futures_util::future::join_all(all), moods);
    eventually("nothing waits any more", || guarded.systems()[0].spool.as_ref().unwrap().messages == 0).await;
    let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in system.has(&queue) {
        taken.entry(text.split(':').next().unwrap().to_owned()).or_default().push(text);
    }
    for (key, confirmed) in confirmed {
        let taken = taken.remove(&key).unwrap_or_default();
        let missing: Vec<_> = confirmed.iter().filter(|text| !taken.contains(text)).collect();
        assert!(missing.is_empty(), "{missing:?} were confirmed and are not there");
        // Seen the last time, each is behind the one before it: whoever keeps the newest has the right one.
        let last = |text: &String| taken.iter().rposition(|other| other == text);
        let places: Vec<_> = confirmed.iter().map(last).collect();
        assert!(places.is_sorted(), "{confirmed:?} came as {taken:?}");
    }
    let calls = Arc::clone(&system);
    publish_directly(&guarded, &queue, &calls).await;
}

/// All is as it was at the start.
async fn publish_directly(guarded: &super::Guarded, queue: &Address, system: &System) {
    let before = system.has(queue).len();
    guarded.publish(queue, vec![message("last", "last")]).await.unwrap();
    eventually("nothing waits any more", || guarded.shared.is_calm()).await;
    assert!(system.has(queue).len() > before);
}
