//! What is configured of queues and topics, beside what a server has. In: the settings. Out: each of them, and in what it
//! differs. Start at [`at_server`].

use std::sync::Arc;

use super::{
    declared, errors,
    link::Up,
    place::{GROUP, Place},
    settings::Settings,
    transport,
};
use crate::{
    broker::{BrokerError, Declaration},
    message::Address,
};

/// A queue or topic that is configured, beside what the server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Which.
    pub address: Address,
    /// How it is there.
    pub state: State,
}

/// How it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As configured.
    Same,
    /// It was not there, and was made.
    Made,
    /// It is not there.
    Missing,
    /// It is there, and otherwise: each setting, as configured, as it is.
    Differs(Vec<[String; 3]>),
}

/// Looks at all that is configured, and makes what is missing where it is told to. What is there is never changed.
///
/// # Errors
/// [`BrokerError::Refused`]: the server will not have us. [`BrokerError::Unreachable`]: it is not there.
pub async fn at_server(settings: &Settings, makes: bool) -> Result<Vec<Compared>, BrokerError> {
    let (client, driver) = transport::connect(settings).await.map_err(|error| {
        if error.is_refusal {
            return BrokerError::Refused { reason: error.text, code: error.code };
        }
        let (endpoint, timeout) = (settings.endpoint(), settings.connect_timeout);
        BrokerError::Unreachable { endpoint, timeout, cause: error.text.into() }
    })?;
    let up = Up::once(client);
    tokio::select! {
        biased;
        compared = compare(&up, settings, makes) => compared,
        () = driver => Err(BrokerError::Lost("Redis ended the connection".to_owned())),
    }
}

async fn compare(up: &Up, settings: &Settings, makes: bool) -> Result<Vec<Compared>, BrokerError> {
    let mut all = Vec::new();
    for declaration in declarations(settings) {
        let place = Place::new(&declaration.address(), settings);
        let found = declared::differences(up, &declaration, &place).await;
        let state = match found.map_err(|error| errors::seam(settings, &error))? {
            Some(differences) if differences.is_empty() => State::Same,
            Some(differences) => State::Differs(differences.iter().map(|text| parts(text)).collect()),
            None if makes => {
                declared::declare(up, &declaration, &place, settings).await?;
                State::Made
            }
            None => State::Missing,
        };
        all.push(Compared { address: declaration.address(), state });
    }
    Ok(all)
}

/// The commands that make all of it on a server that has none of it, word by word. What is there they leave as it is, though
/// they say so.
#[must_use]
pub fn commands(settings: &Settings) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for declaration in declarations(settings) {
        let place = Place::new(&declaration.address(), settings);
        place.learn(declared::known(&declaration));
        let (kind, fields) = declared::wanted(&declaration);
        let set = fields.iter().filter(|(_, value)| !value.is_empty());
        for (name, value) in std::iter::once(&("kind", kind.to_owned())).chain(set) {
            all.push(words(&["HSETNX", &place.base, name, value]));
        }
        for stream in declared::made(&declaration, &place) {
            all.push(words(&["XGROUP", "CREATE", &place.key(&stream), GROUP, "0", "MKSTREAM"]));
        }
    }
    all
}

fn declarations(settings: &Settings) -> impl Iterator<Item = Declaration> {
    let queues = settings.queues.iter().map(|(name, queue)| Declaration::Queue(Arc::clone(name), queue.clone()));
    let topics = settings.topics.iter().map(|(name, topic)| Declaration::Topic(Arc::clone(name), topic.clone()));
    queues.chain(topics)
}

/// Of `ttl is none, wanted is 24 h`: the setting, as configured, as it is.
fn parts(text: &str) -> [String; 3] {
    let (name, rest) = text.split_once(" is ").unwrap_or((text, ""));
    let (current, configured) = rest.split_once(", wanted is ").unwrap_or((rest, ""));
    [name, configured, current].map(str::to_owned)
}
