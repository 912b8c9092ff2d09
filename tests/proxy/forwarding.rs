//! What arrives at the other side: versions, headers, hosts, connections, failures.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::Service;
use turnpike::proxy::{Body, Failure, Generated, Injected, Listen, Listener, Peer, Upstreams, drain, tls::Identity};

use crate::support::*;

#[tokio::test]
async fn every_version_in_and_out() {
    let upstream = Upstream::start().await;
    let secure = Upstream::start_tls().await;
    let outs = [
        (upstream.url(), "HTTP/1.1"),
        (format!("h2c://{}", upstream.address), "HTTP/2.0"),
        (format!("https://localhost:{}", secure.address.port()), "HTTP/2.0"),
    ];
    for (endpoint, version) in outs {
        let proxy = Setup::to(&[&endpoint])
            .with(|listen, _| {
                let tls = Some(Identity::from_pem(CERTIFICATE, KEY).unwrap());
                listen.listen.push(Listen { address: "127.0.0.1:0".parse().unwrap(), tls });
            })
            .start();
        for client in [http1(), http2()] {
            let (status, _, body) = get(&client, proxy.url("/head?q=1")).await;
            assert_eq!(status, 200, "{endpoint}: {body}");
            assert!(body.lines().next().unwrap().ends_with(version), "{endpoint}: {body}");
            assert!(body.lines().next().unwrap().contains("/head?q=1"), "{endpoint}: {body}");
            assert!(body.contains("x-forwarded-proto: http\n") || body.ends_with("x-forwarded-proto: http"), "{body}");
        }
        for http2 in [false, true] {
            let config = turnpike::proxy::tls::client_config(Some(CERTIFICATE)).unwrap();
            let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_only();
            let connector = if http2 { builder.enable_http2().build() } else { builder.enable_http1().build() };
            let client = Client::builder(TokioExecutor::new()).build::<_, TestBody>(connector);
            let url = format!("https://localhost:{}/head", proxy.addresses[1].port());
            let response = soon(client.get(url.parse().unwrap())).await.unwrap();
            let version = if http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
            assert_eq!(response.version(), version);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(body.contains("x-forwarded-proto: https"), "{endpoint}: {body}");
        }
    }
}

#[tokio::test]
async fn https_upstream_keeps_the_clients_host_over_http1_when_told() {
    let secure = Upstream::start_tls().await;
    let proxy = Setup::to(&[&format!("https://localhost:{}", secure.address.port())])
        .with(|_, upstream| upstream.preserve_host = Some(true))
        .start();
    let (_, _, body) = get(&http1(), proxy.url("/head")).await;
    assert!(body.starts_with("GET /head HTTP/1.1"), "{body}");
    assert!(body.contains(&format!("host: {}", proxy.address)), "{body}");
}

#[tokio::test]
async fn an_upstream_whose_certificate_is_not_trusted_is_not_asked() {
    let mut secure = Upstream::start_tls().await;
    let proxy = Setup::to(&[&format!("https://localhost:{}", secure.address.port())])
        .with(|_, upstream| upstream.tls = Arc::new(turnpike::proxy::tls::client_config(None).unwrap()))
        .start();
    let (status, _, body) = get(&http1(), proxy.url("/hang")).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_GATEWAY, "upstream_unreachable"));
    assert!(secure.events.try_recv().is_err());
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let identity = Identity::from_pem(CERTIFICATE, KEY).unwrap();
    assert!(identity.replace(CERTIFICATE, b"no key").is_err());
    assert!(identity.replace(b"no certificate", KEY).is_err());
    identity.replace(CERTIFICATE, KEY).unwrap();
    let shown = format!("{identity:?} {:?}", Identity::from_pem(CERTIFICATE, b"secret").unwrap_err());
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn headers_that_end_at_the_proxy() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let request = Request::get(proxy.url("/head"))
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("te", "trailers, gzip")
        .header("payment-signature", "secret")
        .header("x-payment", "secret")
        .header("turnpike-payer", "me")
        .header("turnpike_amount", "1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .header("accept", "*/*")
        .body(empty());
    let (status, headers, body) = send(&http1(), request.unwrap()).await;
    assert_eq!(status, 200);
    let mut seen: Vec<&str> = body.lines().skip(1).collect();
    seen.sort_unstable();
    let host = proxy.address;
    assert_eq!(
        seen.join("\n"),
        format!(
            "accept: */*\nconnection: te\nhost: {host}\nte: trailers\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: {host}\nx-forwarded-proto: http"
        )
    );
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "x-kept"]);
}

#[tokio::test]
async fn the_host_can_be_the_upstreams_own() {
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|_, upstream| upstream.preserve_host = Some(false)).start();
    let (_, _, body) = get(&http1(), proxy.url("/head")).await;
    assert!(body.contains(&format!("\nhost: {}", upstream.address)), "{body}");
    assert!(body.contains(&format!("x-forwarded-host: {}", proxy.address)), "{body}");
}

#[tokio::test]
async fn a_trusted_peers_word_is_kept() {
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|_, upstream| upstream.trust_forwarded = true).start();
    let request = Request::get(proxy.url("/head")).header("x-forwarded-for", "1.2.3.4").body(empty());
    let (_, _, body) = send(&http1(), request.unwrap()).await;
    assert!(body.contains("x-forwarded-for: 1.2.3.4, 127.0.0.1"), "{body}");
}

#[tokio::test]
async fn connections_are_used_again_on_both_sides() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let client = http1();
    for _ in 0..10 {
        assert_eq!(get(&client, proxy.url("/teapot")).await.0, StatusCode::IM_A_TEAPOT);
    }
    assert_eq!(upstream.connections(), 1);
    // One client connection too: the whole exchange on it, twice.
    let mut raw = proxy.raw().await;
    for _ in 0..2 {
        raw.send("GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 418"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn head_keeps_its_length_and_has_no_body() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let mut raw = proxy.raw().await;
    raw.send("HEAD /head HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = raw.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: "), "{head}");
    raw.send("GET /teapot HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 418"), "the next answer follows the head directly");
}

#[tokio::test]
async fn an_http_1_0_client_is_served() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let mut raw = proxy.raw().await;
    raw.send("GET /head HTTP/1.0\r\n\r\n").await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("GET /head HTTP/1.1"), "{answer}");
}

#[tokio::test]
async fn an_unreachable_upstream_is_said_without_its_address() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Setup::to(&[&format!("http://{closed}")]).start();
    for client in [http1(), http2()] {
        let (status, headers, body) = get(&client, proxy.url("/")).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_GATEWAY, "upstream_unreachable"));
        assert_eq!(headers["cache-control"], "no-store");
        assert!(!body.contains(&closed.port().to_string()), "{body}");
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_speak_http() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Setup::to(&[&format!("http://{}", listener.local_addr().unwrap())]).start();
    for answer in [
        "",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 101 Sw\r\nupgrade: x\r\n\r\n",
    ] {
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut tcp, &mut buffer).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut tcp, answer.as_bytes()).await.unwrap();
        };
        let client = http1();
        let ((status, _, body), ()) = tokio::join!(get(&client, proxy.url("/")), serve);
        assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_GATEWAY, "upstream_broke_off"), "{answer:?}");
    }
}

/// A layer as the payment gate is one: refuses the unpaid before anything of the body is read, injects, and notes what
/// came back from inside.
#[derive(Clone)]
struct Gate<S> {
    inner: S,
    seen: Arc<Mutex<Vec<String>>>,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Failure>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !request.headers().contains_key("payment-signature") {
            let mut response = Response::new(Body::from("pay"));
            *response.status_mut() = StatusCode::PAYMENT_REQUIRED;
            return Box::pin(async move { Ok(response) });
        }
        assert_eq!(request.extensions().get::<Peer>().map(|peer| peer.tls), Some(false));
        let injected = (HeaderName::from_static("turnpike-payer"), HeaderValue::from_static("alice"));
        request.extensions_mut().insert(Injected(vec![injected]));
        let (answer, seen) = (self.inner.call(request), self.seen.clone());
        Box::pin(async move {
            let answer = answer.await;
            seen.lock().unwrap().push(match &answer {
                Ok(response) => {
                    assert!(response.extensions().get::<Generated>().is_none());
                    response.status().to_string()
                }
                Err(failure) => failure.code().to_owned(),
            });
            answer
        })
    }
}

fn gated(endpoint: &str) -> (Proxy, Arc<Mutex<Vec<String>>>) {
    let Setup { listen, upstream, grace } = Setup::to(&[endpoint]);
    let (signal, watch) = drain::channel(grace);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let of_gate = seen.clone();
    let make = move || Gate { inner: Upstreams::new(&upstream, []).unwrap(), seen: of_gate.clone() };
    (Proxy::of(signal, Listener::bind(listen).unwrap().serve(make, &watch).unwrap()), seen)
}

#[tokio::test]
async fn a_gate_injects_what_the_outside_cannot() {
    let upstream = Upstream::start().await;
    let (proxy, _) = gated(&upstream.url());
    let request = Request::get(proxy.url("/head"))
        .header("payment-signature", "x")
        .header("turnpike-payer", "mallory")
        .header("turnpike-channel", "mallory's");
    let (_, _, body) = send(&http1(), request.body(empty()).unwrap()).await;
    assert!(body.contains("turnpike-payer: alice"), "{body}");
    assert!(!body.contains("mallory") && !body.contains("payment"), "{body}");
}

#[tokio::test]
async fn a_gate_tells_answers_from_failures() {
    let upstream = Upstream::start().await;
    let (proxy, seen) = gated(&upstream.url());
    let paid = |path: &str| Request::get(proxy.url(path)).header("payment-signature", "x").body(empty()).unwrap();
    assert_eq!(send(&http1(), paid("/teapot")).await.0, 418);
    let (dead, dead_seen) = gated("http://127.0.0.1:1");
    let request = Request::get(dead.url("/")).header("payment-signature", "x").body(empty());
    assert_eq!(send(&http1(), request.unwrap()).await.0, 502);
    assert_eq!(*seen.lock().unwrap(), ["418 I'm a teapot"]);
    assert_eq!(*dead_seen.lock().unwrap(), ["upstream_unreachable"]);
}

#[tokio::test]
async fn an_unpaid_upload_is_answered_without_being_read() {
    let upstream = Upstream::start().await;
    let (proxy, _) = gated(&upstream.url());
    let mut raw = proxy.raw().await;
    raw.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\nexpect: 100-continue\r\n\r\n").await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 402"), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");

    // A client that does not wait gets the answer too, though it is still sending.
    let (mut read, mut write) = proxy.raw().await.0.into_split();
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let head = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n";
        write.write_all(head).await?;
        write.write_all(&vec![0; 4_000_000]).await
    });
    let mut answer = Vec::new();
    let read = soon(tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 402") && answer.ends_with("pay"), "{read:?} {answer}");
    soon(sending).await.unwrap().expect("the proxy reads on, so that no reset destroys its answer");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_small_unpaid_body_keeps_the_connection() {
    let upstream = Upstream::start().await;
    let (proxy, _) = gated(&upstream.url());
    let mut raw = proxy.raw().await;
    for _ in 0..3 {
        raw.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
        assert!(raw.until("pay").await.starts_with("HTTP/1.1 402"));
    }
    raw.send("POST /swallow HTTP/1.1\r\nhost: a\r\npayment-signature: x\r\ncontent-length: 5\r\n\r\nhello").await;
    assert!(raw.until("\r\n\r\n5").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn several_threads_serve_one_port() {
    let upstream = Upstream::start().await;
    let mut proxy = Setup::to(&[&upstream.url()]).with(|listen, _| listen.threads = 3.try_into().unwrap()).start();
    let answers: Vec<_> = (0..24)
        .map(|_| {
            let url = proxy.url("/teapot");
            tokio::spawn(async move { get(&http1(), url).await.0 })
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.await.unwrap(), 418);
    }
    // The port is ours alone, though our own threads share it.
    let mut again = Setup::to(&[&upstream.url()]).listen;
    again.listen[0].address = proxy.address;
    again.threads = 2.try_into().unwrap();
    let error = Listener::bind(again).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    proxy.start_drain();
    assert_eq!(proxy.drained().await.cut, 0);
}
