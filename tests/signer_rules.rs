//! What a threshold key may be used for: every accepted request, and tampered ones with the rule that refuses each.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "support/signer_requests.rs"]
mod signer_requests;

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use signer_requests::{Body, CLAIM_MAX, Cast, DEPOSIT, DEPOSIT_MAX, Draft, OPEN_SLOT, SALT, key, pay_to, rules};
use turnpike::amount::Amount;
use turnpike::audit::Position;
use turnpike::audit::checkpoint::{Checkpoint, RecordId};
use turnpike::clock::UnixMillis;
use turnpike::policy::{Policy, PolicyError};
use turnpike::scheme::svm::program::{self, Call, Share, all_to};
use turnpike::scheme::svm::transaction::{AccountMeta, Instruction, Transaction};
use turnpike::scheme::svm::{
    ATA_PROGRAM, COMPUTE_BUDGET_PROGRAM, ED25519_PROGRAM, LIGHTHOUSE_PROGRAM, MEMO_PROGRAM, PAYMENT_CHANNELS,
    SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET, USDC_MAINNET,
};
use turnpike::signer::rules::{Judge, KINDS};
use turnpike::signer::{ClaimLine, Setup, SignerError, SigningRequest};
use turnpike::x402::Key;
use turnpike::x402::network::{SOLANA, SOLANA_DEVNET};

fn cast() -> Cast {
    Cast::new(key(0x22))
}

fn judge() -> Judge {
    Judge::new(rules(), cast().group)
}

/// The rule that refuses, or `"accepted"`.
fn verdict(request: &SigningRequest) -> &'static str {
    match judge().judge(request) {
        Ok(_) => "accepted",
        Err(SignerError::Refused { rule, .. }) => rule,
        Err(error) => panic!("{error}"),
    }
}

fn set_call(instruction: &mut Instruction, change: impl FnOnce(&mut Call)) {
    let mut call = Call::decode(&instruction.data).unwrap();
    change(&mut call);
    instruction.data = call.encode();
}

/// `open` again from changed terms, all derived accounts included.
fn reopen(c: &Cast, change: impl FnOnce(&mut program::ChannelAccounts, &mut Call)) -> Instruction {
    let mut accounts = c.accounts(SALT);
    let mut call = c.open_call();
    change(&mut accounts, &mut call);
    let Call::Open { salt, open_slot, .. } = call else { unreachable!() };
    accounts.channel =
        program::channel_address(&accounts.payer, &accounts.payee, &accounts.mint, &c.payer_key(), salt, open_slot).0;
    program::open(&accounts, c.payer_key(), &call)
}

#[test]
fn every_shape_that_a_healthy_proxy_makes_is_accepted() {
    let c = cast();
    let drafts = [
        ("open", c.open()),
        ("open of a metered channel", c.open_metered()),
        ("top_up", c.top_up()),
        ("request_close", c.request_close()),
        ("claim of one", c.claim(1)),
        ("claim of four", c.claim(4)),
        ("distribute one", c.distribute(1)),
        ("distribute two", c.distribute(2)),
        ("create token accounts", c.prepare()),
        ("close with voucher", c.close_with_voucher(5_000, 0)),
        ("close of a metered channel", c.close_with_voucher(5_000, 1_800_000_000)),
        ("close without voucher", c.close_without_voucher()),
        ("seal with voucher, pay later", c.without_last(c.close_with_voucher(5_000, 0))),
        ("seal without voucher, pay later", c.without_last(c.close_without_voucher())),
        ("seal and distribute", c.seal()),
        ("distribute a closed channel", c.distribute_closed()),
        ("reclaim", c.reclaim()),
    ];
    for (name, draft) in drafts {
        let request = c.build(&draft);
        let bytes = judge().judge(&request).unwrap_or_else(|error| panic!("{name}: {error}"));
        let transaction = match &request {
            SigningRequest::Sponsor { transaction, .. }
            | SigningRequest::Claim { transaction, .. }
            | SigningRequest::Distribute { transaction, .. }
            | SigningRequest::Close { transaction, .. } => transaction,
            _ => unreachable!(),
        };
        assert_eq!(bytes.as_bytes(), transaction.message(), "{name}");
        let bare = Draft {
            instructions: draft.instructions.into_iter().filter(|i| i.program != COMPUTE_BUDGET_PROGRAM).collect(),
            ..draft
        };
        assert_eq!(verdict(&c.build(&bare)), "accepted", "{name} without compute budget");
    }
}

/// One mutation of an accepted request.
type Mutation = (&'static str, &'static str, fn(&Cast) -> Draft, fn(&Cast, &mut Draft));

const SPONSORED: &[Mutation] = &[
    ("another pays the fee", "fee_payer", Cast::open, |_, d| d.fee_payer = key(0x55)),
    ("pays another", "pay_to", Cast::open, |c, d| {
        *d.main() = reopen(c, |_, call| {
            let Call::Open { recipients, .. } = call else { unreachable!() };
            *recipients = all_to(key(0x66)).to_vec();
        });
    }),
    ("pays the key itself", "pay_to", Cast::open, |c, d| {
        let group = c.group;
        *d.main() = reopen(c, |_, call| {
            let Call::Open { recipients, .. } = call else { unreachable!() };
            *recipients = all_to(group).to_vec();
        });
    }),
    ("pays a basis point less", "pay_to", Cast::open, |c, d| {
        *d.main() = reopen(c, |_, call| {
            let Call::Open { recipients, .. } = call else { unreachable!() };
            *recipients = vec![Share { recipient: pay_to(), bps: 9_999 }];
        });
    }),
    ("pays two", "pay_to", Cast::open, |c, d| {
        *d.main() = reopen(c, |_, call| {
            let Call::Open { recipients, .. } = call else { unreachable!() };
            *recipients = [pay_to(), key(0xA1)].map(|recipient| Share { recipient, bps: 5_000 }).to_vec();
        });
    }),
    ("pays nobody", "pay_to", Cast::open, |c, d| {
        *d.main() = reopen(c, |_, call| {
            let Call::Open { recipients, .. } = call else { unreachable!() };
            recipients.clear();
        });
    }),
    ("another mint", "mint", Cast::open, |c, d| {
        *d.main() = reopen(c, |accounts, _| accounts.mint = USDC_MAINNET);
    }),
    ("another token program", "token_account", Cast::open, |c, d| {
        *d.main() = reopen(c, |accounts, _| accounts.token_program = TOKEN_2022_PROGRAM);
    }),
    ("another token program, with the right accounts", "mint", Cast::open, |_, d| {
        d.main().accounts[8].key = TOKEN_2022_PROGRAM;
    }),
    ("another payee", "payee", Cast::open, |c, d| {
        let open = reopen(c, |accounts, _| accounts.payee = key(0x66));
        d.main().accounts = open.accounts;
    }),
    ("the payer's token account is another's", "token_account", Cast::open, |_, d| {
        d.main().accounts[6].key = key(0x66);
    }),
    ("the escrow is another's", "token_account", Cast::open, |_, d| d.main().accounts[7].key = key(0x66)),
    ("another channel", "channel", Cast::open, |_, d| d.main().accounts[5].key = key(0x66)),
    ("another salt", "channel", Cast::open, |_, d| {
        set_call(d.main(), |call| {
            let Call::Open { salt, .. } = call else { unreachable!() };
            *salt += 1;
        });
    }),
    ("another voucher signer", "channel", Cast::open, |_, d| d.main().accounts[4].key = key(0x66)),
    ("another rent sysvar", "instruction", Cast::open, |_, d| d.main().accounts[10].key = key(0x66)),
    ("another event authority", "instruction", Cast::open, |_, d| d.main().accounts[12].key = key(0x66)),
    ("an account more", "instruction", Cast::open, |_, d| d.main().accounts.push(AccountMeta::readonly(key(0x66)))),
    ("an account less", "instruction", Cast::open, |_, d| d.main().accounts.truncate(13)),
    ("a byte more", "instruction", Cast::open, |_, d| d.main().data.push(0)),
    ("a unit more than asked", "amount", Cast::open, |_, d| {
        set_call(d.main(), |call| {
            let Call::Open { deposit, .. } = call else { unreachable!() };
            *deposit += 1;
        });
    }),
    ("above the signer's own bound", "amount", Cast::open, |_, d| {
        d.body = Body::Sponsor(Setup::Open { deposit: u64::MAX });
        set_call(d.main(), |call| {
            let Call::Open { deposit, .. } = call else { unreachable!() };
            *deposit = DEPOSIT_MAX + 1;
        });
    }),
    ("no deposit", "amount", Cast::open, |_, d| {
        set_call(d.main(), |call| {
            let Call::Open { deposit, .. } = call else { unreachable!() };
            *deposit = 0;
        });
    }),
    ("no withdraw delay", "instruction", Cast::open, |_, d| {
        set_call(d.main(), |call| {
            let Call::Open { grace_period, .. } = call else { unreachable!() };
            *grace_period = 0;
        });
    }),
    ("a transfer from the key", "instruction", Cast::open, |c, d| {
        d.instructions.push(c.sol_transfer(c.group, key(0x66), 1));
    }),
    ("a transfer before the open", "instruction", Cast::open, |c, d| {
        d.instructions.insert(2, c.sol_transfer(c.group, key(0x66), 1));
    }),
    ("a second open", "instruction", Cast::open, |_, d| {
        let open = d.main().clone();
        d.instructions.push(open);
    }),
    ("no open", "instruction", Cast::open, |c, d| {
        *d.main() = program::memo("x");
        d.instructions[2].accounts.push(AccountMeta::readonly(c.payer_key()).signer());
    }),
    ("a top_up that says it is an open", "instruction", Cast::top_up, |_, d| {
        d.body = Body::Sponsor(Setup::Open { deposit: DEPOSIT });
    }),
    ("an open that says it is a top_up", "instruction", Cast::open, |_, d| d.body = Body::Sponsor(Setup::TopUp)),
    ("a memo signed by the key", "group_key", Cast::open, |c, d| {
        d.instructions[3].accounts.push(AccountMeta::readonly(c.group).signer());
    }),
    ("an assertion about the key", "group_key", Cast::open, |c, d| {
        let accounts = vec![AccountMeta::readonly(c.group)];
        d.instructions.push(Instruction { program: LIGHTHOUSE_PROGRAM, accounts, data: vec![6] });
    }),
    ("an assertion that may write", "accounts", Cast::open, |_, d| {
        let accounts = vec![AccountMeta::writable(key(0x66))];
        d.instructions.push(Instruction { program: LIGHTHOUSE_PROGRAM, accounts, data: vec![0] });
    }),
    ("a mint that may change", "accounts", Cast::open, |_, d| d.main().accounts[3].is_writable = true),
    ("four assertions", "instruction", Cast::open, |_, d| {
        let assertion = Instruction { program: LIGHTHOUSE_PROGRAM, accounts: vec![], data: vec![6] };
        d.instructions.extend(std::iter::repeat_n(assertion, 4));
    }),
    ("five memos", "instruction", Cast::open, |_, d| {
        d.instructions.extend(std::iter::repeat_n(program::memo("x"), 3));
    }),
    ("a price without limit that costs more than any limit", "compute_budget", Cast::open, |_, d| {
        d.instructions[1] = program::compute_unit_price(5_000_000);
        d.instructions.remove(0);
    }),
    ("a compute budget instruction that names the key", "group_key", Cast::open, |c, d| {
        d.instructions[0].accounts.push(AccountMeta::readonly(c.group));
    }),
    ("a third signer", "signers", Cast::open, |_, d| {
        d.instructions[3].accounts.push(AccountMeta::readonly(key(0x66)).signer());
    }),
    ("the payer has not signed", "payer_signature", Cast::open, |_, d| d.payer_signs = false),
    ("a limit above the cap", "compute_budget", Cast::open, |_, d| {
        d.instructions[0] = program::compute_unit_limit(400_001);
    }),
    ("a price above the cap", "compute_budget", Cast::open, |_, d| {
        d.instructions[1] = program::compute_unit_price(5_000_001);
    }),
    ("price before limit", "compute_budget", Cast::open, |_, d| d.instructions.swap(0, 1)),
    ("two limits", "compute_budget", Cast::open, |_, d| d.instructions.insert(0, program::compute_unit_limit(1))),
    ("a heap request", "compute_budget", Cast::open, |_, d| {
        let program = COMPUTE_BUDGET_PROGRAM;
        d.instructions.insert(0, Instruction { program, accounts: vec![], data: vec![1, 0, 0, 1, 0] });
    }),
    ("a limit with a byte more", "compute_budget", Cast::open, |_, d| d.instructions[0].data.push(0)),
    ("top_up above the bound", "amount", Cast::top_up, |c, d| {
        *d.main() = program::top_up(&c.accounts(SALT), DEPOSIT_MAX + 1);
    }),
    ("top_up of another mint", "mint", Cast::top_up, |c, d| {
        let accounts = program::ChannelAccounts { mint: USDC_MAINNET, ..c.accounts(SALT) };
        *d.main() = program::top_up(&accounts, DEPOSIT);
    }),
    ("top_up from another's account", "token_account", Cast::top_up, |_, d| d.main().accounts[2].key = key(0x66)),
    ("top_up from the key's account", "token_account", Cast::top_up, |c, d| {
        let ata = turnpike::scheme::svm::associated_token_account(&c.group, &USDC_DEVNET, &TOKEN_PROGRAM);
        d.main().accounts[2].key = ata;
    }),
    ("top_up into the key", "group_key", Cast::top_up, |c, d| d.main().accounts[1].key = c.group),
    ("top_up signed by the key as payer", "signers", Cast::top_up, |c, d| {
        d.main().accounts[0].key = c.group;
        d.instructions[3].accounts.push(AccountMeta::writable(c.payer_key()).signer());
    }),
    ("request_close of the key", "group_key", Cast::request_close, |c, d| d.main().accounts[1].key = c.group),
    ("request_close with a payout", "instruction", Cast::request_close, |c, d| {
        d.instructions.push(c.distribution(SALT));
    }),
    ("withdraw instead of request_close", "instruction", Cast::request_close, |_, d| {
        d.main().data = Call::WithdrawPayer.encode();
    }),
];

const OWN: &[Mutation] = &[
    ("another pays the fee", "fee_payer", |c| c.claim(2), |_, d| d.fee_payer = key(0x55)),
    (
        "a line a unit higher",
        "amount",
        |c| c.claim(2),
        |_, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines[1].cumulative += 1;
        },
    ),
    (
        "a line a unit lower",
        "amount",
        |c| c.claim(2),
        |_, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines[0].cumulative -= 1;
        },
    ),
    (
        "a line of another channel",
        "channel",
        |c| c.claim(2),
        |c, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines[0].channel = c.channel(77);
        },
    ),
    (
        "lines in another order",
        "channel",
        |c| c.claim(2),
        |_, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines.reverse();
        },
    ),
    (
        "a line less",
        "instruction",
        |c| c.claim(2),
        |_, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines.pop();
        },
    ),
    (
        "a line more",
        "instruction",
        |c| c.claim(2),
        |c, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines.push(ClaimLine { channel: c.channel(3), cumulative: 3_000 });
        },
    ),
    ("no lines", "batch", |c| c.claim(1), |_, d| d.body = Body::Claim(Vec::new())),
    (
        "five lines",
        "batch",
        |c| c.claim(4),
        |c, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines.push(ClaimLine { channel: c.channel(5), cumulative: 5_000 });
        },
    ),
    (
        "the same channel twice",
        "channel",
        |c| c.claim(1),
        |_, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines.push(lines[0]);
            let pair = d.instructions[1..].to_vec();
            d.instructions.extend(pair);
        },
    ),
    (
        "above what one signature may claim",
        "amount",
        |c| c.claim(2),
        |c, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines[0].cumulative = CLAIM_MAX - lines[1].cumulative + 1;
            d.instructions[1] = c.voucher(&lines[0].channel, lines[0].cumulative, 0);
        },
    ),
    (
        "a sum beyond any amount",
        "amount",
        |c| c.claim(2),
        |_, d| {
            let Body::Claim(lines) = &mut d.body else { unreachable!() };
            lines[0].cumulative = u64::MAX;
        },
    ),
    ("settle of another channel", "channel", |c| c.claim(2), |c, d| d.instructions[2] = program::settle(c.channel(77))),
    (
        "an expiring voucher",
        "voucher",
        |c| c.claim(1),
        |c, d| {
            d.instructions[1] = c.voucher(&c.channel(1), 1_000, 1_800_000_000);
        },
    ),
    ("a forged voucher", "voucher", |c| c.claim(1), |_, d| d.instructions[1].data[60] ^= 1),
    ("a voucher of other magic", "voucher", |c| c.claim(1), |_, d| d.instructions[1].data[113] = 2),
    ("offsets into another instruction", "voucher", |c| c.claim(1), |_, d| d.instructions[1].data[4] = 0),
    (
        "an Ed25519 instruction with accounts",
        "voucher",
        |c| c.claim(1),
        |_, d| {
            d.instructions[1].accounts.push(AccountMeta::readonly(key(0x66)));
        },
    ),
    ("settle without voucher", "instruction", |c| c.claim(1), |_, d| drop(d.instructions.remove(1))),
    ("voucher without settle", "instruction", |c| c.claim(1), |_, d| drop(d.instructions.pop())),
    (
        "settle_and_seal instead of settle",
        "instruction",
        |c| c.claim(1),
        |c, d| {
            d.instructions[2] = program::settle_and_seal(c.group, c.channel(1), true);
        },
    ),
    (
        "another instructions sysvar",
        "instruction",
        |c| c.claim(1),
        |_, d| d.instructions[2].accounts[1].key = key(0x66),
    ),
    (
        "a transfer from the key",
        "instruction",
        |c| c.claim(1),
        |c, d| {
            d.instructions.push(c.sol_transfer(c.group, key(0x66), 1));
        },
    ),
    ("a memo", "instruction", |c| c.claim(1), |_, d| d.instructions.push(program::memo("x"))),
    (
        "a second signer",
        "signers",
        |c| c.claim(1),
        |_, d| {
            d.instructions[2].accounts[0].is_signer = true;
        },
    ),
    (
        "a limit above the cap",
        "compute_budget",
        |c| c.claim(1),
        |_, d| {
            d.instructions[0] = program::compute_unit_limit(400_001);
        },
    ),
    (
        "a channel that may not change",
        "accounts",
        |c| c.claim(1),
        |_, d| {
            d.instructions[2].accounts[0].is_writable = false;
        },
    ),
    (
        "pays another",
        "pay_to",
        |c| c.distribute(1),
        |c, d| {
            *d.main() = program::distribute(&c.accounts(1), &TREASURY_PLACEHOLDER, &all_to(key(0x66)));
        },
    ),
    ("pays into another's account", "token_account", |c| c.distribute(1), |_, d| d.main().accounts[11].key = key(0x66)),
    (
        "another treasury",
        "token_account",
        |c| c.distribute(1),
        |c, d| {
            *d.main() = program::distribute(&c.accounts(1), &key(0x66), &all_to(pay_to()));
        },
    ),
    ("returns to another's account", "token_account", |c| c.distribute(1), |_, d| d.main().accounts[4].key = key(0x66)),
    ("rent to another", "payee", |c| c.distribute(1), |_, d| d.main().accounts[2].key = key(0x66)),
    (
        "another mint",
        "mint",
        |c| c.distribute(1),
        |c, d| {
            let accounts = program::ChannelAccounts { mint: USDC_MAINNET, ..c.accounts(1) };
            *d.main() = program::distribute(&accounts, &TREASURY_PLACEHOLDER, &all_to(pay_to()));
        },
    ),
    (
        "the key as payer",
        "group_key",
        |c| c.distribute(1),
        |c, d| {
            let accounts = program::ChannelAccounts { payer: c.group, ..c.accounts(1) };
            *d.main() = program::distribute(&accounts, &TREASURY_PLACEHOLDER, &all_to(pay_to()));
        },
    ),
    (
        "another channel",
        "channel",
        |c| c.distribute(2),
        |c, d| {
            d.body = Body::Distribute(vec![c.channel(1), c.channel(3)]);
        },
    ),
    ("a channel less", "instruction", |c| c.distribute(2), |c, d| d.body = Body::Distribute(vec![c.channel(1)])),
    ("nothing at all", "batch", Cast::prepare, |_, d| d.instructions.truncate(1)),
    ("a token account for another", "pay_to", Cast::prepare, |c, d| d.instructions[1] = c.create_account(key(0x66))),
    ("a token account for the payer", "pay_to", Cast::prepare, |c, d| {
        d.instructions[1] = c.create_account(c.payer_key());
    }),
    ("a token account of another mint", "mint", Cast::prepare, |c, d| {
        d.instructions[1] = program::create_ata_idempotent(c.group, pay_to(), USDC_MAINNET, TOKEN_PROGRAM);
    }),
    ("a token account at another address", "token_account", Cast::prepare, |_, d| {
        d.instructions[1].accounts[1].key = key(0x66);
    }),
    ("a creation that fails where there is one", "instruction", Cast::prepare, |_, d| d.instructions[1].data = vec![0]),
    ("five token accounts", "batch", Cast::prepare, |c, d| {
        d.instructions.extend(std::iter::repeat_n(c.create_account(pay_to()), 3));
    }),
    ("a transfer from the key", "instruction", Cast::prepare, |c, d| {
        d.instructions.push(c.sol_transfer(c.group, key(0x66), 1));
    }),
    (
        "closes a unit higher",
        "amount",
        |c| c.close_with_voucher(5_000, 0),
        |c, d| {
            d.body = Body::Close(c.channel(SALT), Some(5_001));
        },
    ),
    (
        "closes without the voucher",
        "amount",
        |c| c.close_with_voucher(5_000, 0),
        |c, d| {
            d.body = Body::Close(c.channel(SALT), None);
        },
    ),
    ("applies no voucher", "amount", Cast::close_without_voucher, |c, d| {
        d.body = Body::Close(c.channel(SALT), Some(5_000));
    }),
    (
        "closes another channel",
        "channel",
        |c| c.close_with_voucher(5_000, 0),
        |c, d| {
            d.body = Body::Close(c.channel(77), Some(5_000));
        },
    ),
    (
        "seals another channel",
        "channel",
        |c| c.close_with_voucher(5_000, 0),
        |c, d| {
            d.instructions[2].accounts[1].key = c.channel(77);
        },
    ),
    (
        "has a voucher and does not apply it",
        "voucher",
        |c| c.close_with_voucher(5_000, 0),
        |_, d| {
            d.instructions[2].data = Call::SettleAndSeal { has_voucher: false }.encode();
        },
    ),
    ("applies a voucher that is not there", "voucher", Cast::close_without_voucher, |_, d| {
        d.instructions[1].data = Call::SettleAndSeal { has_voucher: true }.encode();
    }),
    (
        "a flag that is not canonical",
        "instruction",
        |c| c.close_with_voucher(5_000, 0),
        |_, d| {
            d.instructions[2].data[1] = 2;
        },
    ),
    ("closes above the bound", "amount", |c| c.close_with_voucher(CLAIM_MAX + 1, 0), |_, _| {}),
    ("a voucher that expired before time began", "voucher", |c| c.close_with_voucher(5_000, -1), |_, _| {}),
    ("seals after the grace period and does not pay", "instruction", Cast::seal, |_, d| drop(d.instructions.pop())),
    ("pays another at the close", "pay_to", Cast::close_without_voucher, |c, d| {
        let last = d.instructions.last_mut().unwrap();
        *last = program::distribute(&c.accounts(SALT), &TREASURY_PLACEHOLDER, &all_to(key(0x66)));
    }),
    (
        "settle in the place of the seal",
        "instruction",
        |c| c.close_with_voucher(5_000, 0),
        |c, d| {
            d.instructions[2] = program::settle(c.channel(SALT));
        },
    ),
    ("reclaims to another", "payee", Cast::reclaim, |_, d| d.main().accounts[1].key = key(0x66)),
    ("reclaims another channel", "channel", Cast::reclaim, |c, d| d.main().accounts[0].key = c.channel(77)),
    ("reclaims and transfers", "instruction", Cast::reclaim, |c, d| {
        d.instructions.push(c.sol_transfer(c.group, key(0x66), 1));
    }),
    ("opens a channel", "instruction", Cast::reclaim, |c, d| {
        d.instructions[1] = program::request_close(c.group, c.channel(SALT));
    }),
    (
        "a token approval",
        "instruction",
        |c| c.claim(1),
        |c, d| {
            let accounts = vec![AccountMeta::writable(key(0x66)), AccountMeta::readonly(c.group).signer()];
            d.instructions.push(Instruction {
                program: TOKEN_PROGRAM,
                accounts,
                data: vec![4, 1, 0, 0, 0, 0, 0, 0, 0],
            });
        },
    ),
];

#[test]
fn each_mutation_is_refused_by_its_rule() {
    let c = cast();
    let mut wrong = Vec::new();
    for (name, rule, accepted, mutate) in SPONSORED.iter().chain(OWN) {
        let mut draft = accepted(&c);
        mutate(&c, &mut draft);
        let found = verdict(&c.build(&draft));
        if found != *rule {
            wrong.push(format!("{name}: {found} instead of {rule}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_signature_over_another_message_is_none() {
    let c = cast();
    let SigningRequest::Sponsor { setup, mut transaction } = c.build(&c.open()) else { unreachable!() };
    let other = c.payer.sign(b"something else");
    transaction.set_signature(&c.payer_key(), turnpike::x402::key::Signature(other.to_bytes())).unwrap();
    assert_eq!(verdict(&SigningRequest::Sponsor { setup, transaction }), "payer_signature");
}

/// The transaction with one more account, readable only, which no instruction names.
fn with_account(transaction: &Transaction, account: Key) -> Transaction {
    // The account table begins after one signature slot of 65 bytes, a header of 3 and a count of one byte.
    let mut bytes = transaction.encode();
    let end = 69 + 32 * usize::from(bytes[68]);
    bytes.splice(end..end, account.0);
    bytes[67] += 1;
    bytes[68] += 1;
    Transaction::decode(&bytes).unwrap()
}

#[test]
fn an_account_that_no_instruction_names_does_no_harm_but_none_stands_twice() {
    let c = cast();
    let SigningRequest::Claim { lines, transaction } = c.build(&c.claim(1)) else { unreachable!() };
    let verdict_of = |transaction| verdict(&SigningRequest::Claim { lines: lines.clone(), transaction });
    assert_eq!(verdict_of(with_account(&transaction, key(0x66))), "accepted");
    for twice in transaction.keys() {
        assert_eq!(verdict_of(with_account(&transaction, *twice)), "accounts", "{twice}");
    }
}

#[test]
fn what_is_no_transaction_is_judged_by_its_parts() {
    let c = cast();
    let channel = c.channel(SALT);
    let devnet = || SOLANA_DEVNET.parse().unwrap();
    let voucher =
        |cumulative, deposit, expires_at| SigningRequest::Voucher { channel, cumulative, deposit, expires_at };
    let consent = |network, cumulative, valid_before| SigningRequest::CloseAuthorization {
        network,
        channel,
        cumulative,
        valid_before,
    };
    let table = [
        ("accepted", voucher(5, 10, 1)),
        ("accepted", voucher(10, 10, 1)),
        ("accepted", voucher(0, 10, 1)),
        ("amount", voucher(11, 10, 1)),
        ("amount", voucher(0, 0, 1)),
        ("amount", voucher(5, DEPOSIT_MAX + 1, 1)),
        ("expiry", voucher(5, 10, 0)),
        ("expiry", voucher(5, 10, -1)),
        ("accepted", consent(devnet(), 5, 1)),
        ("network", consent(SOLANA.parse().unwrap(), 5, 1)),
        ("amount", consent(devnet(), CLAIM_MAX + 1, 1)),
        ("expiry", consent(devnet(), 5, 0)),
    ];
    for (expected, request) in table {
        assert_eq!(verdict(&request), expected, "{request:?}");
    }
    let bytes = judge().judge(&voucher(5, 10, 77)).unwrap();
    assert_eq!(bytes.as_bytes(), program::voucher_message(&channel, 5, 77));
    let bytes = judge().judge(&consent(devnet(), 5, 77)).unwrap();
    assert_eq!(bytes.as_bytes(), program::close_digest(SOLANA_DEVNET, &c.group, &channel, 5, 0, 77));
}

#[test]
fn a_kind_that_is_switched_off_is_refused_first() {
    let c = cast();
    let requests = [
        c.build(&c.open()),
        c.build(&c.top_up()),
        c.build(&c.request_close()),
        c.build(&c.claim(1)),
        c.build(&c.distribute(1)),
        c.build(&c.close_without_voucher()),
        SigningRequest::Voucher { channel: c.channel(1), cumulative: 1, deposit: 1, expires_at: 1 },
        SigningRequest::CloseAuthorization {
            network: SOLANA_DEVNET.parse().unwrap(),
            channel: c.channel(1),
            cumulative: 1,
            valid_before: 1,
        },
        SigningRequest::AuditCheckpoint(Checkpoint {
            record: RecordId([1; 16]),
            head: Position::default(),
            time: UnixMillis(1),
        }),
    ];
    assert_eq!(requests.iter().map(SigningRequest::kind).collect::<Vec<_>>(), KINDS);
    for request in requests {
        let kinds = KINDS.into_iter().filter(|kind| *kind != request.kind()).collect();
        let strict = Judge::new(turnpike::signer::rules::Rules { kinds, ..rules() }, c.group);
        assert!(matches!(strict.judge(&request), Err(SignerError::Refused { rule: "kind", .. })));
        assert_eq!(verdict(&request), "accepted");
    }
}

#[test]
fn the_policy_approves_what_the_books_and_caps_allow() {
    let c = cast();
    let cap = Amount::from(DEPOSIT);
    let policy = Policy { pay_to: vec![pay_to()], claim_cap: cap, deposit_cap: cap };
    let claim = || c.build(&c.claim(2));
    let approved = policy.approve(claim(), Amount::new(3_000)).unwrap();
    assert_eq!(approved.request().kind(), "claim");
    assert_eq!(verdict(&approved.into_request()), "accepted");
    assert!(policy.approve(c.build(&c.open()), Amount::ZERO).is_ok());
    assert!(policy.approve(c.build(&c.distribute(2)), cap).is_ok());

    let refusal = |request, moving| policy.approve(request, Amount::new(moving)).unwrap_err();
    let moving = cap.checked_add(Amount::new(1)).unwrap();
    assert_eq!(refusal(claim(), moving.get()), PolicyError::ClaimCap { moving, cap });
    assert!(matches!(refusal(c.build(&c.claim(1)), 1_001), PolicyError::Books { .. }));
    let mut other = c.distribute(1);
    *other.main() = program::distribute(&c.accounts(1), &TREASURY_PLACEHOLDER, &all_to(key(0x66)));
    assert_eq!(refusal(c.build(&other), 1), PolicyError::Recipient(key(0x66)));
    let mut split = c.open();
    set_call(split.main(), |call| {
        let Call::Open { recipients, .. } = call else { unreachable!() };
        recipients[0].bps = 1;
    });
    assert_eq!(refusal(c.build(&split), 0), PolicyError::Distribution);
    let one_less = Amount::from(DEPOSIT - 1);
    for large in [c.open(), c.top_up()] {
        let policy = Policy { deposit_cap: one_less, ..policy.clone() };
        let refused = policy.approve(c.build(&large), Amount::ZERO).unwrap_err();
        assert_eq!(refused, PolicyError::DepositCap { deposit: cap, cap: one_less });
    }
    assert_eq!(policy.admit_deposit(Amount::new(1), cap), Ok(()));
    assert_eq!(
        policy.admit_deposit(Amount::new(1), moving).unwrap_err(),
        PolicyError::ChannelCap { deposit: moving, cap }
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No byte of a transaction of ours can be changed without a refusal, except in the blockhash and the fee's price.
    #[test]
    fn no_changed_byte_of_a_claim_passes(position in 65_usize..520, bit in 0_u8..8) {
        let c = cast();
        let SigningRequest::Claim { lines, transaction } = c.build(&c.claim(1)) else { unreachable!() };
        let mut bytes = transaction.encode();
        prop_assume!(position < bytes.len());
        bytes[position] ^= 1 << bit;
        if let Ok(changed) = Transaction::decode(&bytes) {
            let same_but_blockhash = changed.instructions() == transaction.instructions();
            let limit = changed.instructions().first().map(|first| first.program) == Some(COMPUTE_BUDGET_PROGRAM);
            let request = SigningRequest::Claim { lines, transaction: changed };
            let accepted = verdict(&request) == "accepted";
            let SigningRequest::Claim { transaction: changed, .. } = request else { unreachable!() };
            let rest = |transaction: &Transaction| transaction.instructions().split_off(1);
            prop_assert!(!accepted || same_but_blockhash || (limit && rest(&changed) == rest(&transaction)));
        }
    }

    /// Whatever a client's transaction holds, judging it ends in a verdict.
    #[test]
    fn judging_never_panics(
        programs in proptest::collection::vec((0_usize..8, proptest::collection::vec(any::<u8>(), 0..80), 0_usize..15), 0..6),
    ) {
        let known = [
            PAYMENT_CHANNELS,
            ED25519_PROGRAM,
            COMPUTE_BUDGET_PROGRAM,
            ATA_PROGRAM,
            MEMO_PROGRAM,
            LIGHTHOUSE_PROGRAM,
            SYSTEM_PROGRAM,
            TOKEN_PROGRAM,
        ];
        let c = cast();
        let instructions: Vec<_> = programs
            .into_iter()
            .map(|(index, data, accounts)| Instruction {
                program: known[index],
                accounts: vec![AccountMeta::writable(c.channel(1)); accounts],
                data,
            })
            .collect();
        if let Ok(transaction) = Transaction::build(c.group, &instructions, [1; 32]) {
            let channel = c.channel(1);
            for request in [
                SigningRequest::Sponsor { setup: Setup::TopUp, transaction: transaction.clone() },
                SigningRequest::Claim { lines: vec![ClaimLine { channel, cumulative: 1 }], transaction: transaction.clone() },
                SigningRequest::Distribute { channels: vec![channel], transaction: transaction.clone() },
                SigningRequest::Close { channel, cumulative: None, transaction },
            ] {
                prop_assert_ne!(verdict(&request), "accepted");
            }
        }
    }
}

/// The support's key material is real: the payer's key verifies what it signs.
#[test]
fn the_channel_address_is_the_one_that_its_terms_derive() {
    let c = cast();
    let payer = SigningKey::from_bytes(&[0x11; 32]);
    assert_eq!(c.payer_key(), Key(payer.verifying_key().to_bytes()));
    let derived = program::channel_address(&c.payer_key(), &c.group, &USDC_DEVNET, &c.payer_key(), SALT, OPEN_SLOT);
    assert_eq!(c.channel(SALT), derived.0);
}
