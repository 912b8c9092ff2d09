//! A voucher on an EVM network.

use std::sync::Arc;

use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use turnpike::amount::Amount;
use turnpike::scheme::batch_settlement_evm::payload::EvmVoucher;
use turnpike::scheme::evm::eip712::{ChannelConfig, Domain, channel_id, voucher_digest};
use turnpike::scheme::evm::signature::address_of;
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod, assets};
use turnpike::x402::Network;
use turnpike::x402::evm::{Address, B256, EvmSignature};

/// A channel with a voucher on it.
pub struct Paid {
    pub seller: Arc<EvmSeller>,
    pub terms: EvmTerms,
    pub voucher: EvmVoucher,
}

/// A payment of a payer that signs for itself.
pub fn paid() -> Paid {
    let key = SecretKey::from_secret_bytes([7; 32]).unwrap();
    let (seller, payer) = (seller(), address_of(&PublicKey::from_secret_key(&key)));
    let config = ChannelConfig {
        payer,
        payer_authorizer: payer,
        receiver: seller.pay_to,
        receiver_authorizer: seller.receiver_authorizer,
        token: seller.token,
        withdraw_delay: seller.withdraw_delay,
        salt: B256([0; 32]),
    };
    let (id, total) = (channel_id(&seller.domain, &config), Amount::new(1000));
    let digest = voucher_digest(&seller.domain, &id, total);
    let signed = RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &key);
    let (recovery, compact) = signed.serialize_compact();
    let mut bytes = [27 + recovery.to_u8(); 65];
    bytes[..64].copy_from_slice(&compact);
    let voucher = EvmVoucher { channel_id: id, max_claimable_amount: total, signature: EvmSignature(bytes).into() };
    let terms = EvmTerms { id, payer, payer_authorizer: payer, salt: config.salt, seller: Arc::clone(&seller) };
    Paid { seller, terms, voucher }
}

fn seller() -> Arc<EvmSeller> {
    let network = Network::of_short_name("base-sepolia").unwrap();
    let usdc = assets::by_symbol(&network, "USDC").unwrap();
    Arc::new(EvmSeller {
        network,
        chain_id: usdc.chain_id,
        asset: Arc::new(usdc.asset()),
        token: usdc.address,
        token_name: usdc.name.into(),
        token_version: usdc.version.into(),
        transfer_method: TransferMethod::Eip3009,
        pay_to: Address([1; 20]),
        receiver_authorizer: Address([2; 20]),
        withdraw_delay: 3600,
        domain: Domain::batch_settlement(usdc.chain_id),
    })
}
