//! Tells an outage behind a handler from a message that is at fault. Pure: how calls ended comes in, whether the route is
//! slowed comes out; waiting and probes are the [brake](super::brake)'s.
//!
//! The rule: as many *different* messages as the route says have failed alike, and none has succeeded since. Alike is the
//! same reason code and the same text, but for what is quoted in it and for words with a digit: ids, numbers, addresses.
//! One poisonous message is one message however often it is tried, and so never an outage. Nor is one that failed on an
//! attempt before, while others succeeded since, a sign of one: poisonous messages gather where they are tried again, at
//! the head of every key.

use serde::Serialize;

use crate::{
    message::{MessageId, ReasonCode},
    route::OutageBrake,
};

/// Ways to fail that are counted at a time. An outage has one or two (each of two servers may refuse in its own words).
const WAYS_MAX: usize = 8;
/// How much of a text is compared, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// What slows a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutageSeen {
    /// How many calls have failed alike since the last success.
    pub failures: u64,
    /// The reason code of each.
    pub code: ReasonCode,
    /// What the last of them said.
    pub text: String,
}

/// What is known of the calls of one route since its last success.
#[derive(Debug)]
pub(super) struct Outage {
    rule: OutageBrake,
    /// The latest last.
    ways: Vec<Way>,
}

/// Failures that are alike.
#[derive(Debug)]
struct Way {
    code: ReasonCode,
    /// What their texts have in common.
    text: String,
    /// What the last of them said.
    said: String,
    failures: u64,
    /// The messages that failed this way, each once, at most as many as make an outage.
    messages: Vec<MessageId>,
}

impl Outage {
    pub(super) fn new(rule: OutageBrake) -> Self {
        Self { rule, ways: Vec::new() }
    }

    /// A call failed, on that attempt at its message. Returns whether that is because of an outage, and not because of its
    /// message.
    pub(super) fn failed(&mut self, message: &MessageId, attempt: u32, code: ReasonCode, said: &str) -> bool {
        if self.rule.failures_max == 0 {
            return false;
        }
        let text = common(said);
        let failed_before = attempt > 1 && !self.ways.iter().any(|way| way.messages.contains(message));
        let known = self.ways.iter().position(|way| way.code == code && way.text == text);
        let mut way = match known {
            Some(place) => self.ways.remove(place),
            None => {
                self.forget_one();
                Way { code, text, said: String::new(), failures: 0, messages: Vec::new() }
            }
        };
        way.failures += 1;
        way.said.clear();
        way.said.push_str(said);
        if !failed_before && !self.is_outage(&way) && !way.messages.contains(message) {
            way.messages.push(message.clone());
        }
        let is_outage = self.is_outage(&way);
        self.ways.push(way);
        is_outage
    }

    /// A message was handled: whatever was away is there.
    pub(super) fn succeeded(&mut self) {
        self.ways.clear();
    }

    /// Whether nothing has failed since the last success.
    pub(super) fn is_over(&self) -> bool {
        self.ways.is_empty()
    }

    /// Whether the route is slowed.
    pub(super) fn slows(&self) -> bool {
        self.ways.iter().any(|way| self.is_outage(way))
    }

    /// What slows the route, if anything does.
    pub(super) fn seen(&self) -> Option<OutageSeen> {
        let way = self.ways.iter().rfind(|way| self.is_outage(way))?;
        Some(OutageSeen { failures: way.failures, code: way.code, text: way.said.clone() })
    }

    fn is_outage(&self, way: &Way) -> bool {
        way.messages.len() as u64 >= u64::from(self.rule.failures_max)
    }

    /// Makes room for another way: the oldest that slows nothing goes, else the oldest.
    fn forget_one(&mut self) {
        if self.ways.len() >= WAYS_MAX {
            let place = self.ways.iter().position(|way| !self.is_outage(way)).unwrap_or_default();
            self.ways.remove(place);
        }
    }
}

/// What texts have in common that say the same of different messages: all but quoted parts, and words with a digit.
fn common(text: &str) -> String {
    let mut common = String::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next().filter(|_| common.len() < TEXT_BYTES_MAX) {
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
        // Within a word it is an apostrophe.
        let closing = match first {
            '\'' if before.is_alphanumeric() => None,
            '"' | '\'' | '`' => rest.char_indices().skip(1).find(|(_, c)| *c == first).map(|(place, _)| place + 1),
            _ => None,
        };
        let length = match closing {
            Some(end) => end,
            None if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            None => first.len_utf8(),
        };
        let (part, behind) = rest.split_at(length);
        if closing.is_none() && !part.contains(|c: char| c.is_ascii_digit()) {
            common.push_str(part);
        }
        before = part.chars().next_back().unwrap_or(before);
        rest = behind;
    }
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODE: ReasonCode = ReasonCode::HandlerRetryExhausted;

    fn outage(failures_max: u32) -> Outage {
        Outage::new(OutageBrake { failures_max, ..OutageBrake::default() })
    }

    fn id(number: u64) -> MessageId {
        MessageId::parse(&number.to_string())
    }

    #[test]
    fn different_messages_that_fail_alike_are_an_outage_until_one_succeeds() {
        let mut outage = outage(3);
        let mut fail = |number: u64| outage.failed(&id(number), 1, CODE, &format!("order {number}: no answer"));
        assert_eq!([fail(1), fail(2), fail(3), fail(4), fail(1)], [false, false, true, true, true]);
        let seen = outage.seen().unwrap();
        assert_eq!((seen.failures, seen.text.as_str()), (5, "order 1: no answer"));
        outage.succeeded();
        assert!(outage.seen().is_none() && outage.is_over());
        assert!(!outage.failed(&id(5), 1, CODE, "order 5: no answer"));
    }

    #[test]
    fn another_way_to_fail_is_counted_for_itself() {
        let mut outage = outage(2);
        let two = |outage: &mut Outage, text: &str| [1, 2].map(|number| outage.failed(&id(number), 1, CODE, text));
        assert!(!outage.failed(&id(1), 1, ReasonCode::HandlerContract, "refused"));
        assert_eq!(two(&mut outage, "refused"), [false, true]);
        assert!(!outage.failed(&id(9), 1, CODE, "no price"));
        assert_eq!(outage.seen().unwrap().text, "refused");
        assert_eq!(two(&mut outage, "no route to host"), [false, true]);
    }

    #[test]
    fn what_failed_before_the_last_success_says_nothing_of_the_others() {
        let mut outage = outage(2);
        assert!(!outage.failed(&id(1), 1, CODE, "no price"));
        outage.succeeded();
        assert!((2..9).all(|attempt| !outage.failed(&id(1), attempt, CODE, "no price")));
        assert!((2..9).all(|number| !outage.failed(&id(number), 2, CODE, "no price")), "nor do others like it");
        // Its attempts since then are those of one message among others.
        assert!(!outage.failed(&id(10), 1, CODE, "no price"));
        assert!(!outage.failed(&id(10), 2, CODE, "no price"));
        assert!(outage.failed(&id(11), 1, CODE, "no price"));
        assert!(outage.failed(&id(1), 9, CODE, "no price"), "while it lasts no message is at fault");
    }

    #[test]
    fn a_route_may_do_without() {
        let mut outage = outage(0);
        assert!((0..100).all(|number| !outage.failed(&id(number), 1, CODE, "refused")));
        assert!(outage.is_over());
    }

    #[test]
    fn texts_are_alike_but_for_what_is_quoted_or_has_a_digit() {
        #[track_caller]
        fn check(one: &str, other: &str, alike: bool) {
            assert_eq!(common(one) == common(other), alike, "{:?} {:?}", common(one), common(other));
        }
        check("connect to db-1 (10.0.0.7:5432): refused", "connect to db-2 (10.0.0.31:5432): refused", true);
        check(
            "order 0190163d-8694-739b-aea5-966c26f8ad91 failed",
            "order cafe163d-0694-abcd-eeee-966c26f8ad91 failed",
            true,
        );
        check("no customer \"Jo\"", "no customer \"Ann Lee\"", true);
        check("no customer 'Jo' in `eu`", "no customer 'Ann' in `us`", true);
        check("can't reach the bank's host", "can't reach the shop's host", false);
        check("an open \" quote", "an open \" mark", false);
        check("refused", "timed out", false);
        check("", "", true);
    }

    proptest! {
        #[test]
        fn fewer_messages_than_the_rule_says_are_never_an_outage(
            calls in prop::collection::vec((0_u64..4, 0..3_usize), 0..200),
        ) {
            let mut outage = outage(5);
            for (number, text) in calls {
                prop_assert!(!outage.failed(&id(number), 1, CODE, ["a", "b", "c"][text]));
            }
            prop_assert!(outage.seen().is_none());
        }

        #[test]
        fn what_is_counted_is_bounded_and_a_success_ends_it(
            calls in prop::collection::vec((any::<u64>(), ".{0,40}"), 0..300),
        ) {
            let mut outage = outage(2);
            for (number, text) in &calls {
                outage.failed(&id(*number), 1, CODE, text);
                prop_assert!(outage.ways.len() <= WAYS_MAX);
                prop_assert!(outage.ways.iter().all(|way| way.messages.len() <= 2 && way.text.len() <= TEXT_BYTES_MAX + text.len()));
            }
            outage.succeeded();
            prop_assert!(calls.first().is_none_or(|(number, text)| !outage.failed(&id(*number), 1, CODE, text)));
        }

        #[test]
        fn as_many_different_messages_as_the_rule_says_are_one(
            failures_max in 1_u32..20, others in prop::collection::vec(0..7_usize, 0..60),
        ) {
            let mut outage = outage(failures_max);
            // Whatever else fails in between, in fewer other ways than are counted.
            let texts = ["b", "c", "d", "e", "f", "g", "h"];
            let mut others = others.into_iter().enumerate();
            for number in 0..u64::from(failures_max) {
                prop_assert!(outage.seen().is_none_or(|seen| seen.text != "a"));
                for (place, other) in others.by_ref().take(3) {
                    outage.failed(&id(place as u64 % 3), 1, CODE, texts[other]);
                }
                let is_outage = outage.failed(&id(number), 1, CODE, "a");
                prop_assert_eq!(is_outage, number + 1 == u64::from(failures_max));
            }
        }
    }
}
