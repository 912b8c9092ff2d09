//! Properties of the state machine against a model that only counts.

use proptest::prelude::*;

use super::*;
use crate::scheme::svm::program::ChannelStatus;

const AMOUNTS: u64 = 40;
const NOW: Moment = Moment::at(UnixMillis(1));

/// One step of a channel's life.
#[derive(Clone, Debug)]
enum Step {
    /// A bid for a voucher that lies this far from what fits, at a price, with a deposit that comes along.
    Reserve {
        off: i64,
        price: u64,
        deposit_after: Option<u64>,
    },
    Commit {
        deposit: Option<u64>,
    },
    Release,
    Observe {
        status: ChannelStatus,
        deposit: u64,
        claimed: u64,
        distributed: u64,
    },
    BeginClose,
    AbandonClose,
    FinishClose {
        status: ChannelStatus,
    },
}

fn status() -> impl Strategy<Value = ChannelStatus> {
    prop_oneof![
        20 => Just(ChannelStatus::Open),
        1 => Just(ChannelStatus::Closing),
        1 => Just(ChannelStatus::Sealed),
        1 => Just(ChannelStatus::Distributed),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let amount = 0..AMOUNTS;
    prop_oneof![
        8 => (prop_oneof![5 => Just(0i64), 1 => -9i64..9], 0..8u64, proptest::option::weighted(0.2, amount.clone()))
            .prop_map(|(off, price, deposit_after)| Step::Reserve { off, price, deposit_after }),
        6 => proptest::option::weighted(0.3, amount.clone()).prop_map(|deposit| Step::Commit { deposit }),
        2 => Just(Step::Release),
        3 => (status(), amount.clone(), amount.clone(), amount)
            .prop_map(|(status, deposit, claimed, distributed)| Step::Observe { status, deposit, claimed, distributed }),
        1 => Just(Step::BeginClose),
        2 => Just(Step::AbandonClose),
        1 => status().prop_map(|status| Step::FinishClose { status }),
    ]
}

fn on_chain(status: ChannelStatus, deposit: u64, claimed: u64, distributed: u64) -> OnChain {
    OnChain {
        status,
        deposit: deposit.into(),
        claimed: claimed.into(),
        distributed: distributed.into(),
        closing_since: i64::from(status == ChannelStatus::Closing),
        read_at: UnixMillis(0),
    }
}

fn voucher(cumulative: Amount) -> Voucher {
    Voucher { cumulative, signature: Signature([cumulative.get().to_le_bytes()[0]; 64]) }
}

fn apply(channel: Channel, step: &Step, now: UnixMillis) -> Result<Channel, Denied> {
    match *step {
        Step::Reserve { off, price, deposit_after } => {
            let total = i128::try_from(channel.charged.get()).unwrap() + i128::from(price) + i128::from(off);
            let voucher = voucher(Amount::new(u128::try_from(total.max(0)).unwrap()));
            channel.reserve(
                Bid { voucher, amount: price.into(), deposit_after: deposit_after.map(Amount::from) },
                Moment::at(now),
            )
        }
        Step::Commit { deposit } => {
            let after =
                deposit.map(|deposit| OnChain { deposit: deposit.into(), ..on_chain(ChannelStatus::Open, 0, 0, 0) });
            channel.commit(after, None, now)
        }
        Step::Release => Ok(channel.release()),
        Step::Observe { status, deposit, claimed, distributed } => {
            channel.observe(on_chain(status, deposit, claimed, distributed))
        }
        Step::BeginClose => channel.begin_close(),
        Step::AbandonClose => Ok(channel.abandon_close()),
        Step::FinishClose { status } => {
            let now = channel.on_chain;
            channel.finish_close(OnChain { status, ..now })
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever happens in whatever order: no promise is ever broken, nothing goes back, and every unit charged was
    /// reserved at its price or claimed on chain.
    #[test]
    fn promises_hold(deposit in 0..AMOUNTS, steps in proptest::collection::vec(step(), 1..60)) {
        let mut channel = Channel::adopted(on_chain(ChannelStatus::Open, deposit, 0, 0)).unwrap();
        let mut earned = Amount::ZERO;
        for (i, step) in steps.iter().enumerate() {
            let now = UnixMillis(i64::try_from(i).unwrap() + 1);
            let before = channel;
            match apply(channel, step, now) {
                Err(Denied::Broken(what)) => prop_assert!(false, "{what} by {step:?} on {before:?}"),
                Err(_) => continue,
                Ok(next) => channel = next,
            }
            match *step {
                Step::Reserve { price, .. } => {
                    let total = channel.reserved.unwrap().voucher.cumulative;
                    prop_assert_eq!(total, before.charged.saturating_add(price.into()), "only the voucher that fits");
                    prop_assert!(before.reserved.is_none() && !before.closed && !before.leaving);
                    prop_assert_eq!(channel.charged, before.charged, "reserving charges nothing");
                }
                Step::Commit { .. } => {
                    let bid = before.reserved.unwrap();
                    earned = earned.saturating_add(bid.amount);
                    prop_assert_eq!(channel.charged, bid.voucher.cumulative);
                    prop_assert_eq!(channel.voucher, Some(bid.voucher));
                    prop_assert_eq!(channel.last_used, now);
                }
                Step::Release => prop_assert_eq!(channel, Channel { reserved: None, ..before }),
                Step::FinishClose { .. } => prop_assert!(before.reserved.is_none() && channel.closed),
                Step::Observe { .. } | Step::BeginClose | Step::AbandonClose => {}
            }
            prop_assert!(channel.charged >= before.charged && channel.on_chain.deposit >= before.on_chain.deposit);
            prop_assert!(channel.on_chain.claimed >= before.on_chain.claimed);
            prop_assert!(!before.closed || channel.closed, "closed is for good");
            prop_assert!(channel.on_chain.claimed <= channel.charged);
            prop_assert!(channel.charged <= channel.on_chain.deposit);
            prop_assert!(channel.charged <= earned.saturating_add(channel.on_chain.claimed));
            prop_assert_eq!(channel.unclaimed_since.is_some(), channel.charged > channel.on_chain.claimed);
            if let Some(voucher) = channel.redeemable() {
                prop_assert_eq!(voucher.cumulative, channel.charged, "all that is charged is redeemed, and no more");
            }
        }
    }

    /// Readings of the chain may come in any order and more than once.
    #[test]
    fn readings_commute(a in (status(), 0..9u64, 0..9u64, 0i64..3), b in (status(), 0..9u64, 0..9u64, 0i64..3)) {
        let reading = |(status, deposit, claimed, since): (ChannelStatus, u64, u64, i64)| OnChain {
            closing_since: since,
            ..on_chain(status, deposit, claimed, 0)
        };
        let (a, b) = (reading(a), reading(b));
        prop_assert_eq!(a.join(b), b.join(a));
        prop_assert_eq!(a.join(a), a);
        prop_assert_eq!(a.join(b).join(b), a.join(b));
    }
}

fn open(deposit: u64, charged: u64) -> Channel {
    let channel = Channel::adopted(on_chain(ChannelStatus::Open, deposit, 0, 0)).unwrap();
    if charged == 0 {
        return channel;
    }
    let bid = bid(charged, charged);
    channel.reserve(bid, NOW).unwrap().commit(None, None, UnixMillis(1)).unwrap()
}

fn bid(cumulative: u64, amount: u64) -> Bid {
    Bid { voucher: voucher(cumulative.into()), amount: amount.into(), deposit_after: None }
}

#[test]
fn refusals_in_order_of_precedence() {
    let mismatch = |expected: u64| Denied::Behind { expected: expected.into() };
    let occupied = open(100, 10).reserve(bid(20, 10), NOW).unwrap();
    let closing = open(100, 10).observe(on_chain(ChannelStatus::Closing, 100, 0, 0)).unwrap();
    let table = [
        ("stale on a closing channel", closing, bid(5, 5), Denied::Closing),
        ("stale beside one in flight", occupied, bid(10, 10), mismatch(20)),
        ("replayed", open(100, 10), bid(10, 10), mismatch(20)),
        ("price above the voucher", open(100, 0), bid(5, 6), mismatch(6)),
        ("equal to the one in flight", occupied, bid(20, 10), Denied::Occupied),
        ("ahead of the one in flight", occupied, bid(30, 10), Denied::Occupied),
        ("ahead", open(100, 10), bid(30, 10), Denied::Ahead { expected: 20u64.into() }),
        ("ahead and above the deposit", open(100, 10), bid(130, 10), Denied::Ahead { expected: 20u64.into() }),
        ("above the deposit", open(15, 10), bid(20, 10), Denied::ExceedsDeposit { deposit: 15u64.into() }),
        ("not on chain", Channel::proposed(UnixMillis(0)), bid(5, 5), Denied::Unknown),
    ];
    for (name, channel, bid, denied) in table {
        assert_eq!(channel.reserve(bid, NOW), Err(denied), "{name}");
    }
}

#[test]
fn commits_that_cannot_be_redeemed_are_refused() {
    let reserved = open(100, 10).reserve(bid(20, 10), NOW).unwrap();
    assert_eq!(open(100, 10).commit(None, None, UnixMillis(2)), Err(Denied::NotReserved));
    let sealed = reserved.observe(on_chain(ChannelStatus::Sealed, 100, 10, 0)).unwrap();
    assert_eq!(sealed.commit(None, None, UnixMillis(2)), Err(Denied::Closing));
    let overtaken = reserved.observe(on_chain(ChannelStatus::Open, 100, 30, 0)).unwrap();
    assert_eq!(overtaken.commit(None, None, UnixMillis(2)), Err(Denied::Behind { expected: 40u64.into() }));
    let opening =
        Channel::proposed(UnixMillis(0)).reserve(Bid { deposit_after: Some(50u64.into()), ..bid(5, 5) }, NOW).unwrap();
    assert_eq!(opening.commit(None, None, UnixMillis(2)), Err(Denied::Unknown));
    let short = on_chain(ChannelStatus::Open, 4, 0, 0);
    assert_eq!(opening.commit(Some(short), None, UnixMillis(2)), Err(Denied::ExceedsDeposit { deposit: 4u64.into() }));
    let impossible = on_chain(ChannelStatus::Open, 4, 5, 0);
    assert_eq!(opening.commit(Some(impossible), None, UnixMillis(2)), Err(Denied::Implausible));
}

#[test]
fn a_voucher_that_the_payer_put_on_chain_is_paid() {
    let reserved = open(100, 10).reserve(bid(20, 10), NOW).unwrap();
    let claimed = reserved.observe(on_chain(ChannelStatus::Open, 100, 20, 0)).unwrap();
    let committed = claimed.commit(None, None, UnixMillis(2)).unwrap();
    assert_eq!((committed.charged, committed.unclaimed_since), (20u64.into(), None));
}

#[test]
fn a_deposit_that_comes_along_counts_at_once_and_stays_only_when_confirmed() {
    let topped = open(15, 10).reserve(Bid { deposit_after: Some(40u64.into()), ..bid(20, 10) }, NOW).unwrap();
    assert_eq!(topped.commit(None, None, UnixMillis(2)), Err(Denied::ExceedsDeposit { deposit: 15u64.into() }));
    let after = topped.commit(Some(on_chain(ChannelStatus::Open, 40, 0, 0)), None, UnixMillis(2)).unwrap();
    assert_eq!((after.charged, after.on_chain.deposit), (20u64.into(), 40u64.into()));
}

#[test]
fn closing_needs_an_empty_channel_and_can_be_given_up() {
    let leaving = open(100, 10).reserve(bid(20, 10), NOW).unwrap().begin_close().unwrap();
    let fin = on_chain(ChannelStatus::Distributed, 100, 10, 10);
    assert_eq!(leaving.finish_close(fin), Err(Denied::Occupied));
    assert_eq!(leaving.begin_close(), Err(Denied::Closing));
    let empty = leaving.release();
    assert_eq!(empty.reserve(bid(20, 10), NOW), Err(Denied::Closing));
    assert!(empty.abandon_close().reserve(bid(20, 10), NOW).is_ok());
    let closed = empty.finish_close(fin).unwrap();
    assert_eq!(closed.abandon_close().reserve(bid(20, 10), NOW), Err(Denied::Closing));
    assert_eq!(closed.begin_close(), Err(Denied::Closing));
    let by_payer = open(100, 10).observe(on_chain(ChannelStatus::Closing, 100, 0, 0)).unwrap();
    assert!(by_payer.begin_close().is_ok(), "the last voucher can still be applied");
}

#[test]
fn what_a_final_watermark_left_behind_is_lost_and_not_at_risk() {
    let channel = open(100, 10);
    assert_eq!((channel.exposure(), channel.lost()), (10u64.into(), Amount::ZERO));
    let sealed = channel.observe(on_chain(ChannelStatus::Sealed, 100, 4, 0)).unwrap();
    assert_eq!((sealed.exposure(), sealed.lost()), (Amount::ZERO, 6u64.into()));
}
