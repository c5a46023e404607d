//! Ends sources in three steps: nothing new; time for what is running; then its end. While it takes longer than a second,
//! a line each second says what is waited for.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::timeout_at};
use tokio_util::sync::CancellationToken;

use super::running::{self, LaneEnd, Running};
use crate::{
    broker::{Broker, ConnectionState},
    message::Address,
};

/// How often it says what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// How long lanes may take once their calls have been ended: guests end within a tick of the clock, and what waits for a
/// broker gives up within [`LAST_ANSWER`](super::parts::LAST_ANSWER). A native handler that does not return cannot be ended.
const END: Duration = Duration::from_secs(3);

/// Waits, and says so each second while it takes longer.
pub(super) async fn say_while(what: &str, done: impl Future<Output = ()>) {
    let begin = Instant::now();
    let mut done = std::pin::pin!(done);
    while tokio::time::timeout(SAY_EVERY, &mut done).await.is_err() {
        tracing::info!("{what}, for {} s until now", begin.elapsed().as_secs());
    }
}

/// The sources that run, and which of them are to end.
pub(super) struct Drain<'a> {
    pub(super) running: &'a mut BTreeMap<Address, Running>,
    pub(super) which: &'a [Address],
    pub(super) ended: &'a mpsc::Sender<LaneEnd>,
    pub(super) broker: &'a dyn Broker,
}

impl Drain<'_> {
    /// Carries it through; false when `stop` came first: then they have begun to end, and are still there.
    pub(super) async fn run(
        mut self,
        grace: Duration,
        lane_ends: &mut mpsc::Receiver<LaneEnd>,
        stop: Option<&CancellationToken>,
    ) -> bool {
        self.of_these().for_each(Running::stop_taking);
        let end = Instant::now() + grace;
        if !self.wait(end, lane_ends, stop).await {
            if stop.is_some_and(CancellationToken::is_cancelled) {
                return false;
            }
            tracing::warn!(
                lanes = self.left(),
                "what is running has not ended within the grace period of {grace:?}: it is ended, its messages go back{}",
                self.what()
            );
            self.of_these().for_each(Running::end_calls);
            if !self.wait(Instant::now() + END, lane_ends, None).await {
                let handlers = match self.of_these().map(Running::handling).sum::<usize>() {
                    0 => "a broker does not answer",
                    _ => "a native handler does not return",
                };
                tracing::error!(lanes = self.left(), "{handlers}; threads are left behind{}", self.what());
            }
        }
        for address in self.which {
            self.running.remove(address);
        }
        true
    }

    fn of_these(&self) -> impl Iterator<Item = &Running> {
        self.which.iter().filter_map(|address| self.running.get(address))
    }

    /// Lanes that have not ended.
    fn left(&self) -> usize {
        self.of_these().map(Running::lanes).sum()
    }

    /// Waits until all lanes have ended; false when it is time, or `stop` came.
    async fn wait(
        &mut self,
        end: Instant,
        lane_ends: &mut mpsc::Receiver<LaneEnd>,
        stop: Option<&CancellationToken>,
    ) -> bool {
        let (mut renewal, mut say) = (Instant::now(), Instant::now() + SAY_EVERY);
        while self.left() > 0 {
            let now = Instant::now();
            if now >= end || stop.is_some_and(CancellationToken::is_cancelled) {
                return false;
            }
            if now >= renewal {
                renewal = running::keep_alive(self.running);
            }
            if now >= say {
                say = now + SAY_EVERY;
                let left = end.saturating_duration_since(now).as_secs_f64().round();
                tracing::info!(lanes = self.left(), "draining, for {left} s at most{}", self.what());
            }
            let stopped = async {
                match stop {
                    Some(stop) => stop.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = timeout_at(renewal.min(say).min(end).into(), lane_ends.recv()) => match ended {
                    Ok(Some(ended)) => {
                        if let Some(running) = self.running.get_mut(&ended.source) {
                            running.lane_ended(&ended, self.ended);
                        }
                    }
                    // Its sender is ours.
                    Ok(None) => return true,
                    Err(_) => {}
                },
                () = stopped => {}
            }
        }
        true
    }

    /// What is waited for, in words.
    fn what(&self) -> String {
        let mut what: Vec<String> = self.of_these().flat_map(Running::doing).collect();
        let systems = self.broker.systems();
        let absent =
            systems.iter().filter(|system| !matches!(system.state, ConnectionState::Ready | ConnectionState::Closed));
        what.extend(absent.map(|system| format!("{} is {}", system.name, system.state.as_str())));
        if what.is_empty() { String::new() } else { format!(": {}", what.join("; ")) }
    }
}
