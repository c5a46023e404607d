//! Looks what the system says of its connections. It is the one that notices that a system went away or came back while
//! nobody publishes, and that asks it then whether it answers.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    breaker::{Ended, Permit},
    shared::Shared,
};

/// How often it looks: so long at most somebody may publish to a system that is gone.
const EVERY: Duration = Duration::from_millis(50);
/// How long a system has to answer. Who would publish is told meanwhile that it is being tried.
const ANSWER: Duration = Duration::from_secs(3);

/// Runs until it is stopped.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asking: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    loop {
        let answered = async {
            match &mut asking {
                Some(asking) => asking.await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = answered => asking = None,
            _ = ticks.tick() => {
                shared.look();
                if asking.is_none() && let Some(permit) = shared.permit_asking() {
                    asking = Some(Box::pin(ask(Arc::clone(&shared), permit)));
                }
            }
        }
    }
}

async fn ask(shared: Arc<Shared>, permit: Permit) {
    let why = match timeout(ANSWER, shared.inner.answers()).await {
        Ok(Ok(())) => return shared.ended(permit, Ended::Lives),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {ANSWER:?}"),
    };
    tracing::debug!(broker = &*shared.name, "it does not answer: {why}");
    shared.ended(permit, Ended::Failed { messages: 1, why });
}
