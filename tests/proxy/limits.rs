//! What is refused, with which status and which word.

use http::{Request, StatusCode};
use tokio::io::AsyncWriteExt;
use turnpike::proxy::Limits;

use crate::support::*;

fn small(upstream: &Upstream) -> Proxy {
    Setup::to(&[&upstream.url()])
        .with(|listen, _| {
            listen.limits =
                Limits { uri_bytes_max: 100, headers_bytes_max: 2000, headers_max: 20, body_bytes_max: Some(1000) };
        })
        .start()
}

/// Sends a request as written and reads the answer to its end.
async fn exchange(proxy: &Proxy, request: &str) -> (String, String) {
    let mut raw = proxy.raw().await;
    raw.send(request).await;
    let _ = raw.0.flush().await;
    let answer = raw.rest().await;
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

#[tokio::test]
async fn refusals() {
    let upstream = Upstream::start().await;
    let proxy = small(&upstream);
    let long = "x".repeat(200);
    let fields = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let big = (0..15).map(|n| format!("x-{n}: {long}\r\n")).collect::<String>();
    let table = [
        (format!("GET /{long} HTTP/1.1\r\nhost: a\r\n"), "414", "uri_too_long"),
        (format!("GET /teapot?{long} HTTP/1.1\r\nhost: a\r\n"), "414", "uri_too_long"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{big}"), "431", "request_headers_too_large"),
        // Up to a hundred are ours to refuse; more than that, hyper refuses without a body.
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}", fields(19)), "431", "request_headers_too_large"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}", fields(98)), "431", "request_headers_too_large"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}", fields(120)), "431", ""),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n", "x".repeat(20_000)), "431", ""),
        ("POST /swallow HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n".into(), "413", "request_body_too_large"),
        ("GET / HTTP/1.1\r\n".into(), "400", "bad_request"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n".into(), "400", "bad_request"),
        ("GET /free/../paid HTTP/1.1\r\nhost: a\r\n".into(), "400", "bad_request"),
        ("GET /free/%2e%2E%2fpaid HTTP/1.1\r\nhost: a\r\n".into(), "400", "bad_request"),
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\n".into(), "400", "bad_request"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n".into(), "405", "method_not_allowed"),
        ("GET / HTTP/1.1\r\nhost: a\r\nbad name: x\r\n".into(), "400", ""),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n".into(), "400", ""),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n".into(), "400", ""),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n".into(), "400", ""),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n".into(), "400", ""),
        ("nonsense\r\n".into(), "400", ""),
    ];
    for (head, status, word) in table {
        let (seen, body) = exchange(&proxy, &format!("{}connection: close\r\n\r\n", head)).await;
        let shown = &head[..head.len().min(80)];
        assert_eq!(seen, status, "{shown}: {body}");
        if word.is_empty() {
            assert_eq!(body, "", "{shown}");
        } else {
            assert_eq!(code(&body), word, "{shown}");
        }
    }
    assert_eq!(upstream.connections(), 0, "nothing of this reached the upstream");
}

#[tokio::test]
async fn within_the_limits() {
    let upstream = Upstream::start().await;
    let proxy = small(&upstream);
    let request = Request::post(proxy.url("/swallow")).body(full(vec![0; 1000])).unwrap();
    assert_eq!(send(&http1(), request).await.2, "1000");
    let fields: String = (0..17).map(|n| format!("x-{n}: 1\r\n")).collect();
    let request = format!("GET /teapot HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n");
    assert_eq!(exchange(&proxy, &request).await.0, "418");
}

#[tokio::test]
async fn a_streamed_body_is_counted() {
    let upstream = Upstream::start().await;
    let h2c = format!("h2c://{}", upstream.address);
    for endpoint in [upstream.url(), h2c] {
        let proxy = Setup::to(&[&endpoint]).with(|listen, _| listen.limits.body_bytes_max = Some(1000)).start();
        for client in [http1(), http2()] {
            let (sender, body) = steps();
            tokio::spawn(async move { while sender.send(data(vec![0; 400])).await.is_ok() {} });
            let request = Request::post(proxy.url("/swallow")).body(body).unwrap();
            let (status, _, body) = send(&client, request).await;
            assert_eq!((status.as_u16(), code(&body).as_str()), (413, "request_body_too_large"), "{endpoint}");
        }
    }
}

#[tokio::test]
async fn http2_has_the_same_limits() {
    let upstream = Upstream::start().await;
    let proxy = small(&upstream);
    let client = http2();
    let (status, _, body) = get(&client, proxy.url(&format!("/{}", "x".repeat(200)))).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::URI_TOO_LONG, "uri_too_long"));
    let request = Request::get(proxy.url("/")).header("host", "other").body(empty()).unwrap();
    assert_eq!(send(&client, request).await.0, StatusCode::BAD_REQUEST);
    let mut request = Request::get(proxy.url("/"));
    for n in 0..21 {
        request = request.header(format!("x-{n}"), "1");
    }
    let (status, ..) = send(&client, request.body(empty()).unwrap()).await;
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn both_framings_at_once_are_not_passed_on() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    // Taken by its length, the rest would be a second request.
    let request = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\n\r\nGET /teapot HTTP/1.1\r\nhost: a\r\n\r\n";
    let (status, body) = exchange(&proxy, request).await;
    assert_eq!(status, "200");
    assert!(body.contains("hello"), "{body}");
    assert!(!body.contains("HTTP/1.1"), "the connection ends after it: {body}");
}

#[tokio::test]
async fn requests_over_the_limit_are_told_to_come_back() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|listen, _| listen.requests_max = 1).start();
    let (client, url) = (http1(), proxy.url("/wait"));
    let first = tokio::spawn(async move { get(&client, url).await });
    assert_eq!(upstream.event().await, "arrived");
    let (status, headers, body) = get(&http1(), proxy.url("/teapot")).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (503, "overloaded"));
    assert_eq!(headers["retry-after"], "1");
    upstream.release.add_permits(1);
    assert_eq!(soon(first).await.unwrap().2, "waited");
    assert_eq!(get(&http1(), proxy.url("/teapot")).await.0, 418);
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::to(&[&upstream.url()]).with(|listen, _| listen.connections_max = 1).start();
    let mut first = proxy.raw().await;
    first.send("GET /wait HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert_eq!(upstream.event().await, "arrived");
    let mut second = proxy.raw().await;
    second.send("GET /wait HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    upstream.release.add_permits(1);
    assert!(first.rest().await.starts_with("HTTP/1.1 200"));
    drop(first);
    assert_eq!(upstream.event().await, "arrived", "only now");
    upstream.release.add_permits(1);
    assert!(second.rest().await.starts_with("HTTP/1.1 200"));
}
