//! Payments on EVM networks through the layer: real ledger, real signatures, a double of the facilitator.

mod batch;
pub mod doubles;
mod once;
mod refunds;
mod v1;
