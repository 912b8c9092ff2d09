//! Every wait ends: each test waits for the end of one, which without its limit would not come.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use turnpike::proxy::{Listen, tls::Identity};

use crate::support::*;

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_head_that_does_not_end() {
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()])
        .with(|listen, _| {
            listen.timeouts.header_read = SHORT;
            listen.timeouts.keep_alive_idle = LONG;
        })
        .start();
    for start in ["", "G", "GET / HTTP/1.1\r\nhost: a\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut raw = proxy.raw().await;
        raw.send(start).await;
        raw.rest().await;
    }
    // The second request of a connection too, though its idle time is long.
    let mut raw = proxy.raw().await;
    raw.send("GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n").await;
    raw.until("\r\n\r\n").await;
    raw.send("GET /teapot HTTP/1.1\r\n").await;
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn a_connection_without_requests() {
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|listen, _| listen.timeouts.keep_alive_idle = SHORT).start();
    let mut raw = proxy.raw().await;
    raw.send("GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n").await;
    raw.until("\r\n\r\n").await;
    assert_eq!(raw.rest().await, "");

    let tcp = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(tcp);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get(proxy.url("/teapot")).body(empty()).unwrap();
    assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 418);
    soon(connection).await.unwrap().expect("it ends in an orderly way");
}

#[tokio::test]
async fn a_handshake_that_does_not_begin() {
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()])
        .with(|listen, _| {
            let tls = Some(Identity::from_pem(CERTIFICATE, KEY).unwrap());
            listen.listen = vec![Listen { address: "127.0.0.1:0".parse().unwrap(), tls }];
            listen.timeouts.tls_handshake = SHORT;
        })
        .start();
    assert_eq!(proxy.raw().await.rest().await, "");
}

#[tokio::test]
async fn a_request_body_that_does_not_go_on() {
    let upstream = Upstream::start().await;
    let h2c = format!("h2c://{}", upstream.address);
    for endpoint in [upstream.url(), h2c] {
        let proxy = Setup::to(&[&endpoint])
            .with(|listen, upstream| {
                listen.timeouts.body_idle = SHORT;
                upstream.response_timeout = LONG;
            })
            .start();
        for client in [http1(), http2()] {
            let (sender, body) = steps();
            sender.send(data("one")).await.unwrap();
            let request = Request::post(proxy.url("/swallow")).body(body).unwrap();
            let (status, _, body) = send(&client, request).await;
            assert_eq!((status.as_u16(), code(&body).as_str()), (408, "request_body_timeout"), "{endpoint}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|_, upstream| upstream.response_timeout = SHORT).start();
    for client in [http1(), http2()] {
        let (status, _, body) = get(&client, proxy.url("/hang")).await;
        assert_eq!((status.as_u16(), code(&body).as_str()), (504, "upstream_timeout"));
        assert_eq!(upstream.event().await, "arrived");
        assert_eq!(upstream.event().await, "gone");
    }
}

#[tokio::test]
async fn a_slow_client_is_not_the_upstreams_fault() {
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()])
        .with(|listen, upstream| {
            listen.timeouts.body_idle = Duration::from_millis(900);
            upstream.response_timeout = Duration::from_millis(300);
        })
        .start();
    let (sender, body) = steps();
    sender.send(data("one")).await.unwrap();
    let request = Request::post(proxy.url("/swallow")).body(body).unwrap();
    let (status, _, body) = send(&http1(), request).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (408, "request_body_timeout"));
}

#[tokio::test]
async fn an_upstream_that_takes_no_connection() {
    // A full queue: nobody accepts, and the kernel answers no further connection.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    let proxy = Setup::to(&[&format!("http://{address}")]).with(|_, upstream| upstream.connect_timeout = SHORT).start();
    let (status, _, body) = get(&http1(), proxy.url("/")).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (504, "upstream_connect_timeout"));
}

#[tokio::test]
async fn an_upstream_that_does_not_shake_hands() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let proxy = Setup::to(&[&endpoint]).with(|_, upstream| upstream.connect_timeout = SHORT).start();
    let (status, _, body) = get(&http1(), proxy.url("/")).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (504, "upstream_connect_timeout"));
}

#[tokio::test]
async fn an_answer_that_does_not_go_on() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|_, upstream| upstream.response_idle = SHORT).start();
    for client in [http1(), http2()] {
        let answer = soon(client.get(proxy.url("/drip").parse().unwrap())).await.unwrap();
        assert!(soon(answer.into_body().collect()).await.is_err());
        assert_eq!(upstream.event().await, "closed");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()])
        .with(|listen, upstream| {
            listen.timeouts.write_idle = SHORT;
            upstream.response_idle = LONG;
        })
        .start();
    let mut raw = proxy.raw().await;
    raw.send("GET /flood HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(upstream.event().await, "closed");

    // Over HTTP/2 the socket is read on, and only the stream's window stays shut.
    let client = http2();
    let answer = soon(client.get(proxy.url("/flood").parse().unwrap())).await.unwrap();
    assert_eq!(upstream.event().await, "closed");
    drop(answer);
}

#[tokio::test]
async fn an_upgrade_over_which_nothing_moves() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|_, upstream| upstream.upgrade_idle = SHORT).start();
    let mut raw = proxy.raw().await;
    raw.send("GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    raw.until("\r\n\r\n").await;
    raw.rest().await;
    assert_eq!(upstream.event().await, "upgrade ended");
}

#[tokio::test]
async fn a_routes_own_time_comes_first() {
    use turnpike::proxy::{Body, Destination, Upstreams};
    let upstream = Upstream::start().await;
    let mut service = Upstreams::new(&Setup::to(&[&upstream.url()]).upstream, []).unwrap();
    let request =
        |destination: Destination| Request::get("http://a/hang").extension(destination).body(Body::empty()).unwrap();
    let late = tower::Service::call(&mut service, request(Destination { upstream: None, timeout: Some(SHORT) }));
    assert_eq!(soon(late).await.unwrap_err().code(), "upstream_timeout");
    let lost = Destination { upstream: Some("nowhere".into()), timeout: None };
    let lost = tower::Service::call(&mut service, request(lost));
    assert_eq!(soon(lost).await.unwrap_err().status(), 500);
}
