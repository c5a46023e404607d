//! What a careful client does: publishes over HTTP, and again under the same id what was not confirmed, until it is. Messages
//! of one key follow each other, so that the numbers in their ids say in which order they must arrive.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::api::Api;

/// Keys of each flow, each with one message in a request.
pub(crate) const KEYS: usize = 10;
/// Between two requests of a flow: with it, 100 messages a second.
const PAUSE: Duration = Duration::from_millis(100);
/// How long what was begun may take to be confirmed once the load ends.
const END_MAX: Duration = Duration::from_secs(60);

/// A flow that is published to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The beginning of its ids.
    pub(crate) flow: String,
    /// `tasks/…` or `events/…`.
    pub(crate) path: String,
    pub(crate) payload_bytes: usize,
}

/// What became of a flow's messages, as its publisher was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// How many were confirmed of each key, counted from 0.
    pub(crate) of: [u64; KEYS],
    /// How often something was refused, by code.
    pub(crate) refused: BTreeMap<String, usize>,
    /// The longest that a request took.
    pub(crate) longest: Duration,
}

/// Load that is on.
#[derive(Debug)]
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    counts: Arc<Counts>,
    publishers: JoinSet<(String, Sent)>,
}

/// By now, over all flows.
#[derive(Debug, Default)]
struct Counts {
    confirmed: AtomicUsize,
    refused: AtomicUsize,
}

/// The id of a message.
pub(crate) fn id(flow: &str, key: usize, number: u64) -> String {
    format!("{flow}.{key}.{number}")
}

impl Load {
    /// Begins, with one publisher for each flow. `place`: where the engine says at which address it listens.
    pub(crate) fn start(targets: Vec<Target>, place: PathBuf) -> Self {
        let (ends, counts) = (Arc::new(AtomicBool::new(false)), Arc::<Counts>::default());
        let mut publishers = JoinSet::new();
        for target in targets {
            let publisher = Publisher { target, place: place.clone(), sent: Sent::default() };
            let (ends, counts) = (Arc::clone(&ends), Arc::clone(&counts));
            publishers.spawn_blocking(move || publisher.run(&ends, &counts));
        }
        Self { ends, counts, publishers }
    }

    /// How many messages were confirmed by now.
    pub(crate) fn confirmed(&self) -> usize {
        self.counts.confirmed.load(Ordering::SeqCst)
    }

    /// How many were refused by now.
    pub(crate) fn refused(&self) -> usize {
        self.counts.refused.load(Ordering::SeqCst)
    }

    /// Ends it: what was begun is published until it is confirmed.
    pub(crate) async fn end(mut self) -> BTreeMap<String, Sent> {
        self.ends.store(true, Ordering::SeqCst);
        let mut all = BTreeMap::new();
        while let Some(one) = self.publishers.join_next().await {
            all.extend([one.expect("a publisher that does not fail")]);
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
    }
}

struct Publisher {
    target: Target,
    place: PathBuf,
    sent: Sent,
}

impl Publisher {
    fn run(mut self, ends: &AtomicBool, counts: &Counts) -> (String, Sent) {
        let (mut api, mut open, mut ending) = (self.api(), Vec::<usize>::new(), None);
        loop {
            let keys: Vec<usize> = if ends.load(Ordering::SeqCst) {
                let since = *ending.get_or_insert_with(Instant::now);
                if open.is_empty() {
                    return (self.target.flow, self.sent);
                }
                assert!(since.elapsed() < END_MAX, "{} cannot be published: {:?}", self.target.flow, self.sent);
                open
            } else {
                (0..KEYS).collect()
            };
            let begin = Instant::now();
            let published = api.publish(&self.target.path, self.lines(&keys));
            self.sent.longest = self.sent.longest.max(begin.elapsed());
            for refused in &published.refused {
                *self.sent.refused.entry(code(refused)).or_default() += 1;
            }
            let is_done = |key: &usize| {
                let id = id(&self.target.flow, *key, self.sent.of[*key]);
                published.confirmed.contains(&id)
            };
            let (done, left): (Vec<_>, Vec<_>) = keys.into_iter().partition(is_done);
            done.iter().for_each(|key| self.sent.of[*key] += 1);
            counts.confirmed.fetch_add(done.len(), Ordering::SeqCst);
            counts.refused.fetch_add(published.refused.len(), Ordering::SeqCst);
            open = left;
            if !published.whole {
                // It may listen elsewhere by now.
                api = self.api();
            }
            // This pause is the rate.
            std::thread::sleep(PAUSE);
        }
    }

    fn api(&self) -> Api {
        let address = std::fs::read_to_string(&self.place).unwrap_or_default();
        Api::new(&format!("http://{}", address.trim()))
    }

    /// The next message of each of these keys, a line each.
    fn lines(&self, keys: &[usize]) -> String {
        let payload = "x".repeat(self.target.payload_bytes);
        let line = |key: &usize| {
            let message = json!({
                "id": id(&self.target.flow, *key, self.sent.of[*key]),
                "type": "outage.test",
                "key": key.to_string(),
                "headers": {"quiet": "1"},
                "payload": payload,
            });
            format!("{message}\n")
        };
        keys.iter().map(line).collect()
    }
}

/// Why something was refused.
fn code(answer: &Value) -> String {
    answer["error"]["code"].as_str().map_or_else(|| answer.to_string(), str::to_owned)
}
