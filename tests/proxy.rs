//! The data plane with real sockets: an upstream of our own (and Python's, where it is installed), the proxy,
//! and clients. No payments here.
//!
//! `proxy/localhost.pem` and its key are for these tests only; nothing else trusts them.

#![allow(clippy::unwrap_used, reason = "a test says what it needs by stopping")]

#[path = "proxy/balance.rs"]
mod balance;
#[path = "proxy/draining.rs"]
mod draining;
#[path = "proxy/forwarding.rs"]
mod forwarding;
#[path = "proxy/limits.rs"]
mod limits;
#[path = "proxy/others.rs"]
mod others;
#[path = "proxy/reuse.rs"]
mod reuse;
#[path = "proxy/streaming.rs"]
mod streaming;
#[path = "proxy/support.rs"]
mod support;
#[path = "proxy/timeouts.rs"]
mod timeouts;
