//! Who calls: tokens, what they may do, and the name that the audit log has for them.

use std::{fmt, sync::Arc};

use super::Options;

/// What a call needs, and a token allows: the greater includes the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looking at everything, payloads included.
    Read,
    /// Publishing and changing, too.
    Operate,
}

/// A token with the name of who has it.
#[derive(Clone, Debug)]
pub struct NamedToken {
    /// What the audit log says.
    pub name: Arc<str>,
    /// What callers bring.
    pub token: Token,
    /// What they may do.
    pub role: Role,
}

/// Whoever made a call, among its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) name: Arc<str>,
    pub(super) role: Role,
}

impl Options {
    /// Who brings this token. Each is compared, whatever the one before was.
    pub(super) fn caller(&self, given: &[u8]) -> Option<Caller> {
        let main = self.token.as_ref().filter(|token| token.is(given));
        let main = main.map(|_| Caller { name: "main".into(), role: Role::Operate });
        self.tokens.iter().fold(main, |found, named| {
            let is_it = named.token.is(given);
            found.or_else(|| is_it.then(|| Caller { name: Arc::clone(&named.name), role: named.role }))
        })
    }

    /// Whoever calls where nobody is asked.
    pub(super) fn anybody() -> Caller {
        Caller { name: "anybody".into(), role: Role::Operate }
    }
}

/// A bearer token. It is never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Keeps it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Compares without telling by the time it takes where the difference is; its length may show.
    fn is(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differing =
            own.iter().zip(given).fold(0, |differing, (own, given)| std::hint::black_box(differing | (own ^ given)));
        !own.is_empty() && own.len() == given.len() && differing == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_only_itself_and_never_shown() {
        let token = Token::new("secret");
        for (given, wanted) in [("secret", true), ("secre", false), ("secret1", false), ("sEcret", false), ("", false)]
        {
            assert_eq!(token.is(given.as_bytes()), wanted, "{given}");
        }
        assert!(!Token::new("").is(b""), "an empty token admits nobody");
        assert_eq!(format!("{token:?}"), "***");
    }

    #[test]
    fn each_token_has_its_name_and_its_role() {
        let named = |name: &str, token: &str, role| NamedToken { name: name.into(), token: Token::new(token), role };
        let tokens = vec![named("ann", "aaaa", Role::Read), named("bob", "bbbb", Role::Operate)];
        let options = Options { token: Some(Token::new("main-token")), tokens, ..Options::default() };
        let who = |given: &str| options.caller(given.as_bytes()).map(|caller| (caller.name.to_string(), caller.role));
        assert_eq!(who("main-token"), Some(("main".to_owned(), Role::Operate)));
        assert_eq!(who("aaaa"), Some(("ann".to_owned(), Role::Read)));
        assert_eq!(who("bbbb"), Some(("bob".to_owned(), Role::Operate)));
        assert_eq!((who("cccc"), who("")), (None, None));
    }
}
