//! Messages to the server, each confirmed or known to have failed. One channel carries all small ones, as many in flight as
//! their publishers wait for; a large one has a channel for itself, because a server that finds it too large closes that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    declared,
    link::{Link, Up},
    rungs,
    settings::Settings,
    targets::Targets,
    topology::{self, RUNG_DELAYS, Topology},
    wire::{self, Copy},
};
use crate::{
    broker::{BrokerError, PublishError, PublishFailures},
    message::{Address, FailedAttempt, Kind, Message, UnixMs, now_ms},
    telemetry::metrics,
};

/// From this size on a message has a channel for itself, in bytes.
const LARGE: usize = 1 << 20;
/// Most bytes of all headers of a message: they have to fit into one frame, and a server closes the connection of whoever
/// sends a larger one. Source: RabbitMQ, `frame_max`, 131 072 by default; some of it is for everything else.
const HEADER_BYTES_MAX: usize = 120 * 1024;
/// Most messages of one publish that are in flight.
const IN_FLIGHT_MAX: usize = 1024;

/// Sends messages.
#[derive(Debug)]
pub(super) struct Publisher {
    settings: Arc<Settings>,
    link: Arc<Link>,
    /// The other connection, for what is declared on the way: this one may be blocked.
    consume: Arc<Link>,
    targets: Targets,
    channel: Mutex<Option<(Arc<Up>, Channel)>>,
    /// Exchanges of the retry queues that are there, by their delays.
    rungs: SyncMutex<BTreeMap<Duration, ShortString>>,
}

/// A copy of a delivery that is to come again later.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) message: Arc<Message>,
    pub(super) attempt: u32,
    pub(super) failures: Vec<FailedAttempt>,
    /// Where to.
    pub(super) queue: Arc<str>,
    pub(super) after: Duration,
}

/// One message on its way.
struct Frame {
    exchange: ShortString,
    key: ShortString,
    properties: BasicProperties,
    payload: Bytes,
}

/// Why the server does not have it.
#[derive(Clone, Debug)]
enum Refusal {
    /// No queue takes it.
    Unroutable,
    /// The server said no.
    Rejected,
    TooLarge(String),
    /// Nothing was sent.
    Away(String),
    /// It may have it all the same.
    Unknown(String),
}

impl Publisher {
    pub(super) fn new(settings: Arc<Settings>, link: Arc<Link>, consume: Arc<Link>) -> Self {
        let targets = Targets::new(&settings);
        Self { settings, link, consume, targets, channel: Mutex::default(), rungs: SyncMutex::default() }
    }

    /// See [`Broker::publish`](crate::broker::Broker::publish).
    pub(super) async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        let (now, count) = (now_ms(), messages.len());
        let max = self.settings.message_bytes_max;
        let mut failures = Vec::new();
        let (mut frames, mut places) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (place, message) in messages.iter().enumerate() {
            if message.size() > max {
                failures.push((place, PublishError::TooLarge { address: to.clone(), bytes: message.size(), max }));
                continue;
            }
            match self.frame(to, message, now).await {
                Ok(frame) if wire::header_bytes(&frame.properties) > HEADER_BYTES_MAX => {
                    let bytes = wire::header_bytes(&frame.properties);
                    let error = PublishError::TooLarge { address: to.clone(), bytes, max: HEADER_BYTES_MAX };
                    failures.push((place, error));
                }
                Ok(frame) => {
                    frames.push(frame);
                    places.push(place);
                }
                Err(error) => failures.push((place, error)),
            }
        }
        let sent = self.send(frames).await;
        for (place, mut result) in places.into_iter().zip(sent) {
            // A server that finds one too large closes the channel over all that share it: each says for itself whether it
            // is that one.
            if matches!(result, Err(Refusal::TooLarge(_)))
                && let Some(message) = messages.get(place)
                && let Ok(frame) = self.frame(to, message, now).await
            {
                let deadline = Instant::now() + self.settings.publish_timeout;
                result = self.send_alone(frame, deadline).await;
            }
            if let Err(refusal) = result {
                let bytes = messages.get(place).map_or(0, |message| message.size());
                failures.push((place, self.error(to, refusal, bytes)));
            }
        }
        let confirmed = (count - failures.len()) as u64;
        metrics().rabbitmq_published.with_label_values(&[&to.to_string()]).inc_by(confirmed);
        if failures.is_empty() {
            return Ok(());
        }
        failures.sort_unstable_by_key(|(place, _)| *place);
        Err(PublishFailures(failures))
    }

    /// Where a message goes, and as what.
    async fn frame(&self, to: &Address, message: &Arc<Message>, now: UnixMs) -> Result<Frame, PublishError> {
        let later = message.not_before.filter(|at| *at > now && to.kind == Kind::Queue);
        if let Some(at) = later {
            let rung = self.rung(rungs::choose(&RUNG_DELAYS, Duration::from_millis(at - now))).await?;
            // It comes to its queue by name, and waits again if that is too early.
            let properties = wire::outgoing(message, Some(Copy { attempt: 1, failures: &[] }), now);
            return Ok(Frame { exchange: rung, key: (&*to.name).into(), properties, payload: message.payload.clone() });
        }
        let (exchange, key) = self.targets.of(to, message);
        let properties = wire::outgoing(message, None, now);
        Ok(Frame { exchange: exchange.into(), key: key.into(), properties, payload: message.payload.clone() })
    }

    /// Publishes copies to the retry queues that bring them back. One result for each.
    pub(super) async fn publish_copies(&self, copies: Vec<Copied>) -> Vec<Result<(), PublishError>> {
        let now = now_ms();
        let mut results: Vec<Result<(), PublishError>> = Vec::with_capacity(copies.len());
        let mut frames = Vec::with_capacity(copies.len());
        for copy in &copies {
            let after = u64::try_from(copy.after.as_millis()).unwrap_or(u64::MAX);
            let delay = rungs::choose(&RUNG_DELAYS, copy.after);
            let made = self.rung(delay).await.map(|exchange| {
                let marks = Copy { attempt: copy.attempt, failures: &copy.failures };
                let properties = if delay < copy.after {
                    let due = Some(now.saturating_add(after));
                    wire::outgoing(&Message { not_before: due, ..Message::clone(&copy.message) }, Some(marks), now)
                } else {
                    wire::outgoing(&copy.message, Some(marks), now)
                };
                frames.push(Frame {
                    exchange,
                    key: (&*copy.queue).into(),
                    properties,
                    payload: copy.message.payload.clone(),
                });
            });
            results.push(made);
        }
        let mut sent = self.send(frames).await.into_iter();
        for (result, copy) in results.iter_mut().zip(&copies) {
            if result.is_ok()
                && let Some(Err(refusal)) = sent.next()
            {
                if matches!(refusal, Refusal::Unroutable) {
                    // Somebody removed it: it is made again for the next.
                    self.forget_rungs();
                }
                let address = Address::queue(Arc::clone(&copy.queue));
                *result = Err(self.error(&address, refusal, copy.message.size()));
            }
        }
        results
    }

    /// The exchange of the retry queue for a delay, made where it is not there.
    async fn rung(&self, delay: Duration) -> Result<ShortString, PublishError> {
        if let Some(name) = self.lock_rungs().get(&delay) {
            return Ok(name.clone());
        }
        let rung = topology::rung(delay);
        let name: ShortString = (&*rung.name).into();
        let unconfirmed =
            |error: String| PublishError::Unavailable(format!("the retry queue {} is not there: {error}", rung.name));
        let deadline = Instant::now() + self.settings.publish_timeout;
        let declared = timeout_at(deadline, async {
            let up = self.consume.up().await?;
            let mut wanted = Topology::default();
            wanted.add_rung(rung.clone());
            declared::declare(&up.connection, &wanted, &self.settings).await
        });
        match declared.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(unconfirmed(error.to_string())),
            Err(_) => return Err(unconfirmed("RabbitMQ is away".to_owned())),
        }
        self.lock_rungs().insert(delay, name.clone());
        Ok(name)
    }

    /// What was declared on another connection may be gone.
    pub(super) fn forget_rungs(&self) {
        self.lock_rungs().clear();
    }

    fn lock_rungs(&self) -> MutexGuard<'_, BTreeMap<Duration, ShortString>> {
        self.rungs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends frames in this order, and waits for what the server says of each.
    async fn send(&self, frames: Vec<Frame>) -> Vec<Result<(), Refusal>> {
        let deadline = Instant::now() + self.settings.publish_timeout;
        let timer = metrics().rabbitmq_publish_latency.start_timer();
        let mut results = Vec::with_capacity(frames.len());
        let mut frames = frames.into_iter().peekable();
        while let Some(first) = frames.next() {
            if first.payload.len() >= LARGE {
                results.push(self.send_alone(first, deadline).await);
                continue;
            }
            let mut together = vec![first];
            while together.len() < IN_FLIGHT_MAX
                && let Some(next) = frames.next_if(|next| next.payload.len() < LARGE)
            {
                together.push(next);
            }
            results.extend(self.send_together(together, deadline).await);
        }
        timer.observe_duration();
        results
    }

    async fn send_together(&self, frames: Vec<Frame>, deadline: Instant) -> Vec<Result<(), Refusal>> {
        let count = frames.len();
        let channel = match self.shared_channel(deadline).await {
            Ok(channel) => channel,
            Err(refusal) => return vec![Err(refusal); count],
        };
        let mut sends: Vec<_> = frames.into_iter().map(|frame| Box::pin(send_one(&channel, frame))).collect();
        // Each is asked once, in this order: so they are sent in this order. Then they are waited for one by one, so that
        // nobody is woken for those that are confirmed behind the one that is waited for.
        let asked: Vec<_> = sends.iter_mut().map(|send| send.now_or_never()).collect();
        let mut results = Vec::with_capacity(count);
        let waited = timeout_at(deadline, async {
            for (send, asked) in sends.iter_mut().zip(asked) {
                results.push(match asked {
                    Some(result) => result,
                    None => send.await,
                });
            }
        });
        if waited.await.is_err() {
            let unknown = self.no_answer();
            let behind = sends.iter_mut().skip(results.len());
            let behind: Vec<_> = behind
                .map(|send| send.now_or_never().unwrap_or_else(|| Err(Refusal::Unknown(unknown.clone()))))
                .collect();
            results.extend(behind);
            self.abandon(&channel).await;
        }
        drop(sends);
        results
    }

    async fn send_alone(&self, frame: Frame, deadline: Instant) -> Result<(), Refusal> {
        let up = self.ready(deadline).await?;
        let sent = timeout_at(deadline, async {
            let channel = self.open(&up).await?;
            send_one(&channel, frame).await
        });
        match sent.await {
            Ok(result) => result,
            Err(_) => Err(Refusal::Unknown(self.no_answer())),
        }
    }

    fn no_answer(&self) -> String {
        let blocked = self.link.now().and_then(|up| up.blocked());
        match blocked {
            Some(reason) => format!("RabbitMQ takes no messages for now ({reason})"),
            None => format!("RabbitMQ did not confirm within {:?}", self.settings.publish_timeout),
        }
    }

    /// A connection over which the server takes messages.
    async fn ready(&self, deadline: Instant) -> Result<Arc<Up>, Refusal> {
        let ready = async {
            loop {
                // What messages go to is declared over the other connection, before it counts as up.
                self.consume.up().await.map_err(|error| Refusal::Away(error.to_string()))?;
                let up = self.link.up().await.map_err(|error| Refusal::Away(error.to_string()))?;
                tokio::select! {
                    () = up.unblocked() => return Ok(up),
                    () = self.link.lost(&up) => {}
                }
            }
        };
        match timeout_at(deadline, ready).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::Away(match self.link.away() {
                Some(reason) => reason,
                None => self.no_answer(),
            })),
        }
    }

    /// The channel that small messages share.
    async fn shared_channel(&self, deadline: Instant) -> Result<Channel, Refusal> {
        let up = self.ready(deadline).await?;
        let mut slot = match timeout_at(deadline, self.channel.lock()).await {
            Ok(slot) => slot,
            Err(_) => return Err(Refusal::Away(self.no_answer())),
        };
        if let Some((of, channel)) = &*slot
            && Arc::ptr_eq(of, &up)
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let channel = match timeout_at(deadline, self.open(&up)).await {
            Ok(channel) => channel?,
            Err(_) => return Err(Refusal::Away(self.no_answer())),
        };
        *slot = Some((up, channel.clone()));
        Ok(channel)
    }

    /// See [`Broker::answers`](crate::broker::Broker::answers): a channel is opened.
    pub(super) async fn answers(&self) -> Result<(), BrokerError> {
        let deadline = Instant::now() + self.settings.publish_timeout;
        let asked = async { self.open(&self.ready(deadline).await?).await };
        match timeout_at(deadline, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Refusal::Away(reason))) => Err(BrokerError::Lost(reason)),
            Ok(Err(_)) | Err(_) => Err(BrokerError::Lost(self.no_answer())),
        }
    }

    async fn open(&self, up: &Arc<Up>) -> Result<Channel, Refusal> {
        let opened = async {
            let channel = up.connection.create_channel().await?;
            if self.settings.publisher_confirm {
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
            }
            Ok::<_, lapin::Error>(channel)
        };
        opened.await.map_err(|error| {
            self.link.suspect();
            Refusal::Away(error.to_string())
        })
    }

    /// A channel that did not answer in time is not used again: what is still to come over it would be nobody's.
    async fn abandon(&self, channel: &Channel) {
        let mut slot = self.channel.lock().await;
        if slot.as_ref().is_some_and(|(_, other)| other == channel) {
            *slot = None;
        }
    }

    fn error(&self, to: &Address, refusal: Refusal, bytes: usize) -> PublishError {
        match refusal {
            Refusal::Unroutable if to.kind == Kind::Queue && self.targets.is_by_name(to) => {
                PublishError::NotFound(to.clone())
            }
            Refusal::Unroutable => PublishError::Unroutable(to.clone()),
            Refusal::Rejected => {
                PublishError::Full { address: to.clone(), limit: "RabbitMQ rejected the publish".to_owned() }
            }
            Refusal::TooLarge(text) => {
                let max = text.rsplit(' ').find_map(|word| word.parse().ok()).unwrap_or(bytes.saturating_sub(1));
                PublishError::TooLarge { address: to.clone(), bytes, max }
            }
            Refusal::Away(reason) => PublishError::Unavailable(reason),
            Refusal::Unknown(reason) => PublishError::Unconfirmed(reason),
        }
    }

    /// Whether the broker was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.link.is_closed()
    }
}

/// Sends one message and waits for what the server says.
async fn send_one(channel: &Channel, frame: Frame) -> Result<(), Refusal> {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let Frame { exchange, key, properties, payload } = frame;
    let sent = channel.basic_publish(exchange, key, options, &payload, properties);
    let confirmed = match sent.await {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    match confirmed {
        Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => Ok(()),
        Ok(Confirmation::Ack(Some(_))) => Err(Refusal::Unroutable),
        Ok(Confirmation::Nack(_)) => Err(Refusal::Rejected),
        Err(error) => {
            let text = error.to_string();
            // Source: rabbit_channel.erl, "message size ~B is larger than configured max size ~B".
            if text.contains("larger than") && text.contains("max size") {
                Err(Refusal::TooLarge(text))
            } else {
                Err(Refusal::Unknown(text))
            }
        }
    }
}
