//! A client's socket, in the clear or under TLS, as hyper reads and writes it.
//!
//! Owns the socket and its place among the allowed connections. Promises that a client that takes no bytes is given
//! up after a time, and that a connection which is closed while the client still sends (an answer given before the
//! request body was read) is closed in an orderly way: what the client sends is read and thrown away for a moment, so
//! that a reset does not destroy the answer before the client has read it (RFC 9112, 9.6).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::activity::Activity;

/// For how long, and how much, a closed connection is still read from.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 8 << 20;

pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(crate) struct Wire {
    socket: Option<(Socket, OwnedSemaphorePermit)>,
    activity: Activity,
    patience: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    stalled: bool,
    /// The client has said that it sends no more, or the connection failed.
    ended: bool,
    /// We have said that we send no more.
    shut: bool,
}

impl Wire {
    pub(crate) fn new(socket: Socket, permit: OwnedSemaphorePermit, activity: Activity) -> Self {
        let patience = activity.patience().write;
        Self {
            socket: Some((socket, permit)),
            activity,
            patience,
            stall: None,
            stalled: false,
            ended: false,
            shut: false,
        }
    }

    fn socket(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.socket.as_mut().map(|(socket, _)| Pin::new(socket)).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Turns a write that waits for the client into an error once it has waited long enough.
    fn limit<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = false;
            return write;
        }
        let patience = self.patience;
        let timer = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if !self.stalled {
            self.stalled = true;
            timer.as_mut().reset(Instant::now() + patience);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")))
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(self.socket()?.poll_read(cx, buf));
        if result.is_ok() && buf.filled().len() > before {
            self.activity.received();
        } else if buf.remaining() > 0 {
            self.ended = true;
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = self.socket()?.poll_write(cx, buf);
        self.limit(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = self.socket()?.poll_write_vectored(cx, bufs);
        self.limit(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(|(socket, _)| match socket {
            Socket::Plain(tcp) => tcp.is_write_vectored(),
            Socket::Tls(tls) => tls.is_write_vectored(),
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = self.socket()?.poll_flush(cx);
        self.limit(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = self.socket()?.poll_shutdown(cx);
        let shutdown = self.limit(cx, shutdown);
        self.shut = matches!(shutdown, Poll::Ready(Ok(())));
        shutdown
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.ended || !self.shut {
            return;
        }
        if let (Some((socket, permit)), Ok(runtime)) = (self.socket.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(LINGER, linger(socket)).await;
                drop(permit);
            });
        }
    }
}

/// Reads what a client still sends, until it has seen that we are done.
async fn linger(socket: Socket) {
    let mut tcp = match socket {
        Socket::Plain(tcp) => tcp,
        Socket::Tls(tls) => tls.into_inner().0,
    };
    let mut scratch = vec![0; 16 << 10];
    let mut left = LINGER_BYTES_MAX;
    while let Ok(count @ 1..) = tcp.read(&mut scratch).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
