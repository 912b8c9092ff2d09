//! The sandbox chain: real transactions through a channel's life, every refusal, conservation of tokens, its JSON-RPC
//! and its faults.

#![allow(missing_docs, clippy::unwrap_used, reason = "helpers of tests")]

#[path = "sandbox/conservation.rs"]
mod conservation;
#[path = "sandbox/faults.rs"]
mod faults;
#[path = "sandbox/life.rs"]
mod life;
#[path = "sandbox/refusals.rs"]
mod refusals;
#[path = "sandbox/rpc.rs"]
mod rpc;
#[path = "sandbox/runtime.rs"]
mod runtime;
#[path = "sandbox/world.rs"]
mod world;
