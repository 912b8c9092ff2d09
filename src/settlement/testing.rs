//! Channels for the unit tests of the settlement's parts.

use std::sync::Arc;

use ed25519_dalek::{Signer, SigningKey};

use crate::amount::{Amount, Asset};
use crate::clock::UnixMillis;
use crate::ledger::channel::{OnChain, Seller, Terms, Voucher};
use crate::ledger::store::ChannelRecord;
use crate::scheme::svm::program::{ChannelStatus, voucher_message};
use crate::scheme::svm::{TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET};
use crate::x402::Key;
use crate::x402::key::Signature;

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(super) fn public(seed: u8) -> Key {
    Key(key(seed).verifying_key().to_bytes())
}

pub(super) fn seller() -> Arc<Seller> {
    let asset = Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 };
    Arc::new(Seller {
        network: "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1".parse().unwrap(),
        asset: Arc::new(asset),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: public(200),
        fee_payer: public(201),
        receiver_authorizer: public(201),
        withdraw_delay: 900,
        treasury_owner: TREASURY_PLACEHOLDER,
    })
}

/// A channel of payer `n` with its voucher over all that was charged.
pub(super) fn record(seller: &Arc<Seller>, n: u8, charged: u64, claimed: u64, distributed: u64) -> ChannelRecord {
    let terms = Terms::derive(Arc::clone(seller), public(n), public(n), u64::from(n), 100);
    let signature = key(n).sign(&voucher_message(&terms.id, charged, 0));
    let voucher = Voucher { cumulative: charged.into(), signature: Signature(signature.to_bytes()) };
    ChannelRecord {
        on_chain: OnChain {
            status: ChannelStatus::Open,
            deposit: Amount::from(1_000_000_u64),
            claimed: claimed.into(),
            distributed: distributed.into(),
            closing_since: 0,
            read_at: UnixMillis(0),
        },
        charged: charged.into(),
        voucher: (charged > 0).then_some(voucher),
        unclaimed_since: (charged > claimed).then_some(UnixMillis(1_000_000)),
        last_used: UnixMillis(1_000_000),
        closed: false,
        terms,
    }
}
