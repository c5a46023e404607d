//! Looks at queues from time to time: how many messages wait, who reads, and whether a subscription has stalled.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lapin::{Channel, options::QueueDeclareOptions, types::FieldTable};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{link::Up, shared::Shared};
use crate::telemetry::metrics;

/// How often queues are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Reading begins anew no more rarely than this, however often it was for nothing.
const STALLED_MAX: Duration = Duration::from_secs(600);

/// Looks around until the broker is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut over: Option<(Arc<Up>, Channel)> = None;
    let mut stalls = BTreeMap::new();
    loop {
        tokio::select! {
            () = shared.closed() => return,
            () = shared.somebody_left() => {
                shared.see_off().await;
                continue;
            }
            _ = ticks.tick() => {}
        }
        let look = async {
            shared.catch_up().await;
            look(&shared, &mut over).await;
        };
        match timeout(PATIENCE, look).await {
            Ok(()) => restart_stalled(&shared, &mut stalls),
            // A server that does not answer is noticed by its heartbeats.
            Err(_) => over = None,
        }
    }
}

/// Asks for every queue.
async fn look(shared: &Shared, over: &mut Option<(Arc<Up>, Channel)>) {
    for place in shared.places() {
        let Some(up) = shared.consume.now() else {
            *over = None;
            return;
        };
        let channel = match over {
            Some((of, channel)) if Arc::ptr_eq(of, &up) && channel.status().connected() => channel.clone(),
            _ => match up.connection.create_channel().await {
                Ok(channel) => {
                    *over = Some((up, channel.clone()));
                    channel
                }
                Err(_) => return,
            },
        };
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        // One that is not there closes the channel; whoever reads it says so.
        if let Ok(queue) = channel.queue_declare((&*place.name).into(), options, FieldTable::default()).await {
            place.counts.seen(queue.message_count().into(), queue.consumer_count().into());
        }
    }
}

/// Begins anew what does not get what waits for it.
fn restart_stalled(shared: &Shared, stalls: &mut BTreeMap<String, (Duration, Instant)>) {
    let first = shared.settings.stalled_after;
    for session in shared.sessions() {
        let place = session.place();
        let name = place.address.to_string();
        // One whose channel is gone begins anew by itself.
        let can_read = shared.consume.now().is_some() && session.channel().status().connected();
        let Some(idle) = session.stalled(can_read && place.counts.ready() > 0) else { continue };
        let (patience, last) = stalls.get(&name).copied().unwrap_or((first, Instant::now()));
        if idle < patience {
            continue;
        }
        // Another consumer may be the one that the server feeds: then it was for nothing, and is done ever more rarely.
        let patience = if last.elapsed() < 4 * patience { (patience * 2).min(STALLED_MAX) } else { first };
        stalls.insert(name.clone(), (patience, Instant::now()));
        metrics().rabbitmq_restarts.with_label_values(&[name.as_str(), "stalled"]).inc();
        tracing::warn!(
            source = name,
            waiting = place.counts.ready(),
            "messages wait and none came for {idle:?}: reading begins anew"
        );
        session.restart();
    }
}
