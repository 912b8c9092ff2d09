//! Connections to an upstream in the clear: used again, replaced, and ended.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// Reads a request's head and answers it.
async fn answer(tcp: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(tcp.read_u8()).await.unwrap());
    }
    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
}

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let client = http1();
    for path in ["/head", "/teapot", "/head", "/teapot"] {
        get(&client, proxy.url(path)).await;
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn one_that_the_upstream_has_closed_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Setup::to(&[&format!("http://{}", listener.local_addr().unwrap())]).start();
    let client = http1();
    for _ in 0..5 {
        let upstream = async {
            let (mut tcp, _) = soon(listener.accept()).await.unwrap();
            answer(&mut tcp).await;
            // Closed without a word, once the answer is on its way.
        };
        let (answer, ()) = tokio::join!(get(&client, proxy.url("/")), upstream);
        assert_eq!((answer.0.as_u16(), answer.2.as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn one_that_nobody_uses_is_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Setup::to(&[&format!("http://{}", listener.local_addr().unwrap())])
        .with(|_, upstream| upstream.keep_alive_idle = Duration::from_millis(50))
        .start();
    let client = http1();
    let upstream = async {
        let (mut tcp, _) = soon(listener.accept()).await.unwrap();
        answer(&mut tcp).await;
        assert_eq!(soon(tcp.read(&mut [0])).await.unwrap(), 0);
    };
    tokio::join!(get(&client, proxy.url("/")), upstream);
}

#[tokio::test]
async fn one_whose_answer_was_not_taken_to_its_end_is_not_used_again() {
    let mut upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let client = http1();
    let mut response = client.request(Request::get(proxy.url("/drip")).body(empty()).unwrap()).await.unwrap();
    soon(response.body_mut().frame()).await.unwrap().unwrap();
    drop((response, client));
    assert_eq!(upstream.event().await, "closed");
    assert_eq!(get(&http1(), proxy.url("/teapot")).await.0, 418);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn one_that_still_takes_a_request_holds_up_no_other() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(&upstream);
    let client = http1();
    let (sender, body) = steps();
    sender.send(data("begun")).await.unwrap();
    let early = Request::post(proxy.url("/early")).body(body).unwrap();
    assert_eq!(soon(client.request(early)).await.unwrap().status(), 403);
    assert_eq!(soon(get(&client, proxy.url("/teapot"))).await.0, 418);
    drop(sender);
}
