//! What the server does in one piece, in its own language: each file says what goes in and out.

use std::sync::LazyLock;

use redis::{Cmd, RedisError, cmd};

use super::{errors, link::Up};

/// One of them.
pub(super) struct Script {
    text: &'static str,
    hash: LazyLock<String>,
}

macro_rules! scripts {
    ($($name:ident = $file:literal,)+) => {
        $(pub(super) static $name: Script = Script {
            text: include_str!($file),
            hash: LazyLock::new(|| redis::Script::new(include_str!($file)).get_hash().to_owned()),
        };)+

        static ALL: &[&Script] = &[$(&$name),+];
    };
}

scripts! {
    ACCEPT = "accept.lua",
    BACK = "back.lua",
    DECLARE = "declare.lua",
    EVICT = "evict.lua",
    LEAVE = "leave.lua",
    LOOK = "look.lua",
    PUBLISH = "publish.lua",
    RENEW = "renew.lua",
    ROOM = "room.lua",
    SWEEP = "sweep.lua",
    TEND = "tend.lua",
}

/// Gives the server all of them.
///
/// # Errors
/// As [`Up::ask`].
pub(super) async fn load_all(up: &Up) -> Result<(), RedisError> {
    let mut pipeline = redis::pipe();
    for script in ALL {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text);
    }
    up.ask_all(&pipeline).await?.into_iter().try_for_each(|answer| errors::of(answer).map(drop))
}

impl Script {
    /// The command that runs it where the server knows it.
    pub(super) fn by_hash(&self) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(&*self.hash).arg(1);
        command
    }

    /// The command that runs it anywhere.
    pub(super) fn by_text(&self) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(self.text).arg(1);
        command
    }
}
