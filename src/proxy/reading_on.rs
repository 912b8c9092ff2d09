//! A connection to an upstream that is read on after a write has failed.
//!
//! An upstream may answer before it has read the whole request (403, 413) and close. What it closes, the next write
//! finds broken, and hyper would give up there, with the answer lying unread. Promises that a failed write only stops
//! the writing: then the answer is read, or the end of the connection, which is an error in its own right.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};

pub(crate) struct ReadingOn<T> {
    inner: T,
    broken: bool,
}

impl<T> ReadingOn<T> {
    pub(crate) const fn new(inner: T) -> Self {
        Self { inner, broken: false }
    }

    /// Nothing wakes a write that is broken; the reading, which is polled by the same task, ends the connection.
    fn hold<R>(&mut self, write: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        match write {
            Poll::Ready(Err(error)) if is_closed(&error) => {
                self.broken = true;
                Poll::Pending
            }
            write => write,
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<T: Connection> Connection for ReadingOn<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

impl<T: Read + Unpin> Read for ReadingOn<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for ReadingOn<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let write = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.hold(write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let write = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.hold(write)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Pending;
        }
        let flush = Pin::new(&mut self.inner).poll_flush(cx);
        self.hold(flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
