//! Looks at the server from time to time: whether it takes messages, how much is in queues and topics, what a topic is to keep
//! no longer, and which readers ended without leaving.

use std::{sync::Arc, time::Duration};

use redis::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{
    errors,
    link::Up,
    place::{GROUP, Place, Seen},
    scripts,
    shared::Shared,
};

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often readers are looked at in the time after which they are forgotten.
const SWEEPS: u32 = 24;
/// How long one round may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks around until the broker is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shared.closing() => return,
            _ = ticks.tick() => {}
        }
        let Some(up) = shared.consume.now() else { continue };
        let look = async {
            takes_messages(&shared, &up).await;
            let places = shared.places();
            for place in &places {
                if let Err(error) = look(&shared, &up, place).await {
                    tracing::debug!(source = %place.address, "could not be looked at: {error}");
                }
            }
            let is_due = swept_at.is_none_or(|at| at.elapsed() >= shared.settings.readers_kept / SWEEPS);
            if is_due && !places.is_empty() {
                for place in &places {
                    sweep(&shared, &up, place).await;
                }
                swept_at = Some(Instant::now());
            }
        };
        // A server that does not answer is noticed by its connection.
        timeout(PATIENCE, look).await.ok();
    }
}

/// Asks whether it has memory for messages: it refuses a script that may write while it has none.
async fn takes_messages(shared: &Shared, up: &Up) {
    let room = format!("{}room", shared.settings.key_prefix);
    match up
        .run(&scripts::ROOM, |command| {
            command.arg(&room);
        })
        .await
    {
        Ok(_) => shared.full(false),
        Err(error) if errors::is_full(&error) => shared.full(true),
        Err(error) => tracing::debug!("cannot be asked whether it takes messages: {error}"),
    }
}

/// Forgets its readers that ended without leaving.
async fn sweep(shared: &Shared, up: &Up, place: &Place) {
    let kept = u64::try_from(shared.settings.readers_kept.as_millis()).unwrap_or(u64::MAX);
    let streams = place.streams();
    let swept = up
        .run(&scripts::SWEEP, |command| {
            command.arg(&place.base).arg(kept).arg(&streams);
        })
        .await;
    match swept {
        Ok(Value::Int(0)) => {}
        Ok(gone) => tracing::debug!(source = %place.address, ?gone, "readers that did nothing for long were forgotten"),
        Err(error) => tracing::debug!(source = %place.address, "its readers could not be looked at: {error}"),
    }
}

/// Asks for one.
pub(super) async fn look(shared: &Shared, up: &Up, place: &Place) -> Result<(), redis::RedisError> {
    let version = place.version();
    let answer = up
        .run(&scripts::LOOK, |command| {
            command.arg(&place.base).arg(GROUP).arg(shared.run());
        })
        .await?;
    if let Some((seen, delayed, at)) = seen(answer) {
        place.seen(seen, version);
        place.delayed(delayed, at);
    }
    Ok(())
}

/// Beside that, how many wait for their time, and when that was.
fn seen(answer: Value) -> Option<(Seen, i64, i64)> {
    let Value::Array(parts) = answer else { return None };
    let [
        _,
        Value::Int(total),
        Value::Int(delayed),
        Value::Int(at),
        Value::Int(elsewhere),
        Value::Int(messages),
        Value::Int(bytes),
        Value::Array(groups),
    ] = <[Value; 8]>::try_from(parts).ok()?
    else {
        return None;
    };
    let lag = groups.into_iter().filter_map(|group| {
        let Value::Array(parts) = group else { return None };
        match parts.as_slice() {
            [Value::BulkString(name), Value::Int(new), Value::Int(pending), ..] => {
                let lag = u64::try_from(new.saturating_add(*pending)).unwrap_or(0);
                Some((Arc::from(String::from_utf8_lossy(name).as_ref()), lag))
            }
            _ => None,
        }
    });
    Some((Seen { total, elsewhere, published: (messages as f64, bytes as f64), lag: lag.collect() }, delayed, at))
}
