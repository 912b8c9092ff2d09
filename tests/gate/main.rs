//! The gate and its layer, end to end but for the wire: real ledger, real checks, a double of the facilitator and of
//! the store (`doubles.rs`). What needs no money is in `unpaid.rs`; everything else needs the ledger.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::as_conversions, clippy::panic, reason = "tests")]

mod batch;
mod deposits;
mod doubles;
mod evm;
mod metered;
mod packs;
mod policy;
mod refunds;
mod replay;
mod unpaid;
mod upstream;
