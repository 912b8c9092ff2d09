//! Bodies: both ways at once, with trailers, of any size, and when one side goes away.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turnpike::proxy::Endpoint;

use crate::support::*;

#[tokio::test]
async fn an_answer_begins_before_its_request_ends() {
    let upstream = Upstream::start().await;
    let h2c = format!("h2c://{}", upstream.address);
    for endpoint in [upstream.url(), h2c] {
        let proxy = Setup::to(&[&endpoint]).start();
        for client in [http1(), http2()] {
            let (sender, body) = steps();
            let answer = tokio::spawn({
                let request = Request::post(proxy.url("/echo")).header("te", "trailers");
                let request = request.header("trailer", "x-sum").body(body).unwrap();
                async move { client.request(request).await.unwrap() }
            });
            sender.send(data("one")).await.unwrap();
            let answer = soon(answer).await.unwrap();
            assert_eq!(answer.headers()["x-body-length"], "chunked");
            let mut body = answer.into_body();
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "one");
            sender.send(data("two")).await.unwrap();
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "two");
            sender.send(trailers("x-sum", "6")).await.unwrap();
            drop(sender);
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_trailers().unwrap()["x-sum"], "6", "{endpoint}");
            assert!(soon(body.frame()).await.is_none());
        }
    }
}

#[tokio::test]
async fn a_length_stays_a_length() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    for client in [http1(), http2()] {
        let request = Request::post(proxy.url("/echo")).body(full("12345")).unwrap();
        let (_, headers, body) = send(&client, request).await;
        assert_eq!((headers["x-body-length"].to_str().unwrap(), body.as_str()), ("5", "12345"));
    }
}

#[tokio::test]
async fn continue_is_said_when_the_body_is_wanted() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let mut raw = proxy.raw().await;
    raw.send("POST /swallow HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n").await;
    assert_eq!(raw.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    raw.send("hello").await;
    assert!(raw.until("\r\n\r\n5").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_upstream_may_answer_without_reading() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    for client in [http1(), http2()] {
        let request = Request::post(proxy.url("/early")).body(full(vec![0; 1 << 20])).unwrap();
        assert_eq!(send(&client, request).await.0, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_upstream() {
    let mut upstream = Upstream::start().await;
    let h2c = format!("h2c://{}", upstream.address);
    for endpoint in [upstream.url(), h2c] {
        let proxy = Setup::to(&[&endpoint]).start();
        for client in [http1(), http2()] {
            let request = tokio::spawn(client.request(Request::post(proxy.url("/hang")).body(full("x")).unwrap()));
            assert_eq!(upstream.event().await, "arrived");
            request.abort();
            drop(client);
            assert_eq!(upstream.event().await, "gone", "{endpoint}");
        }
        // Half-closed is closed.
        let mut raw = proxy.raw().await;
        raw.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(upstream.event().await, "arrived");
        raw.0.shutdown().await.unwrap();
        assert_eq!(upstream.event().await, "gone", "{endpoint}");
        assert_eq!(raw.rest().await, "");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_an_answer_ends_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    for client in [http1(), http2()] {
        let mut answer = client.get(proxy.url("/flood").parse().unwrap()).await.unwrap().into_body();
        soon(answer.frame()).await.unwrap().unwrap();
        drop((answer, client));
        assert_eq!(upstream.event().await, "closed");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_its_body_is_no_answer() {
    let mut upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let mut raw = proxy.raw().await;
    raw.send("POST /swallow HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await;
    raw.0.shutdown().await.unwrap();
    let answer = raw.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(upstream.event().await, "swallowed", "the upstream sees its end as an error");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    for client in [http1(), http2()] {
        let answer = client.get(proxy.url("/break").parse().unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(soon(answer.into_body().collect()).await.is_err());
    }
}

#[tokio::test]
async fn an_upgrade_joins_both_sides() {
    let mut upstream = Upstream::start().await;
    let secure = Upstream::start_tls().await;
    for endpoint in [upstream.url(), format!("https://localhost:{}", secure.address.port())] {
        let proxy = Setup::to(&[&endpoint]).start();
        let mut raw = proxy.raw().await;
        raw.send("GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly").await;
        let head = raw.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
        assert_eq!(raw.until("early").await, "early");
        raw.send("hello").await;
        assert_eq!(raw.until("hello").await, "hello");
        raw.0.shutdown().await.unwrap();
        assert_eq!(raw.rest().await, "bye", "a half-close is passed on, and the other half still flows");
    }
    assert_eq!(upstream.event().await, "upgrade ended");
}

#[tokio::test]
async fn an_upgrade_to_http2_is_not_passed_on() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let mut raw = proxy.raw().await;
    raw.send("GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n").await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 426"));
    assert!("h2c://a".parse::<Endpoint>().is_ok());
}

/// 256 MiB both ways at once: the peak resident size of this process, which holds client, proxy and upstream, grows by
/// less than 48 MiB. What 10 GB need of a whole proxy is measured in `end_to_end/large.rs`.
#[tokio::test]
async fn a_large_body_needs_little_memory() {
    let size = 256 << 20;
    let upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|listen, _| listen.limits.body_bytes_max = None).start();
    let before = peak_kib();
    let (mut read, mut write) = proxy.raw().await.0.into_split();
    let sending = tokio::spawn(async move {
        let head = format!("POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        for _ in 0..size / piece.len() {
            write.write_all(&piece).await.unwrap();
        }
        write
    });
    let mut seen = 0;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match soon(read.read(&mut buffer)).await.unwrap() {
            0 => break,
            count => seen += count,
        }
    }
    sending.await.unwrap();
    assert!(seen > size, "{seen} bytes came back");
    let grown = peak_kib() - before;
    assert!(grown < 48 << 10, "peak memory grew by {grown} KiB");
}

fn peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
