//! The audit record: what is answered is on the disk, whatever happens; every change to it is found; it and the ledger
//! tie out.

#[path = "../support/ledger.rs"]
mod support;

mod disk;
mod log;
mod signers;
mod store;
mod verify;
