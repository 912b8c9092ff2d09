//! Keys and a seller for the tests of the EVM schemes.

use std::sync::Arc;

use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};

use super::eip712::Domain;
use super::signature::address_of;
use super::{EvmSeller, TransferMethod, assets};
use crate::amount::Amount;
use crate::scheme::evm::authorization::EvmOffer;
use crate::x402::Network;
use crate::x402::evm::{Address, B256, EvmSignature};

/// A key that is made from a number.
pub(crate) struct TestKey(SecretKey);

impl TestKey {
    pub(crate) fn new(seed: u8) -> Self {
        Self::from_secret([seed; 32]).unwrap()
    }

    pub(crate) fn from_secret(secret: [u8; 32]) -> Option<Self> {
        SecretKey::from_secret_bytes(secret).ok().map(Self)
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey::from_secret_key(&self.0)
    }

    pub(crate) fn address(&self) -> Address {
        address_of(&self.public())
    }

    pub(crate) fn sign(&self, digest: &B256) -> EvmSignature {
        let signature = RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.0);
        let (id, compact) = signature.serialize_compact();
        let mut signature = [27 + id.to_u8(); 65];
        signature[..64].copy_from_slice(&compact);
        EvmSignature(signature)
    }
}

/// A seller of USDC on Base's test network, paid to key 1, whose claims key 2 signs.
pub(crate) fn seller(transfer_method: TransferMethod) -> EvmSeller {
    let network = Network::of_short_name("base-sepolia").unwrap();
    let usdc = assets::by_symbol(&network, "USDC").unwrap();
    EvmSeller {
        network,
        chain_id: usdc.chain_id,
        asset: Arc::new(usdc.asset()),
        token: usdc.address,
        token_name: usdc.name.into(),
        token_version: usdc.version.into(),
        transfer_method,
        pay_to: TestKey::new(1).address(),
        receiver_authorizer: TestKey::new(2).address(),
        withdraw_delay: 900,
        domain: Domain::batch_settlement(usdc.chain_id),
    }
}

/// The same seller's offer to whoever pays 10000 once.
pub(crate) fn offer(transfer_method: TransferMethod) -> EvmOffer {
    EvmOffer::new(&seller(transfer_method), Amount::new(10_000))
}
