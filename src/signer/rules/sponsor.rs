//! Transactions that a client makes and the key pays the fee of: `open`, `top_up`, `request_close`.
//!
//! The facilitator's acceptance policy is stricter: it knows the terms and the memos. This part protects what the key
//! holds and who is paid.

use super::shape::{Role, Script};
use super::{Judge, Verdict, ensure, refuse, rule};
use crate::scheme::svm::program::{self, Call, ChannelAccounts};
use crate::scheme::svm::transaction::{Instruction, Transaction};
use crate::signer::Setup;
use crate::x402::Key;

const OPEN: [Role; 14] = [
    ("payer", rule::SIGNERS),
    ("rent_payer", rule::PAYEE),
    ("payee", rule::PAYEE),
    ("mint", rule::MINT),
    ("authorized_signer", rule::CHANNEL),
    ("channel", rule::CHANNEL),
    ("payer_token_account", rule::TOKEN_ACCOUNT),
    ("channel_token_account", rule::TOKEN_ACCOUNT),
    ("token_program", rule::MINT),
    ("system_program", rule::INSTRUCTION),
    ("rent", rule::INSTRUCTION),
    ("associated_token_program", rule::INSTRUCTION),
    ("event_authority", rule::INSTRUCTION),
    ("self_program", rule::INSTRUCTION),
];

const TOP_UP: [Role; 6] = [
    ("payer", rule::SIGNERS),
    ("channel", rule::CHANNEL),
    ("payer_token_account", rule::TOKEN_ACCOUNT),
    ("channel_token_account", rule::TOKEN_ACCOUNT),
    ("mint", rule::MINT),
    ("token_program", rule::MINT),
];

const REQUEST_CLOSE: [Role; 2] = [("payer", rule::SIGNERS), ("channel", rule::CHANNEL)];

impl Judge {
    pub(super) fn sponsor(&self, setup: Setup, transaction: &Transaction) -> Verdict<()> {
        let mut script = Script::begin(transaction, self.group, 1)?;
        let payer = transaction.required_signers().get(1).copied().unwrap_or_default();
        ensure(transaction.is_signed_by(&payer), rule::PAYER_SIGNATURE, || {
            format!("the payer {payer} has not signed this message")
        })?;
        script.compute_budget(self.rules.compute)?;
        match setup {
            Setup::Open { deposit } => self.open(&mut script, payer, deposit)?,
            Setup::TopUp => self.top_up(&mut script, payer)?,
            Setup::RequestClose => self.request_close(&mut script, payer)?,
        }
        script.suffix()?;
        script.end()
    }

    fn open(&self, script: &mut Script<'_>, payer: Key, asked: u64) -> Verdict<()> {
        let (call, actual) = script.take_call("open", OPEN.len())?;
        let Call::Open { salt, deposit, grace_period, open_slot, ref recipients } = call else {
            return refuse(rule::INSTRUCTION, "another call stands where open must");
        };
        self.recipient(recipients)?;
        self.deposit_within(deposit, asked)?;
        ensure(grace_period > 0, rule::INSTRUCTION, || "the channel would have no withdraw delay".to_owned())?;
        let mint = account(&actual, 3);
        let authorized_signer = account(&actual, 4);
        let token_program = self.token_program(&mint)?;
        let channel = program::channel_address(&payer, &self.group, &mint, &authorized_signer, salt, open_slot).0;
        let accounts = self.accounts(channel, payer, mint, token_program);
        script.accept(&actual, program::open(&accounts, authorized_signer, &call), &OPEN)
    }

    fn top_up(&self, script: &mut Script<'_>, payer: Key) -> Verdict<()> {
        let (call, actual) = script.take_call("top_up", TOP_UP.len())?;
        let Call::TopUp { amount } = call else {
            return refuse(rule::INSTRUCTION, "another call stands where top_up must");
        };
        self.deposit_within(amount, self.rules.deposit_max)?;
        let channel = account(&actual, 1);
        let mint = account(&actual, 4);
        self.is_no_channel(&channel)?;
        let accounts = self.accounts(channel, payer, mint, self.token_program(&mint)?);
        script.accept(&actual, program::top_up(&accounts, amount), &TOP_UP)
    }

    fn request_close(&self, script: &mut Script<'_>, payer: Key) -> Verdict<()> {
        let (call, actual) = script.take_call("request_close", REQUEST_CLOSE.len())?;
        ensure(call == Call::RequestClose, rule::INSTRUCTION, || {
            "another call stands where request_close must".to_owned()
        })?;
        let channel = account(&actual, 1);
        self.is_no_channel(&channel)?;
        script.accept(&actual, program::request_close(payer, channel), &REQUEST_CLOSE)
    }

    /// The key pays the fee of these and is otherwise no part of them.
    fn is_no_channel(&self, channel: &Key) -> Verdict<()> {
        ensure(*channel != self.group, rule::GROUP_KEY, || "the key is named as the channel".to_owned())
    }

    /// The accounts of a channel whose payee and rent payer is the key.
    pub(super) const fn accounts(&self, channel: Key, payer: Key, mint: Key, token_program: Key) -> ChannelAccounts {
        ChannelAccounts { channel, payer, payee: self.group, rent_payer: self.group, mint, token_program }
    }
}

/// The account at a position that the caller has counted.
pub(super) fn account(instruction: &Instruction, position: usize) -> Key {
    instruction.accounts.get(position).map(|account| account.key).unwrap_or_default()
}
