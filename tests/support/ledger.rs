//! What the ledger's tests share: a seller, channels by number, vouchers that nobody checks.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use turnpike::amount::{Amount, Asset};
use turnpike::clock::UnixMillis;
use turnpike::ledger::Entry;
use turnpike::ledger::channel::{OnChain, Seller, Terms, Voucher};
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;
use turnpike::x402::network::SOLANA_DEVNET;

pub fn key(tag: u8, number: u64) -> Key {
    let mut bytes = [tag; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Key(bytes)
}

pub fn seller() -> Arc<Seller> {
    Arc::new(Seller {
        network: SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: key(1, 0),
        fee_payer: key(2, 0),
        receiver_authorizer: key(2, 0),
        withdraw_delay: 3600,
        treasury_owner: key(3, 0),
    })
}

/// The terms of channel `number`. The address is made up: the ledger takes it as given.
pub fn terms(number: u64) -> Terms {
    let (id, payer, authorizer) = (key(9, number), key(10, number), key(11, number));
    Terms { id, payer, authorizer, salt: number, open_slot: 7, seller: seller() }
}

pub fn on_chain(deposit: u64, claimed: u64) -> OnChain {
    OnChain {
        status: ChannelStatus::Open,
        deposit: deposit.into(),
        claimed: claimed.into(),
        distributed: Amount::ZERO,
        closing_since: 0,
        read_at: UnixMillis(1),
    }
}

pub fn voucher(cumulative: u64) -> Voucher {
    Voucher { cumulative: cumulative.into(), signature: Signature([u8::try_from(cumulative % 251).unwrap(); 64]) }
}

/// A request on channel `number` that takes it to `cumulative` for `amount`.
pub fn entry(number: u64, cumulative: u64, amount: u64) -> Entry {
    Entry { terms: terms(number), voucher: voucher(cumulative), amount: amount.into(), deposit_after: None }
}

/// The same, with a deposit that makes the channel's whole deposit `deposit_after`.
pub fn deposit(number: u64, cumulative: u64, amount: u64, deposit_after: u64) -> Entry {
    Entry { deposit_after: Some(deposit_after.into()), ..entry(number, cumulative, amount) }
}
