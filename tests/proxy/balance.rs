//! Several endpoints of one upstream.

use std::time::Duration;

use http::Request;

use crate::support::*;

fn dead() -> String {
    format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request() {
    let alive = Upstream::start().await;
    let endpoints = [dead(), alive.url(), dead()];
    // Each proxy has to find out for itself.
    for _ in 0..10 {
        let proxy = Setup::to(&endpoints.each_ref().map(String::as_str)).start();
        let client = http1();
        for number in 0..3 {
            let text = format!("body {number}");
            let request = Request::post(proxy.url("/echo")).body(full(text.clone())).unwrap();
            let (status, _, body) = send(&client, request).await;
            assert_eq!((status.as_u16(), body), (200, text));
        }
    }
}

#[tokio::test]
async fn two_endpoints_share_the_load() {
    let mut upstreams = [Upstream::start().await, Upstream::start().await];
    let proxy = Setup::to(&[&upstreams[0].url(), &upstreams[1].url()]).start();
    let requests: Vec<_> = (0..8)
        .map(|_| {
            let url = proxy.url("/wait");
            tokio::spawn(async move { get(&http1(), url).await.2 })
        })
        .collect();
    let [left, right] = &mut upstreams;
    let mut seen = [0, 0];
    while seen[0] + seen[1] < 8 {
        tokio::select! {
            event = left.event() => { assert_eq!(event, "arrived"); seen[0] += 1 }
            event = right.event() => { assert_eq!(event, "arrived"); seen[1] += 1 }
        }
    }
    // With two endpoints, two random choices are both of them: the less loaded is always taken.
    assert_eq!(seen, [4, 4]);
    left.release.add_permits(8);
    right.release.add_permits(8);
    for request in requests {
        assert_eq!(soon(request).await.unwrap(), "waited");
    }
}

#[tokio::test]
async fn a_body_counts_as_load() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = Setup::to(&[&first.url(), &second.url()]).start();
    let client = http1();
    let mut bodies = Vec::new();
    for _ in 0..4 {
        bodies.push(soon(client.get(proxy.url("/drip").parse().unwrap())).await.unwrap());
    }
    let counts = [first.connections(), second.connections()];
    assert_eq!(counts, [2, 2]);
    drop((bodies, client));
    for upstream in [&mut first, &mut second] {
        assert_eq!([upstream.event().await, upstream.event().await], ["closed", "closed"]);
    }
}

#[tokio::test]
async fn all_dead_is_said_at_once_and_forgiven_when_they_come_back() {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let proxy = Setup::to(&[&format!("http://{address}"), &dead()])
        .with(|_, upstream| upstream.eject_for = Duration::from_secs(3600))
        .start();
    let client = http1();
    for _ in 0..5 {
        let (status, _, body) = get(&client, proxy.url("/")).await;
        assert_eq!((status.as_u16(), code(&body).as_str()), (502, "upstream_unreachable"));
    }
    // Left alone for an hour, but so is the other one: then both are tried.
    let back = tokio::net::TcpListener::bind(address).await.unwrap();
    let serve = async {
        let (mut tcp, _) = back.accept().await.unwrap();
        let _ = tokio::io::AsyncReadExt::read(&mut tcp, &mut [0; 1024]).await.unwrap();
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut tcp, answer).await.unwrap();
        tcp
    };
    let (answer, _tcp) = tokio::join!(get(&client, proxy.url("/")), soon(serve));
    assert_eq!(answer.0.as_u16(), 204);
}

#[tokio::test]
async fn a_request_that_was_sent_is_not_sent_again() {
    let listeners = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let urls = listeners.each_ref().map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    let proxy = Setup::to(&[&urls[0], &urls[1]]).start();
    let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    for listener in listeners {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let _ = tokio::io::AsyncReadExt::read(&mut tcp, &mut [0; 1024]).await;
                sender.send(()).unwrap();
            }
        });
    }
    let (status, _, body) = get(&http1(), proxy.url("/")).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (502, "upstream_broke_off"));
    accepted.recv().await.unwrap();
    assert!(accepted.try_recv().is_err(), "one endpoint saw it, once");
}
