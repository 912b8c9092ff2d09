//! What holds for every transaction: signatures, blockhashes, duplicates, fees, atomicity, and the other programs.

use std::time::Duration;

use serde_json::{Value, json};
use turnpike::scheme::svm::program;
use turnpike::scheme::svm::transaction::{AccountMeta, Instruction, Transaction};
use turnpike::scheme::svm::{
    ATA_PROGRAM, LIGHTHOUSE_PROGRAM, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM, associated_token_account,
};
use turnpike::x402::Key;

use crate::world::{World, custom, public, sign};

const RENT_OF_NOTHING: u64 = 890_880;

fn transfer(from: Key, to: Key, lamports: u64) -> Instruction {
    let data = [&2u32.to_le_bytes()[..], &lamports.to_le_bytes()].concat();
    Instruction {
        program: SYSTEM_PROGRAM,
        accounts: vec![AccountMeta::writable(from).signer(), AccountMeta::writable(to)],
        data,
    }
}

fn token_transfer(w: &World, to: Key, amount: u64) -> Instruction {
    let payer = public(&w.payer);
    let accounts = vec![
        AccountMeta::writable(w.ata(&payer)),
        AccountMeta::readonly(w.chain.usdc()),
        AccountMeta::writable(to),
        AccountMeta::readonly(payer).signer(),
    ];
    let data = [&[12][..], &amount.to_le_bytes(), &[6]].concat();
    Instruction { program: TOKEN_PROGRAM, accounts, data }
}

fn unit(name: &str) -> Value {
    json!(name)
}

fn at(index: usize, name: &str) -> Value {
    json!({ "InstructionError": [index, name] })
}

#[test]
fn signatures_and_blockhashes_are_checked() {
    let w = World::new();
    let memo = [program::memo("hello")];
    let mut forged = w.transaction(&memo, &[]);
    sign(&mut forged, &[]);
    let mut signature = forged.id();
    signature.0[0] ^= 1;
    forged.set_signature(&public(&w.operator), signature).unwrap();
    assert_eq!(w.submit(&forged), Err(json!(-32003)));

    let mut stranger = Transaction::build(public(&w.operator), &memo, [9; 32]).unwrap();
    sign(&mut stranger, &[&w.operator]);
    assert_eq!(w.submit(&stranger), Err(unit("BlockhashNotFound")));

    let old = w.transaction(&memo, &[]);
    w.chain.advance_slots(150);
    w.submit(&old).unwrap();
    let older = w.transaction(&[program::memo("again")], &[]);
    w.chain.advance_slots(151);
    assert_eq!(w.submit(&older), Err(unit("BlockhashNotFound")));
}

#[test]
fn slots_and_time_follow_the_clock_and_can_be_moved_apart() {
    let w = World::new();
    let (slot, time) = (w.chain.current_slot(), w.chain.unix_time());
    w.clock.advance(Duration::from_millis(1_999));
    assert_eq!((w.chain.current_slot(), w.chain.unix_time()), (slot + 4, time + 1));
    w.chain.advance_slots(10);
    assert_eq!((w.chain.current_slot(), w.chain.unix_time()), (slot + 14, time + 1));
    w.chain.advance_time(Duration::from_secs(60));
    assert_eq!((w.chain.current_slot(), w.chain.unix_time()), (slot + 14, time + 61));
    let old = w.transaction(&[program::memo("x")], &[]);
    w.clock.advance(Duration::from_millis(151 * 400));
    assert_eq!(w.submit(&old), Err(unit("BlockhashNotFound")));
}

#[test]
fn a_transaction_is_executed_once() {
    let w = World::new();
    let to = Key([50; 32]);
    let pay = w.transaction(&[transfer(public(&w.operator), to, RENT_OF_NOTHING)], &[]);
    w.submit(&pay).unwrap();
    assert_eq!(w.submit(&pay), Err(unit("AlreadyProcessed")));
    assert_eq!(w.chain.lamports(&to), RENT_OF_NOTHING);
}

#[test]
fn fees_are_taken_from_success_and_from_failure_on_chain_and_not_from_preflight() {
    let w = World::new();
    let operator = public(&w.operator);
    let before = w.chain.lamports(&operator);
    let budget = [program::compute_unit_limit(100_000), program::compute_unit_price(15_000), program::memo("x")];
    w.send(&budget, &[]).unwrap();
    assert_eq!(w.chain.lamports(&operator), before - 5_000 - 1_500);

    let poor = transfer(operator, Key([50; 32]), u64::MAX);
    assert_eq!(w.send(std::slice::from_ref(&poor), &[]), Err(custom(0, 1)));
    assert_eq!(w.chain.lamports(&operator), before - 6_500);

    use base64::Engine as _;
    let failing = w.transaction(&[poor], &[]);
    let text = base64::engine::general_purpose::STANDARD.encode(failing.encode());
    let params = json!([text, { "encoding": "base64", "skipPreflight": true }]);
    w.chain.call("sendTransaction", &params).unwrap();
    assert_eq!(w.chain.lamports(&operator), before - 11_500);
    let statuses = w.chain.call("getSignatureStatuses", &json!([[failing.id()]])).unwrap();
    assert_eq!(statuses["value"][0]["err"], custom(0, 1));

    let mut broke = Transaction::build(Key([9; 32]), &[program::memo("x")], w.blockhash()).unwrap();
    let pauper = ed25519_dalek::SigningKey::from_bytes(&[60; 32]);
    assert!(broke.set_signature(&Key([9; 32]), turnpike::x402::key::Signature([0; 64])).is_ok());
    assert_eq!(w.submit(&broke), Err(json!(-32003)));
    let mut broke = Transaction::build(public(&pauper), &[program::memo("x")], w.blockhash()).unwrap();
    sign(&mut broke, &[&pauper]);
    assert_eq!(w.submit(&broke), Err(unit("AccountNotFound")));
    w.chain.airdrop(&public(&pauper), 4_999).unwrap();
    assert_eq!(w.submit(&broke), Err(unit("InsufficientFundsForFee")));
}

#[test]
fn a_version_0_transaction_runs_like_a_legacy_one() {
    use ed25519_dalek::Signer as _;
    let mut w = World::new();
    let opened = w.open();
    let channel = opened.accounts.channel;
    let legacy = w.transaction(&[w.voucher(&channel, 10, 0), program::settle(channel)], &[]);
    // The same message with its version in front and an empty list of lookup tables behind.
    let message = [&[0x80][..], legacy.message(), &[0]].concat();
    let wire = [&[1][..], &w.operator.sign(&message).to_bytes(), &message].concat();
    w.submit(&Transaction::decode(&wire).unwrap()).unwrap();
    assert_eq!(w.state(&opened).unwrap().settled, 10);
}

#[test]
fn an_error_undoes_everything_before_it() {
    let w = World::new();
    let to = Key([50; 32]);
    let operator = public(&w.operator);
    let result = w.send(&[transfer(operator, to, RENT_OF_NOTHING), transfer(operator, to, u64::MAX)], &[]);
    assert_eq!(result, Err(custom(1, 1)));
    assert_eq!(w.chain.lamports(&to), 0);
}

#[test]
fn accounts_must_be_free_of_rent() {
    let w = World::new();
    let result = w.send(&[transfer(public(&w.operator), Key([50; 32]), RENT_OF_NOTHING - 1)], &[]);
    assert_eq!(result, Err(json!({ "InsufficientFundsForRent": { "account_index": 1 } })));
}

#[test]
fn tokens_move_only_with_their_owner_and_not_while_frozen() {
    let w = World::new();
    let merchant = w.ata(&w.merchant);
    w.send(&[token_transfer(&w, merchant, 25)], &[&w.payer]).unwrap();
    assert_eq!(w.chain.token_balance(&w.merchant), 25);

    let mut stolen = token_transfer(&w, merchant, 25);
    stolen.accounts[3].key = public(&w.operator);
    assert_eq!(w.send(&[stolen], &[]), Err(custom(0, 4)));
    let mut unsigned = token_transfer(&w, merchant, 25);
    unsigned.accounts[3].is_signer = false;
    assert_eq!(w.send(&[unsigned], &[]), Err(at(0, "MissingRequiredSignature")));
    let mut decimals = token_transfer(&w, merchant, 25);
    decimals.data[9] = 7;
    assert_eq!(w.send(&[decimals], &[&w.payer]), Err(custom(0, 18)));
    assert_eq!(w.send(&[token_transfer(&w, merchant, u64::MAX)], &[&w.payer]), Err(custom(0, 1)));

    w.chain.freeze(&merchant, true).unwrap();
    assert_eq!(w.send(&[token_transfer(&w, merchant, 25)], &[&w.payer]), Err(custom(0, 17)));
    assert_eq!(w.chain.token_balance(&w.merchant), 25);
}

#[test]
fn a_mint_s_authority_mints_freezes_and_thaws() {
    let w = World::new();
    let operator = public(&w.operator);
    let mint = w.chain.create_mint(2, TOKEN_2022_PROGRAM, operator);
    let owner = w.merchant;
    let account = associated_token_account(&owner, &mint, &TOKEN_2022_PROGRAM);
    let create = program::create_ata_idempotent(operator, owner, mint, TOKEN_2022_PROGRAM);
    let accounts =
        vec![AccountMeta::writable(mint), AccountMeta::writable(account), AccountMeta::readonly(operator).signer()];
    let data = [&[7][..], &500u64.to_le_bytes()].concat();
    let issue = Instruction { program: TOKEN_2022_PROGRAM, accounts, data };
    w.send(&[create, issue.clone()], &[]).unwrap();
    assert_eq!(w.chain.token_balance_of(&mint, &owner), 500);

    let accounts =
        vec![AccountMeta::writable(account), AccountMeta::readonly(mint), AccountMeta::readonly(operator).signer()];
    let freeze = Instruction { program: TOKEN_2022_PROGRAM, accounts: accounts.clone(), data: vec![10] };
    w.send(&[freeze], &[]).unwrap();
    assert_eq!(w.send(std::slice::from_ref(&issue), &[]), Err(custom(0, 17)));
    let thaw = Instruction { program: TOKEN_2022_PROGRAM, accounts, data: vec![11] };
    w.send(&[thaw, issue], &[]).unwrap();
    assert_eq!(w.chain.token_balance_of(&mint, &owner), 1_000);
}

#[test]
fn associated_accounts_are_made_once() {
    let w = World::new();
    let (operator, owner) = (public(&w.operator), Key([50; 32]));
    let idempotent = program::create_ata_idempotent(operator, owner, w.chain.usdc(), TOKEN_PROGRAM);
    let mut create = idempotent.clone();
    create.data.clear();
    w.send(std::slice::from_ref(&create), &[]).unwrap();
    assert_eq!(w.send(std::slice::from_ref(&create), &[]), Err(at(0, "IllegalOwner")));
    w.send(&[idempotent], &[]).unwrap();
    create.accounts[1].key = Key([51; 32]);
    assert_eq!(w.send(std::slice::from_ref(&create), &[]), Err(at(0, "InvalidSeeds")));
    assert_eq!(create.program, ATA_PROGRAM);
}

#[test]
fn the_small_programs_check_what_they_check() {
    let w = World::new();
    let mut memo = program::memo("hello");
    memo.accounts.push(AccountMeta::readonly(w.merchant));
    assert_eq!(w.send(&[memo], &[]), Err(at(0, "MissingRequiredSignature")));
    let mut memo = program::memo("hello");
    memo.data = vec![0xff];
    assert_eq!(w.send(&[memo], &[]), Err(at(0, "InvalidInstructionData")));

    let limit = program::compute_unit_limit(1_000);
    assert_eq!(w.send(&[limit.clone(), limit.clone()], &[]), Err(json!({ "DuplicateInstruction": 1 })));
    let mut unknown = limit.clone();
    unknown.data = vec![9];
    assert_eq!(w.send(&[unknown], &[]), Err(at(0, "InvalidInstructionData")));
    let none = program::compute_unit_limit(0);
    assert_eq!(w.send(&[none, program::memo("x")], &[]), Err(at(0, "ComputationalBudgetExceeded")));

    let lighthouse = Instruction { program: LIGHTHOUSE_PROGRAM, accounts: vec![], data: vec![1, 2, 3] };
    w.send(&[limit, lighthouse], &[]).unwrap();
    let nowhere = Instruction { program: Key([9; 32]), accounts: vec![], data: vec![] };
    assert_eq!(w.send(&[nowhere], &[]), Err(unit("ProgramAccountNotFound")));
}

#[test]
fn a_bad_precompile_signature_fails_the_whole_transaction() {
    let mut w = World::new();
    let opened = w.open();
    let channel = opened.accounts.channel;
    let mut voucher = w.voucher(&channel, 10, 0);
    voucher.data[48] ^= 1;
    assert_eq!(w.send(&[program::memo("x"), voucher, program::settle(channel)], &[]), Err(custom(1, 2)));
    assert_eq!(w.state(&opened).unwrap().settled, 0);
}
