//! What the server sends, before the client library sees it.
//!
//! AMQP's short strings (ids, names of headers, routing keys) are bytes; the library takes them for UTF-8, and gives up
//! the connection where they are not. The message would come again on the next one, and end that, too. So frames are
//! looked at on their way: one that cannot be read is replaced by one that says the same in text (`escape.rs`), and one
//! with tables so deep that reading them would use up the stack has the deep ones as bytes. All others, practically all,
//! pass in place, uncopied; only the beginning of a frame whose end has not come yet is kept back.
//!
//! It also listens to how the server introduces itself, as it sees first that somebody else does ([`NoConversation`]).
//! Bytes come in by [`Filter::read`], which asks for them, and leave by the buffer it is given. Frames are judged and
//! written anew in `frame.rs`.

mod escape;
mod fields;
mod frame;
#[cfg(test)]
mod tests;

use std::{
    io,
    task::{Poll, ready},
};

use frame::{Kind, Verdict};
pub(in crate::broker::rabbitmq) use frame::{LEVELS_MAX, table_is_readable};

/// A longer frame than this passes unseen: no server sends one, its own limit is 128 KiB unless it is set.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// Frame type, channel, length of the payload.
const HEADER_BYTES: usize = 7;

/// The server will not come to an understanding with us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoConversation {
    /// It answered with TLS.
    #[error("the answer is TLS")]
    Tls,
    /// It answered with HTTP.
    #[error("the answer is HTTP")]
    Http,
    /// It speaks another version of AMQP.
    #[error("the answer is another version of AMQP")]
    Version,
    /// It answered with something else.
    #[error("the answer is no AMQP")]
    Unknown,
    /// It does not let anybody in that way.
    #[error("{wanted} is not among {offered}")]
    Mechanism {
        /// How the client wants to say who it is.
        wanted: &'static str,
        /// How it may.
        offered: String,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Filter {
    /// How the client will say who it is.
    mechanism: &'static str,
    /// Whether the first frame has begun.
    greeted: bool,
    /// Bytes of the frame at hand that pass unseen.
    unseen: usize,
    /// The beginning of a frame, as far as it has come.
    held: Vec<u8>,
    /// What goes out next, from `ready_from`: a frame that was written anew, and what came behind it.
    ready: Vec<u8>,
    ready_from: usize,
    /// Longest frame that the library takes; zero: not agreed yet.
    frame_bytes_max: usize,
}

impl Filter {
    pub(super) fn new(mechanism: &'static str) -> Self {
        Self {
            mechanism,
            greeted: false,
            unseen: 0,
            held: Vec::new(),
            ready: Vec::new(),
            ready_from: 0,
            frame_bytes_max: 0,
        }
    }

    /// Fills `buffer` from `source`, and says how far; nothing at all once `source` has ended.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        mut source: impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if self.ready_from < self.ready.len() {
                return Poll::Ready(Ok(self.hand_out(buffer)));
            }
            let kept = self.held.len();
            let Some((front, free)) = buffer.split_at_mut_checked(kept).filter(|(_, free)| !free.is_empty()) else {
                ready!(self.read_aside(&mut source))?;
                continue;
            };
            front.copy_from_slice(&self.held);
            let read = ready!(source(free))?;
            self.held.clear();
            if read == 0 {
                // It ended within a frame: let the library find out.
                return Poll::Ready(Ok(kept));
            }
            let passed = self.scan(buffer.get(..kept + read).unwrap_or_default())?;
            if passed > 0 {
                return Poll::Ready(Ok(passed));
            }
        }
    }

    /// Reads where the buffer has no room beside what is held.
    fn read_aside(&mut self, source: &mut impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<()>> {
        let mut chunk = [0; 4096];
        let read = ready!(source(&mut chunk))?;
        let mut bytes = std::mem::take(&mut self.held);
        if read == 0 {
            self.ready = bytes;
            self.ready_from = 0;
            return Poll::Ready(Ok(()));
        }
        bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
        self.ready.clear();
        self.ready_from = 0;
        let passed = self.scan(&bytes)?;
        self.ready.splice(..0, bytes.into_iter().take(passed));
        Poll::Ready(Ok(()))
    }

    fn hand_out(&mut self, buffer: &mut [u8]) -> usize {
        let left = self.ready.get(self.ready_from..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(left) {
            *to = *from;
        }
        self.ready_from += count;
        if self.ready_from == self.ready.len() {
            self.ready = Vec::new();
            self.ready_from = 0;
        }
        count
    }

    /// Looks at what has come. Says how many bytes from the beginning pass as they are; all behind them is in `ready`,
    /// or held until the rest has come.
    fn scan(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut at = 0;
        // Set by the first frame that is replaced: what comes behind it follows in `ready`.
        let mut replaced_at = None;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            let passing = match self.unseen {
                0 => match self.judge(rest)? {
                    Next::Pass(count) => count,
                    Next::Replace(count, frame) => {
                        self.ready.extend_from_slice(&frame);
                        replaced_at.get_or_insert(at);
                        at += count;
                        continue;
                    }
                    Next::Hold => {
                        self.held.extend_from_slice(rest);
                        break;
                    }
                },
                unseen => unseen,
            };
            let now = passing.min(rest.len());
            self.unseen = passing - now;
            if replaced_at.is_some() {
                self.ready.extend_from_slice(rest.get(..now).unwrap_or_default());
            }
            at += now;
        }
        Ok(replaced_at.unwrap_or(at))
    }

    /// What becomes of the frame that begins here.
    fn judge(&mut self, bytes: &[u8]) -> io::Result<Next> {
        if !self.greeted {
            introduction(bytes).map_err(io::Error::other)?;
            self.greeted = true;
        }
        let Some((kind, length)) = frame::begin(bytes) else { return Ok(Next::Hold) };
        let whole = HEADER_BYTES + length + 1;
        if kind == Kind::Other || whole > FRAME_BYTES_MAX {
            return Ok(Next::Pass(whole));
        }
        let Some(frame) = bytes.get(..whole) else { return Ok(Next::Hold) };
        // A server sends content headers longer than agreed where they came to it by another protocol.
        let too_long = kind == Kind::ContentHeader && self.frame_bytes_max > 0 && whole > self.frame_bytes_max;
        Ok(match frame::judge(kind, frame) {
            Verdict::Readable if !too_long => Next::Pass(whole),
            Verdict::Readable | Verdict::Unreadable => match frame::rewrite(kind, frame, self.frame_bytes_max) {
                Some(frame) => Next::Replace(whole, frame),
                None => Next::Pass(whole),
            },
            Verdict::Tune { frame_bytes_max } => {
                self.frame_bytes_max = frame_bytes_max;
                Next::Pass(whole)
            }
            Verdict::Start { mechanisms } => {
                let offered = String::from_utf8_lossy(mechanisms);
                if !offered.split_whitespace().any(|offered| offered == self.mechanism) {
                    let offered = offered.into_owned();
                    return Err(io::Error::other(NoConversation::Mechanism { wanted: self.mechanism, offered }));
                }
                Next::Pass(whole)
            }
        })
    }
}

enum Next {
    /// So many bytes as they are, whether they have come or not.
    Pass(usize),
    /// So many bytes are replaced by these.
    Replace(usize, Vec<u8>),
    /// More is needed to say.
    Hold,
}

/// Whether the first byte is that of AMQP 0-9-1, which begins with a method frame.
fn introduction(bytes: &[u8]) -> Result<(), NoConversation> {
    match bytes {
        [] | [frame::METHOD, ..] => Ok(()),
        // Content types of TLS: alert and handshake. Source: RFC 8446, section 5.1.
        [21 | 22, ..] => Err(NoConversation::Tls),
        [b'A', ..] => Err(NoConversation::Version),
        [b'H', ..] => Err(NoConversation::Http),
        _ => Err(NoConversation::Unknown),
    }
}
