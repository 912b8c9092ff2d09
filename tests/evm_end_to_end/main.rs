//! What a merchant and its payers do on an EVM chain, with the real binary: `turnpike serve` in front of a real node
//! (npm's anvil with the tests' contracts), paid by the unchanged reference clients.
//!
//! Each subject is shown with the reference facilitator and again with `facilitator: local`. Balances are read from the
//! chain, and are exactly what clients were charged.

#![allow(clippy::unwrap_used, reason = "a test ends where something is missing")]

#[path = "../support/ceremony.rs"]
#[allow(dead_code, reason = "other tests take single steps with it")]
mod ceremony;
#[path = "../evm_chain/client.rs"]
#[allow(dead_code, reason = "other tests sign more with it")]
mod client;
#[path = "../evm_chain/node.rs"]
#[allow(dead_code, reason = "other tests put a facilitator of ours in front of it")]
mod node;
#[path = "../end_to_end/support.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
mod world;

mod channel;
mod cosigners;
mod families;
mod packs;
mod payers;
mod python;
mod transfers;
