//! A network that fails as it is told to: a TCP proxy between a client and a server on this machine. In: who is behind it.
//! Out: an address to connect to. While it runs, connections can be cut, refused, stopped in one way or both, slowed down
//! and robbed of what they carry.
//!
//! Start at [`Proxy`]. All that it does ends with it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::soon;

/// The most that is read at a time.
const CHUNK: usize = 64 << 10;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// What becomes of bytes that go one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flow {
    /// They arrive.
    Free,
    /// They do not arrive while this holds, nor does an end; nobody is told. What was held goes on afterwards.
    Held,
    /// They are read and gone. What follows makes no sense to who reads it.
    Lost,
    /// Whatever comes together arrives so much later.
    Late(Duration),
    /// So many arrive in a second.
    Slow(u32),
    /// The first bytes arrive as the second, which are as many, wherever they come in one piece.
    Replaced(&'static [u8], &'static [u8]),
}

/// How connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// By RST: both sides know at once, and lose what was on its way.
    Reset,
    /// By FIN: both sides read to the end.
    Finish,
}

/// A proxy. Dropped, it takes its connections with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    network: watch::Sender<Network>,
    open: AtomicUsize,
    accepted: AtomicUsize,
}

/// How the network is.
#[derive(Clone, Debug)]
struct Network {
    listens: bool,
    to_server: Flow,
    to_client: Flow,
    /// How many times connections were cut, and how the last time.
    cuts: (u64, Cut),
    /// How many times something was slipped in; the last time, into the connection that comes to the server from this
    /// port, and what.
    slipped: (u64, u16, Arc<[u8]>),
}

impl Network {
    fn flow(&self, way: Way) -> Flow {
        match way {
            Way::ToServer => self.to_server,
            Way::ToClient => self.to_client,
        }
    }
}

impl Proxy {
    /// On a free port of the loopback interface.
    pub(crate) async fn start(to: SocketAddr) -> Self {
        Self::start_on("127.0.0.1:0".parse().expect("an address"), to).await
    }

    pub(crate) async fn start_on(listen: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let network = Network {
            listens: true,
            to_server: Flow::Free,
            to_client: Flow::Free,
            cuts: (0, Cut::Reset),
            slipped: (0, 0, Arc::from([])),
        };
        let shared = Arc::new(Shared {
            to,
            network: watch::Sender::new(network),
            open: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
        });
        let (says, listening) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen_on(listener, address, Arc::clone(&shared), says));
        Self { address, shared, listening, _tasks: tasks }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Connections that there ever were.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Ends all connections. New ones are taken.
    pub(crate) fn cut(&self, how: Cut) {
        self.change(|network| network.cuts = (network.cuts.0 + 1, how));
    }

    /// What becomes of bytes that go this way, on connections that are open and on new ones.
    pub(crate) fn set(&self, way: Way, flow: Flow) {
        self.change(|network| match way {
            Way::ToServer => network.to_server = flow,
            Way::ToClient => network.to_client = flow,
        });
    }

    /// Nothing arrives any more, either way; connections stay, and new ones are taken.
    pub(crate) fn black_hole(&self) {
        self.change(|network| (network.to_server, network.to_client) = (Flow::Held, Flow::Held));
    }

    /// Everything arrives again. What was held comes first.
    pub(crate) fn heal(&self) {
        self.change(|network| (network.to_server, network.to_client) = (Flow::Free, Flow::Free));
    }

    /// Says something to the server that the client did not say, on the connection that the server sees coming from `port`.
    /// It goes between what the client says, so that has to be silent for the moment.
    pub(crate) fn slip_in(&self, port: u16, bytes: &[u8]) {
        self.change(|network| network.slipped = (network.slipped.0 + 1, port, bytes.into()));
    }

    /// New connections are refused, from when this returns. Those that are open stay.
    pub(crate) async fn refuse(&mut self) {
        self.listens(false).await;
    }

    /// New connections are taken again, from when this returns.
    pub(crate) async fn accept(&mut self) {
        self.listens(true).await;
    }

    async fn listens(&mut self, listens: bool) {
        self.change(|network| network.listens = listens);
        let done = self.listening.wait_for(|is_so| *is_so == listens);
        soon("the proxy listens, or does not", done).await.expect("a proxy that runs");
    }

    fn change(&self, change: impl FnOnce(&mut Network)) {
        self.shared.network.send_modify(change);
    }
}

/// Takes connections as long as it should, and owns them.
async fn listen_on(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>, says: watch::Sender<bool>) {
    let mut network = shared.network.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let listens = network.borrow_and_update().listens;
        if listens && listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("the same port again"));
        } else if !listens {
            listener = None;
        }
        says.send_replace(listens);
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = network.changed() => changed.expect("shared with us"),
            Some(ended) = connections.join_next() => ended.expect("a connection that does not panic"),
            accepted = next => {
                let (client, _) = accepted.expect("a connection");
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                let counted = Counted::new(Arc::clone(&shared));
                let network = shared.network.subscribe();
                // Counted here, so that no cut that follows is missed.
                let cuts = network.borrow().cuts.0;
                connections.spawn(connection(client, counted, network, cuts));
            }
        }
    }
}

/// One of the open ones.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(mut client: TcpStream, counted: Counted, mut network: watch::Receiver<Network>, cuts: u64) {
    let mut seen = network.clone();
    let connect = async {
        // Where nothing arrives, the server does not hear of it.
        seen.wait_for(|network| network.to_server != Flow::Held).await.ok();
        TcpStream::connect(counted.0.to).await
    };
    let cut = network.wait_for(|network| network.cuts.0 > cuts);
    let server = tokio::select! {
        server = connect => server,
        _ = cut => Err(io::ErrorKind::ConnectionReset.into()),
    };
    let Ok(mut server) = server else {
        // As near as it comes to a connection that is refused.
        client.set_zero_linger().ok();
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let port = server.local_addr().map_or(0, |address| address.port());
    let how = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let pumps = async {
            tokio::try_join!(
                pump(from_client, to_server, Way::ToServer, Some(port), network.clone()),
                pump(from_server, to_client, Way::ToClient, None, network.clone()),
            )
        };
        let mut watched = network.clone();
        tokio::select! {
            ends = pumps => match ends {
                Ok(((), ())) => return,
                // One side reset it, so the other has to see that, and not only when it says something.
                Err(_) => Cut::Reset,
            },
            cut = watched.wait_for(|network| network.cuts.0 > cuts) => cut.map_or(Cut::Reset, |network| network.cuts.1),
        }
    };
    match how {
        Cut::Reset => {
            client.set_zero_linger().ok();
            server.set_zero_linger().ok();
        }
        Cut::Finish => {
            // Read to their ends: what is left unread would make a RST of it.
            let finish = async |mut stream: TcpStream| {
                stream.shutdown().await.ok();
                copy(&mut stream, &mut sink()).await.ok();
            };
            tokio::join!(finish(client), finish(server));
        }
    }
}

/// Carries bytes one way, until their end, and what is slipped in for `port`.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    port: Option<u16>,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut slipped = network.borrow().slipped.0;
    loop {
        let (flow, slip) = {
            let network = network.borrow_and_update();
            let (number, to, bytes) = &network.slipped;
            let is_new = std::mem::replace(&mut slipped, *number) < *number;
            (network.flow(way), (is_new && Some(*to) == port).then(|| Arc::clone(bytes)))
        };
        if let Some(bytes) = slip {
            to.write_all(&bytes).await?;
        }
        let most = match flow {
            Flow::Held => {
                network.changed().await.map_err(io::Error::other)?;
                continue;
            }
            // Ten times a second.
            Flow::Slow(per_second) => (per_second as usize / 10).clamp(1, CHUNK),
            Flow::Free | Flow::Lost | Flow::Late(_) | Flow::Replaced(..) => CHUNK,
        };
        let count = tokio::select! {
            biased;
            changed = network.changed() => {
                changed.map_err(io::Error::other)?;
                continue;
            }
            count = from.read(&mut chunk[..most]) => count?,
        };
        if count == 0 {
            return to.shutdown().await;
        }
        // These pauses are what is asked for.
        match flow {
            Flow::Late(by) => sleep(by).await,
            Flow::Slow(per_second) => sleep(Duration::from_secs_f64(count as f64 / f64::from(per_second))).await,
            Flow::Lost => continue,
            Flow::Replaced(old, new) => replace(&mut chunk[..count], old, new),
            Flow::Free | Flow::Held => {}
        }
        to.write_all(&chunk[..count]).await?;
    }
}

/// Writes `new` wherever `old` is.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len(), "what follows must stay where it is");
    for place in 0..bytes.len().saturating_sub(old.len() - 1) {
        if bytes[place..].starts_with(old) {
            bytes[place..place + new.len()].copy_from_slice(new);
        }
    }
}
