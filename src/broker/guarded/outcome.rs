//! What the end of a publish says: of the system, and of the messages behind one that failed. Pure.

use std::{collections::HashSet, sync::Arc};

use super::breaker::Ended;
use crate::{broker::PublishError, message::Message};

/// Whether it may be taken once the system is well again.
pub(super) fn is_outage(error: &PublishError) -> bool {
    matches!(error, PublishError::Unavailable(_) | PublishError::Unconfirmed(_))
}

/// What was learnt of the system from publishing so many messages.
pub(super) fn judge(failures: &[(usize, PublishError)], count: usize) -> Ended {
    // An engine may know these by itself, without the system.
    let is_ours = |error: &PublishError| {
        matches!(error, PublishError::TooLarge { .. } | PublishError::NotFound(_) | PublishError::Closed)
    };
    if failures.len() < count || failures.iter().any(|(_, error)| !is_outage(error) && !is_ours(error)) {
        return Ended::Answered;
    }
    let mut outages = failures.iter().filter(|(_, error)| is_outage(error));
    match outages.next() {
        None => Ended::Unclear,
        Some((_, first)) => {
            let messages = u32::try_from(1 + outages.count()).unwrap_or(u32::MAX);
            Ended::Failed { messages, why: first.to_string() }
        }
    }
}

/// For each message whether it is one of these or has the key of one that is before it. `failed` is in order.
pub(super) fn with_followers(messages: &[Arc<Message>], failed: impl Iterator<Item = usize>) -> Vec<bool> {
    let mut failed = failed.peekable();
    let mut keys = HashSet::new();
    let one = |(place, message): (usize, &Arc<Message>)| {
        let is_one = failed.next_if_eq(&place).is_some();
        match &message.key {
            Some(key) if is_one => {
                keys.insert(key.clone());
                true
            }
            Some(key) => keys.contains(key),
            None => is_one,
        }
    };
    messages.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Address;

    #[test]
    fn what_follows_under_the_key_of_one_that_failed_goes_with_it() {
        let message = |key: Option<&'static str>| {
            let mut message = Message::new("test", "", 0);
            message.key = key.map(|key| key.as_bytes().to_vec().into());
            Arc::new(message)
        };
        let messages = [Some("a"), Some("b"), None, Some("b"), None, Some("a"), Some("b")].map(message);
        let follow = with_followers(&messages, [1, 2].into_iter());
        assert_eq!(follow, [false, true, true, true, false, false, true]);
        assert_eq!(with_followers(&messages, std::iter::empty()), [false; 7]);
    }

    #[test]
    fn one_answer_among_many_messages_is_an_answer() {
        let lost = || PublishError::Unconfirmed("no answer".to_owned());
        let rejected = || PublishError::Rejected { address: Address::queue("q"), reason: "no".to_owned() };
        let too_large = || PublishError::TooLarge { address: Address::queue("q"), bytes: 2, max: 1 };
        assert_eq!(judge(&[], 3), Ended::Answered);
        assert_eq!(judge(&[(0, lost()), (1, lost())], 3), Ended::Answered);
        assert_eq!(judge(&[(0, lost()), (1, rejected())], 2), Ended::Answered);
        assert_eq!(judge(&[(0, too_large())], 1), Ended::Unclear);
        let failed = Ended::Failed { messages: 1, why: "not confirmed: no answer".to_owned() };
        assert_eq!(judge(&[(0, lost()), (1, too_large())], 2), failed);
    }
}
