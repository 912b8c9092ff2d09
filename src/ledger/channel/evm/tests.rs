//! What is particular to channels on EVM networks: charges below the voucher, withdrawals, refunds, late readings.

use proptest::prelude::*;

use super::*;
use crate::ledger::channel::{Bid, ChannelOf, Denied, Voucher};
use crate::x402::evm::EvmSignature;

const DELAY: i64 = 900;

fn amount(units: u64) -> Amount {
    units.into()
}

fn at(seconds: i64) -> UnixMillis {
    UnixMillis(seconds * 1000)
}

fn moment(seconds: i64) -> Moment {
    Moment { now: at(seconds), margin: std::time::Duration::from_secs(300) }
}

fn reading(block: u64, balance: u64, claimed: u64) -> EvmOnChain {
    EvmOnChain { balance: amount(balance), claimed: amount(claimed), block, ..EvmOnChain::none(at(0)) }
}

fn bid(total: u64, price: u64) -> Bid<AnySignature> {
    let signature = AnySignature::Key(EvmSignature([1; 65]));
    Bid { voucher: Voucher { cumulative: amount(total), signature }, amount: amount(price), deposit_after: None }
}

fn charged(balance: u64, price: u64, charge: u64) -> ChannelOf<Evm> {
    let channel = ChannelOf::<Evm>::adopted(reading(1, balance, 0)).unwrap();
    channel.reserve(bid(price, price), moment(1)).unwrap().commit(None, Some(amount(charge)), at(1)).unwrap()
}

#[test]
fn a_part_of_a_voucher_can_be_charged_and_never_more() {
    let channel = charged(1_000, 100, 30);
    assert_eq!((channel.charged, channel.exposure()), (amount(30), amount(30)));
    let redeemed = channel.redeemable().unwrap();
    assert_eq!(redeemed.cumulative, amount(100), "the voucher stands behind the 30 that are claimed of it");
    let next = channel.clone().reserve(bid(130, 100), moment(2)).unwrap();
    assert_eq!(next.clone().commit(None, Some(amount(101)), at(2)), Err(Denied::NotTheCharge));
    let free = next.commit(None, Some(Amount::ZERO), at(2)).unwrap();
    assert_eq!((free.charged, free.exposure()), (amount(30), amount(30)));
    let expected = amount(130);
    assert_eq!(channel.reserve(bid(200, 100), moment(2)), Err(Denied::Ahead { expected }), "it builds on the charge");
}

#[test]
fn what_a_payer_withdraws_is_no_credit_in_the_margin_before_the_deadline() {
    let withdrawing = EvmOnChain {
        withdrawal: amount(700),
        withdraw_since: 1_000,
        withdraw_ends_at: 1_000 + DELAY,
        ..reading(2, 1_000, 0)
    };
    let channel = charged(1_000, 100, 100).observe(withdrawing).unwrap();
    let deposit = amount(300);
    for (now, price, outcome) in [
        (1_000, 900, Ok(())),
        (1_599, 900, Ok(())),
        (1_600, 200, Ok(())),
        (1_600, 201, Err(Denied::ExceedsDeposit { deposit })),
        (9_999, 201, Err(Denied::ExceedsDeposit { deposit })),
    ] {
        let bid = bid(100 + price, price);
        assert_eq!(channel.clone().reserve(bid, moment(now)).map(drop), outcome, "{price} at {now}");
    }
}

#[test]
fn what_a_payer_took_out_is_lost_until_it_comes_back() {
    let channel = charged(1_000, 500, 500);
    let emptied = channel.observe(reading(3, 0, 0)).unwrap();
    assert_eq!((emptied.exposure(), emptied.lost()), (Amount::ZERO, amount(500)));
    let filled = emptied.observe(reading(4, 800, 0)).unwrap();
    assert_eq!((filled.exposure(), filled.lost()), (amount(500), Amount::ZERO), "the old voucher is good again");
}

#[test]
fn a_shut_channel_opens_once_the_refund_has_used_its_nonce() {
    let shut = charged(1_000, 100, 100).shut();
    let same = shut.observe(reading(5, 1_000, 0)).unwrap();
    assert_eq!(same.clone().reserve(bid(200, 100), moment(1)), Err(Denied::Closing), "it may still land");
    let refunded = EvmOnChain { refund_nonce: 1, ..reading(6, 100, 100) };
    let open = same.observe(refunded).unwrap();
    assert_eq!(open.clone().reserve(bid(200, 100), moment(1)), Err(Denied::ExceedsDeposit { deposit: amount(100) }));
    assert!(
        open.observe(EvmOnChain { refund_nonce: 1, ..reading(7, 500, 100) })
            .unwrap()
            .reserve(bid(200, 100), moment(1))
            .is_ok()
    );
}

#[test]
fn a_refund_leaves_the_channel_open() {
    let channel = charged(1_000, 100, 100).begin_close().unwrap().shut();
    let refunded = EvmOnChain { refund_nonce: 1, ..reading(5, 100, 100) };
    let after = channel.finish_close(refunded).unwrap();
    assert!(!after.closed && !after.leaving);
    assert_eq!(after.exposure(), Amount::ZERO);
}

fn readings() -> impl Strategy<Value = EvmOnChain> {
    (0u64..4, 0u64..50, 0u64..50, 0u64..3, 0i64..5).prop_map(|(block, more, claimed, refund_nonce, seconds)| {
        EvmOnChain { refund_nonce, read_at: at(seconds), ..reading(block, claimed + more, claimed) }
    })
}

proptest! {
    #[test]
    fn what_was_claimed_never_goes_back_and_stays_plausible(first in readings(), others in proptest::collection::vec(readings(), 0..8)) {
        let mut joined = first;
        for other in others {
            let claimed = joined.claimed.max(other.claimed);
            joined = joined.join(other);
            prop_assert_eq!(joined.claimed, claimed);
            prop_assert!(joined.plausible());
        }
    }

    #[test]
    fn the_later_block_counts_in_whatever_order_they_come(a in readings(), b in readings()) {
        prop_assume!(a.block != b.block && a.block != 0 && b.block != 0);
        prop_assert_eq!(a.join(b), b.join(a));
    }
}
