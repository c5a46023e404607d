//! Requests over one connection, answered in their order. In: commands, packed by the client library. Out: an answer for each.
//! Any number may be on their way at a time. Whoever made the connection moves its bytes, by polling what [`Client::over`]
//! gives beside the client.

use std::{collections::VecDeque, io};

use bytes::BytesMut;
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};

use super::reply::{Reply, Scanner};

/// Requests that may wait to be written.
const BUFFERED: usize = 256;
/// Bytes that wait to be written before more requests are taken in.
const WRITTEN_MAX: usize = 4 << 20;
/// Bytes that are read at a time, at least.
const READ: usize = 64 << 10;

/// See the module. Cloned, it is the same connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    commands: Vec<u8>,
    waits: Waits,
}

/// Whoever waits for so many answers.
#[derive(Debug)]
struct Waits {
    count: usize,
    replies: Vec<Reply>,
    to: oneshot::Sender<Vec<Reply>>,
}

impl Client {
    /// A client, and what moves its bytes until the connection is lost, or the last client is gone.
    pub(super) fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    ) -> (Self, impl Future<Output = io::Error> + Send) {
        let (requests, taken) = mpsc::channel(BUFFERED);
        let moves = async {
            match carry(stream, taken).await {
                Ok(()) => io::ErrorKind::NotConnected.into(),
                Err(error) => error,
            }
        };
        (Self { requests }, moves)
    }

    /// Carries out one command.
    ///
    /// # Errors
    /// What the server says against it; or that the connection was lost: it may have been carried out.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, RedisError> {
        let replies = self.send(command.get_packed_command(), 1).await?;
        replies.first().ok_or_else(lost)?.value()
    }

    /// Carries out several, in one round trip.
    ///
    /// # Errors
    /// The connection was lost: any of them may have been carried out.
    pub(super) async fn ask_all(&self, commands: &Pipeline) -> Result<Vec<Reply>, RedisError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.send(commands.get_packed_pipeline(), commands.len()).await
    }

    async fn send(&self, commands: Vec<u8>, count: usize) -> Result<Vec<Reply>, RedisError> {
        let (to, answered) = oneshot::channel();
        let waits = Waits { count, replies: Vec::with_capacity(count), to };
        self.requests.send(Request { commands, waits }).await.map_err(|_| lost())?;
        answered.await.map_err(|_| lost())
    }
}

fn lost() -> RedisError {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection was lost").into()
}

/// Writes what is asked and hands out what is answered.
async fn carry(stream: impl AsyncRead + AsyncWrite + Unpin, mut requests: mpsc::Receiver<Request>) -> io::Result<()> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let (mut written, mut heard) = (BytesMut::new(), BytesMut::new());
    let (mut scanner, mut waiting) = (Scanner::new(), VecDeque::<Waits>::new());
    let (mut takes, mut is_flushed) = (true, true);
    loop {
        heard.reserve(READ);
        // Each of these may be given up and begun anew.
        tokio::select! {
            request = requests.recv(), if written.len() < WRITTEN_MAX && takes => {
                let Some(Request { commands, waits }) = request else { return Ok(()) };
                written.extend_from_slice(&commands);
                waiting.push_back(waits);
            }
            wrote = write(&mut writing, &mut written), if !written.is_empty() || !is_flushed => match wrote {
                Ok(is_all) => is_flushed = is_all,
                // It has ended: what it said last is still to be read.
                Err(_) => {
                    takes = false;
                    written.clear();
                    is_flushed = true;
                }
            },
            count = reading.read_buf(&mut heard) => {
                if count? == 0 {
                    return Err(ended(waiting.front().and_then(|first| first.replies.last())));
                }
                while let Some(reply) = scanner.take(&mut heard)? {
                    hand_out(reply, &mut waiting)?;
                }
            }
        }
    }
}

/// Writes some of it; answers whether the other side has all of it.
///
/// # Cancel safety
/// Cancel safe.
async fn write(writing: &mut (impl AsyncWrite + Unpin), written: &mut BytesMut) -> io::Result<bool> {
    if written.is_empty() {
        writing.flush().await?;
        return Ok(true);
    }
    match writing.write_buf(written).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(false),
    }
}

/// What the server said last may be why it ended the connection: too many clients, protected mode.
fn ended(last: Option<&Reply>) -> io::Error {
    match last.map(Reply::value) {
        Some(Err(said)) => io::Error::new(io::ErrorKind::UnexpectedEof, said),
        _ => io::ErrorKind::UnexpectedEof.into(),
    }
}

fn hand_out(reply: Reply, waiting: &mut VecDeque<Waits>) -> io::Result<()> {
    let Some(first) = waiting.front_mut() else {
        let said =
            reply.value().map_or_else(|said| said.to_string(), |_| "an answer to nothing that was asked".to_owned());
        return Err(io::Error::new(io::ErrorKind::InvalidData, said));
    };
    first.replies.push(reply);
    if first.replies.len() == first.count
        && let Some(Waits { replies, to, .. }) = waiting.pop_front()
    {
        // Whoever waited may have given up.
        to.send(replies).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    fn connected() -> (Client, impl Future<Output = io::Error> + Send, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64);
        let (client, moves) = Client::over(ours);
        (client, moves, theirs)
    }

    #[tokio::test]
    async fn answers_in_the_order_of_requests_and_passes_over_who_gave_up() {
        let (client, moves, mut server) = connected();
        let mut pipeline = redis::pipe();
        pipeline.cmd("A").cmd("B");
        let talk = async {
            // Both are on their way when the first answer comes.
            let (early, late) = (redis::cmd("D"), redis::cmd("C"));
            let (first, second) = (client.ask_all(&pipeline), client.ask(&late));
            let given_up = tokio::time::timeout(std::time::Duration::ZERO, client.ask(&early)).await;
            assert!(given_up.is_err());
            let (first, second, ()) = tokio::join!(first, second, async {
                let wanted = "*1\r\n$1\r\nD\r\n*1\r\n$1\r\nA\r\n*1\r\n$1\r\nB\r\n*1\r\n$1\r\nC\r\n";
                let mut asked = vec![0; wanted.len()];
                server.read_exact(&mut asked).await.unwrap();
                assert_eq!(String::from_utf8(asked).unwrap(), wanted);
                server.write_all(b":0\r\n:1\r\n-ERR two\r\n$2\r\nc").await.unwrap();
                server.write_all(b"c\r\n").await.unwrap();
            });
            let first = first.unwrap();
            assert_eq!(first[0].value().unwrap(), Value::Int(1));
            assert!(first[1].is_error() && matches!(first[1].any(), Ok(Value::ServerError(_))));
            assert_eq!(second.unwrap(), Value::BulkString(b"cc".to_vec()));
        };
        tokio::select! {
            () = talk => {}
            error = moves => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_told_that_the_connection_was_lost() {
        let (client, moves, server) = connected();
        drop(server);
        let command = redis::cmd("PING");
        let (asked, why) = tokio::join!(client.ask(&command), moves);
        assert!(asked.unwrap_err().is_io_error());
        assert!(matches!(why.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe), "{why}");
        assert!(client.ask(&command).await.is_err(), "nothing is asked any more");
    }

    #[tokio::test]
    async fn says_what_the_server_said_before_it_ended_the_connection() {
        for is_asked in [false, true] {
            let (client, moves, mut server) = connected();
            let mut pipeline = redis::pipe();
            pipeline.cmd("A").cmd("B");
            server.write_all(b"-ERR max number of clients reached\r\n").await.unwrap();
            drop(server);
            let asks = async {
                if is_asked {
                    client.ask_all(&pipeline).await.unwrap_err();
                }
            };
            // Whatever is polled first.
            let ((), why) = tokio::join!(asks, moves);
            assert!(why.to_string().contains("max number of clients"), "{why}");
        }
    }

    #[tokio::test]
    async fn ends_with_an_answer_that_nobody_asked_for() {
        let (_client, moves, mut server) = connected();
        server.write_all(b"+OK\r\n").await.unwrap();
        assert_eq!(moves.await.kind(), io::ErrorKind::InvalidData);
    }
}
