//! A system that is away, frozen or unwilling whenever a test says so, and notes what it was given.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, time::sleep};

use crate::{
    broker::{
        AddressStats, Broker, BrokerError, Browse, Capabilities, ConnectionState, Declaration, GuardSettings, Guarded,
        Ordering, Page, PublishError, PublishFailures, Subscribe, Subscription,
        embedded::{DiskSettings, Embedded, Settings},
        guarded::{Fallback, SpoolSettings},
    },
    message::{Address, Message, random64},
};

/// How long a publish waits for an answer.
pub(super) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// What it does with what it is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Mood {
    Well,
    /// Nothing is sent.
    Away,
    /// Nothing is answered until it is well.
    Frozen,
    /// What is published to this address is refused.
    Refusing(Address, PublishError),
    /// Of every batch, messages whose text contains this are not confirmed; every other time they are taken all the same.
    Losing(&'static str),
    /// Each message is taken or not, and confirmed or not, by chance.
    Erratic,
    /// Takes everything, and so long for each call and each message.
    Slow {
        call: Duration,
        each: Duration,
    },
}

#[derive(Debug)]
pub(super) struct System {
    mood: watch::Sender<Mood>,
    connection: Mutex<ConnectionState>,
    taken: Mutex<Vec<(Address, Arc<Message>)>>,
    pub(super) calls: AtomicUsize,
    /// How often it was asked whether it answers.
    pub(super) asked: AtomicUsize,
    /// How many messages came with each call.
    portions: Mutex<Vec<usize>>,
}

impl System {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            mood: watch::Sender::new(Mood::Well),
            connection: Mutex::default(),
            taken: Mutex::default(),
            calls: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            portions: Mutex::default(),
        })
    }

    pub(super) fn is(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    pub(super) fn says(&self, connection: ConnectionState) {
        *self.connection.lock().unwrap() = connection;
    }

    /// The texts of what it took, in order, by address.
    pub(super) fn has(&self, of: &Address) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|(to, _)| to == of).map(|(_, message)| text(message)).collect()
    }

    pub(super) fn taken(&self) -> Vec<Arc<Message>> {
        self.taken.lock().unwrap().iter().map(|(_, message)| Arc::clone(message)).collect()
    }

    pub(super) fn portions(&self) -> Vec<usize> {
        self.portions.lock().unwrap().clone()
    }

    fn take(&self, to: &Address, message: &Arc<Message>) {
        self.taken.lock().unwrap().push((to.clone(), Arc::clone(message)));
    }
}

pub(super) fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// A message with a key, or none.
pub(super) fn message(text: &str, key: &str) -> Arc<Message> {
    let mut message = Message::new("test", text.to_owned(), 1);
    message.key = (!key.is_empty()).then(|| key.as_bytes().to_vec().into());
    Arc::new(message)
}

/// Guards a system; what it keeps is in memory, or in the directory.
pub(super) fn guarded(
    system: &Arc<System>,
    fallback: Fallback,
    spool: SpoolSettings,
    directory: Option<&std::path::Path>,
) -> (Guarded, Arc<Embedded>) {
    let disk = directory.map(|directory| DiskSettings { free_min: 1 << 20, ..DiskSettings::new(directory) });
    let embedded = Arc::new(Embedded::new("embedded", Settings { disk, ..Settings::default() }).unwrap());
    let settings = GuardSettings { fallback, spool, ..GuardSettings::default() };
    (Guarded::new(Arc::clone(system) as Arc<dyn Broker>, Arc::clone(&embedded), settings), embedded)
}

/// Looks again until it is so. Time may be paused.
pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("waited in vain until {what}");
}

fn lost() -> PublishError {
    PublishError::Unconfirmed("no answer".to_owned())
}

#[async_trait]
impl Broker for System {
    fn name(&self) -> &str {
        "double"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: false,
            priority: false,
            delay: false,
            expiry: false,
            log: false,
            replay: false,
            delivery_count: false,
            transactions: false,
            ordering: Ordering::Arrival,
            browse: false,
            message_bytes_max: 1000,
        }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.calls.fetch_add(1, SeqCst);
        self.portions.lock().unwrap().push(messages.len());
        let mut moods = self.mood.subscribe();
        let slow = match *moods.borrow() {
            Mood::Slow { call, each } => Some(call + each * messages.len() as u32),
            _ => None,
        };
        if let Some(time) = slow {
            sleep(time).await;
        }
        if *moods.borrow_and_update() == Mood::Frozen {
            tokio::select! {
                _ = moods.wait_for(|mood| *mood != Mood::Frozen) => {}
                () = sleep(PUBLISH_TIMEOUT) => {}
            }
        }
        let mood = moods.borrow().clone();
        let mut failures = Vec::new();
        for (place, message) in messages.iter().enumerate() {
            let (is_taken, error) = match &mood {
                Mood::Well | Mood::Slow { .. } => (true, None),
                Mood::Away => (false, Some(PublishError::Unavailable("it is away".to_owned()))),
                Mood::Frozen => (false, Some(lost())),
                Mood::Refusing(address, error) if address == to => (false, Some(error.clone())),
                Mood::Refusing(..) => (true, None),
                Mood::Losing(part) if text(message).contains(part) => {
                    (self.calls.load(SeqCst).is_multiple_of(2), Some(lost()))
                }
                Mood::Losing(_) => (true, None),
                Mood::Erratic => {
                    let chance = random64();
                    (!chance.is_multiple_of(4), (chance.is_multiple_of(4) || chance.is_multiple_of(7)).then(lost))
                }
            };
            if is_taken {
                self.take(to, message);
            }
            failures.extend(error.map(|error| (place, error)));
            if mood == Mood::Erratic {
                tokio::task::yield_now().await;
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(PublishFailures(failures)) }
    }

    async fn declare(&self, _: &[Declaration]) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        Err(BrokerError::NotFound(request.from))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        Err(BrokerError::NotFound(request.from))
    }

    fn stats(&self) -> Vec<AddressStats> {
        Vec::new()
    }

    fn connection(&self) -> ConnectionState {
        *self.connection.lock().unwrap()
    }

    async fn answers(&self) -> Result<(), BrokerError> {
        self.asked.fetch_add(1, SeqCst);
        let mut moods = self.mood.subscribe();
        // Whoever is closed or gone is not there to see that.
        drop(moods.wait_for(|mood| *mood != Mood::Frozen).await);
        match *moods.borrow() {
            Mood::Away => Err(BrokerError::Lost("it is away".to_owned())),
            _ => Ok(()),
        }
    }

    async fn close(&self) {}
}
