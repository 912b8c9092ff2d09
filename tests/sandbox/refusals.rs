//! Every error code of the payment-channels program that can be provoked, each by one transaction.

use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use turnpike::chain::Account;
use turnpike::scheme::svm::program::{self, Call, ChannelAccount, Share};
use turnpike::scheme::svm::transaction::Instruction;
use turnpike::scheme::svm::{MEMO_PROGRAM, PAYMENT_CHANNELS, SYSTEM_PROGRAM, TOKEN_PROGRAM};
use turnpike::x402::Key;

use crate::world::{DEPOSIT, Opened, TOKEN_INSUFFICIENT, World, custom, public};

/// One way to be refused: what happens before, and the instructions that fail. The last one is to blame.
type Case = (u32, &'static str, fn(&mut World) -> Vec<Instruction>);

fn opening(w: &mut World, change: impl FnOnce(&mut Instruction)) -> Vec<Instruction> {
    let shares = w.all_to_merchant();
    let (_, _, mut instruction) = w.opening(DEPOSIT, &shares);
    change(&mut instruction);
    vec![instruction]
}

fn settling(w: &mut World, change: impl FnOnce(&mut World, &Opened, &mut Vec<Instruction>)) -> Vec<Instruction> {
    let opened = w.open();
    let channel = opened.accounts.channel;
    let mut instructions = vec![w.voucher(&channel, 10, 0), program::settle(channel)];
    change(w, &opened, &mut instructions);
    instructions
}

fn topping_up(w: &mut World, change: impl FnOnce(&mut World, &Opened, &mut Instruction)) -> Vec<Instruction> {
    let opened = w.open();
    let mut instruction = program::top_up(&opened.accounts, 5);
    change(w, &opened, &mut instruction);
    vec![instruction]
}

fn distributing(w: &mut World, change: impl FnOnce(&mut World, &Opened, &mut Instruction)) -> Vec<Instruction> {
    let opened = w.open();
    w.settle(&opened, 10).unwrap();
    let mut instruction = w.distribution(&opened);
    change(w, &opened, &mut instruction);
    vec![instruction]
}

fn withdrawing(w: &mut World, change: impl FnOnce(&mut World, &Opened, &mut Instruction)) -> Vec<Instruction> {
    let opened = w.open();
    seal(w, &opened);
    let mut instruction = w.withdrawal(&opened);
    change(w, &opened, &mut instruction);
    vec![instruction]
}

fn seal(w: &World, opened: &Opened) {
    let seal = program::settle_and_seal(public(&w.operator), opened.accounts.channel, false);
    w.send(&[seal], &[]).unwrap();
}

/// Puts the channel into a state that no transaction leads to.
fn rewrite(w: &World, opened: &Opened, change: impl FnOnce(&mut ChannelAccount)) {
    let mut state = w.state(opened).unwrap();
    change(&mut state);
    poke(w, opened, state.encode());
}

fn poke(w: &World, opened: &Opened, data: Vec<u8>) {
    let channel = opened.accounts.channel;
    let lamports = w.chain.lamports(&channel);
    w.chain.set_account(channel, Account { lamports, owner: PAYMENT_CHANNELS, data });
}

fn remove(w: &World, key: Key) {
    w.chain.set_account(key, Account { lamports: 0, owner: SYSTEM_PROGRAM, data: Vec::new() });
}

/// Forgets what a step answered.
fn done<T>(_: T) {}

fn replace(instruction: &mut Instruction, place: usize, key: Key) {
    instruction.accounts[place].key = key;
}

fn shares_call(shares: Vec<Share>) -> Vec<u8> {
    let call = Call::Open { salt: 1, deposit: 1, grace_period: 1, open_slot: 1, recipients: shares };
    call.encode()
}

fn share(byte: u8, bps: u16) -> Share {
    Share { recipient: Key([byte; 32]), bps }
}

const CASES: &[Case] = &[
    (1, "open: the payer has not signed", |w| opening(w, |i| i.accounts[0].is_signer = false)),
    (1, "top_up: the payer has not signed", |w| topping_up(w, |_, _, i| i.accounts[0].is_signer = false)),
    (1, "events are the program's own", |w| {
        let mut instruction = program::seal(program::event_authority());
        instruction.data = vec![228];
        let _ = w;
        vec![instruction]
    }),
    (2, "settle: sealed", |w| settling(w, |w, o, _| seal(w, o))),
    (2, "settle: a status that does not exist", |w| {
        settling(w, |w, o, _| {
            let mut data = w.state(o).unwrap().encode();
            data[3] = 4;
            poke(w, o, data);
        })
    }),
    (2, "top_up: closing", |w| topping_up(w, |w, o, _| done(w.request_close(o).unwrap()))),
    (2, "request_close twice", |w| {
        let opened = w.open();
        w.request_close(&opened).unwrap();
        vec![program::request_close(opened.accounts.payer, opened.accounts.channel)]
    }),
    (2, "seal: open", |w| {
        let opened = w.open();
        vec![program::seal(opened.accounts.channel)]
    }),
    (2, "settle_and_seal: sealed", |w| {
        let opened = w.open();
        seal(w, &opened);
        vec![program::settle_and_seal(public(&w.operator), opened.accounts.channel, false)]
    }),
    (2, "withdraw_payer: open", |w| {
        let opened = w.open();
        vec![w.withdrawal(&opened)]
    }),
    (2, "reclaim: open", |w| {
        let opened = w.open();
        vec![program::reclaim(opened.accounts.channel, public(&w.operator))]
    }),
    (3, "a channel account with another discriminator", |w| {
        settling(w, |w, o, _| {
            let mut data = w.state(o).unwrap().encode();
            data[0] = 2;
            poke(w, o, data);
        })
    }),
    (4, "a channel account of another version", |w| {
        settling(w, |w, o, _| {
            let mut data = w.state(o).unwrap().encode();
            data[1] = 2;
            poke(w, o, data);
        })
    }),
    (5, "request_close: by somebody else", |w| {
        let opened = w.open();
        vec![program::request_close(public(&w.operator), opened.accounts.channel)]
    }),
    (5, "distribute: another payer", |w| distributing(w, |_, _, i| replace(i, 1, Key([8; 32])))),
    (6, "settle_and_seal: by somebody else", |w| {
        let opened = w.open();
        vec![program::settle_and_seal(public(&w.payer), opened.accounts.channel, false)]
    }),
    (7, "top_up: another mint", |w| topping_up(w, |_, _, i| replace(i, 4, Key([8; 32])))),
    (7, "distribute: another mint", |w| distributing(w, |_, _, i| replace(i, 7, Key([8; 32])))),
    (8, "open: another event authority", |w| opening(w, |i| replace(i, 12, Key([8; 32])))),
    (8, "distribute: another event authority, where a share is redirected", |w| {
        distributing(w, |w, _, i| {
            w.chain.freeze(&w.ata(&w.merchant), true).unwrap();
            replace(i, 9, Key([8; 32]));
        })
    }),
    (9, "top_up: too few accounts", |w| topping_up(w, |_, _, i| done(i.accounts.pop()))),
    (9, "request_close: too many accounts", |w| {
        let opened = w.open();
        let mut instruction = program::request_close(opened.accounts.payer, opened.accounts.channel);
        instruction.accounts.push(instruction.accounts[0]);
        vec![instruction]
    }),
    (10, "distribute: another rent payer", |w| distributing(w, |_, _, i| replace(i, 2, Key([8; 32])))),
    (50, "open: another escrow", |w| opening(w, |i| replace(i, 7, Key([8; 32])))),
    (50, "top_up: a frozen escrow", |w| {
        topping_up(w, |w, o, _| w.chain.freeze(&w.ata(&o.accounts.channel), true).unwrap())
    }),
    (51, "top_up: no escrow", |w| topping_up(w, |w, o, _| remove(w, w.ata(&o.accounts.channel)))),
    (53, "open: a mint that is none", |w| {
        let shares = w.all_to_merchant();
        let (mut accounts, call, _) = w.opening(DEPOSIT, &shares);
        let Call::Open { salt, open_slot, .. } = call else { unreachable!() };
        accounts.mint = Key([8; 32]);
        let (payer, payee) = (accounts.payer, accounts.payee);
        accounts.channel = program::channel_address(&payer, &payee, &accounts.mint, &payer, salt, open_slot).0;
        vec![program::open(&accounts, payer, &call)]
    }),
    (54, "open: another token program", |w| opening(w, |i| replace(i, 8, MEMO_PROGRAM))),
    (57, "open: another account of the payer", |w| opening(w, |i| replace(i, 6, Key([8; 32])))),
    (57, "top_up: the payer's account is frozen", |w| {
        topping_up(w, |w, o, _| w.chain.freeze(&w.ata(&o.accounts.payer), true).unwrap())
    }),
    (58, "open: the payer has no account", |w| {
        remove(w, w.ata(&public(&w.payer)));
        opening(w, |_| {})
    }),
    (60, "distribute: another account of the payee", |w| distributing(w, |_, _, i| replace(i, 5, Key([8; 32])))),
    (200, "open: nothing is deposited", |w| opening(w, |i| i.data[9..17].fill(0))),
    (200, "top_up: nothing is added", |w| topping_up(w, |_, _, i| i.data[1..].fill(0))),
    (201, "open: no grace period", |w| opening(w, |i| i.data[17..21].fill(0))),
    (230, "settle: nothing stands before it", |w| settling(w, |_, _, is| done(is.remove(0)))),
    (230, "settle: something else stands before it", |w| settling(w, |_, _, is| is[0] = program::memo("hello"))),
    (231, "settle: the voucher is read from another instruction", |w| {
        settling(w, |_, _, is| {
            is[0].data[4..6].copy_from_slice(&0u16.to_le_bytes());
        })
    }),
    (231, "settle: a signature over more than the voucher", |w| {
        settling(w, |_, _, is| {
            is[0].data.push(0);
        })
    }),
    (232, "settle: a voucher for another channel", |w| settling(w, |w, _, is| is[0] = w.voucher(&Key([8; 32]), 10, 0))),
    (233, "settle: an expired voucher", |w| {
        settling(w, |w, o, is| is[0] = w.voucher(&o.accounts.channel, 10, w.chain.unix_time()))
    }),
    (234, "settle: not above the watermark", |w| settling(w, |w, o, _| done(w.settle(o, 10).unwrap()))),
    (235, "settle: above the deposit", |w| {
        settling(w, |w, o, is| is[0] = w.voucher(&o.accounts.channel, DEPOSIT + 1, 0))
    }),
    (237, "settle: signed by another", |w| {
        settling(w, |w, o, is| {
            w.payer = SigningKey::from_bytes(&[9; 32]);
            is[0] = w.voucher(&o.accounts.channel, 10, 0);
        })
    }),
    (238, "settle: a message of another kind", |w| {
        settling(w, |w, o, is| {
            let mut message = program::voucher_message(&o.accounts.channel, 10, 0);
            message[1] = 2;
            let signature = ed25519_dalek::Signer::sign(&w.payer, &message).to_bytes();
            is[0] = program::ed25519(&public(&w.payer), &turnpike::x402::key::Signature(signature), &message);
        })
    }),
    (260, "open: 33 recipients", |w| {
        opening(w, |i| {
            let at = i.data.len() - 34 - 4;
            i.data[at] = 33;
        })
    }),
    (261, "open: a share of nothing", |w| opening(w, |i| i.data = shares_call(vec![share(1, 0)]))),
    (261, "open: more than everything", |w| {
        opening(w, |i| i.data = shares_call(vec![share(1, 9_000), share(2, 1_001)]))
    }),
    (261, "open: the channel as its own recipient", |w| {
        let shares = w.all_to_merchant();
        let (accounts, call, mut instruction) = w.opening(DEPOSIT, &shares);
        let Call::Open { salt, deposit, grace_period, open_slot, .. } = call else { unreachable!() };
        let recipients = vec![Share { recipient: accounts.channel, bps: 1 }];
        instruction.data = Call::Open { salt, deposit, grace_period, open_slot, recipients }.encode();
        vec![instruction]
    }),
    (263, "open: a recipient twice", |w| opening(w, |i| i.data = shares_call(vec![share(1, 1), share(1, 1)]))),
    (2000, "open: another address", |w| opening(w, |i| replace(i, 5, Key([8; 32])))),
    (2001, "open: to oneself", |w| {
        let payer = public(&w.payer);
        opening(w, |i| replace(i, 2, payer))
    }),
    (2002, "open: a voucher signer off the curve", |w| opening(w, |i| replace(i, 4, program::event_authority()))),
    (2003, "open: a slot of the future", |w| {
        let future = w.chain.current_slot() + 100;
        opening(w, |i| i.data[21..29].copy_from_slice(&future.to_le_bytes()))
    }),
    (2003, "open: a slot too old", |w| {
        w.chain.advance_slots(2_000);
        let old = w.chain.current_slot() - 1_501;
        opening(w, |i| i.data[21..29].copy_from_slice(&old.to_le_bytes()))
    }),
    (2100, "top_up: more than fits", |w| topping_up(w, |_, _, i| i.data[1..].fill(0xff))),
    (2200, "seal: a deadline that does not fit", |w| {
        let opened = w.open();
        w.request_close(&opened).unwrap();
        rewrite(w, &opened, |state| state.closure_started_at = i64::MAX);
        vec![program::seal(opened.accounts.channel)]
    }),
    (2201, "seal: within the grace period", |w| {
        let opened = w.open();
        w.request_close(&opened).unwrap();
        vec![program::seal(opened.accounts.channel)]
    }),
    (2300, "withdraw_payer twice", |w| {
        withdrawing(w, |w, o, _| done(w.send(&[w.withdrawal(o)], &[&w.payer]).unwrap()))
    }),
    (2301, "withdraw_payer: more settled than deposited", |w| {
        withdrawing(w, |w, o, _| rewrite(w, o, |state| state.settled = state.deposit + 1))
    }),
    (2400, "distribute: closing", |w| distributing(w, |w, o, _| done(w.request_close(o).unwrap()))),
    (2401, "distribute: another treasury", |w| distributing(w, |_, _, i| replace(i, 6, Key([8; 32])))),
    (2402, "distribute: no treasury", |w| distributing(w, |w, _, _| remove(w, w.ata(&w.chain.treasury_owner())))),
    (2404, "distribute: another account of a recipient", |w| distributing(w, |_, _, i| replace(i, 11, Key([8; 32])))),
    (2407, "distribute: other shares than were committed to", |w| {
        distributing(w, |w, _, i| {
            let recipients = vec![Share { recipient: w.merchant, bps: 9_999 }];
            i.data = Call::Distribute { recipients }.encode();
        })
    }),
    (2408, "distribute: nothing new", |w| distributing(w, |w, o, _| done(w.distribute(o).unwrap()))),
    (2409, "distribute: a recipient's account is missing", |w| distributing(w, |_, _, i| done(i.accounts.pop()))),
    (2410, "distribute: more paid than settled", |w| {
        distributing(w, |w, o, _| rewrite(w, o, |state| state.payout_watermark = 11))
    }),
    (2411, "distribute: the escrow is short", |w| {
        distributing(w, |w, o, _| {
            seal(w, o);
            rewrite(w, o, |state| state.deposit += 1);
        })
    }),
    (2412, "reclaim: the rent payer is too rich", |w| {
        let opened = w.open();
        seal(w, &opened);
        w.distribute(&opened).unwrap();
        w.chain.advance_slots(2_000);
        let rich = Account { lamports: u64::MAX, owner: SYSTEM_PROGRAM, data: Vec::new() };
        let rent_payer = Key([8; 32]);
        w.chain.set_account(rent_payer, rich);
        rewrite(w, &opened, |state| state.rent_payer = rent_payer);
        vec![program::reclaim(opened.accounts.channel, rent_payer)]
    }),
    (2414, "reclaim: too early", |w| {
        let opened = w.open();
        seal(w, &opened);
        w.distribute(&opened).unwrap();
        vec![program::reclaim(opened.accounts.channel, public(&w.operator))]
    }),
];

/// The transaction, signed by whoever of the two must.
fn attempt(w: &World, instructions: &[Instruction]) -> Result<(), Value> {
    let both = [&w.payer, &w.operator];
    let needed = |key: &&&SigningKey| {
        let metas = instructions.iter().flat_map(|instruction| &instruction.accounts);
        metas.clone().any(|meta| meta.is_signer && meta.key == public(key))
    };
    let signers: Vec<_> = both.iter().filter(needed).copied().collect();
    w.send(instructions, &signers).map(drop)
}

#[test]
fn every_reachable_code_is_provoked() {
    for (code, name, case) in CASES {
        let mut w = World::new();
        let instructions = case(&mut w);
        let result = attempt(&w, &instructions);
        // The precompile speaks first where the voucher's instruction itself is broken.
        if *code == 231 && result == Err(custom(0, 3)) {
            panic!("{name}: the precompile refused before the program could");
        }
        assert_eq!(result, Err(custom(instructions.len() - 1, *code)), "{name}");
    }
}

#[test]
fn what_is_not_the_program_s_own_error_has_the_runtime_s_name() {
    let mut w = World::new();
    let opened = w.open();
    let channel = opened.accounts.channel;
    let named = |name: &str| json!({ "InstructionError": [0, name] });
    let mut instruction = program::seal(channel);
    instruction.accounts.clear();
    assert_eq!(attempt(&w, &[instruction]), Err(named("NotEnoughAccountKeys")));
    assert_eq!(attempt(&w, &[program::seal(w.merchant)]), Err(named("InvalidAccountOwner")));
    let mut instruction = program::seal(channel);
    instruction.data = vec![99];
    assert_eq!(attempt(&w, &[instruction]), Err(named("InvalidInstructionData")));
    let mut instruction = program::settle(channel);
    instruction.accounts[1].key = w.merchant;
    assert_eq!(attempt(&w, &[instruction]), Err(named("UnsupportedSysvar")));
    let shares = w.all_to_merchant();
    let (_, _, mut instruction) = w.opening(DEPOSIT, &shares);
    instruction.accounts[10].key = w.merchant;
    assert_eq!(attempt(&w, &[instruction]), Err(named("InvalidArgument")), "the rent sysvar is another account");
    let (_, _, instruction) = w.opening(100_000_000, &shares);
    assert_eq!(attempt(&w, &[instruction]), Err(custom(0, TOKEN_INSUFFICIENT)), "the payer has not that much");
}

#[test]
fn an_account_that_was_passed_read_only_cannot_change() {
    let mut w = World::new();
    let opened = w.open();
    let channel = opened.accounts.channel;
    let mut settle = program::settle(channel);
    settle.accounts[0].is_writable = false;
    let error = w.send(&[w.voucher(&channel, 10, 0), settle], &[]).unwrap_err();
    assert_eq!(error, json!({ "InstructionError": [1, "ReadonlyDataModified"] }));
    assert_eq!(w.state(&opened).unwrap().settled, 0);

    let mut top_up = program::top_up(&opened.accounts, 5);
    top_up.accounts[2].is_writable = false;
    let error = w.send(&[top_up], &[&w.payer]).unwrap_err();
    assert_eq!(error, json!({ "InstructionError": [0, "PrivilegeEscalation"] }));
    assert_eq!(w.state(&opened).unwrap().deposit, DEPOSIT, "nothing of a failed transaction stays");
    assert_eq!(w.chain.token_balance_of(&w.chain.usdc(), &channel), DEPOSIT);
    assert_eq!(opened.accounts.token_program, TOKEN_PROGRAM);
}
