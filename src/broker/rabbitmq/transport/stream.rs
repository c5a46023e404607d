//! The stream that the client library reads and writes: a socket, with TLS or without, behind the filter.

use std::{
    future::Future,
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Tokio, traits::Reactor};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::{Stream as Items, task::AtomicWaker};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::filter::Filter;

/// See the module.
pub(super) struct Stream {
    socket: Socket,
    filter: Filter,
    fuse: Arc<Fuse>,
}

enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Ends a stream from outside, wherever it is waited on.
#[derive(Default)]
struct Fuse {
    blown: AtomicBool,
    reader: AtomicWaker,
}

/// Ends the stream when dropped, unless it has been disarmed: the client library reads on a thread of its own, which
/// would wait for ever on a server that says nothing.
pub(super) struct Guard(Option<Arc<Fuse>>);

impl Stream {
    /// Without TLS; `mechanism` is how the client will say who it is.
    pub(super) fn plain(socket: TcpStream, mechanism: &'static str) -> Self {
        Self { socket: Socket::Plain(socket), filter: Filter::new(mechanism), fuse: Arc::default() }
    }

    /// With TLS.
    pub(super) fn tls(socket: TlsStream<TcpStream>, mechanism: &'static str) -> Self {
        Self { socket: Socket::Tls(Box::new(socket)), filter: Filter::new(mechanism), fuse: Arc::default() }
    }

    /// What ends it.
    pub(super) fn guard(&self) -> Guard {
        Guard(Some(Arc::clone(&self.fuse)))
    }
}

impl Guard {
    /// The stream is somebody else's now.
    pub(super) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(fuse) = self.0.take() {
            fuse.blown.store(true, Ordering::Release);
            fuse.reader.wake();
        }
    }
}

impl Fuse {
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.reader.register(context.waker());
        match self.blown.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

impl Socket {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = match self {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, &mut buffer),
            Self::Tls(socket) => Pin::new(socket.as_mut()).poll_read(context, &mut buffer),
        };
        ready!(read)?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { socket, filter, fuse } = &mut *self;
        fuse.check(context)?;
        filter.read(buffer, |free| socket.poll_read(context, free))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Tls(socket) => Pin::new(socket.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_write_vectored(context, bytes),
            Socket::Tls(socket) => Pin::new(socket.as_mut()).poll_write_vectored(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_flush(context),
            Socket::Tls(socket) => Pin::new(socket.as_mut()).poll_flush(context),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Tls(socket) => Pin::new(socket.as_mut()).poll_shutdown(context),
        }
    }
}

/// Tokio, for the client library, with [`Stream`] as its kind of connection.
#[derive(Clone, Debug)]
pub(super) struct Sockets(pub(super) Tokio);

impl Reactor for Sockets {
    type TcpStream = Stream;
    type Sleep = tokio::time::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Items<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Never: a connection is handed to the library with its stream.
    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Stream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
