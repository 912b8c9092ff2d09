//! Codes of the reference facilitator that no specification lists, and that nothing but a facilitator says.
//!
//! Source: npm's `@x402/evm` 2.27.0.

/// No signature of the receiver authorizer came, and the facilitator has no key to make one.
pub(super) const AUTHORIZER_NOT_CONFIGURED: &str = "invalid_batch_settlement_evm_authorizer_not_configured";
/// The token's EIP-712 domain is not in the requirements.
pub(super) const EXACT_MISSING_DOMAIN: &str = "invalid_exact_evm_missing_eip712_domain";
/// The authorization's nonce is used, or was cancelled.
pub(super) const EXACT_NONCE_USED: &str = "invalid_exact_evm_nonce_already_used";
/// The transfer would revert.
pub(super) const EXACT_SIMULATION: &str = "invalid_exact_evm_transaction_simulation_failed";
/// The Permit2 nonce is used, or was invalidated.
pub(super) const PERMIT2_NONCE: &str = "permit2_invalid_nonce";
/// The transfer through Permit2 would revert.
pub(super) const PERMIT2_SIMULATION: &str = "permit2_simulation_failed";
