//! A TCP proxy that can inject faults into its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A fault of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Bytes are forwarded without delay.
    None,
    /// Each read is delayed by this duration.
    Delay(Duration),
    /// Nothing is forwarded, and nothing is lost.
    Pause,
    /// Existing and new connections are closed.
    Cut,
}

#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
}

impl Proxy {
    /// Starts a proxy in front of the server at `port` of this machine.
    pub(super) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fault = Arc::new(watch::Sender::new(Fault::None));
        let current = Arc::clone(&fault);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(forward(client, port, current.subscribe()));
            }
        });
        Self { address, fault }
    }

    pub(super) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn forward(client: TcpStream, port: u16, mut fault: watch::Receiver<Fault>) {
    if *fault.borrow() == Fault::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = copy(from_client, to_server, fault.clone()) => {}
        () = copy(from_server, to_client, fault.clone()) => {}
        _ = fault.wait_for(|fault| *fault == Fault::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: watch::Receiver<Fault>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let now = *fault.borrow();
        if let Fault::Delay(delay) = now {
            tokio::time::sleep(delay).await;
        }
        // The sender lives as long as the proxy.
        let passed = fault.wait_for(|fault| *fault != Fault::Pause).await.is_ok();
        if !passed || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
