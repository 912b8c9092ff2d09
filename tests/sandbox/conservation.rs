//! Whatever is done, in whatever order: no token and no lamport appears or vanishes.

use proptest::prelude::*;
use serde_json::json;
use turnpike::scheme::svm::TOKEN_PROGRAM;
use turnpike::scheme::svm::program::{self, ChannelStatus, Share};
use turnpike::x402::Key;

use crate::world::{Opened, World, public};

#[derive(Clone, Copy, Debug)]
enum Step {
    Open(u64, u16),
    Settle(usize, u64),
    TopUp(usize, u64),
    Distribute(usize),
    RequestClose(usize),
    Seal(usize),
    CloseWith(usize, u64),
    Withdraw(usize),
    Reclaim(usize),
    Slots(u16),
    Grace,
    Freeze(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..3usize;
    prop_oneof![
        (0..2_000u64, 0..=10_000u16).prop_map(|(deposit, bps)| Step::Open(deposit, bps)),
        (which.clone(), 0..3_000u64).prop_map(|(at, amount)| Step::Settle(at, amount)),
        (which.clone(), 0..500u64).prop_map(|(at, amount)| Step::TopUp(at, amount)),
        which.clone().prop_map(Step::Distribute),
        which.clone().prop_map(Step::RequestClose),
        which.clone().prop_map(Step::Seal),
        (which.clone(), 0..3_000u64).prop_map(|(at, amount)| Step::CloseWith(at, amount)),
        which.clone().prop_map(Step::Withdraw),
        which.prop_map(Step::Reclaim),
        (0..2_000u16).prop_map(Step::Slots),
        Just(Step::Grace),
        any::<bool>().prop_map(Step::Freeze),
    ]
}

fn perform(w: &mut World, channels: &mut Vec<Opened>, step: Step) {
    let at = |index: usize| channels.get(index % channels.len().max(1)).cloned();
    let payer = w.payer.clone();
    // Refusals are expected; what counts is what is left afterwards.
    let _ = match step {
        Step::Open(deposit, bps) => {
            let shares = if bps == 0 { vec![] } else { vec![Share { recipient: w.merchant, bps }] };
            let (accounts, _, instruction) = w.opening(deposit, &shares);
            let result = w.send(&[instruction], &[&payer]);
            if result.is_ok() {
                channels.push(Opened { accounts, shares });
            }
            result.ok()
        }
        Step::Settle(index, amount) => at(index).and_then(|opened| w.settle(&opened, amount).ok()),
        Step::TopUp(index, amount) => {
            at(index).and_then(|opened| w.send(&[program::top_up(&opened.accounts, amount)], &[&payer]).ok())
        }
        Step::Distribute(index) => at(index).and_then(|opened| w.distribute(&opened).ok()),
        Step::RequestClose(index) => at(index).and_then(|opened| w.request_close(&opened).ok()),
        Step::Seal(index) => at(index).and_then(|opened| w.send(&[program::seal(opened.accounts.channel)], &[]).ok()),
        Step::CloseWith(index, amount) => at(index).and_then(|opened| {
            let channel = opened.accounts.channel;
            let seal = program::settle_and_seal(public(&w.operator), channel, true);
            w.send(&[w.voucher(&channel, amount, 0), seal], &[]).ok()
        }),
        Step::Withdraw(index) => at(index).and_then(|opened| w.send(&[w.withdrawal(&opened)], &[&payer]).ok()),
        Step::Reclaim(index) => at(index)
            .and_then(|opened| w.send(&[program::reclaim(opened.accounts.channel, public(&w.operator))], &[]).ok()),
        Step::Slots(slots) => {
            w.chain.advance_slots(u64::from(slots));
            None
        }
        Step::Grace => {
            w.pass_grace();
            None
        }
        Step::Freeze(frozen) => {
            w.chain.freeze(&w.ata(&w.merchant), frozen).unwrap();
            None
        }
    };
}

/// The sum over every token account, by the RPC that an auditor would use.
fn tokens(w: &World) -> u128 {
    let mint = w.chain.usdc();
    let filters = json!([{ "dataSize": 165 }, { "memcmp": { "offset": 0, "bytes": mint } }]);
    let params = json!([TOKEN_PROGRAM, { "encoding": "jsonParsed", "filters": filters }]);
    let accounts = w.chain.call("getProgramAccounts", &params).unwrap();
    let amount = |account: &serde_json::Value| {
        let text = &account["account"]["data"]["parsed"]["info"]["tokenAmount"]["amount"];
        text.as_str().unwrap().parse::<u128>().unwrap()
    };
    accounts.as_array().unwrap().iter().map(amount).sum()
}

fn supply(w: &World) -> u128 {
    let answer = w.chain.call("getTokenSupply", &json!([w.chain.usdc()])).unwrap();
    answer["value"]["amount"].as_str().unwrap().parse().unwrap()
}

/// Everything that fees and rent can be found in.
fn lamports(w: &World, channels: &[Opened]) -> u64 {
    let escrows = channels.iter().flat_map(|opened| [opened.accounts.channel, w.ata(&opened.accounts.channel)]);
    let keys: Vec<Key> = escrows.chain([public(&w.operator)]).collect();
    keys.iter().map(|key| w.chain.lamports(key)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn tokens_and_lamports_are_conserved(steps in proptest::collection::vec(step(), 1..40)) {
        let mut w = World::new();
        let mut channels = Vec::new();
        let whole = supply(&w);
        for step in steps {
            perform(&mut w, &mut channels, step);
            prop_assert_eq!(tokens(&w), whole);
            prop_assert_eq!(supply(&w), whole);
            for opened in &channels {
                let Some(state) = w.state(opened) else { continue };
                prop_assert!(state.payout_watermark <= state.settled && state.settled <= state.deposit);
                let held = w.escrow(opened);
                let owed = state.deposit - state.payout_watermark;
                let withdrawn = if state.payer_withdrawn_at == 0 { 0 } else { state.deposit - state.settled };
                match state.status {
                    ChannelStatus::Distributed => prop_assert_eq!(held, 0),
                    _ => prop_assert!(held >= owed - withdrawn, "the escrow covers what is owed"),
                }
            }
        }
        // Lamports only leave as fees, which come in whole signatures.
        prop_assert_eq!((10_000_000_000 - lamports(&w, &channels)) % 5_000, 0);
    }
}

#[test]
fn one_seed_gives_one_history() {
    let run = |seed| {
        let mut w = World::seeded(seed);
        let opened = w.open();
        let id = w.settle(&opened, 5).unwrap();
        let mint = w.chain.create_mint(2, TOKEN_PROGRAM, w.merchant);
        (id, mint, w.blockhash(), w.chain.call("getProgramAccounts", &json!([TOKEN_PROGRAM, { "encoding": "base64" }])))
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).2, run(8).2);
}
