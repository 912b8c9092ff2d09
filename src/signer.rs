//! The port to the threshold signer: structured requests in, one verified signature out.
//!
//! A signer never signs opaque bytes. It receives what is to be signed together with what that is meant to do, decodes
//! the transaction itself, compares, applies its own policy, and only then signs. There is a port for each family of
//! chains, as they differ in their requests, their keys and their signatures: [`Signer`] for Solana (adapter
//! `signer/frost.rs`, Ed25519), [`EvmSigner`] for EVM networks (adapter `signer/ecdsa.rs`, secp256k1). Both hold their
//! shares in this process. `signer/remote.rs` is both over shares on other machines, each held by a `signer/cosigner.rs`.

pub mod bans;
pub mod ceremony;
pub mod cosigner;
pub mod ecdsa;
pub mod frost;
pub mod keystore;
pub mod quorum;
pub mod remote;
pub mod rules;
pub mod tls;
pub mod wire;

use async_trait::async_trait;

pub use crate::policy::{Approved, ClaimLine, Deployment, EvmClaim, EvmRefund, EvmRequest, Setup, SigningRequest};

use crate::x402::Key;
use crate::x402::evm::{Address, EvmSignature};
use crate::x402::key::Signature;

/// Why there is no signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The signer's policy forbids it. Asking again will not help.
    #[error("the signer refuses by rule {rule}: {detail}")]
    Refused {
        /// The rule's stable name, such as `pay_to`.
        rule: &'static str,
        /// What was asked and what is allowed.
        detail: String,
    },
    /// Fewer than two shares can sign now.
    #[error("the signer has no quorum: {0}")]
    NoQuorum(String),
    /// The signature that came out does not verify. Never seen unless a share is corrupt.
    #[error("the signer produced a signature that does not verify: {0}")]
    Broken(String),
}

/// A threshold key that signs structured requests.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The group's public key: fee payer, payee and receiver authorizer.
    fn public_key(&self) -> Key;

    /// Signs what the policy has approved, once, or says which rule of the signer's own forbids it. The signature has
    /// been verified under [`Self::public_key`].
    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError>;

    /// Whether a quorum is there now; the text says what is missing.
    fn health(&self) -> Result<(), String>;
}

/// A threshold key that authorizes what happens to a merchant's channels on an EVM network.
#[async_trait]
pub trait EvmSigner: Send + Sync {
    /// The group's address: the channels' `receiverAuthorizer`. It holds no money and pays no fees.
    fn address(&self) -> Address;

    /// Signs what the policy has approved, once, or says which rule of the signer's own forbids it. The signature is
    /// `r`, `s` and `v` as the settlement contract takes it, and has been verified under [`Self::address`].
    async fn sign(&self, approved: Approved<EvmRequest>) -> Result<EvmSignature, SignerError>;

    /// Whether a quorum is there now; the text says what is missing.
    fn health(&self) -> Result<(), String>;
}

/// Runs arithmetic that is too long for a thread that serves others on one that is there for it.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SignerError> + Send + 'static,
) -> Result<T, SignerError> {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return work();
    };
    let done = runtime.spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(SignerError::NoQuorum(format!("signing was interrupted: {error}"))))
}
