//! The data plane: HTTP in, HTTP out, and nothing about payments.
//!
//! ```text
//! socket -> Listener -> (TLS) -> hyper -> limits -> your service -> ... -> Upstreams -> upstream
//!        <- failures become responses <--------- Ok(response) | Err(Failure) <---------/
//! ```
//!
//! [`Listener`] serves any tower service of `Request<Body>`; [`Upstreams`] is the innermost one. What stands between
//! them (the payment gate) sees a request before anything of its body is read, and sees an upstream's answer apart from
//! a failure to get one: the former is `Ok`, the latter `Err`. It need not name a type of this module: the body, the
//! response body and the error may stay parameters.
//!
//! Owns sockets, threads, connections, header hygiene, streaming, upgrades, limits and timeouts, and the drain.
//! Promises that bodies are streamed and never collected, that nothing waits without end, and that a request which is
//! under way when a drain begins is answered. Refuses `CONNECT`, HTTP/1.1 requests without exactly one `Host`, and
//! whatever is over a limit. Framing is hyper's: a request with both `Content-Length` and `Transfer-Encoding`, which
//! could be smuggled past somebody, goes on with the latter only and its connection is closed.

mod activity;
mod connection;
mod direct;
mod endpoint;
mod front;
mod lent;
mod listener;
mod reading_on;
mod upgrade;
mod upstream;
mod wire;

pub mod body;
pub mod drain;
pub mod failure;
pub mod headers;
pub mod tls;

pub use body::{Body, BodyError, BoxError};
pub use endpoint::{Endpoint, EndpointError};
pub use failure::{Failure, Generated};
pub use front::{Limits, Peer};
pub use headers::Injected;
pub use listener::{Listen, Listener, Serving, Settings, Timeouts};
pub use upstream::{Destination, NoEndpoint, UpstreamSettings, Upstreams};
