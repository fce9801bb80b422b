//! The loop that takes connections, shared by all servers of the lab: plain or TLS, HTTP/1.1 with keep-alive.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
};

use axum::{Router, body::Body, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tower::ServiceExt;

use crate::{
    fault::Faults,
    timeline::{Actor, Timeline},
};

/// A running server; dropping it ends it and all its connections.
pub(crate) struct Server {
    address: SocketAddr,
    _loop: JoinSet<()>,
}

/// What a server serves.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) actor: Actor,
    pub(crate) router: Router,
    pub(crate) faults: Faults,
    pub(crate) timeline: Timeline,
}

impl Site {
    /// One that knows no faults.
    pub(crate) fn new(actor: Actor, router: Router, timeline: &Timeline) -> Self {
        Self { actor, router, faults: Faults::default(), timeline: timeline.clone() }
    }
}

/// Marks a response that must not be sent: the connection is closed in its place.
#[derive(Clone, Copy)]
pub(crate) struct Cut;

impl Server {
    /// Listens on a free port and serves until dropped.
    pub(crate) async fn listen(ip: IpAddr, tls: Option<Arc<ServerConfig>>, site: Site) -> Self {
        let listener = TcpListener::bind((ip, 0)).await;
        let listener = listener.unwrap_or_else(|error| panic!("the lab cannot listen on {ip}: {error}"));
        Self::serve(listener, tls, site)
    }

    /// Serves until dropped.
    pub(crate) fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, site: Site) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, tls.map(TlsAcceptor::from), site));
        Self { address, _loop: accepting }
    }

    /// How a client on this machine reaches the server, as `host:port`.
    pub(crate) fn authority(&self) -> String {
        let ip = match self.address.ip() {
            // A server that listens everywhere is reached by the one name that is in the certificate in any case.
            ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port()).to_string()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, site: Site) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if site.faults.take_refusal() {
            reset(&stream);
            site.timeline.record(site.actor, "connection refused");
            continue;
        }
        connections.spawn(serve(stream, tls.clone(), site.clone()));
    }
}

/// Makes the drop of the stream a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    stream.set_zero_linger().expect("a fresh socket takes options");
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, site: Site) {
    stream.set_nodelay(true).expect("a fresh socket takes options");
    let Some(tls) = tls else { return serve_http(stream, site).await };
    match tls.accept(stream).await {
        Ok(stream) => serve_http(stream, site).await,
        Err(error) => site.timeline.record(site.actor, format!("TLS handshake failed: {error}")),
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin, site: Site) {
    let hung_up = site.faults.hung_up();
    let service = service_fn(|request| answer(site.router.clone(), request));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    // How a connection ends is the client's affair, or our own fault on purpose.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = hung_up => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> io::Result<Response> {
    let Ok(response) = router.oneshot(request.map(Body::new)).await;
    if response.extensions().get::<Cut>().is_some() {
        return Err(io::Error::other("cut on purpose"));
    }
    Ok(response)
}
