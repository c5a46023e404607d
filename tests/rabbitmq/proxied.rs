//! The proxy itself: it does to connections what it says.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::support::{
    eventually,
    proxy::{Cut, Flow, Proxy, Way},
    soon,
};

/// Long enough for what must not arrive.
const QUIET: Duration = Duration::from_millis(100);

/// A server that says back what it hears, and ends when it has heard the end.
async fn echo() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let (mut from, mut to) = stream.into_split();
                tokio::io::copy(&mut from, &mut to).await.ok();
            });
        }
    });
    (address, tasks)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    soon("a connection", TcpStream::connect(proxy.address())).await.unwrap()
}

async fn answer(stream: &mut TcpStream, said: &[u8]) -> Vec<u8> {
    stream.write_all(said).await.unwrap();
    heard(stream, said.len()).await
}

async fn heard(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut heard = vec![0; count];
    soon("an answer", stream.read_exact(&mut heard)).await.unwrap();
    heard
}

async fn hears_nothing(stream: &mut TcpStream) {
    let mut byte = [0];
    assert!(timeout(QUIET, stream.read(&mut byte)).await.is_err(), "something came: {byte:?}");
}

#[tokio::test]
async fn carries_bytes_both_ways_and_counts_connections() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    let (mut one, mut two) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(answer(&mut one, b"one").await, b"one");
    assert_eq!(answer(&mut two, b"two").await, b"two");
    assert_eq!((proxy.open(), proxy.accepted()), (2, 2));
    drop(one);
    eventually("one is closed", async || (proxy.open() == 1).then_some(())).await;
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn cuts_by_reset_and_by_an_ordinary_end() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    let mut stream = connect(&proxy).await;
    answer(&mut stream, b"there").await;
    proxy.cut(Cut::Reset);
    let error = soon("an end", stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let mut stream = connect(&proxy).await;
    answer(&mut stream, b"again").await;
    proxy.cut(Cut::Finish);
    assert_eq!(soon("an end", stream.read(&mut [0])).await.unwrap(), 0);
    drop(stream);
    eventually("all are closed", async || (proxy.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn refuses_new_connections_and_keeps_the_old_until_it_accepts_again() {
    let (server, _running) = echo().await;
    let mut proxy = Proxy::start(server).await;
    let mut old = connect(&proxy).await;
    answer(&mut old, b"there").await;
    proxy.refuse().await;
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(answer(&mut old, b"still").await, b"still");
    proxy.accept().await;
    assert_eq!(answer(&mut connect(&proxy).await, b"new").await, b"new");
}

#[tokio::test]
async fn stops_one_way_only() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    let mut stream = connect(&proxy).await;
    answer(&mut stream, b"there").await;
    for way in [Way::ToServer, Way::ToClient] {
        proxy.set(way, Flow::Held);
        stream.write_all(b"held").await.unwrap();
        hears_nothing(&mut stream).await;
        proxy.set(way, Flow::Free);
        assert_eq!(heard(&mut stream, 4).await, b"held");
    }
}

#[tokio::test]
async fn takes_connections_into_a_black_hole_and_lets_them_out_again() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    let mut old = connect(&proxy).await;
    answer(&mut old, b"there").await;
    proxy.black_hole();
    let mut new = connect(&proxy).await;
    for stream in [&mut old, &mut new] {
        stream.write_all(b"anybody?").await.unwrap();
        hears_nothing(stream).await;
    }
    proxy.heal();
    for stream in [&mut old, &mut new] {
        assert_eq!(heard(stream, 8).await, b"anybody?");
    }
}

#[tokio::test]
async fn loses_what_it_is_told_to_lose() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    let mut stream = connect(&proxy).await;
    answer(&mut stream, b"there").await;
    proxy.set(Way::ToServer, Flow::Lost);
    stream.write_all(b"gone").await.unwrap();
    hears_nothing(&mut stream).await;
    proxy.heal();
    assert_eq!(answer(&mut stream, b"here").await, b"here");
}

#[tokio::test]
async fn says_what_the_client_did_not_say() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await;
    let _client = connect(&proxy).await;
    let (mut one, from) = soon("a connection", listener.accept()).await.unwrap();
    let _other = connect(&proxy).await;
    let (mut two, _) = soon("a connection", listener.accept()).await.unwrap();
    proxy.slip_in(from.port(), b"psst");
    assert_eq!(heard(&mut one, 4).await, b"psst");
    hears_nothing(&mut one).await;
    hears_nothing(&mut two).await;
}

#[tokio::test]
async fn says_other_things_than_the_client() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    proxy.set(Way::ToServer, Flow::Replaced(b"black", b"white"));
    assert_eq!(answer(&mut connect(&proxy).await, b"it is black").await, b"it is white");
}

#[tokio::test]
async fn delays_and_slows_down() {
    let (server, _running) = echo().await;
    let proxy = Proxy::start(server).await;
    let mut stream = connect(&proxy).await;
    answer(&mut stream, b"there").await;
    proxy.set(Way::ToClient, Flow::Late(Duration::from_millis(80)));
    let begin = Instant::now();
    answer(&mut stream, b"late").await;
    assert!(begin.elapsed() >= Duration::from_millis(80), "{:?}", begin.elapsed());

    proxy.set(Way::ToClient, Flow::Slow(100_000));
    let begin = Instant::now();
    answer(&mut stream, &[7; 20_000]).await;
    assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn resets_who_connects_while_nobody_is_behind_it() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::start(unused).await;
    let mut stream = connect(&proxy).await;
    let error = soon("an end", stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
