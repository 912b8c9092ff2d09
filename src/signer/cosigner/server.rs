//! The cosigner's port: mutual TLS, HTTP/1.1, one call at a time on a connection.
//!
//! Owns [`Server`]. Promises: who has no certificate of the authority, or one that names no coordinator, is heard in
//! nothing; connections, bodies and waits have limits; the arithmetic runs beside the connections; what has been begun is
//! finished before the server ends.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::{Cosigner, Trouble};
use crate::signer::tls;
use crate::signer::wire::{Answer, BODY_BYTES_MAX, Begin, Call, Cause, Commit, Continue, Hello, INSTANCE, Reply, Sign};

/// The most connections at once, those in their handshake among them.
const CONNECTIONS_MAX: usize = 128;
/// For a handshake.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// For the next request on a connection, its head included.
const HEAD_WAIT: Duration = Duration::from_secs(90);
/// For a request's body.
const BODY_WAIT: Duration = Duration::from_secs(10);
/// For what is under way when the server is asked to end.
const DRAIN_WAIT: Duration = Duration::from_secs(10);
/// After an error of accepting that is not of one connection: open files, for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Who may ask, and how they are known.
#[derive(Clone)]
pub struct Access {
    /// What to listen with.
    pub tls: Arc<ServerConfig>,
    /// The names that a coordinator's certificate may have.
    pub coordinators: Vec<String>,
}

/// A port that is bound and not yet served.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds the port.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves; then no more connections are taken, and what is under way is finished.
    pub async fn run(self, cosigner: Cosigner, access: Access, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (ending, end) = watch::channel(false);
        let access = Arc::new(access);
        tokio::pin!(stop);
        loop {
            let place = tokio::select! {
                place = Arc::clone(&places).acquire_owned() => place,
                () = &mut stop => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut stop => break,
            };
            match (accepted, place) {
                (Ok((tcp, peer)), Ok(place)) => {
                    let connection = serve(tcp, peer, cosigner.clone(), Arc::clone(&access), end.clone());
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                (Err(error), _) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                (Ok(_), Err(_)) => break,
            }
        }
        drop(self.listener);
        ending.send_replace(true);
        let all = places.acquire_many(u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX));
        if tokio::time::timeout(DRAIN_WAIT, all).await.is_err() {
            tracing::warn!(
                "connections were still busy at the end; their signatures are in the record, not with whoever asked"
            );
        }
    }
}

/// One connection, from its handshake to its end.
async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    cosigner: Cosigner,
    access: Arc<Access>,
    mut end: watch::Receiver<bool>,
) {
    let _ = tcp.set_nodelay(true);
    let handshake = TlsAcceptor::from(Arc::clone(&access.tls)).accept(tcp);
    let tls = match tokio::time::timeout(HANDSHAKE_WAIT, handshake).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            return tracing::warn!(%peer, %error, "no TLS: somebody without a certificate of the authority?");
        }
        Err(_) => return tracing::debug!(%peer, "a handshake took too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let name = certificate.and_then(|certificate| tls::name_of(certificate, &access.coordinators));
    let Some(name) = name.map(str::to_owned) else {
        return tracing::warn!(%peer, "a certificate of the authority that names no coordinator: turned away");
    };
    tracing::debug!(%peer, name, "a coordinator has connected");
    let service = service_fn(move |request| {
        let cosigner = cosigner.clone();
        async move { Ok::<_, Infallible>(route(cosigner, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(tls), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended(&mut end) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a connection broke off");
    }
}

async fn ended(end: &mut watch::Receiver<bool>) {
    let _gone = end.wait_for(|end| *end).await;
}

async fn route(cosigner: Cosigner, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "calls are posted".into());
    }
    let path = request.uri().path().to_owned();
    let body = tokio::time::timeout(BODY_WAIT, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return respond(StatusCode::PAYLOAD_TOO_LARGE, "the body broke off or is too long".into()),
        Err(_) => return respond(StatusCode::REQUEST_TIMEOUT, "the body took too long".into()),
    };
    // Arithmetic and disk, beside the connections.
    let instance = HeaderValue::from_str(cosigner.instance());
    let answered = tokio::task::spawn_blocking(move || cosigner.handle(&path, &body)).await;
    let (status, answer) = answered.unwrap_or_else(|error| {
        tracing::error!(%error, "a call has ended in a defect of ours: report it");
        (StatusCode::INTERNAL_SERVER_ERROR, "a defect; the cosigner's log says more".into())
    });
    let mut response = respond(status, answer.into());
    if let Ok(instance) = instance {
        response.headers_mut().insert(INSTANCE, instance);
    }
    response
}

impl Cosigner {
    /// Does a call, whatever brought it here, on the calling thread: the answer with the status that it has over HTTP.
    #[must_use]
    pub fn handle(&self, path: &str, body: &[u8]) -> (StatusCode, Vec<u8>) {
        match path {
            Hello::PATH => call(body, |_: Hello| Ok(self.introduction())),
            Commit::PATH => call(body, |commit| self.commit(&commit)),
            Sign::PATH => call(body, |sign| self.sign(&sign)),
            Begin::PATH => call(body, |begin| self.begin(&begin)),
            Answer::PATH => call(body, |answer| self.answer(&answer)),
            Continue::PATH => call(body, |next| self.carry_on(&next)),
            _ => (StatusCode::NOT_FOUND, b"no such call: is the coordinator of a newer release?".to_vec()),
        }
    }
}

fn call<C: Call>(body: &[u8], work: impl FnOnce(C) -> Result<C::Answer, Trouble>) -> (StatusCode, Vec<u8>) {
    reply(serde_json::from_slice(body).map_err(Trouble::malformed).and_then(work))
}

fn reply<T: serde::Serialize>(done: Result<T, Trouble>) -> (StatusCode, Vec<u8>) {
    let (status, reply) = match done {
        Ok(done) => (StatusCode::OK, Reply::Done(done)),
        Err(Trouble::Refused { rule, detail }) => {
            (StatusCode::FORBIDDEN, Reply::Refused { rule: rule.to_owned(), detail })
        }
        Err(Trouble::Failed(cause, what)) => {
            let status = match cause {
                Cause::Stale | Cause::Peer | Cause::Banned => StatusCode::CONFLICT,
                Cause::Busy => StatusCode::SERVICE_UNAVAILABLE,
                Cause::Malformed => StatusCode::BAD_REQUEST,
                Cause::Broken => StatusCode::INTERNAL_SERVER_ERROR,
            };
            if cause == Cause::Broken {
                tracing::error!(what, "a call failed");
            }
            (status, Reply::Failed { cause, what })
        }
    };
    match serde_json::to_vec(&reply) {
        Ok(text) => (status, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, b"the answer cannot be written".to_vec()),
    }
}

fn respond(status: StatusCode, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response
}
