//! Upgrades (WebSocket and its like): after `101 Switching Protocols` both sides are joined, byte for byte.
//!
//! Promises that bytes flow both ways until both sides have closed, that a half-close is passed on, that a pair over
//! which nothing moves is closed after a time, and that a drain waits for the pair until its deadline.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::Instant;

use super::drain::{Token, Tracker};

/// Joins both sides in a task of its own, once both have switched.
pub(crate) fn join(client: OnUpgrade, upstream: OnUpgrade, idle: Duration, tracker: Option<&Tracker>) {
    let token = tracker.map(Tracker::enter);
    tokio::spawn(async move {
        let last = Arc::new(Mutex::new(Instant::now()));
        let ended = tokio::select! {
            ended = copy(client, upstream, last.clone()) => ended,
            () = silence(&last, idle) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved")),
            () = cut(token.as_ref()) => Err(io::Error::new(io::ErrorKind::Interrupted, "cut by the drain")),
        };
        match ended {
            Ok((up, down)) => tracing::debug!(up, down, "an upgraded connection ended"),
            Err(error) => tracing::debug!(%error, "an upgraded connection ended"),
        }
    });
}

async fn copy(client: OnUpgrade, upstream: OnUpgrade, last: Arc<Mutex<Instant>>) -> io::Result<(u64, u64)> {
    let (client, upstream) = tokio::try_join!(client, upstream).map_err(io::Error::other)?;
    // Whatever moves, in either direction, is read from or written to the client.
    let mut client = Watched { io: TokioIo::new(client), last };
    copy_bidirectional(&mut client, &mut TokioIo::new(upstream)).await
}

async fn silence(last: &Mutex<Instant>, idle: Duration) {
    loop {
        let left = idle.saturating_sub(last.lock().elapsed());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

async fn cut(token: Option<&Token>) {
    let Some(token) = token else { return std::future::pending().await };
    token.watch().deadline().await;
    token.cut();
}

struct Watched<T> {
    io: T,
    last: Arc<Mutex<Instant>>,
}

impl<T> Watched<T> {
    fn moved(&self) {
        *self.last.lock() = Instant::now();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.moved();
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.moved();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
