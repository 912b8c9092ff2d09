//! Stopping: what is under way ends well, what is idle ends at once, what does not end is cut.

use std::time::Duration;

use http::Request;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use turnpike::proxy::drain::Report;

use crate::support::*;

#[tokio::test]
async fn requests_under_way_are_answered() {
    let mut upstream = Upstream::start().await;
    let mut proxy = Proxy::to(&upstream);
    let mut idle = proxy.raw().await;
    idle.send("GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("\r\n\r\n").await;
    let mut busy = proxy.raw().await;
    busy.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(upstream.event().await, "arrived");
    let (client, url) = (http2(), proxy.url("/wait"));
    let second = tokio::spawn(async move { get(&client, url).await });
    assert_eq!(upstream.event().await, "arrived");

    proxy.start_drain();
    assert_eq!(idle.rest().await, "", "an idle connection is closed");
    upstream.release.add_permits(2);
    let answer = busy.rest().await;
    assert!(answer.contains("connection: close") && answer.ends_with("waited"), "{answer}");
    assert_eq!(soon(second).await.unwrap().2, "waited");
    assert_eq!(proxy.drained().await, Report { drained: 3, cut: 0 });
    assert!(TcpStream::connect(proxy.address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_request_that_was_sent_before_the_drain_is_answered() {
    let upstream = Upstream::start().await;
    for _ in 0..20 {
        let mut proxy = Proxy::to(&upstream);
        // Connected and sent, and perhaps not even accepted when the drain begins.
        let mut raw = proxy.raw().await;
        raw.send("GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n").await;
        proxy.start_drain();
        let answer = raw.rest().await;
        assert!(answer.starts_with("HTTP/1.1 418"), "{answer}");
        let report = proxy.drained().await;
        assert_eq!(report.cut, 0);
    }
}

#[tokio::test]
async fn a_body_under_way_is_sent_to_its_end() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::to(&upstream);
    for client in [http1(), http2()] {
        let (sender, body) = steps();
        sender.send(data("one")).await.unwrap();
        let request = Request::post(proxy.url("/echo")).body(body).unwrap();
        let mut answer = soon(client.request(request)).await.unwrap().into_body();
        proxy.start_drain();
        sender.send(data("two")).await.unwrap();
        drop(sender);
        let mut seen = Vec::new();
        while let Some(frame) = soon(http_body_util::BodyExt::frame(&mut answer)).await {
            seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(seen, b"onetwo");
        assert_eq!(proxy.drained().await.cut, 0);
        proxy = Proxy::to(&upstream);
    }
}

#[tokio::test]
async fn what_does_not_end_is_cut() {
    let mut upstream = Upstream::start().await;
    let mut setup = Setup::to(&[&upstream.url()]);
    setup.grace = Duration::from_millis(100);
    let mut proxy = setup.start();
    let mut upgraded = proxy.raw().await;
    upgraded.send("GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    upgraded.until("\r\n\r\n").await;
    upgraded.send("x").await;
    upgraded.until("x").await;
    let mut hanging = proxy.raw().await;
    hanging.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(upstream.event().await, "arrived");
    proxy.start_drain();
    assert_eq!(hanging.rest().await, "");
    upgraded.rest().await;
    let report = proxy.drained().await;
    assert_eq!(report.cut, 2, "{report:?}");
    let mut ends = [upstream.event().await, upstream.event().await];
    ends.sort_unstable();
    assert_eq!(ends, ["gone", "upgrade ended"]);
}

#[tokio::test]
async fn an_upgrade_may_end_by_itself_until_the_deadline() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::to(&upstream);
    let mut upgraded = proxy.raw().await;
    upgraded.send("GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    upgraded.until("\r\n\r\n").await;
    upgraded.send("x").await;
    upgraded.until("x").await;
    proxy.start_drain();
    upgraded.send("still there").await;
    upgraded.until("still there").await;
    drop(upgraded);
    assert_eq!(proxy.drained().await.cut, 0);
}

#[tokio::test]
async fn dropping_the_signal_drains() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::to(&upstream);
    let mut idle = proxy.raw().await;
    idle.send("GET /teapot HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("\r\n\r\n").await;
    proxy.drop_signal();
    assert_eq!(idle.0.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(proxy.drained().await, Report { drained: 1, cut: 0 });
}
