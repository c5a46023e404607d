//! Connections: how many, how long each may take, and how they end.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Waker, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Api, Context, Options, router::router};

/// Most that is kept of one connection's requests and answers, in bytes.
const CONNECTION_BYTES_MAX: usize = 128 * 1024;
/// How long to wait when the machine has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Answers requests until `stop`; then ends what has no end of its own, and lets other answers be finished for
/// [`Options::drain_timeout`].
///
/// # Errors
/// The listener does not say where it listens.
pub async fn serve(listener: TcpListener, api: Arc<Api>, stop: CancellationToken) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    let options = api.options.clone();
    let router = router(Context { api, stop: stop.clone(), loopback });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => note(ended),
            accepted = listener.accept(), if connections.len() < options.connections_max => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), options.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!("no connection can be accepted: {error}");
                    sleep(NO_ROOM).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            note(ended);
        }
    };
    if timeout(options.drain_timeout, drained).await.is_err() {
        tracing::warn!("{} connections are cut off", connections.len());
    }
    Ok(())
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a connection did not end well: {error}");
    }
}

async fn connection(stream: TcpStream, router: Router, options: Options, stop: CancellationToken) {
    // Answers are small and waited for; and who follows and is gone without a word is noticed.
    stream.set_nodelay(true).ok();
    sockopt::set_socket_keepalive(&stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(&stream, options.idle_timeout))
        .ok();
    let stream = Patient { stream, patience: options.idle_timeout, waiting: None };
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(CONNECTION_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended early: {error}");
    }
}

/// A connection whose other side must take something of an answer from time to time.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Passes a result on; one that is pending for too long becomes an error.
    fn bounded<T>(&mut self, waker: &mut Waker<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(waker));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of the answer")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, waker: &mut Waker<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(waker, into)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, waker: &mut Waker<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(waker, bytes);
        self.bounded(waker, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(waker, bytes);
        self.bounded(waker, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(waker);
        self.bounded(waker, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(waker);
        self.bounded(waker, result)
    }
}
