//! What a user does, with the real binary in processes of its own: serving, paying, failing, being killed, being
//! scraped, and being paid by the reference client.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where something is missing")]

mod audit;
mod bench;
mod crash;
mod interop;
mod large;
mod metered;
mod monitoring;
mod nginx;
mod packs;
mod policy;
mod serving;
mod support;
mod wire;
