//! Compares a topology with a server, and makes what is missing. Uses AMQP alone, so it works where there is no
//! management API.
//!
//! A server does not tell what a queue is like; it only refuses a declaration that differs, and names one field. So the
//! declaration is repeated with that field as the server has it, until it is accepted: then all that differs is known.
//! Nothing is changed by it, since what is declared in the end is what is there. A refusal closes the channel, so each
//! one costs a new channel; what is the same costs two answers.

use std::{sync::Arc, time::Duration};

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use serde::Serialize;

use super::{
    Argument, Arguments, Exchange, Queue, QueueKind, Topology,
    refusal::{self, Current, Inequivalent},
};

/// What to do with what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Look,
    /// Make what is missing, unless something differs: then nothing.
    MakeUnlessDifferent,
    /// Make what is missing, and leave what differs as it is.
    Make,
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What to do.
    pub how: How,
    /// How long to wait for one answer.
    pub timeout: Duration,
}

/// What was found of one exchange, queue or binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entity {
    /// What it is.
    pub what: What,
    /// Its name; of a binding, from where to where and with which key.
    pub name: String,
    /// How it is.
    #[serde(flatten)]
    pub state: State,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// See [`Exchange`].
    Exchange,
    /// See [`Queue`].
    Queue,
    /// See [`super::Binding`].
    Binding,
}

impl What {
    /// As people are told.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Queue => "queue",
            Self::Binding => "binding",
        }
    }
}

/// How the server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "differences")]
pub enum State {
    /// Not there.
    Missing,
    /// It was not there and has been made; a binding may have been there.
    Made,
    /// As configured.
    Same,
    /// There, and not as configured. Never empty.
    Differs(Vec<Difference>),
    /// Not compared: a binding, which AMQP cannot ask for, or something that is there and that the user may not declare.
    Unknown,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `type`, `durable`, `x-message-ttl`.
    pub field: String,
    /// As configured; `none`: not at all.
    pub configured: String,
    /// As the server has it.
    pub current: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, configured is {}", self.field, self.current, self.configured)
    }
}

/// Nothing more can be found out or made.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The connection broke, or nothing answered: connect and try again.
    #[error("the server gave no answer about {what}")]
    Unreachable {
        /// What was asked about.
        what: String,
        /// What the library said; `None`: it waited in vain.
        #[source]
        cause: Option<Box<lapin::Error>>,
    },
    /// The user may not: give the permission.
    #[error(
        "the user may not configure {what} ({said}); give it the permission, or let one that has it make the topology"
    )]
    NotAllowed {
        /// What.
        what: String,
        /// What the server said.
        said: String,
    },
    /// It belongs to another connection, or is exclusive on one side only.
    #[error(
        "{what} belongs to another connection alone, or is exclusive only here or only there ({said}); close the other \
         connection, or make `exclusive` agree"
    )]
    Locked {
        /// What.
        what: String,
        /// What the server said.
        said: String,
    },
    /// The server cannot do it: correct the configuration.
    #[error("the server does not take {what}: {said}")]
    Refused {
        /// What.
        what: String,
        /// What the server said.
        said: String,
    },
}

/// More fields than a queue can have: a server that names one again and again is not asked for ever.
const FIELDS_MAX: usize = 40;

/// Compares all, exchanges first; then makes what is missing, as far as [`Options::how`] says. Bindings are made after
/// all else, whether they are there or not: it makes no difference to a server.
///
/// # Errors
/// Nothing was changed, unless it was about making something: then what came before it has been made.
pub async fn declare(connection: &Connection, all: &Topology, options: Options) -> Result<Vec<Entity>, DeclareError> {
    let mut asking = Asking { connection, channel: None, timeout: options.timeout };
    let mut entities = Vec::new();
    for (name, exchange) in &all.exchanges {
        let state = asking.compare(&Declared::Exchange(name, exchange.clone())).await?;
        entities.push(Entity { what: What::Exchange, name: name.to_string(), state });
    }
    for (name, queue) in &all.queues {
        let state = asking.compare(&Declared::Queue(name, queue.clone())).await?;
        entities.push(Entity { what: What::Queue, name: name.to_string(), state });
    }
    let differs = entities.iter().any(|entity| matches!(entity.state, State::Differs(_)));
    let make = match options.how {
        How::Look => false,
        How::MakeUnlessDifferent => !differs,
        How::Make => true,
    };
    if make {
        let exchanges = all.exchanges.iter().map(|(name, exchange)| Declared::Exchange(name, exchange.clone()));
        let queues = all.queues.iter().map(|(name, queue)| Declared::Queue(name, queue.clone()));
        for (declared, entity) in exchanges.chain(queues).zip(&mut entities) {
            if entity.state == State::Missing {
                asking.make(&declared).await?;
                entity.state = State::Made;
            }
        }
    }
    for binding in &all.bindings {
        let name = binding.name();
        let is_new = entities.iter().any(|entity| entity.name == *binding.queue && entity.state == State::Made);
        let state = match make {
            false => State::Unknown,
            true => match asking.bind(binding, &name).await {
                Ok(()) => State::Made,
                Err(DeclareError::NotAllowed { .. }) if !is_new => State::Unknown,
                Err(error) => return Err(error),
            },
        };
        entities.push(Entity { what: What::Binding, name, state });
    }
    asking.finish().await;
    Ok(entities)
}

/// What is declared.
#[derive(Clone)]
enum Declared<'n> {
    Exchange(&'n Arc<str>, Exchange),
    Queue(&'n Arc<str>, Queue),
}

impl Declared<'_> {
    fn what(&self) -> String {
        match self {
            Self::Exchange(name, _) => format!("the exchange {name}"),
            Self::Queue(name, _) => format!("the queue {name}"),
        }
    }

    fn arguments(&mut self) -> &mut Arguments {
        match self {
            Self::Exchange(_, exchange) => &mut exchange.arguments,
            Self::Queue(_, queue) => &mut queue.arguments,
        }
    }

    /// A field that is no argument.
    fn property(&mut self, field: &str) -> Option<&mut bool> {
        match (self, field) {
            (Self::Exchange(_, exchange), "durable") => Some(&mut exchange.durable),
            (Self::Exchange(_, exchange), "auto_delete") => Some(&mut exchange.auto_delete),
            (Self::Exchange(_, exchange), "internal") => Some(&mut exchange.internal),
            (Self::Queue(_, queue), "durable") => Some(&mut queue.durable),
            (Self::Queue(_, queue), "auto_delete") => Some(&mut queue.auto_delete),
            (Self::Queue(_, queue), "exclusive") => Some(&mut queue.exclusive),
            _ => None,
        }
    }

    /// As it is shown.
    fn value(&mut self, field: &str) -> String {
        if let Some(flag) = self.property(field) {
            return flag.to_string();
        }
        match (&*self, field) {
            (Self::Exchange(_, exchange), "type") => return exchange.kind.clone(),
            (Self::Queue(_, queue), "x-queue-type") => return queue.kind.as_str().to_owned(),
            _ => {}
        }
        self.arguments().get(field).map_or_else(|| "none".to_owned(), ToString::to_string)
    }

    /// Takes a field over as the server has it. `false`: it cannot be asked with.
    fn adopt(&mut self, field: &str, current: &Current) -> bool {
        if let (Self::Queue(_, queue), "x-queue-type") = (&mut *self, field) {
            let kind = match current {
                // Made before there were other kinds, or without naming one.
                Current::None => Some(QueueKind::Classic),
                Current::Value { text, .. } => kind_of(text),
                Current::Cut => None,
            };
            return kind.map(|kind| queue.kind = kind).is_some();
        }
        if let (Self::Exchange(_, exchange), "type", Current::Value { text, .. }) = (&mut *self, field, current) {
            exchange.kind.clone_from(text);
            return true;
        }
        if let Some(flag) = self.property(field) {
            let Current::Value { text, .. } = current else { return false };
            return text.parse().map(|current| *flag = current).is_ok();
        }
        let arguments = self.arguments();
        match current {
            Current::None => arguments.remove(field).is_some(),
            Current::Cut => false,
            Current::Value { text, kind } => {
                let argument = refusal::as_argument(text, kind.as_deref(), arguments.get(field));
                argument.map(|argument| arguments.insert(field.to_owned(), argument)).is_some()
            }
        }
    }
}

fn kind_of(text: &str) -> Option<QueueKind> {
    [QueueKind::Classic, QueueKind::Quorum, QueueKind::Stream].into_iter().find(|kind| kind.as_str() == text)
}

/// What a server answers.
enum Answer {
    Accepted,
    NotFound,
    /// With what it says.
    Precondition(String),
}

struct Asking<'c> {
    connection: &'c Connection,
    channel: Option<Channel>,
    timeout: Duration,
}

impl Asking<'_> {
    async fn compare(&mut self, declared: &Declared<'_>) -> Result<State, DeclareError> {
        match self.ask(declared, true).await? {
            Answer::NotFound => return Ok(State::Missing),
            Answer::Accepted => {}
            Answer::Precondition(said) => return Err(DeclareError::Refused { what: declared.what(), said }),
        }
        let mut asked = declared.clone();
        let mut differences: Vec<Difference> = Vec::new();
        let mut kinds = [QueueKind::Classic, QueueKind::Quorum, QueueKind::Stream].into_iter();
        for _ in 0..FIELDS_MAX {
            let answer = match self.ask(&asked, false).await {
                // It is there, and somebody else looks after it: the user need not have the right to make it.
                Err(DeclareError::NotAllowed { .. }) => return Ok(State::Unknown),
                answer => answer?,
            };
            let said = match answer {
                Answer::Accepted => break,
                Answer::NotFound => return Ok(State::Missing),
                Answer::Precondition(said) => said,
            };
            let Some(Inequivalent { field, current }) = refusal::inequivalent(&said) else {
                // What has been taken over may be nothing for the kind that was asked with: the queue is of another.
                let taken_over = |field: &str| differences.iter().any(|known| known.field == field);
                if let (Some(field), Declared::Queue(_, queue)) = (refusal::invalid(&said), &mut asked)
                    && taken_over(field)
                    && let Some(kind) = kinds.find(|kind| *kind != queue.kind)
                {
                    queue.kind = kind;
                    continue;
                }
                if differences.is_empty() {
                    return Err(DeclareError::Refused { what: declared.what(), said });
                }
                break;
            };
            let again = differences.iter().any(|known| known.field == field);
            let shown = match &current {
                Current::None if field == "x-queue-type" => QueueKind::Classic.as_str().to_owned(),
                Current::None => "none".to_owned(),
                Current::Value { text, .. } => text.clone(),
                Current::Cut => "another (the server's answer is cut)".to_owned(),
            };
            if !again {
                let configured = declared.clone().value(&field);
                differences.push(Difference { field: field.clone(), configured, current: shown });
            }
            if !asked.adopt(&field, &current) || again && field != "x-queue-type" {
                break;
            }
        }
        if let (Declared::Queue(_, wanted), Declared::Queue(_, found)) = (declared, &asked)
            && wanted.kind != found.kind
            && !differences.iter().any(|known| known.field == "x-queue-type")
        {
            let (configured, current) = (wanted.kind.as_str().to_owned(), found.kind.as_str().to_owned());
            differences.push(Difference { field: "x-queue-type".to_owned(), configured, current });
        }
        Ok(if differences.is_empty() { State::Same } else { State::Differs(differences) })
    }

    async fn make(&mut self, declared: &Declared<'_>) -> Result<(), DeclareError> {
        match self.ask(declared, false).await? {
            Answer::Accepted => Ok(()),
            Answer::Precondition(said) => Err(DeclareError::Refused { what: declared.what(), said }),
            Answer::NotFound => {
                Err(DeclareError::Refused { what: declared.what(), said: "its virtual host is gone".to_owned() })
            }
        }
    }

    async fn ask(&mut self, declared: &Declared<'_>, passive: bool) -> Result<Answer, DeclareError> {
        let what = declared.what();
        let (channel, timeout) = (self.channel(&what).await?, self.timeout);
        let (name, kind, mut arguments) = match declared {
            Declared::Exchange(name, exchange) => (name, exchange.kind.as_str(), table(&exchange.arguments, &what)?),
            Declared::Queue(name, queue) => (name, queue.kind.as_str(), table(&queue.arguments, &what)?),
        };
        if name.is_empty() {
            return Err(DeclareError::Refused { what, said: "it has no name".to_owned() });
        }
        let name = short(name, &what)?;
        let asked = async {
            match declared {
                Declared::Exchange(_, exchange) => {
                    let options = ExchangeDeclareOptions {
                        passive,
                        durable: exchange.durable,
                        auto_delete: exchange.auto_delete,
                        internal: exchange.internal,
                        nowait: false,
                    };
                    channel.exchange_declare(name, ExchangeKind::Custom(kind.to_owned()), options, arguments).await
                }
                Declared::Queue(_, queue) => {
                    let options = QueueDeclareOptions {
                        passive,
                        durable: queue.durable,
                        exclusive: queue.exclusive,
                        auto_delete: queue.auto_delete,
                        nowait: false,
                    };
                    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(kind)));
                    channel.queue_declare(name, options, arguments).await.map(drop)
                }
            }
        };
        answered(what, tokio::time::timeout(timeout, asked).await.ok())
    }

    async fn bind(&mut self, binding: &super::Binding, name: &str) -> Result<(), DeclareError> {
        let what = format!("the binding {name}");
        let (channel, timeout) = (self.channel(&what).await?, self.timeout);
        let (queue, exchange) = (short(&binding.queue, &what)?, short(&binding.exchange, &what)?);
        let (key, arguments) = (short(&binding.routing_key, &what)?, table(&binding.arguments, &what)?);
        let bound = channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), arguments);
        match answered(what.clone(), tokio::time::timeout(timeout, bound).await.ok())? {
            Answer::Accepted => Ok(()),
            Answer::NotFound => {
                Err(DeclareError::Refused { what, said: "its queue or exchange is not there".to_owned() })
            }
            Answer::Precondition(said) => Err(DeclareError::Refused { what, said }),
        }
    }

    /// The channel, or a new one where a refusal has closed it.
    async fn channel(&mut self, what: &str) -> Result<Channel, DeclareError> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let opened = tokio::time::timeout(self.timeout, self.connection.create_channel()).await;
        let unreachable = |cause| DeclareError::Unreachable { what: what.to_owned(), cause };
        let channel = opened.map_err(|_| unreachable(None))?.map_err(|error| unreachable(Some(Box::new(error))))?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    async fn finish(self) {
        if let Some(channel) = self.channel.filter(|channel| channel.status().connected()) {
            // Nothing is lost where it does not close: it goes with the connection.
            tokio::time::timeout(self.timeout, channel.close(200, "done".into())).await.ok();
        }
    }
}

/// Sorts what came back by what can be done about it; `None`: nothing did.
fn answered(what: String, result: Option<lapin::Result<()>>) -> Result<Answer, DeclareError> {
    let error = match result {
        None => return Err(DeclareError::Unreachable { what, cause: None }),
        Some(Ok(())) => return Ok(Answer::Accepted),
        Some(Err(error)) => error,
    };
    let ErrorKind::ProtocolError(refused) = error.kind() else {
        return Err(DeclareError::Unreachable { what, cause: Some(Box::new(error)) });
    };
    let said = refused.get_message().to_string();
    match refused.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Ok(Answer::NotFound),
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Ok(Answer::Precondition(said)),
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Err(DeclareError::Locked { what, said }),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Err(DeclareError::NotAllowed { what, said }),
        _ => Err(DeclareError::Refused { what, said }),
    }
}

/// A server would make up a name for a queue without one, so none is ever made from a text that does not fit.
fn short(text: &str, what: &str) -> Result<ShortString, DeclareError> {
    ShortString::try_new(text).map_err(|_| DeclareError::Refused {
        what: what.to_owned(),
        said: "a text is longer than 255 bytes".to_owned(),
    })
}

fn table(arguments: &Arguments, what: &str) -> Result<FieldTable, DeclareError> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Flag(flag) => AMQPValue::Boolean(*flag),
            Argument::Integer(number) => AMQPValue::LongLongInt(*number),
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        };
        table.insert(short(name, what)?, value);
    }
    Ok(table)
}
