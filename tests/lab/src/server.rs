//! The loop that takes connections, shared by all servers of the lab: plain or TLS, HTTP/1.1 with keep-alive.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tower::ServiceExt;

use crate::{
    certificates::Certificates,
    fault::{Fault, Faults},
    timeline::{Actor, Entry, Kind, Timeline},
    wire::{Ending, Wire},
};

/// Bytes of a broken answer: less than the first record of a TLS server, and less than any answer of HTTP.
const CUT_AFTER: usize = 60;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A running server; dropping it ends it and all its connections.
pub(crate) struct Server {
    address: SocketAddr,
    tls: bool,
    _loop: JoinSet<()>,
}

/// What a server serves.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) actor: Actor,
    pub(crate) router: Router,
    pub(crate) faults: Faults,
    pub(crate) timeline: Timeline,
    /// Makes the certificates of [`Fault::Show`].
    pub(crate) certificates: Option<Arc<Certificates>>,
}

impl Service {
    /// Without faults.
    pub(crate) fn new(actor: Actor, router: Router, timeline: &Timeline) -> Self {
        Self { actor, router, faults: Faults::default(), timeline: timeline.clone(), certificates: None }
    }
}

impl Service {
    /// Answers a request without a socket. A connection that would be cut is an error.
    pub(crate) async fn call(&self, request: Request<Body>) -> io::Result<Response> {
        let Ok(response) = self.router.clone().oneshot(request).await;
        if response.extensions().get::<Cut>().is_some() { Err(io::Error::other("injected")) } else { Ok(response) }
    }
}

/// Marks a response that must not arrive.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    /// The connection is closed in its place.
    Closed,
    /// The connection is reset in its place.
    Reset,
    /// The connection is closed in the middle of it.
    Within,
}

impl Server {
    /// Listens on a free port and serves until dropped.
    pub(crate) async fn listen(ip: IpAddr, tls: Option<Arc<ServerConfig>>, service: Service) -> Self {
        let listener = TcpListener::bind((ip, 0)).await;
        let listener = listener.unwrap_or_else(|error| panic!("the lab cannot listen on {ip}: {error}"));
        Self::serve(listener, tls, service)
    }

    /// Serves until dropped.
    pub(crate) fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, service: Service) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        let mut accepting = JoinSet::new();
        let has_tls = tls.is_some();
        accepting.spawn(accept(listener, tls.map(TlsAcceptor::from), service));
        Self { address, tls: has_tls, _loop: accepting }
    }

    /// How a client on this machine reaches the server.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// The same without the scheme, as `host:port`.
    pub(crate) fn authority(&self) -> String {
        let ip = match self.address.ip() {
            // A server that listens on all addresses is reached by the one that every certificate names.
            ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port()).to_string()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, service: Service) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Such as no descriptor left; one will be free soon.
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let ending = Ending::default();
        let mut tls = tls.clone();
        let fault = service.faults.take_of_connection(tls.is_some());
        if fault.is_some() {
            service.timeline.push(Entry { fault: fault.clone(), ..Entry::new(service.actor, Kind::Connected) });
        }
        match fault {
            Some(Fault::CutHandshake) => ending.break_off_after(CUT_AFTER),
            Some(Fault::Show(certificate)) => {
                let certificates = service.certificates.as_ref().expect("a server with faults has certificates");
                tls = Some(certificates.server(certificate).into());
            }
            Some(_) => {
                ending.reset();
                drop(Wire::new(stream, ending));
                continue;
            }
            None => {}
        }
        connections.spawn(serve(stream, ending, tls, service.clone()));
    }
}

async fn serve(stream: TcpStream, ending: Ending, tls: Option<TlsAcceptor>, service: Service) {
    stream.set_nodelay(true).expect("a fresh socket takes options");
    let wire = Wire::new(stream, ending.clone());
    let Some(tls) = tls else { return serve_http(wire, ending, service).await };
    match tls.accept(wire).await {
        Ok(stream) => serve_http(stream, ending, service).await,
        Err(error) => service.timeline.record(service.actor, Kind::HandshakeFailed(error.to_string())),
    }
}

/// Serves one connection to its end; `ending` is that of the [`Wire`] below, if there is one.
pub(crate) async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin, ending: Ending, service: Service) {
    let closed = service.faults.closed();
    let answer = service_fn(|request| answer(service.router.clone(), ending.clone(), request));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    // How a connection ends is the client's affair, or an injected fault.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = closed => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(router: Router, ending: Ending, request: Request<Incoming>) -> io::Result<Response> {
    let Ok(response) = router.oneshot(request.map(Body::new)).await;
    match response.extensions().get::<Cut>() {
        None => return Ok(response),
        Some(Cut::Within) => {
            ending.break_off_after(CUT_AFTER);
            return Ok(response);
        }
        Some(Cut::Reset) => ending.reset(),
        Some(Cut::Closed) => {}
    }
    Err(io::Error::other("injected"))
}
