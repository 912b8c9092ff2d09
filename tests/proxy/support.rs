//! What the tests of the data plane stand on: an upstream that does as the path says, and a proxy in front of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Step;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use turnpike::proxy::{
    BoxError, Listener, Serving, Settings, UpstreamSettings, Upstreams, drain,
    drain::{Report, Signal},
    tls,
};

pub const CERTIFICATE: &[u8] = include_bytes!("localhost.pem");
pub const KEY: &[u8] = include_bytes!("localhost.key");

pub type TestBody = UnsyncBoxBody<Bytes, BoxError>;
pub type TestClient = Client<HttpConnector, TestBody>;

/// Nothing in these tests takes this long; whoever waits longer waits for ever.
pub const SOON: Duration = Duration::from_secs(20);

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("this never ends")
}

pub fn full(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> TestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body whose frames are given one by one.
pub mod futures {
    use super::{BoxError, Bytes, Frame};
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::sync::mpsc;

    pub type Step = Result<Frame<Bytes>, BoxError>;

    pub struct Steps(pub mpsc::Receiver<Step>);

    impl http_body::Body for Steps {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
            self.0.poll_recv(cx)
        }
    }
}

pub fn steps() -> (mpsc::Sender<Step>, TestBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, futures::Steps(receiver).boxed_unsync())
}

pub fn data(bytes: impl Into<Bytes>) -> Step {
    Ok(Frame::data(bytes.into()))
}

pub fn trailers(name: &'static str, value: &'static str) -> Step {
    let mut map = HeaderMap::new();
    map.insert(name, value.parse().unwrap());
    Ok(Frame::trailers(map))
}

/// An upstream. What happens in it is told over `events`.
pub struct Upstream {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub events: mpsc::UnboundedReceiver<&'static str>,
    pub release: Arc<tokio::sync::Semaphore>,
}

#[derive(Clone)]
struct Behaviour {
    events: mpsc::UnboundedSender<&'static str>,
    release: Arc<tokio::sync::Semaphore>,
}

struct Tell(mpsc::UnboundedSender<&'static str>, &'static str);

impl Drop for Tell {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

impl Upstream {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    pub async fn start_tls() -> Self {
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(certificates(), key())
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::start_with(Some(Arc::new(config))).await
    }

    async fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let release = Arc::new(tokio::sync::Semaphore::new(0));
        let behaviour = Behaviour { events: sender, release: release.clone() };
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let behaviour = behaviour.clone();
                let tls = tls.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| behaviour.clone().answer(request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => builder.serve_connection_with_upgrades(TokioIo::new(tcp), service).await,
                        Some(config) => {
                            let acceptor = tokio_rustls::TlsAcceptor::from(config);
                            let Ok(tls) = acceptor.accept(tcp).await else { return };
                            builder.serve_connection_with_upgrades(TokioIo::new(tls), service).await
                        }
                    };
                });
            }
        });
        Self { address, connections, events, release }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn event(&mut self) -> &'static str {
        soon(self.events.recv()).await.unwrap()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Behaviour {
    fn tell(&self, event: &'static str) {
        let _ = self.events.send(event);
    }

    async fn answer(self, mut request: Request<Incoming>) -> Result<Response<TestBody>, Infallible> {
        let mut response = Response::new(empty());
        match request.uri().path() {
            // Sends the body back while it arrives, with its trailers.
            "/echo" => {
                let headers = response.headers_mut();
                headers.insert("trailer", "x-sum".parse().unwrap());
                headers.insert("x-body-length", length(&request).parse().unwrap());
                *response.body_mut() = request.into_body().map_err(Into::into).boxed_unsync();
            }
            // Says what arrived, one line for each field.
            "/head" => {
                let mut lines = vec![format!("{} {} {:?}", request.method(), request.uri(), request.version())];
                for (name, value) in request.headers() {
                    lines.push(format!("{name}: {}", value.to_str().unwrap()));
                }
                for name in ["payment-required", "payment-response", "x-kept", "keep-alive", "x-hop"] {
                    response.headers_mut().insert(name, "upstream".parse().unwrap());
                }
                response.headers_mut().insert("connection", "x-hop".parse().unwrap());
                *response.body_mut() = full(lines.join("\n"));
            }
            // Does not answer.
            "/hang" => {
                let _tell = Tell(self.events.clone(), "gone");
                self.tell("arrived");
                std::future::pending::<()>().await;
            }
            // Answers when it is let.
            "/wait" => {
                self.tell("arrived");
                self.release.acquire().await.unwrap().forget();
                *response.body_mut() = full("waited");
            }
            // Begins an answer and does not end it.
            "/drip" => {
                let (sender, body) = steps();
                *response.body_mut() = body;
                sender.send(data("drop")).await.unwrap();
                let events = self.events.clone();
                tokio::spawn(async move {
                    sender.closed().await;
                    let _ = events.send("closed");
                });
            }
            // Sends as much as it is let.
            "/flood" => {
                let (sender, body) = steps();
                *response.body_mut() = body;
                let events = self.events.clone();
                tokio::spawn(async move {
                    let piece = Bytes::from(vec![b'x'; 64 << 10]);
                    while sender.send(data(piece.clone())).await.is_ok() {}
                    let _ = events.send("closed");
                });
            }
            // Begins an answer and breaks off.
            "/break" => {
                let (sender, body) = steps();
                *response.body_mut() = body;
                sender.send(data("drop")).await.unwrap();
                tokio::spawn(async move { sender.send(Err("broken on purpose".into())).await });
            }
            "/swallow" => {
                let mut body = request.into_body();
                let mut seen = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    seen += frame.data_ref().map_or(0, Bytes::len);
                }
                self.tell("swallowed");
                *response.body_mut() = full(seen.to_string());
            }
            // Never reads its body.
            "/early" => {
                *response.status_mut() = StatusCode::FORBIDDEN;
                *response.body_mut() = full("early");
            }
            "/teapot" => *response.status_mut() = StatusCode::IM_A_TEAPOT,
            // Switches protocols and sends back what it hears.
            "/upgrade" => {
                let upgrade = hyper::upgrade::on(&mut request);
                let protocol = request.headers().get("upgrade").cloned();
                let Some(protocol) = protocol else {
                    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
                    return Ok(response);
                };
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("upgrade", protocol);
                response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                tokio::spawn(async move {
                    let mut io = TokioIo::new(upgrade.await.unwrap());
                    let mut buffer = [0; 1024];
                    while let Ok(count @ 1..) = io.read(&mut buffer).await {
                        io.write_all(&buffer[..count]).await.unwrap();
                    }
                    let _ = io.write_all(b"bye").await;
                    let _ = io.shutdown().await;
                    self.tell("upgrade ended");
                });
            }
            other => panic!("no behaviour for {other}"),
        }
        Ok(response)
    }
}

fn length(request: &Request<Incoming>) -> String {
    let header = request.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned());
    header.unwrap_or_else(|| "chunked".into())
}

pub fn certificates() -> Vec<rustls_pki_types::CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject;
    vec![rustls_pki_types::CertificateDer::from_pem_slice(CERTIFICATE).unwrap()]
}

pub fn key() -> rustls_pki_types::PrivateKeyDer<'static> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::PrivateKeyDer::from_pem_slice(KEY).unwrap()
}

/// A proxy with one thread, unless told otherwise.
pub struct Proxy {
    pub address: SocketAddr,
    pub addresses: Vec<SocketAddr>,
    signal: Option<Signal>,
    serving: Option<Serving>,
}

pub struct Setup {
    pub listen: Settings,
    pub upstream: UpstreamSettings,
    pub grace: Duration,
}

impl Setup {
    pub fn to(endpoints: &[&str]) -> Self {
        let mut listen = Settings::new("127.0.0.1:0".parse().unwrap());
        listen.threads = 1.try_into().unwrap();
        let trusted = Arc::new(tls::client_config(Some(CERTIFICATE)).unwrap());
        let endpoints = endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect();
        Self { listen, upstream: UpstreamSettings::new(endpoints, trusted), grace: SOON }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Settings, &mut UpstreamSettings)) -> Self {
        change(&mut self.listen, &mut self.upstream);
        self
    }

    pub fn start(self) -> Proxy {
        let upstream = self.upstream;
        let (signal, watch) = drain::channel(self.grace);
        let listener = Listener::bind(self.listen).unwrap();
        let serving = listener.serve(move || Upstreams::new(&upstream, []).unwrap(), &watch).unwrap();
        Proxy::of(signal, serving)
    }
}

impl Proxy {
    pub fn to(upstream: &Upstream) -> Self {
        Setup::to(&[&upstream.url()]).start()
    }

    pub fn of(signal: Signal, serving: Serving) -> Self {
        let addresses = serving.addresses().to_vec();
        Self { address: addresses[0], addresses, signal: Some(signal), serving: Some(serving) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn start_drain(&mut self) {
        self.signal.take().unwrap().drain();
    }

    pub fn drop_signal(&mut self) {
        drop(self.signal.take());
    }

    pub async fn drained(&mut self) -> Report {
        soon(self.serving.take().unwrap().finished()).await
    }

    pub async fn raw(&self) -> Raw {
        Raw(TcpStream::connect(self.address).await.unwrap())
    }
}

/// A connection on which a test says every byte itself.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until `end` has come.
    pub async fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        soon(async {
            while !text.ends_with(end.as_bytes()) {
                let mut byte = [0];
                assert_eq!(
                    self.0.read(&mut byte).await.unwrap(),
                    1,
                    "closed after {:?}",
                    String::from_utf8_lossy(&text)
                );
                text.push(byte[0]);
            }
        })
        .await;
        String::from_utf8(text).unwrap()
    }

    /// Reads until the other side closes.
    pub async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        let _ = soon(self.0.read_to_end(&mut text)).await;
        String::from_utf8_lossy(&text).into_owned()
    }
}

pub fn http1() -> TestClient {
    Client::builder(TokioExecutor::new()).build_http()
}

pub fn http2() -> TestClient {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

pub async fn send(client: &TestClient, request: Request<TestBody>) -> (StatusCode, HeaderMap, String) {
    let response = soon(client.request(request)).await.unwrap();
    let (head, body) = response.into_parts();
    let body = soon(body.collect()).await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

pub async fn get(client: &TestClient, url: String) -> (StatusCode, HeaderMap, String) {
    send(client, Request::get(url).body(empty()).unwrap()).await
}

/// The code in the body of an answer that the proxy made.
pub fn code(body: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(value["message"].as_str().is_some_and(|message| !message.is_empty()));
    value["error"].as_str().unwrap().to_owned()
}
