//! The whole engine in a program of your own: queues on disk, WebAssembly plugins from a directory beside a Rust function,
//! and the HTTP interface. Run it with `cargo run --example engine`, drop `triage.wasm` into `plugins-enabled/`, and ask
//! `curl http://127.0.0.1:7061/health`; Ctrl-C or SIGTERM ends it in good order. What it keeps is in `.helixmq/example`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever runs it")]

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use helixmq::{
    admin::http,
    broker::{
        Declaration, QueueSettings, Storage,
        embedded::{DiskSettings, Embedded, Settings as Disk},
    },
    handler::{Call, Handler, native::Native},
    hub::{Hub, Settings},
    message::{Address, Message, Outcome, now_ms},
    route::{Route, RouteTable},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    // Plugins are compiled in a child process, under limits: this very program, called as the engine's own would be.
    if std::env::args().nth(1).as_deref() == Some(helixmq::cli::COMPILE_VERB) {
        return helixmq::cli::run(std::env::args_os());
    }
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve() -> anyhow::Result<()> {
    let disk = Disk { disk: Some(DiskSettings::new(".helixmq/example")), ..Disk::default() };
    let broker = Arc::new(Embedded::new("embedded", disk)?);

    let on_disk = QueueSettings { storage: Storage::Disk, ..QueueSettings::default() };
    let queues = ["orders", "audit", "helixagent.dlq"];
    // A component of that name in plugins-enabled/, which waits for it; and a function that is here.
    let mut orders = Route::new("triage", Address::queue("orders"));
    orders.concurrency = 2;
    let audit = Route::new("audit", Address::queue("audit"));
    let settings = Settings {
        declarations: queues.map(|name| Declaration::Queue(name.into(), on_disk.clone())).into(),
        routes: RouteTable::new(vec![orders, audit]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?,
        ..Settings::default()
    };
    let write = Native::new("audit", |call: &Call<'_>| {
        println!("{}: {}", call.message.id, String::from_utf8_lossy(&call.message.payload));
        Outcome::Done(Vec::new())
    });
    let natives = vec![("audit".to_owned(), write as Arc<dyn Handler>)];
    // Before anything is taken that could be lost.
    let listener = TcpListener::bind("127.0.0.1:7061").await.context("127.0.0.1:7061 cannot be listened on")?;
    let hub = Arc::new(Hub::start(broker, settings, natives, std::env::current_exe()?).await?);

    // From here and over HTTP alike; it is on disk when this returns.
    hub.publish_task("audit", Message::new("engine.started", "the engine has started", now_ms())).await?;

    let stop = CancellationToken::new();
    let mut terminated = signal(SignalKind::terminate())?;
    println!("listening on http://127.0.0.1:7061; try");
    println!("  curl --json '{{\"payload\": 1}}' http://127.0.0.1:7061/v1/messaging/tasks/audit");
    // Open to whoever reaches the loopback interface, as this is an example.
    let options = http::Options { open: true, ..http::Options::default() };
    let answering = http::serve(listener, Arc::new(http::Api::new(Arc::clone(&hub), options)), stop.clone());
    let ended = async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        hub.stop().await;
        stop.cancel();
    };
    let (answered, ()) = tokio::join!(answering, ended);
    Ok(answered?)
}
