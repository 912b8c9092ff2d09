//! The acceptance policy, rule by rule: one mutation of a valid transaction for each, signed again by the payer, so
//! that the rule itself refuses and not the broken signature.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

use std::sync::Arc;

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use turnpike::amount::{Amount, Asset};
use turnpike::ledger::channel::{Seller, Terms};
use turnpike::scheme::svm::acceptance::{AcceptanceRequest, Accepted, Form, Rejected, accept, decode};
use turnpike::scheme::svm::program::{self, Call, Share};
use turnpike::scheme::svm::transaction::{AccountMeta, Instruction, Transaction};
use turnpike::scheme::svm::{
    ATA_PROGRAM, COMPUTE_BUDGET_PROGRAM, LIGHTHOUSE_PROGRAM, MEMO_PROGRAM, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM,
    TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET, associated_token_account,
};
use turnpike::x402::key::Signature;
use turnpike::x402::{Key, Reason, network};

const DEPOSIT: u64 = 250_000;
const NONCE: &str = "00112233445566778899aabbccddeeff";
const BLOCKHASH: [u8; 32] = [7; 32];

fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> Key {
    Key(signing_key(seed).verifying_key().to_bytes())
}

const PAYER: u8 = 1;
const FEE_PAYER: u8 = 2;
const AUTHORIZER: u8 = 3;
const STRANGER: u8 = 9;

fn seller() -> Arc<Seller> {
    Arc::new(Seller {
        network: network::SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: public(4),
        fee_payer: public(FEE_PAYER),
        receiver_authorizer: public(FEE_PAYER),
        withdraw_delay: 3_600,
        treasury_owner: TREASURY_PLACEHOLDER,
    })
}

fn open_call(terms: &Terms) -> Call {
    Call::Open {
        salt: terms.salt,
        deposit: DEPOSIT,
        grace_period: terms.seller.withdraw_delay,
        open_slot: terms.open_slot,
        recipients: program::all_to(terms.seller.pay_to).to_vec(),
    }
}

fn binding(terms: &Terms) -> Instruction {
    program::memo(&program::receiver_authorizer_memo(&terms.seller.receiver_authorizer))
}

fn lighthouse(accounts: Vec<AccountMeta>) -> Instruction {
    Instruction { program: LIGHTHOUSE_PROGRAM, accounts, data: vec![1, 2, 3] }
}

/// A transaction that is being made: what a table's row may change before the payer signs.
#[derive(Clone)]
struct Draft {
    terms: Terms,
    form: Form,
    memo: Option<String>,
    fee_payer: Key,
    instructions: Vec<Instruction>,
    /// Where the payment-channels instruction stands.
    main: usize,
    signer: u8,
    /// Changes the signed message's bytes.
    bytes: Option<fn(&mut Vec<u8>)>,
}

impl Draft {
    fn new(form: Form) -> Self {
        let authorizer = if matches!(form, Form::UptoOpen { .. }) { FEE_PAYER } else { AUTHORIZER };
        let terms = Terms::derive(seller(), public(PAYER), public(authorizer), 42, 341_000_000);
        let accounts = terms.accounts();
        let main = match form {
            Form::BatchOpen { .. } | Form::UptoOpen { .. } => {
                program::open(&accounts, terms.authorizer, &open_call(&terms))
            }
            Form::BatchTopUp { .. } => program::top_up(&accounts, DEPOSIT),
            Form::BatchRequestClose => program::request_close(terms.payer, terms.id),
        };
        let mut instructions =
            vec![program::compute_unit_limit(200_000), program::compute_unit_price(1_000), main, program::memo(NONCE)];
        if matches!(form, Form::BatchOpen { .. }) {
            instructions.push(binding(&terms));
        }
        Self {
            fee_payer: terms.seller.fee_payer,
            terms,
            form,
            memo: None,
            instructions,
            main: 2,
            signer: PAYER,
            bytes: None,
        }
    }

    fn transaction(&self) -> Result<Transaction, String> {
        let built = Transaction::build(self.fee_payer, &self.instructions, BLOCKHASH).map_err(|e| e.to_string())?;
        let mut message = built.message().to_vec();
        if let Some(change) = self.bytes {
            change(&mut message);
        }
        let position = built.required_signers().iter().position(|key| *key == public(self.signer));
        let mut wire = vec![u8::try_from(built.required_signers().len()).unwrap()];
        for slot in 0..built.required_signers().len() {
            let signature = (Some(slot) == position).then(|| signing_key(self.signer).sign(&message).to_bytes());
            wire.extend(signature.unwrap_or([0; 64]));
        }
        wire.extend(message);
        Transaction::decode(&wire).map_err(|error| error.to_string())
    }

    fn accept(&self) -> Result<Accepted, Rejected> {
        let transaction = self.transaction().map_err(|detail| Rejected { reason: Reason::InvalidPayload, detail })?;
        accept(&AcceptanceRequest {
            transaction: &transaction,
            terms: &self.terms,
            form: self.form,
            memo: self.memo.as_deref(),
        })
    }

    fn main(&mut self) -> &mut Instruction {
        &mut self.instructions[self.main]
    }

    fn set_call(&mut self, change: impl FnOnce(&mut Call)) {
        let mut call = Call::decode(&self.main().data).unwrap();
        change(&mut call);
        self.main().data = call.encode();
    }
}

const BATCH_OPEN: Form = Form::BatchOpen { deposit: Amount::new(250_000) };
const TOP_UP: Form = Form::BatchTopUp { amount: Amount::new(250_000) };
const CLOSE: Form = Form::BatchRequestClose;
const UPTO: Form = Form::UptoOpen { deposit: Amount::new(250_000) };

#[test]
fn the_canonical_transactions_are_accepted() {
    for form in [BATCH_OPEN, TOP_UP, CLOSE, UPTO] {
        let accepted = Draft::new(form).accept().unwrap_or_else(|error| panic!("{form:?}: {error}"));
        assert_eq!(accepted.fee_lamports(), 10_000 + 200, "two signatures and 200,000 units at 1,000 micro-lamports");
    }
}

#[test]
fn every_allowed_variant_is_accepted() {
    type Change = fn(&mut Draft);
    let rows: &[(&str, Form, Change)] = &[
        ("no compute budget", BATCH_OPEN, |d| {
            d.instructions.drain(..2);
        }),
        ("a limit alone", BATCH_OPEN, |d| {
            d.instructions.remove(1);
        }),
        ("a price alone", BATCH_OPEN, |d| {
            d.instructions.remove(0);
        }),
        ("the highest compute budget", BATCH_OPEN, |d| {
            d.instructions[0] = program::compute_unit_limit(400_000);
            d.instructions[1] = program::compute_unit_price(5_000_000);
        }),
        ("memos in the other order", BATCH_OPEN, |d| d.instructions.swap(3, 4)),
        ("three Lighthouse assertions", BATCH_OPEN, |d| {
            let payer = AccountMeta::readonly(d.terms.payer).signer();
            d.instructions.extend([lighthouse(vec![]), lighthouse(vec![payer]), lighthouse(vec![])]);
        }),
        ("the seller's memo", BATCH_OPEN, |d| {
            d.memo = Some("invoice-123".into());
            d.instructions[3] = program::memo("invoice-123");
        }),
        ("a version 0 message without lookups", BATCH_OPEN, |d| {
            d.bytes = Some(|message| {
                message.insert(0, 0x80);
                message.push(0);
            });
        }),
        ("a Token-2022 mint", BATCH_OPEN, |d| {
            let mut seller = (*d.terms.seller).clone();
            seller.token_program = TOKEN_2022_PROGRAM;
            d.terms.seller = Arc::new(seller);
            *d.main() = program::open(&d.terms.accounts(), d.terms.authorizer, &open_call(&d.terms));
        }),
        ("the payer signs vouchers itself", BATCH_OPEN, |d| {
            d.terms = Terms::derive(seller(), public(PAYER), public(PAYER), 42, 341_000_000);
            *d.main() = program::open(&d.terms.accounts(), d.terms.authorizer, &open_call(&d.terms));
        }),
        ("the seller's memo on a top-up", TOP_UP, |d| {
            d.memo = Some("order 7".into());
            d.instructions[3] = program::memo("order 7");
        }),
        ("a close without a memo", CLOSE, |d| {
            d.instructions.pop();
            d.memo = Some("invoice-123".into());
        }),
        ("an upto open without a memo", UPTO, |d| {
            d.instructions.pop();
        }),
        ("an upto open with the seller's memo", UPTO, |d| {
            d.memo = Some("invoice-123".into());
            d.instructions[3] = program::memo("invoice-123");
            d.instructions.extend([lighthouse(vec![]), lighthouse(vec![]), lighthouse(vec![])]);
        }),
    ];
    for (name, form, change) in rows {
        let mut draft = Draft::new(*form);
        change(&mut draft);
        if let Err(error) = draft.accept() {
            panic!("{name}: {error}");
        }
    }
}

struct Row {
    rule: &'static str,
    form: Form,
    change: fn(&mut Draft),
    reason: Reason,
    says: &'static str,
}

const fn row(rule: &'static str, form: Form, change: fn(&mut Draft), reason: Reason, says: &'static str) -> Row {
    Row { rule, form, change, reason, says }
}

const SETUP: Reason = Reason::BatchSetupTransaction;
const UPTO_OPEN: Reason = Reason::UptoOpenTransaction;
const REFUND: Reason = Reason::BatchRefundTransaction;

/// "Message and signer rules".
const MESSAGE_ROWS: &[Row] = &[
    row(
        "lookup tables",
        BATCH_OPEN,
        |d| {
            d.bytes = Some(|message| {
                message.insert(0, 0x80);
                message.push(1);
                message.extend([5; 32]);
                message.extend([1, 0, 0]);
            });
        },
        Reason::InvalidPayload,
        "lookup tables",
    ),
    row("another fee payer", BATCH_OPEN, |d| d.fee_payer = public(STRANGER), SETUP, "the fee payer is"),
    row("the payer pays the fee", TOP_UP, |d| d.fee_payer = d.terms.payer, SETUP, "the fee payer is"),
    row(
        "a third signer",
        BATCH_OPEN,
        |d| {
            let account = AccountMeta::readonly(public(STRANGER)).signer();
            d.instructions.push(lighthouse(vec![account]));
        },
        SETUP,
        "required signers",
    ),
    row(
        "a third signer of a memo",
        UPTO,
        |d| {
            d.instructions[3].accounts.push(AccountMeta::readonly(public(STRANGER)).signer());
        },
        UPTO_OPEN,
        "required signers",
    ),
    row(
        "another payer signs",
        CLOSE,
        |d| {
            d.instructions[2] = program::request_close(public(STRANGER), d.terms.id);
            d.signer = STRANGER;
        },
        REFUND,
        "required signers",
    ),
    row("the payer has not signed", BATCH_OPEN, |d| d.signer = STRANGER, SETUP, "has not signed"),
    row(
        "the payer is the fee payer",
        UPTO,
        |d| {
            d.terms = Terms::derive(seller(), public(FEE_PAYER), public(FEE_PAYER), 42, 341_000_000);
            *d.main() = program::open(&d.terms.accounts(), d.terms.authorizer, &open_call(&d.terms));
            d.signer = FEE_PAYER;
        },
        UPTO_OPEN,
        "required signers",
    ),
    row(
        "the fee payer signs vouchers",
        BATCH_OPEN,
        |d| {
            d.terms = Terms::derive(seller(), public(PAYER), public(FEE_PAYER), 42, 341_000_000);
            *d.main() = program::open(&d.terms.accounts(), d.terms.authorizer, &open_call(&d.terms));
        },
        Reason::BatchFeePayerMismatch,
        "payerAuthorizer",
    ),
    row(
        "the fee payer in a memo",
        BATCH_OPEN,
        |d| {
            let account = AccountMeta::writable(d.fee_payer).signer();
            d.instructions[3].accounts.push(account);
        },
        SETUP,
        "names the fee payer",
    ),
    row(
        "the fee payer in a Lighthouse assertion",
        TOP_UP,
        |d| {
            let account = AccountMeta::readonly(d.fee_payer);
            d.instructions.push(lighthouse(vec![account]));
        },
        SETUP,
        "names the fee payer",
    ),
    row(
        "the fee payer in the compute budget",
        UPTO,
        |d| {
            let account = AccountMeta::readonly(d.fee_payer);
            d.instructions[0].accounts.push(account);
        },
        UPTO_OPEN,
        "names the fee payer",
    ),
    row(
        "an account twice in the message",
        CLOSE,
        |d| {
            // The last key becomes a copy of the one before: both are read-only programs.
            d.bytes = Some(|message| {
                let count = usize::from(message[3]);
                let end = 4 + 32 * count;
                message.copy_within(end - 64..end - 32, end - 32);
            });
        },
        REFUND,
        "twice",
    ),
];

/// "Top-level instruction layout".
const LAYOUT_ROWS: &[Row] = &[
    row("no instruction", CLOSE, |d| d.instructions.truncate(2), REFUND, "signers"),
    row(
        "nothing but a memo that the payer signs",
        CLOSE,
        |d| {
            let account = AccountMeta::readonly(d.terms.payer).signer();
            d.instructions.truncate(2);
            d.instructions.push(program::memo(NONCE));
            d.instructions[2].accounts.push(account);
        },
        REFUND,
        "where payment-channels must",
    ),
    row("a limit twice", BATCH_OPEN, |d| d.instructions[1] = program::compute_unit_limit(1), SETUP, "repeated"),
    row("a price twice", BATCH_OPEN, |d| d.instructions[0] = program::compute_unit_price(1), SETUP, "repeated"),
    row("the price before the limit", UPTO, |d| d.instructions.swap(0, 1), UPTO_OPEN, "follows its price"),
    row(
        "a limit of four bytes",
        BATCH_OPEN,
        |d| {
            d.instructions[0].data.pop();
        },
        SETUP,
        "exactly 5 bytes",
    ),
    row("a limit of six bytes", BATCH_OPEN, |d| d.instructions[0].data.push(0), SETUP, "exactly 5 bytes"),
    row(
        "a price of eight bytes",
        TOP_UP,
        |d| {
            d.instructions[1].data.pop();
        },
        SETUP,
        "exactly 9 bytes",
    ),
    row(
        "another compute budget call",
        UPTO,
        |d| {
            d.instructions[0] =
                Instruction { program: COMPUTE_BUDGET_PROGRAM, accounts: vec![], data: vec![1, 0, 0, 1, 0] };
        },
        UPTO_OPEN,
        "only SetComputeUnitLimit",
    ),
    row("an empty compute budget call", CLOSE, |d| d.instructions[0].data.clear(), REFUND, "only SetComputeUnitLimit"),
    row(
        "too many compute units",
        BATCH_OPEN,
        |d| {
            d.instructions[0] = program::compute_unit_limit(400_001);
        },
        SETUP,
        "limit is above",
    ),
    row(
        "too high a price",
        CLOSE,
        |d| d.instructions[1] = program::compute_unit_price(5_000_001),
        REFUND,
        "price is above",
    ),
    row(
        "a high price without a limit",
        BATCH_OPEN,
        |d| {
            d.instructions[1] = program::compute_unit_price(5_000_000);
            d.instructions.remove(0);
        },
        SETUP,
        "priority fee",
    ),
    row(
        "compute budget after the instruction",
        TOP_UP,
        |d| {
            let budget = d.instructions.remove(1);
            d.instructions.push(budget);
        },
        SETUP,
        "not allowed after",
    ),
    row(
        "Lighthouse before the instruction",
        UPTO,
        |d| d.instructions.insert(2, lighthouse(vec![])),
        UPTO_OPEN,
        "where payment-channels must",
    ),
    row(
        "a token account is created",
        BATCH_OPEN,
        |d| {
            let (payer, mint) = (d.terms.payer, d.terms.seller.mint);
            d.instructions.push(program::create_ata_idempotent(payer, d.terms.seller.pay_to, mint, TOKEN_PROGRAM));
        },
        SETUP,
        "not allowed after",
    ),
    row(
        "lamports are moved",
        UPTO,
        |d| {
            let (from, to) = (AccountMeta::writable(d.terms.payer).signer(), AccountMeta::writable(public(STRANGER)));
            d.instructions.push(Instruction { program: SYSTEM_PROGRAM, accounts: vec![from, to], data: vec![2; 12] });
        },
        UPTO_OPEN,
        "not allowed after",
    ),
    row(
        "a wallet's own program",
        BATCH_OPEN,
        |d| {
            d.instructions.push(Instruction { program: public(STRANGER), accounts: vec![], data: vec![] });
        },
        SETUP,
        "not allowed after",
    ),
    row(
        "open twice",
        UPTO,
        |d| {
            let again = d.instructions[2].clone();
            d.instructions.push(again);
        },
        UPTO_OPEN,
        "not allowed after",
    ),
    row(
        "a close after an open",
        BATCH_OPEN,
        |d| {
            d.instructions.push(program::request_close(d.terms.payer, d.terms.id));
        },
        SETUP,
        "not allowed after",
    ),
    row(
        "four Lighthouse assertions",
        TOP_UP,
        |d| d.instructions.extend(vec![lighthouse(vec![]); 4]),
        SETUP,
        "more than 3",
    ),
    row(
        "four Lighthouse assertions and no memo",
        UPTO,
        |d| {
            d.instructions.pop();
            d.instructions.extend(vec![lighthouse(vec![]); 4]);
        },
        UPTO_OPEN,
        "more than 3",
    ),
    row(
        "five after an upto open",
        UPTO,
        |d| {
            d.instructions.push(program::memo(NONCE));
            d.instructions.extend(vec![lighthouse(vec![]); 3]);
        },
        UPTO_OPEN,
        "more than 4",
    ),
];

/// The memo rules.
const MEMO_ROWS: &[Row] = &[
    row(
        "no memo",
        TOP_UP,
        |d| {
            d.instructions.pop();
        },
        SETUP,
        "0 memos",
    ),
    row("two memos", TOP_UP, |d| d.instructions.push(program::memo(NONCE)), SETUP, "2 memos"),
    row(
        "no memo beside the binding",
        BATCH_OPEN,
        |d| {
            d.instructions.remove(3);
        },
        SETUP,
        "0 memos",
    ),
    row("two memos beside the binding", BATCH_OPEN, |d| d.instructions.push(program::memo(NONCE)), SETUP, "2 memos"),
    row("two bindings", BATCH_OPEN, |d| d.instructions[3] = binding(&d.terms), SETUP, "nonce"),
    row(
        "no binding",
        BATCH_OPEN,
        |d| {
            d.instructions.pop();
        },
        SETUP,
        "no memo that binds",
    ),
    row(
        "a binding of another key",
        BATCH_OPEN,
        |d| {
            d.instructions[4] = program::memo(&program::receiver_authorizer_memo(&public(STRANGER)));
        },
        Reason::BatchReceiverAuthorizerMismatch,
        "another receiver authorizer",
    ),
    row(
        "a binding with a trailing space",
        BATCH_OPEN,
        |d| d.instructions[4].data.push(b' '),
        Reason::BatchReceiverAuthorizerMismatch,
        "another receiver authorizer",
    ),
    row("a binding on a top-up", TOP_UP, |d| d.instructions[3] = binding(&d.terms), SETUP, "nonce"),
    row("a nonce of 15 bytes", BATCH_OPEN, |d| d.instructions[3] = program::memo(&NONCE[2..]), SETUP, "nonce"),
    row("a nonce of half a byte more", TOP_UP, |d| d.instructions[3].data.push(b'0'), SETUP, "nonce"),
    row("a nonce that is no hexadecimal", BATCH_OPEN, |d| d.instructions[3].data[0] = b'g', SETUP, "nonce"),
    row("another memo than the seller's", BATCH_OPEN, |d| d.memo = Some("invoice-123".into()), SETUP, "the seller's"),
    row(
        "another memo than the seller's on a top-up",
        TOP_UP,
        |d| d.memo = Some(NONCE.to_uppercase()),
        SETUP,
        "the seller's",
    ),
    row("another memo than the seller's on a close", CLOSE, |d| d.memo = Some("x".into()), REFUND, "the seller's"),
    row("two memos on a close", CLOSE, |d| d.instructions.push(program::memo(NONCE)), REFUND, "more than one memo"),
    row(
        "the seller's memo is missing on upto",
        UPTO,
        |d| {
            d.memo = Some("invoice-123".into());
            d.instructions.pop();
        },
        UPTO_OPEN,
        "0 memos",
    ),
    row(
        "another memo than the seller's on upto",
        UPTO,
        |d| d.memo = Some("invoice-123".into()),
        UPTO_OPEN,
        "the seller's",
    ),
    row(
        "the seller's memo twice on upto",
        UPTO,
        |d| {
            d.memo = Some(NONCE.into());
            d.instructions.push(program::memo(NONCE));
        },
        UPTO_OPEN,
        "2 memos",
    ),
];

/// Replaces the account at `position` of the payment-channels instruction.
fn put(draft: &mut Draft, position: usize, key: Key) {
    draft.main().accounts[position].key = key;
}

/// "Canonical `open`", "Canonical `top_up`", "Canonical refund `request_close`": accounts and privileges.
const ACCOUNT_ROWS: &[Row] = &[
    row(
        "rent payer",
        BATCH_OPEN,
        |d| {
            put(d, 1, d.terms.payer);
            d.instructions.push(lighthouse(vec![]));
        },
        Reason::BatchFeePayerMismatch,
        "rent_payer",
    ),
    row("payee", BATCH_OPEN, |d| put(d, 2, d.terms.seller.pay_to), Reason::BatchFeePayerMismatch, "payee"),
    row("payee of upto", UPTO, |d| put(d, 2, d.terms.seller.pay_to), UPTO_OPEN, "payee"),
    row("mint", BATCH_OPEN, |d| put(d, 3, public(STRANGER)), SETUP, "mint"),
    row("authorized signer", BATCH_OPEN, |d| put(d, 4, public(STRANGER)), SETUP, "authorized_signer"),
    row("authorized signer of upto", UPTO, |d| put(d, 4, d.terms.payer), UPTO_OPEN, "authorized_signer"),
    row("channel", BATCH_OPEN, |d| put(d, 5, public(STRANGER)), Reason::BatchChannelIdMismatch, "channel"),
    row("payer's token account", BATCH_OPEN, |d| put(d, 6, public(STRANGER)), SETUP, "payer_token_account"),
    row(
        "payer's token account of the other program",
        BATCH_OPEN,
        |d| {
            let other = associated_token_account(&d.terms.payer, &d.terms.seller.mint, &TOKEN_2022_PROGRAM);
            put(d, 6, other);
        },
        SETUP,
        "payer_token_account",
    ),
    row("escrow", UPTO, |d| put(d, 7, public(STRANGER)), UPTO_OPEN, "channel_token_account"),
    row("token program", BATCH_OPEN, |d| put(d, 8, TOKEN_2022_PROGRAM), Reason::BatchTokenProgram, "token_program"),
    row("system program", BATCH_OPEN, |d| put(d, 9, public(STRANGER)), SETUP, "system_program"),
    row("rent sysvar", BATCH_OPEN, |d| put(d, 10, public(STRANGER)), SETUP, "rent"),
    row("associated token program", UPTO, |d| put(d, 11, public(STRANGER)), UPTO_OPEN, "associated_token_program"),
    row("event authority", BATCH_OPEN, |d| put(d, 12, public(STRANGER)), SETUP, "event_authority"),
    row("self program", BATCH_OPEN, |d| put(d, 13, ATA_PROGRAM), SETUP, "self_program"),
    row(
        "an account too many",
        BATCH_OPEN,
        |d| {
            d.main().accounts.push(AccountMeta::readonly(MEMO_PROGRAM));
        },
        SETUP,
        "15 accounts",
    ),
    row(
        "an account too few",
        UPTO,
        |d| {
            d.main().accounts.pop();
        },
        UPTO_OPEN,
        "13 accounts",
    ),
    row("the channel is not writable", BATCH_OPEN, |d| d.main().accounts[5].is_writable = false, SETUP, "not writable"),
    row("the payer is not writable", BATCH_OPEN, |d| d.main().accounts[0].is_writable = false, SETUP, "not writable"),
    row("the mint is writable", BATCH_OPEN, |d| d.main().accounts[3].is_writable = true, SETUP, "is writable"),
    row("the authorizer is writable", BATCH_OPEN, |d| d.main().accounts[4].is_writable = true, SETUP, "is writable"),
    row("the authorizer signs", BATCH_OPEN, |d| d.main().accounts[4].is_signer = true, SETUP, "required signers"),
    row(
        "a stranger is writable in Lighthouse",
        UPTO,
        |d| {
            d.instructions.push(lighthouse(vec![AccountMeta::writable(public(STRANGER))]));
        },
        UPTO_OPEN,
        "is writable",
    ),
    row("a program is writable", TOP_UP, |d| d.main().accounts[5].is_writable = true, SETUP, "is writable"),
    row("top_up's channel", TOP_UP, |d| put(d, 1, public(STRANGER)), Reason::BatchChannelIdMismatch, "channel"),
    row("top_up's source", TOP_UP, |d| put(d, 2, public(STRANGER)), SETUP, "payer_token_account"),
    row("top_up's escrow", TOP_UP, |d| put(d, 3, public(STRANGER)), SETUP, "channel_token_account"),
    row("top_up's mint", TOP_UP, |d| put(d, 4, public(STRANGER)), SETUP, "mint"),
    row(
        "top_up's token program",
        TOP_UP,
        |d| put(d, 5, TOKEN_2022_PROGRAM),
        Reason::BatchTokenProgram,
        "token_program",
    ),
    row(
        "the fee payer in a top_up",
        TOP_UP,
        |d| {
            let account = AccountMeta::readonly(d.fee_payer);
            d.main().accounts.push(account);
        },
        SETUP,
        "7 accounts",
    ),
    row("a close of another channel", CLOSE, |d| put(d, 1, public(STRANGER)), REFUND, "channel"),
    row("a close with a writable payer", CLOSE, |d| d.main().accounts[0].is_writable = true, REFUND, "is writable"),
    row(
        "a close with a third account",
        CLOSE,
        |d| {
            d.main().accounts.push(AccountMeta::readonly(MEMO_PROGRAM));
        },
        REFUND,
        "3 accounts",
    ),
];

/// The data of the canonical instructions.
const DATA_ROWS: &[Row] = &[
    row(
        "top_up where open is due",
        BATCH_OPEN,
        |d| {
            let accounts = d.terms.accounts();
            *d.main() = program::top_up(&accounts, DEPOSIT);
        },
        SETUP,
        "not `open`",
    ),
    row(
        "open where top_up is due",
        TOP_UP,
        |d| {
            let (accounts, call) = (d.terms.accounts(), open_call(&d.terms));
            *d.main() = program::open(&accounts, d.terms.authorizer, &call);
        },
        SETUP,
        "not `top_up`",
    ),
    row(
        "withdraw_payer where request_close is due",
        CLOSE,
        |d| d.main().data = Call::WithdrawPayer.encode(),
        REFUND,
        "not `request_close`",
    ),
    row("empty data", UPTO, |d| d.main().data.clear(), UPTO_OPEN, "not `open`"),
    row(
        "truncated data",
        BATCH_OPEN,
        |d| {
            d.main().data.pop();
        },
        SETUP,
        "truncated",
    ),
    row("a trailing byte", UPTO, |d| d.main().data.push(0), UPTO_OPEN, "trailing"),
    row("a trailing byte in top_up", TOP_UP, |d| d.main().data.push(0), SETUP, "trailing"),
    row("a trailing byte in request_close", CLOSE, |d| d.main().data.push(0), REFUND, "trailing"),
    row(
        "another deposit",
        BATCH_OPEN,
        |d| d.form = Form::BatchOpen { deposit: Amount::new(250_001) },
        SETUP,
        "moves 250000",
    ),
    row(
        "more deposit than the ceiling",
        UPTO,
        |d| d.form = Form::UptoOpen { deposit: Amount::new(249_999) },
        UPTO_OPEN,
        "moves 250000",
    ),
    row(
        "a deposit beyond 64 bits",
        TOP_UP,
        |d| {
            d.form = Form::BatchTopUp { amount: Amount::new(u128::from(u64::MAX) + 1 + 250_000) };
        },
        SETUP,
        "moves 250000",
    ),
    row("another top-up", TOP_UP, |d| d.set_call(|call| *call = Call::TopUp { amount: 1 }), SETUP, "moves 1,"),
    row(
        "a deposit of zero",
        UPTO,
        |d| {
            d.form = Form::UptoOpen { deposit: Amount::ZERO };
            d.set_call(|call| {
                if let Call::Open { deposit, .. } = call {
                    *deposit = 0;
                }
            });
        },
        UPTO_OPEN,
        "zero",
    ),
    row(
        "another salt",
        BATCH_OPEN,
        |d| {
            d.set_call(|call| {
                if let Call::Open { salt, .. } = call {
                    *salt += 1;
                }
            })
        },
        SETUP,
        "salt",
    ),
    row(
        "another grace period",
        BATCH_OPEN,
        |d| {
            d.set_call(|call| {
                if let Call::Open { grace_period, .. } = call {
                    *grace_period -= 1;
                }
            })
        },
        Reason::BatchWithdrawDelayMismatch,
        "grace period",
    ),
    row(
        "another grace period of upto",
        UPTO,
        |d| {
            d.set_call(|call| {
                if let Call::Open { grace_period, .. } = call {
                    *grace_period -= 1;
                }
            })
        },
        UPTO_OPEN,
        "grace period",
    ),
    row(
        "another open slot",
        BATCH_OPEN,
        |d| {
            d.set_call(|call| {
                if let Call::Open { open_slot, .. } = call {
                    *open_slot += 1;
                }
            })
        },
        SETUP,
        "open slot",
    ),
    row(
        "another recipient",
        BATCH_OPEN,
        |d| {
            let stranger = public(STRANGER);
            d.set_call(|call| {
                if let Call::Open { recipients, .. } = call {
                    recipients[0].recipient = stranger;
                }
            });
        },
        SETUP,
        "distribution",
    ),
    row(
        "a smaller share",
        UPTO,
        |d| {
            d.set_call(|call| {
                if let Call::Open { recipients, .. } = call {
                    recipients[0].bps = 9_999;
                }
            })
        },
        UPTO_OPEN,
        "distribution",
    ),
    row(
        "no recipient",
        BATCH_OPEN,
        |d| {
            d.set_call(|call| {
                if let Call::Open { recipients, .. } = call {
                    recipients.clear();
                }
            })
        },
        SETUP,
        "distribution",
    ),
    row(
        "a second recipient",
        BATCH_OPEN,
        |d| {
            let share = Share { recipient: public(STRANGER), bps: 1 };
            d.set_call(|call| {
                if let Call::Open { recipients, .. } = call {
                    recipients.push(share);
                }
            });
        },
        SETUP,
        "distribution",
    ),
    row(
        "a channel that is not derived from its terms",
        CLOSE,
        |d| {
            d.terms.id = public(STRANGER);
            put(d, 1, public(STRANGER));
        },
        REFUND,
        "derives to",
    ),
    row(
        "an open of a channel that is not derived",
        BATCH_OPEN,
        |d| {
            d.terms.id = public(STRANGER);
            *d.main() = program::open(&d.terms.accounts(), d.terms.authorizer, &open_call(&d.terms));
        },
        Reason::BatchChannelIdMismatch,
        "derives to",
    ),
];

#[test]
fn every_rule_refuses_its_mutation() {
    let tables = [MESSAGE_ROWS, LAYOUT_ROWS, MEMO_ROWS, ACCOUNT_ROWS, DATA_ROWS];
    let mut failures = Vec::new();
    for row in tables.into_iter().flatten() {
        let mut draft = Draft::new(row.form);
        (row.change)(&mut draft);
        match draft.accept() {
            Ok(_) => failures.push(format!("{}: accepted", row.rule)),
            Err(Rejected { reason, detail }) => {
                if reason != row.reason || !detail.contains(row.says) {
                    failures.push(format!("{}: {reason} ({detail})", row.rule));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn text_that_is_no_transaction_is_refused() {
    for text in ["", "!", "AAAA", &"A".repeat(1_000_000), "AQ==", " ", "\u{1f600}"] {
        let error = decode(text, SETUP).unwrap_err();
        assert_eq!(error.reason, SETUP, "{}", text.len());
    }
    let transaction = Draft::new(BATCH_OPEN).transaction().unwrap();
    let text = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(transaction.encode())
    };
    assert_eq!(decode(&text, SETUP).unwrap(), transaction);
    assert!(decode(&format!("{text}="), SETUP).is_err());
    assert!(decode(&format!("{text}\n"), SETUP).is_err());
}

fn judge(draft: &Draft, bytes: &[u8]) -> bool {
    let Ok(transaction) = Transaction::decode(bytes) else { return false };
    accept(&AcceptanceRequest {
        transaction: &transaction,
        terms: &draft.terms,
        form: draft.form,
        memo: draft.memo.as_deref(),
    })
    .is_ok()
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![Just(BATCH_OPEN), Just(TOP_UP), Just(CLOSE), Just(UPTO)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_flip_of_the_signed_message_is_refused(form in forms(), place in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let draft = Draft::new(form);
        let mut bytes = draft.transaction().unwrap().encode();
        let start = 1 + 2 * 64;
        let place = start + place.index(bytes.len() - start);
        bytes[place] ^= flip;
        prop_assert!(!judge(&draft, &bytes));
    }

    /// With a payer who signs whatever came out, only the policy stands between a mutation and our signature: what it
    /// lets pass must still be the same setup.
    #[test]
    fn a_signed_mutation_never_panics_and_never_moves_what_it_must_not(
        form in forms(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let draft = Draft::new(form);
        let valid = draft.transaction().unwrap();
        let mut message = valid.message().to_vec();
        for (place, byte) in edits {
            let place = place.index(message.len());
            message[place] = byte;
        }
        let mut wire = vec![2];
        let signature = signing_key(PAYER).sign(&message).to_bytes();
        wire.extend([0; 64]);
        wire.extend(signature);
        wire.extend(&message);
        if judge(&draft, &wire) {
            let passed = Transaction::decode(&wire).unwrap();
            let main = |transaction: &Transaction| transaction.instructions()[draft.main].clone();
            prop_assert_eq!(main(&passed), main(&valid));
            prop_assert_eq!(passed.required_signers(), valid.required_signers());
        }
    }

    #[test]
    fn random_bytes_never_pass(form in forms(), bytes in prop::collection::vec(any::<u8>(), 0..1_400)) {
        prop_assert!(!judge(&Draft::new(form), &bytes));
    }
}

#[test]
fn the_sponsor_signature_touches_no_other_slot() {
    let mut transaction = Draft::new(BATCH_OPEN).transaction().unwrap();
    let before = transaction.signature_of(&public(PAYER)).unwrap();
    transaction.set_signature(&public(FEE_PAYER), Signature([9; 64])).unwrap();
    assert_eq!(transaction.signature_of(&public(PAYER)), Some(before));
    assert_eq!(transaction.id(), Signature([9; 64]));
}
