//! Listening: sockets, threads, and the loop that accepts.
//!
//! Owns the ports. Runs one current-thread runtime per thread, each with its own socket on the same port
//! (`SO_REUSEPORT`) and its own copy of the service, so that a connection, its requests and its upstream connections
//! live on one core. Promises that no more connections are open than allowed (those beyond wait in the kernel's queue),
//! that a port which another process serves is refused rather than shared, and that a drain serves what the kernel has
//! accepted already before it closes the port.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tower::Service;

use super::activity::{Activity, Patience};
use super::body::{Body, BoxError};
use super::connection;
use super::drain::{Report, Tracker, Watch};
use super::failure::Failure;
use super::front::{Front, InFlight, Limits, Peer};
use super::tls::Identity;
use super::wire::{Socket, Wire};

const BACKLOG: i32 = 4096;
/// After a failure to accept that time can heal (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Beyond the drain's deadline, for the last connections to notice it.
const LAST_SLACK: Duration = Duration::from_millis(500);

/// One port.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// The certificate to serve TLS with; `None` for the clear.
    pub tls: Option<Identity>,
}

/// How long a client may take. Every wait for a client has its limit here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub tls_handshake: Duration,
    /// From the first byte of a request to the end of its head; a new connection's first byte counts as come.
    pub header_read: Duration,
    /// Between two pieces of a request body.
    pub body_idle: Duration,
    /// Between two requests of a connection.
    pub keep_alive_idle: Duration,
    /// For taking what is sent to it.
    pub write_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tls_handshake: Duration::from_secs(10),
            header_read: Duration::from_secs(15),
            body_idle: Duration::from_secs(30),
            keep_alive_idle: Duration::from_secs(75),
            write_idle: Duration::from_secs(30),
        }
    }
}

/// How to listen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The ports.
    pub listen: Vec<Listen>,
    /// Threads, each with a runtime of its own. One for each core.
    pub threads: NonZeroUsize,
    /// Connections that may be open at a time; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Requests that may be under way at a time; further ones are answered 503.
    pub requests_max: usize,
    /// Requests that one HTTP/2 connection may have under way.
    pub http2_streams_max: u32,
    /// What a request may measure.
    pub limits: Limits,
    /// How long a client may take.
    pub timeouts: Timeouts,
}

impl Settings {
    /// The defaults on one port in the clear: a thread for each core.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            listen: vec![Listen { address, tls: None }],
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            connections_max: 10_000,
            requests_max: 10_000,
            http2_streams_max: 100,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// Ports that are bound and not yet served.
#[derive(Debug)]
pub struct Listener {
    settings: Settings,
    addresses: Vec<SocketAddr>,
    /// For each thread, its sockets with what they serve.
    sockets: Vec<Vec<(StdListener, Option<Identity>)>>,
}

impl Listener {
    /// Binds every port once for each thread.
    ///
    /// # Errors
    /// Where a port cannot be had: the error says which, and what to do.
    pub fn bind(settings: Settings) -> io::Result<Self> {
        let shared = settings.threads.get() > 1;
        let mut sockets: Vec<Vec<_>> = (0..settings.threads.get()).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for listen in &settings.listen {
            let mut address = listen.address;
            if shared && address.port() != 0 {
                // Without this, two processes of one user would share the port and not know of each other.
                drop(open(address, false).map_err(|error| explain(address, &error))?);
            }
            for sockets in &mut sockets {
                let socket = open(address, shared).map_err(|error| explain(address, &error))?;
                address = socket.local_addr()?;
                sockets.push((socket, listen.tls.clone()));
            }
            addresses.push(address);
        }
        Ok(Self { settings, addresses, sockets })
    }

    /// The addresses as bound, in the order of [`Settings::listen`].
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Starts serving: `make_service` is called once on each thread, inside its runtime.
    ///
    /// The service's errors become responses by [`Failure`]. The threads end when `drain` has started and all that was
    /// under way has ended.
    ///
    /// # Errors
    /// Where a runtime or a thread cannot be made.
    pub fn serve<M, S, B>(self, make_service: M, drain: &Watch) -> io::Result<Serving>
    where
        M: Fn() -> S + Send + Sync + 'static,
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Failure>,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let make_service = Arc::new(make_service);
        let places = Arc::new(Semaphore::new(self.settings.connections_max.min(Semaphore::MAX_PERMITS)));
        let in_flight = InFlight::new(self.settings.requests_max);
        let settings = Arc::new(self.settings);
        let mut threads = Vec::new();
        for (number, sockets) in self.sockets.into_iter().enumerate() {
            let worker = Worker {
                settings: settings.clone(),
                places: places.clone(),
                in_flight: in_flight.clone(),
                tracker: Tracker::new(drain.clone()),
                drain: drain.clone(),
            };
            let make_service = make_service.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (done, report) = oneshot::channel();
            std::thread::Builder::new().name(format!("turnpike-{number}")).spawn(move || {
                let report = runtime.block_on(async move { worker.run(sockets, &*make_service).await });
                // What hangs on a connection that was cut must be gone before the report says so.
                runtime.shutdown_timeout(LAST_SLACK);
                let _ = done.send(report);
            })?;
            threads.push(report);
        }
        Ok(Serving { addresses: self.addresses, threads })
    }
}

/// Threads that serve.
#[derive(Debug)]
pub struct Serving {
    addresses: Vec<SocketAddr>,
    threads: Vec<oneshot::Receiver<Report>>,
}

impl Serving {
    /// The addresses as bound, in the order of [`Settings::listen`].
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits for the end of the drain.
    pub async fn finished(self) -> Report {
        let mut total = Report::default();
        for thread in self.threads {
            match thread.await {
                Ok(report) => total = total.plus(report),
                Err(_) => tracing::error!("a serving thread died: this is a defect, report it"),
            }
        }
        total
    }
}

/// What one thread needs; its service comes beside it.
#[derive(Clone)]
struct Worker {
    settings: Arc<Settings>,
    places: Arc<Semaphore>,
    in_flight: InFlight,
    tracker: Tracker,
    drain: Watch,
}

impl Worker {
    async fn run<M, S, B>(self, sockets: Vec<(StdListener, Option<Identity>)>, make_service: &M) -> Report
    where
        M: Fn() -> S,
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Failure>,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = make_service();
        let builder = http_builder(&self.settings);
        let loops: Vec<_> = sockets
            .into_iter()
            .map(|(socket, tls)| tokio::spawn(self.clone().accept(socket, tls, builder.clone(), service.clone())))
            .collect();
        for accepting in loops {
            match accepting.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a port is not served any more: restart the proxy"),
                Err(error) => tracing::error!(%error, "an accept loop died: this is a defect, report it"),
            }
        }
        let mut drain = self.drain.clone();
        let deadline = drain.started().await;
        // Each connection heeds the deadline itself; this is for one that cannot.
        let left = tokio::time::timeout_at(deadline + LAST_SLACK, self.tracker.empty()).await;
        left.unwrap_or_else(|_| self.tracker.report())
    }

    /// Accepts on one socket until the drain starts.
    async fn accept<S, B>(
        mut self,
        socket: StdListener,
        tls: Option<Identity>,
        builder: auto::Builder<TokioExecutor>,
        service: S,
    ) -> io::Result<()>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Failure>,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let listener = TcpListener::from_std(socket)?;
        loop {
            let places = self.places.clone();
            let place = tokio::select! {
                place = places.acquire_owned() => place.map_err(io::Error::other)?,
                _ = self.drain.started() => break,
            };
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                _ = self.drain.started() => break,
            };
            match accepted {
                Ok((tcp, peer)) => self.start(tcp, peer, place, tls.as_ref(), &builder, &service),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections: raise the limit on open files (ulimit -n)");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // The kernel has accepted these for us already; closing the port would reset them.
        let listener = listener.into_std()?;
        while let (Ok((tcp, peer)), Ok(place)) = (listener.accept(), self.places.clone().try_acquire_owned()) {
            tcp.set_nonblocking(true)?;
            self.start(TcpStream::from_std(tcp)?, peer, place, tls.as_ref(), &builder, &service);
        }
        Ok(())
    }

    /// Starts serving a connection in a task of its own.
    fn start<S, B>(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
        tls: Option<&Identity>,
        builder: &auto::Builder<TokioExecutor>,
        service: &S,
    ) where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Failure>,
        S::Future: Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (builder, service, token) = (builder.clone(), service.clone(), self.tracker.enter());
        let timeouts = self.settings.timeouts;
        let tls = tls.map(Identity::current);
        let patience =
            Patience { head: timeouts.header_read, idle: timeouts.keep_alive_idle, write: timeouts.write_idle };
        let front = Front {
            peer: Peer { address, tls: tls.is_some() },
            limits: self.settings.limits,
            body_idle: timeouts.body_idle,
            in_flight: self.in_flight.clone(),
            tracker: self.tracker.clone(),
            activity: Activity::new(patience),
        };
        tokio::spawn(async move {
            let _ = tcp.set_nodelay(true);
            let socket = match tls {
                None => Socket::Plain(tcp),
                Some(config) => match handshake(tcp, config, timeouts.tls_handshake).await {
                    Ok(socket) => socket,
                    Err(error) => return tracing::debug!(%error, %address, "no TLS with a client"),
                },
            };
            let wire = Wire::new(socket, place, front.activity.clone());
            connection::serve(builder, wire, Arc::new(front), service, token).await;
        });
    }
}

async fn handshake(tcp: TcpStream, config: Arc<rustls::ServerConfig>, patience: Duration) -> io::Result<Socket> {
    let accept = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
    let tls = tokio::time::timeout(patience, accept).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Socket::Tls(Box::new(tls)))
}

/// How many header fields hyper reads where it is told nothing.
const HYPER_HEADERS_MAX: usize = 100;

/// hyper's own limits, under ours. What they refuse (a head that is no HTTP, or too large to be parsed) hyper answers
/// itself with 400, 414 or 431 and no body.
fn http_builder(settings: &Settings) -> auto::Builder<TokioExecutor> {
    let limits = &settings.limits;
    let head = limits.headers_bytes_max.saturating_add(limits.uri_bytes_max);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Ours instead: it tells a slow head from an idle connection.
        .header_read_timeout(None)
        .max_buf_size(head.max(8 << 10));
    // Naming its own bound would cost each request a longer way.
    if limits.headers_max > HYPER_HEADERS_MAX {
        builder.http1().max_headers(limits.headers_max.saturating_add(1));
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.http2_streams_max)
        .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(settings.timeouts.keep_alive_idle)
        .keep_alive_timeout(settings.timeouts.write_idle);
    builder
}

fn open(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "another process serves this port: stop it, or choose another port",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        _ => "choose another address",
    };
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}; {remedy}"))
}

/// Whether accepting failed for one connection only, and the next one may do.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
