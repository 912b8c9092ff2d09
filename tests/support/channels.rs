//! Channels on the sandbox's chain and in a ledger, made without going through their deposits and charges: for tests and
//! benches of very many.

use ed25519_dalek::{Signer, SigningKey};
use turnpike::amount::Amount;
use turnpike::chain::Account;
use turnpike::clock::UnixMillis;
use turnpike::ledger::channel::{OnChain, Terms, Voucher};
use turnpike::ledger::store::ChannelRecord;
use turnpike::scheme::svm::PAYMENT_CHANNELS;
use turnpike::scheme::svm::program::{
    ChannelAccount, ChannelStatus, all_to, channel_address, distribution_hash, voucher_message,
};
use turnpike::x402::key::Signature;

/// What the program holds for an open channel.
pub fn account(terms: &Terms, deposit: u64) -> ChannelAccount {
    let (fee_payer, mint) = (terms.seller.fee_payer, terms.seller.mint);
    let (id, bump) = channel_address(&terms.payer, &fee_payer, &mint, &terms.authorizer, terms.salt, terms.open_slot);
    assert_eq!(id, terms.id);
    ChannelAccount {
        bump,
        status: ChannelStatus::Open,
        salt: terms.salt,
        deposit,
        settled: 0,
        payout_watermark: 0,
        closure_started_at: 0,
        payer_withdrawn_at: 0,
        grace_period: terms.seller.withdraw_delay,
        distribution_hash: distribution_hash(&all_to(terms.seller.pay_to)),
        payer: terms.payer,
        payee: fee_payer,
        authorized_signer: terms.authorizer,
        mint,
        rent_payer: fee_payer,
        open_slot: terms.open_slot,
    }
}

/// The same as the chain holds it.
pub fn on_chain(account: &ChannelAccount) -> Account {
    Account { lamports: 10_000_000, owner: PAYMENT_CHANNELS, data: account.encode() }
}

/// A channel of which all that was charged is unclaimed.
pub fn owing(terms: Terms, payer: &SigningKey, deposit: u64, charged: u64, now: UnixMillis) -> ChannelRecord {
    let signature = Signature(payer.sign(&voucher_message(&terms.id, charged, 0)).to_bytes());
    ChannelRecord {
        terms,
        on_chain: OnChain {
            status: ChannelStatus::Open,
            deposit: deposit.into(),
            claimed: Amount::ZERO,
            distributed: Amount::ZERO,
            closing_since: 0,
            read_at: now,
        },
        charged: charged.into(),
        voucher: Some(Voucher { cumulative: charged.into(), signature }),
        unclaimed_since: Some(now),
        last_used: now,
        closed: false,
    }
}
