//! A channel's life, in every way that it can go, through real transactions.

use std::time::Duration;

use turnpike::scheme::svm::program::{self, ChannelStatus, OPEN_SLOT_WINDOW, Share};
use turnpike::x402::Key;

use crate::world::{DEPOSIT, GRACE, World, custom, public};

const SIGNATURE_FEE: u64 = 5_000;

#[test]
fn open_settle_distribute_and_close_cooperatively() {
    let mut w = World::new();
    let before = w.chain.lamports(&public(&w.operator));
    let opened = w.open();
    let state = w.state(&opened).unwrap();
    assert_eq!((state.status, state.deposit, state.settled), (ChannelStatus::Open, DEPOSIT, 0));
    assert_eq!(state.address(), opened.accounts.channel);
    assert_eq!(w.escrow(&opened), DEPOSIT);
    // Two signatures, and the rent of a channel and of a token account.
    let rent = 2_672_640 + 2_039_280;
    assert_eq!(w.chain.lamports(&public(&w.operator)), before - 2 * SIGNATURE_FEE - rent);

    w.settle(&opened, 300_000).unwrap();
    assert_eq!(w.state(&opened).unwrap().settled, 300_000);
    assert_eq!(w.chain.token_balance(&w.merchant), 0, "settling moves nothing");
    w.distribute(&opened).unwrap();
    assert_eq!(w.chain.token_balance(&w.merchant), 300_000);
    assert_eq!(w.state(&opened).unwrap().payout_watermark, 300_000);

    w.send(&[program::top_up(&opened.accounts, 50_000)], &[&w.payer]).unwrap();
    assert_eq!(w.state(&opened).unwrap().deposit, DEPOSIT + 50_000);
    assert_eq!(w.escrow(&opened), DEPOSIT - 300_000 + 50_000);

    let channel = opened.accounts.channel;
    let payer_before = w.chain.token_balance(&public(&w.payer));
    let close = [
        w.voucher(&channel, 400_000, 0),
        program::settle_and_seal(public(&w.operator), channel, true),
        w.distribution(&opened),
    ];
    w.send(&close, &[]).unwrap();
    assert_eq!(w.chain.token_balance(&w.merchant), 400_000);
    assert_eq!(w.chain.token_balance(&public(&w.payer)), payer_before + DEPOSIT + 50_000 - 400_000);
    assert_eq!(w.state(&opened).unwrap().status, ChannelStatus::Distributed);
    assert_eq!(w.chain.lamports(&w.ata(&channel)), 0, "the escrow is closed");

    let reclaim = program::reclaim(channel, public(&w.operator));
    assert_eq!(w.send(std::slice::from_ref(&reclaim), &[]), Err(custom(0, 2414)));
    w.chain.advance_slots(OPEN_SLOT_WINDOW);
    w.send(&[reclaim], &[]).unwrap();
    assert_eq!(w.state(&opened), None);
    // Rent came back whole; only fees are gone: open 2, settle 1 + 1 precompile, distribute 1, top-up 2,
    // close 1 + 1 precompile, reclaim 1.
    assert_eq!(w.chain.lamports(&public(&w.operator)), before - 10 * SIGNATURE_FEE);
}

#[test]
fn the_payer_s_way_out_is_sealed_by_anyone_after_the_grace_period() {
    let mut w = World::new();
    let opened = w.open();
    w.settle(&opened, 100_000).unwrap();
    w.request_close(&opened).unwrap();
    let state = w.state(&opened).unwrap();
    assert_eq!((state.status, state.closure_started_at), (ChannelStatus::Closing, w.chain.unix_time()));
    let channel = opened.accounts.channel;
    w.chain.advance_time(Duration::from_secs(u64::from(GRACE) - 1));
    assert_eq!(w.send(&[program::seal(channel)], &[]), Err(custom(0, 2201)));
    w.chain.advance_time(Duration::from_secs(1));
    w.send(&[program::seal(channel)], &[]).unwrap();

    let before = w.chain.token_balance(&public(&w.payer));
    w.send(&[w.withdrawal(&opened)], &[&w.payer]).unwrap();
    assert_eq!(w.chain.token_balance(&public(&w.payer)), before + DEPOSIT - 100_000);
    w.distribute(&opened).unwrap();
    assert_eq!(w.chain.token_balance(&w.merchant), 100_000);
    assert_eq!(w.chain.token_balance(&public(&w.payer)), before + DEPOSIT - 100_000, "the refund comes once");
}

#[test]
fn while_closing_only_the_payee_can_apply_the_last_voucher() {
    let mut w = World::new();
    let opened = w.open();
    w.request_close(&opened).unwrap();
    assert_eq!(w.settle(&opened, 5), Err(custom(1, 2)));
    let channel = opened.accounts.channel;
    let close = [w.voucher(&channel, 5, 0), program::settle_and_seal(public(&w.operator), channel, true)];
    w.send(&close, &[]).unwrap();
    let state = w.state(&opened).unwrap();
    assert_eq!((state.status, state.settled, state.closure_started_at), (ChannelStatus::Sealed, 5, 0));

    let late = w.open();
    w.request_close(&late).unwrap();
    w.pass_grace();
    let channel = late.accounts.channel;
    let close = [w.voucher(&channel, 5, 0), program::settle_and_seal(public(&w.operator), channel, true)];
    assert_eq!(w.send(&close, &[]), Err(custom(1, 2)), "after the grace period the voucher is lost");
}

#[test]
fn an_old_channel_is_gone_with_its_distribution() {
    let mut w = World::new();
    let opened = w.open();
    w.chain.advance_slots(OPEN_SLOT_WINDOW + 1);
    let channel = opened.accounts.channel;
    w.send(&[program::settle_and_seal(public(&w.operator), channel, false), w.distribution(&opened)], &[]).unwrap();
    assert_eq!(w.state(&opened), None);
    assert_eq!(w.chain.lamports(&channel), 0);
}

#[test]
fn shares_are_cumulative_floors_and_the_dust_goes_to_the_treasury() {
    let mut w = World::new();
    let other = Key([77; 32]);
    w.chain.mint_to(&other, 0).unwrap();
    let shares = vec![Share { recipient: w.merchant, bps: 3_333 }, Share { recipient: other, bps: 3_333 }];
    let opened = w.open_with(1_000, shares);
    for cumulative in [1, 2, 3, 10, 101] {
        w.settle(&opened, cumulative).unwrap();
        w.distribute(&opened).unwrap();
    }
    // 101 * 0.3333 = 33.66 and 101 * 0.3334 = 33.67, each rounded down once, however often it was paid.
    assert_eq!(w.chain.token_balance(&w.merchant), 33);
    assert_eq!(w.chain.token_balance(&other), 33);
    assert_eq!(w.chain.token_balance(&public(&w.operator)), 33);
    let channel = opened.accounts.channel;
    w.send(&[program::settle_and_seal(public(&w.operator), channel, false), w.distribution(&opened)], &[]).unwrap();
    assert_eq!(w.chain.token_balance(&w.chain.treasury_owner()), 2);
}

#[test]
fn a_beneficiary_that_cannot_receive_forfeits_to_the_treasury() {
    let mut w = World::new();
    let opened = w.open();
    w.settle(&opened, 700).unwrap();
    w.chain.freeze(&w.ata(&w.merchant), true).unwrap();
    w.distribute(&opened).unwrap();
    assert_eq!(w.chain.token_balance(&w.merchant), 0);
    assert_eq!(w.chain.token_balance(&w.chain.treasury_owner()), 700);
    w.chain.freeze(&w.ata(&w.merchant), false).unwrap();
    w.settle(&opened, 1_000).unwrap();
    w.distribute(&opened).unwrap();
    assert_eq!(w.chain.token_balance(&w.merchant), 300, "only what is settled later");
}

#[test]
fn what_strangers_put_there_before_does_not_block_an_open() {
    let mut w = World::new();
    let shares = w.all_to_merchant();
    let (accounts, _, instruction) = w.opening(DEPOSIT, &shares);
    w.chain.airdrop(&accounts.channel, 5_000_000).unwrap();
    w.chain.mint_to(&accounts.channel, 11).unwrap();
    let payer = w.payer.clone();
    w.send(&[instruction], &[&payer]).unwrap();
    let opened = crate::world::Opened { accounts, shares };
    assert_eq!(w.escrow(&opened), DEPOSIT + 11);
    let channel = accounts.channel;
    w.send(&[program::settle_and_seal(public(&w.operator), channel, false), w.distribution(&opened)], &[]).unwrap();
    assert_eq!(w.chain.token_balance(&w.chain.treasury_owner()), 11, "a surplus is swept");
}
