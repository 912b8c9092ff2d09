//! One client's connection, from the handshake to its end.
//!
//! Owns the supervisor that stands beside hyper's connection. Promises that a connection ends when it has waited long
//! enough ([`Activity`]), that on a drain it ends after the requests that it has begun (HTTP/1: `Connection: close`;
//! HTTP/2: GOAWAY), and at the drain's deadline in any case.
//!
//! A client that goes away is noticed while its request is still with the upstream: hyper reads on while it waits,
//! takes the end of the stream for the client's departure, and drops the service's future. Two limits of that: a client
//! that closes only its sending half is taken for gone too (as nginx does), and over HTTP/1 the end of the stream is
//! not seen behind a request body that the upstream does not take, nor behind a pipelined next request; there the
//! upstream's timeouts end the wait.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::time::{Instant, Sleep};
use tower::Service;

use super::activity::{Activity, Expired};
use super::body::{Body, BoxError};
use super::drain::Token;
use super::failure::Failure;
use super::front::Front;
use super::wire::Wire;

/// On a drain, how long a connection that has just been made may take to send the request it was made for.
const FRESH_GRACE: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub(crate) async fn serve<S, B>(
    builder: auto::Builder<TokioExecutor>,
    wire: Wire,
    front: Arc<Front>,
    service: S,
    token: Token,
) where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Failure>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let activity = front.activity.clone();
    let handler = service_fn(move |request: Request<Incoming>| front.clone().answer(service.clone(), request));
    let connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(wire), handler));
    let mut watch = token.watch();
    let drain = pin!(async move { watch.started().await });
    let supervisor = Supervisor { connection, activity, drain, phase: Phase::Open, timer: None };
    match supervisor.await {
        End::Closed(Ok(())) => {}
        End::Closed(Err(error)) => tracing::debug!(%error, "a client's connection failed"),
        End::Expired(why) => tracing::debug!(?why, "a client's connection was closed: it waited too long"),
        End::Cut => {
            token.cut();
            tracing::warn!("a connection was cut at the end of the drain: give it a longer grace");
        }
    }
}

/// hyper's connection, as far as the supervisor knows it.
trait Connection: Future<Output = Result<(), BoxError>> {
    fn finish(self: Pin<&mut Self>);
}

impl<I, S, E, B> Connection for auto::UpgradeableConnection<'_, I, S, E>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: HttpBody + 'static,
    B::Error: Into<BoxError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    E: auto::HttpServerConnExec<S::Future, B>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

enum End {
    Closed(Result<(), BoxError>),
    Expired(Expired),
    Cut,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Serves on.
    Open,
    /// The drain has begun, and the first request is still awaited until `fresh`.
    Awaited { fresh: Instant, cut: Option<Instant> },
    /// Ends after what has begun, or at `cut`; `idle` if nothing has, and nobody needs to hear of it.
    Finishing { cut: Option<Instant>, idle: bool },
}

struct Supervisor<'a, C, D> {
    connection: Pin<&'a mut C>,
    activity: Activity,
    drain: Pin<&'a mut D>,
    phase: Phase,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<C: Connection, D: Future<Output = Instant>> Future for Supervisor<'_, C, D> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        loop {
            // With a request under way first the drain: its answer says then that it is the connection's last.
            let is_busy = this.activity.is_busy();
            if is_busy {
                this.follow_drain(cx);
            }
            // Else first the connection: a request that has arrived by now is served, drain or not.
            if let Poll::Ready(result) = this.connection.as_mut().poll(cx) {
                return Poll::Ready(End::Closed(result));
            }
            if !is_busy && this.follow_drain(cx) {
                continue;
            }
            let Some((deadline, event)) = this.next_event() else { return Poll::Pending };
            if this.poll_timer(cx, deadline).is_pending() {
                return Poll::Pending;
            }
            match event {
                Event::Cut { idle: true } => return Poll::Ready(End::Expired(Expired::Idle)),
                Event::Cut { idle: false } => return Poll::Ready(End::Cut),
                // An idle HTTP/2 connection is told before it is closed.
                Event::Expired(Expired::Idle) => {
                    let cut = Instant::now().checked_add(this.activity.patience().head);
                    this.finish(cut, true);
                }
                Event::Expired(why) => return Poll::Ready(End::Expired(why)),
                Event::Check => {}
            }
        }
    }
}

enum Event {
    Cut { idle: bool },
    Expired(Expired),
    Check,
}

impl<C: Connection, D: Future<Output = Instant>> Supervisor<'_, C, D> {
    /// Moves on with the drain; says whether the connection was told something.
    fn follow_drain(&mut self, cx: &mut Context<'_>) -> bool {
        match self.phase {
            Phase::Open => {
                let Poll::Ready(deadline) = self.drain.as_mut().poll(cx) else { return false };
                if self.activity.is_fresh() {
                    let fresh = (Instant::now() + FRESH_GRACE).min(deadline);
                    self.phase = Phase::Awaited { fresh, cut: Some(deadline) };
                    return false;
                }
                self.finish(Some(deadline), false);
                true
            }
            Phase::Awaited { fresh, cut } => {
                if self.activity.is_fresh() && Instant::now() < fresh {
                    return false;
                }
                self.finish(cut, false);
                true
            }
            Phase::Finishing { .. } => false,
        }
    }

    fn finish(&mut self, cut: Option<Instant>, idle: bool) {
        self.phase = Phase::Finishing { cut, idle };
        self.connection.as_mut().finish();
    }

    /// The next thing that time will bring. With a request under way the state is looked at from time to time, for what
    /// happens to it (in another task, over HTTP/2) does not always wake this one.
    fn next_event(&self) -> Option<(Instant, Event)> {
        let patience = self.activity.patience();
        let check = || Instant::now().checked_add(patience.idle.min(patience.write)).map(|at| (at, Event::Check));
        let phase = match self.phase {
            Phase::Open => None,
            Phase::Awaited { fresh, .. } => Some((fresh, Event::Check)),
            Phase::Finishing { cut, idle } => cut.map(|at| (at, Event::Cut { idle })),
        };
        let state = match self.activity.deadline() {
            Some((_, Expired::Idle)) if matches!(self.phase, Phase::Finishing { .. }) => check(),
            Some((at, why)) => Some((at, Event::Expired(why))),
            None => check(),
        };
        match (phase, state) {
            (Some(phase), Some(state)) => Some(if phase.0 <= state.0 { phase } else { state }),
            (phase, state) => phase.or(state),
        }
    }

    /// Waits until `deadline`. The timer is moved only when it has to ring earlier or has rung: that saves setting it
    /// for every request.
    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                timer.as_mut().reset(deadline + Duration::from_secs(3600));
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}
