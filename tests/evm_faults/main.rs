//! What goes wrong around payments on EVM networks, with the real binary, the tests' chain, the reference facilitator
//! and the reference client in processes of their own: slow blocks, facilitators that fail at every point, a proxy that
//! is killed between any two steps of settlement, and a payer who withdraws.
//!
//! Each test ends by tying out: what the chain says that the payer, the merchant and the contract hold is exactly what
//! the client was told that it was charged.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where something is missing")]

mod answers;
mod blocks;
mod kills;
mod line;
#[path = "../end_to_end/support.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod support;
mod withdrawal;
mod world;
