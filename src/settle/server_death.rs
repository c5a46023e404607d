//! Messages that a server took out of their queue by itself, and that lie among the dead letters for that: too old, too
//! many, refused by another consumer. The server's record is the header `x-death`, which is JSON here.
//! Source: RabbitMQ, "Dead Letter Exchanges", section "Effects on Messages".

use serde::Deserialize;

use super::dead_letter::DeadLetter;
use crate::message::{Address, Kind, Message, ReasonCode};

const HEADER: &str = "x-death";
/// What the names of queues begin with where messages wait for their next attempt: leaving one is no death.
const WAITING_PREFIX: &str = "helixagent.retry";

/// One entry: what happened in one queue for one reason.
#[derive(Deserialize)]
struct Death {
    queue: String,
    reason: String,
    #[serde(default = "once")]
    count: u64,
    /// In seconds, of the first time.
    #[serde(default)]
    time: u64,
    /// In milliseconds, where the publisher set it.
    #[serde(default, rename = "original-expiration")]
    expiration: Option<String>,
}

fn once() -> u64 {
    1
}

/// The record that the server's entries amount to. They are newest first, so the first one is why it is here.
pub(super) fn read(letter: &Message) -> Option<DeadLetter> {
    let deaths: Vec<serde_json::Value> = serde_json::from_str(letter.headers.get(HEADER)?).ok()?;
    let mut deaths = deaths.into_iter().filter_map(|death| serde_json::from_value::<Death>(death).ok());
    let death = deaths.find(|death| !death.queue.starts_with(WAITING_PREFIX))?;
    let (code, why) = death.cause();
    let often = match death.count {
        0 | 1 => String::new(),
        count => format!(", {count} times by now"),
    };
    let source = Address::checked(Kind::Queue, &death.queue);
    Some(DeadLetter {
        code,
        text: format!("the server took it out of queue {:?}: {why}{often}", death.queue),
        handler_code: None,
        at: death.time.saturating_mul(1000),
        broker: "rabbitmq".to_owned(),
        source: source.map_or_else(|_| format!("queue:{}", death.queue), |address| address.to_string()),
        partition: None,
        offset: None,
        route: None,
        handler: None,
        backtrace: None,
        attempts: Vec::new(),
        trace_id: letter.trace_id().map(str::to_owned),
    })
}

impl Death {
    fn cause(&self) -> (ReasonCode, String) {
        match (self.reason.as_str(), &self.expiration) {
            ("expired", Some(expiration)) => (
                ReasonCode::MessageExpired,
                format!("it was not handled within the {expiration} ms that its publisher gave it"),
            ),
            ("expired", None) => {
                (ReasonCode::MessageExpired, "it was not handled within the time that the queue allows".to_owned())
            }
            ("maxlen", _) => (ReasonCode::QueueOverflow, "the queue held more than its limit".to_owned()),
            ("rejected", _) => (ReasonCode::HandlerRejected, "a consumer rejected it".to_owned()),
            ("delivery_limit", _) => {
                (ReasonCode::HandlerRetryExhausted, "it was given back more often than the queue allows".to_owned())
            }
            // Of a server that is newer than this: its own word says most.
            (other, _) => (ReasonCode::OperationCanceled, format!("it gives {other:?} as the reason")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(deaths: &str) -> Message {
        let mut letter = Message::new("order", &b"{}"[..], 9);
        letter.headers.append(HEADER, deaths);
        letter
    }

    #[test]
    fn what_the_server_wrote_is_read_as_a_record() {
        for (death, code, says) in [
            (r#""reason":"expired""#, ReasonCode::MessageExpired, "that the queue allows"),
            (r#""reason":"expired","original-expiration":"250""#, ReasonCode::MessageExpired, "the 250 ms"),
            (r#""reason":"maxlen""#, ReasonCode::QueueOverflow, "more than its limit"),
            (r#""reason":"rejected""#, ReasonCode::HandlerRejected, "rejected it"),
            (r#""reason":"rejected","count":3"#, ReasonCode::HandlerRejected, "3 times"),
            (r#""reason":"delivery_limit""#, ReasonCode::HandlerRetryExhausted, "given back"),
            (r#""reason":"eclipse""#, ReasonCode::OperationCanceled, "\"eclipse\""),
        ] {
            let deaths = format!(r#"[{{{death},"queue":"orders","time":1700000000,"routing-keys":["orders"]}}]"#);
            let record = DeadLetter::read(&letter(&deaths)).expect("a record");
            assert_eq!((record.code, record.at), (code, 1_700_000_000_000), "{death}");
            assert_eq!((record.source.as_str(), record.broker.as_str()), ("queue:orders", "rabbitmq"));
            assert!(record.text.contains(says) && record.text.contains("\"orders\""), "{}", record.text);
        }
    }

    #[test]
    fn the_newest_death_that_is_none_of_waiting_is_the_cause() {
        let deaths = r#"[{"reason":"expired","queue":"helixagent.retry.500"},{"reason":"maxlen","queue":"b"},
                         {"reason":"rejected","queue":"a"}]"#;
        assert_eq!(DeadLetter::read(&letter(deaths)).expect("a record").source, "queue:b");
    }

    #[test]
    fn what_says_nothing_is_no_record() {
        for deaths in
            ["", "x", "{}", "[]", "[1]", r#"[{"queue":"a"}]"#, r#"[{"reason":"expired","queue":"helixagent.retry"}]"#]
        {
            assert_eq!(DeadLetter::read(&letter(deaths)), None, "{deaths}");
        }
    }

    #[test]
    fn our_own_record_comes_before_the_servers() {
        let mut letter = letter(r#"[{"reason":"expired","queue":"a"}]"#);
        letter.headers.append(crate::message::header::DEAD_CODE, ReasonCode::HandlerTrapped.as_str());
        assert_eq!(DeadLetter::read(&letter).expect("a record").code, ReasonCode::HandlerTrapped);
    }
}
