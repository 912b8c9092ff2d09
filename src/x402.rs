//! The words of x402 version 2: wire types, the bounded header codec, network names, keys and reason codes.
//!
//! Source: `x402-specification-v2.md` section 5, `transports-v2/http.md`. Nothing here knows a scheme.

pub mod evm;
pub mod header;
pub mod key;
pub mod network;
pub mod payment_identifier;
pub mod reason;
pub mod v1;
pub mod wire;

pub use key::Key;
pub use network::Network;
pub use reason::Reason;
