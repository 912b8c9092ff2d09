//! Transactions of our own: claims, distributions, closes.
//!
//! Only the key signs them. Money can leave a channel in two directions, to an allowed `pay_to` and back to its payer;
//! which channels and which amounts is compared with what the request says.

use super::shape::{Role, Script, SignedVoucher};
use super::sponsor::account;
use super::{CHANNELS_PER_TRANSACTION_MAX, Judge, Verdict, ensure, refuse, rule};
use crate::scheme::svm::program::{self, Call};
use crate::scheme::svm::transaction::{Instruction, Transaction};
use crate::scheme::svm::{ATA_PROGRAM, ED25519_PROGRAM};
use crate::signer::ClaimLine;
use crate::x402::Key;

/// The most token accounts that one transaction creates.
const CREATIONS_MAX: usize = 4;

const SETTLE: [Role; 2] = [("channel", rule::CHANNEL), ("instructions_sysvar", rule::INSTRUCTION)];
const SETTLE_AND_SEAL: [Role; 3] =
    [("payee", rule::PAYEE), ("channel", rule::CHANNEL), ("instructions_sysvar", rule::INSTRUCTION)];
const SEAL: [Role; 1] = [("channel", rule::CHANNEL)];
const RECLAIM: [Role; 2] = [("channel", rule::CHANNEL), ("rent_payer", rule::PAYEE)];
const DISTRIBUTE: [Role; 12] = [
    ("channel", rule::CHANNEL),
    ("payer", rule::CHANNEL),
    ("rent_payer", rule::PAYEE),
    ("channel_token_account", rule::TOKEN_ACCOUNT),
    ("payer_token_account", rule::TOKEN_ACCOUNT),
    ("payee_token_account", rule::TOKEN_ACCOUNT),
    ("treasury_token_account", rule::TOKEN_ACCOUNT),
    ("mint", rule::MINT),
    ("token_program", rule::MINT),
    ("event_authority", rule::INSTRUCTION),
    ("self_program", rule::INSTRUCTION),
    ("recipient_token_account", rule::TOKEN_ACCOUNT),
];
const CREATE: [Role; 6] = [
    ("funder", rule::FEE_PAYER),
    ("token_account", rule::TOKEN_ACCOUNT),
    ("owner", rule::PAY_TO),
    ("mint", rule::MINT),
    ("system_program", rule::INSTRUCTION),
    ("token_program", rule::MINT),
];

impl Judge {
    pub(super) fn claim(&self, lines: &[ClaimLine], transaction: &Transaction) -> Verdict<()> {
        let channels: Vec<Key> = lines.iter().map(|line| line.channel).collect();
        batch(&channels, 1)?;
        self.claim_within(Self::sum_of(lines)?)?;
        let mut script = Script::begin(transaction, self.group, 0)?;
        script.compute_budget(self.rules.compute)?;
        for line in lines {
            let voucher = script.take_voucher()?;
            matches_line(&voucher, &line.channel, line.cumulative)?;
            // A voucher of batch-settlement never expires (section 4.2).
            ensure(voucher.expires_at == 0, rule::VOUCHER, || {
                format!("the voucher of {} expires at {}", line.channel, voucher.expires_at)
            })?;
            let (call, actual) = script.take_call("settle", SETTLE.len())?;
            is_call(&call, &Call::Settle, "settle")?;
            script.accept(&actual, program::settle(line.channel), &SETTLE)?;
        }
        script.end()
    }

    /// A distribution. One of no channels may only create token accounts, so that payouts have where to go: the program
    /// hands to the treasury what finds no account (`docs/003`, `distribute`).
    pub(super) fn distribute(&self, channels: &[Key], transaction: &Transaction) -> Verdict<()> {
        let mut script = Script::begin(transaction, self.group, 0)?;
        script.compute_budget(self.rules.compute)?;
        let creations = self.create_accounts(&mut script)?;
        batch(channels, usize::from(creations == 0))?;
        for channel in channels {
            self.distribute_one(&mut script, *channel)?;
        }
        script.end()
    }

    pub(super) fn close(&self, channel: &Key, cumulative: Option<u64>, transaction: &Transaction) -> Verdict<()> {
        let mut script = Script::begin(transaction, self.group, 0)?;
        script.compute_budget(self.rules.compute)?;
        self.create_accounts(&mut script)?;
        let applied = self.close_voucher(&mut script, channel)?;
        ensure(applied == cumulative, rule::AMOUNT, || {
            format!("the request closes at {cumulative:?}, the transaction applies {applied:?}")
        })?;
        let first = script.peek().and_then(|next| Call::decode(&next.data).ok());
        match first {
            Some(call @ Call::SettleAndSeal { has_voucher }) => {
                ensure(has_voucher == applied.is_some(), rule::VOUCHER, || {
                    "settle_and_seal and its voucher do not belong together".to_owned()
                })?;
                let expected = program::settle_and_seal(self.group, *channel, has_voucher);
                take(&mut script, &call, "settle_and_seal", expected, &SETTLE_AND_SEAL)?;
                // Sealing saves the claim; paying out may wait until the recipient's account can take it.
                if script.peek().is_some() {
                    self.distribute_one(&mut script, *channel)?;
                }
            }
            _ if applied.is_some() => {
                return refuse(rule::INSTRUCTION, "settle_and_seal must stand right after its voucher");
            }
            Some(call @ Call::Seal) => {
                take(&mut script, &call, "seal", program::seal(*channel), &SEAL)?;
                self.distribute_one(&mut script, *channel)?;
            }
            Some(call @ Call::Reclaim) => {
                take(&mut script, &call, "reclaim", program::reclaim(*channel, self.group), &RECLAIM)?;
            }
            _ => self.distribute_one(&mut script, *channel)?,
        }
        script.end()
    }

    /// The final voucher of a close, where one stands.
    fn close_voucher(&self, script: &mut Script<'_>, channel: &Key) -> Verdict<Option<u64>> {
        if script.peek().is_none_or(|next| next.program != ED25519_PROGRAM) {
            return Ok(None);
        }
        let voucher = script.take_voucher()?;
        matches_line(&voucher, channel, voucher.cumulative)?;
        self.claim_within(voucher.cumulative)?;
        Ok(Some(voucher.cumulative))
    }

    fn distribute_one(&self, script: &mut Script<'_>, channel: Key) -> Verdict<()> {
        let (call, actual) = script.take_call("distribute", DISTRIBUTE.len())?;
        let Call::Distribute { recipients } = call else {
            return refuse(rule::INSTRUCTION, "another call stands where distribute must");
        };
        self.recipient(&recipients)?;
        let payer = account(&actual, 1);
        let mint = account(&actual, 7);
        ensure(payer != self.group, rule::GROUP_KEY, || "the key is named as the payer".to_owned())?;
        let accounts = self.accounts(channel, payer, mint, self.token_program(&mint)?);
        let expected = program::distribute(&accounts, &self.rules.treasury_owner, &recipients);
        script.accept(&actual, expected, &DISTRIBUTE)
    }

    /// Takes creations of token accounts of those whom we pay. Each costs the key its rent once, as the accounts of an
    /// allowed owner and mint are few and creating one again does nothing.
    fn create_accounts(&self, script: &mut Script<'_>) -> Verdict<usize> {
        let mut creations = 0_usize;
        while let Some(actual) = script.take_of(&ATA_PROGRAM) {
            creations = creations.saturating_add(1);
            ensure(creations <= CREATIONS_MAX, rule::BATCH, || {
                format!("more than {CREATIONS_MAX} token accounts would be created")
            })?;
            let (owner, mint) = (account(&actual, 2), account(&actual, 3));
            ensure(self.rules.pay_to.contains(&owner) || owner == self.rules.treasury_owner, rule::PAY_TO, || {
                format!("a token account would be created for {owner}, whom nothing is paid to")
            })?;
            let token_program = self.token_program(&mint)?;
            script.accept(&actual, program::create_ata_idempotent(self.group, owner, mint, token_program), &CREATE)?;
        }
        Ok(creations)
    }
}

/// One to four channels, each once.
fn batch(channels: &[Key], least: usize) -> Verdict<()> {
    ensure((least..=CHANNELS_PER_TRANSACTION_MAX).contains(&channels.len()), rule::BATCH, || {
        format!("{} channels; one transaction takes {least} to {CHANNELS_PER_TRANSACTION_MAX}", channels.len())
    })?;
    for (index, channel) in channels.iter().enumerate() {
        ensure(!channels.iter().take(index).any(|earlier| earlier == channel), rule::CHANNEL, || {
            format!("the channel {channel} stands twice")
        })?;
    }
    Ok(())
}

fn matches_line(voucher: &SignedVoucher, channel: &Key, cumulative: u64) -> Verdict<()> {
    ensure(voucher.channel == *channel, rule::CHANNEL, || {
        format!("the voucher is for {}, the request for {channel}", voucher.channel)
    })?;
    ensure(voucher.cumulative == cumulative, rule::AMOUNT, || {
        format!("the voucher is over {}, the request over {cumulative}", voucher.cumulative)
    })?;
    ensure(voucher.expires_at >= 0, rule::VOUCHER, || format!("the voucher expires at {}", voucher.expires_at))
}

fn is_call(actual: &Call, expected: &Call, name: &str) -> Verdict<()> {
    ensure(actual == expected, rule::INSTRUCTION, || format!("another call stands where {name} must"))
}

/// Takes the next instruction, which has been looked at: it must be `expected`.
fn take(script: &mut Script<'_>, call: &Call, name: &str, expected: Instruction, roles: &[Role]) -> Verdict<()> {
    let (actual_call, actual) = script.take_call(name, roles.len())?;
    is_call(&actual_call, call, name)?;
    script.accept(&actual, expected, roles)
}
