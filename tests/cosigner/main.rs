//! Cosigners on other machines: what two of three sign, who is left out, what a lying coordinator gets, and what a
//! cosigner remembers.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "../support/evm_requests.rs"]
mod evm_requests;
#[path = "../support/signer_requests.rs"]
mod signer_requests;
#[path = "../end_to_end/support.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

mod approvals;
mod faults;
mod lies;
mod limits;
mod nonces;
mod signing;
mod world;
