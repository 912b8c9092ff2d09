//! Turnpike: an x402 reverse proxy.
//!
//! A request flows one way, down and back up once:
//!
//! ```text
//! listener -> route match -> payment decode -> scheme verify -> ledger reserve -> upstream
//!          <- response header <- ledger commit (durable) <-----------------------/
//! ```
//!
//! Money flows another way, and meets the first flow only in the ledger:
//!
//! ```text
//! ledger -> what is due -> policy -> threshold signer -> chain -> reconcile -> ledger
//! ```

pub mod admin;
pub mod amount;
pub mod app;
pub mod audit;
pub mod chain;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod facilitator;
pub mod gate;
pub mod http_client;
pub mod layer;
pub mod ledger;
pub mod policy;
pub mod proxy;
pub mod scheme;
pub mod screening;
pub mod settlement;
pub mod signer;
pub mod telemetry;
pub mod x402;
