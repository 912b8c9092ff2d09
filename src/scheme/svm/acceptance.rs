//! The acceptance policy: what a client's transaction must be, before our fee payer signs it.
//!
//! Owns every rule of `scheme_batch_settlement_svm.md`, section 5 ("Client-supplied transaction acceptance policy") and
//! of `scheme_upto_svm.md`, section 5, phase 3. Promises that an accepted transaction can cost the fee payer its fee
//! and, for an `open`, the rent of two accounts, and nothing else. Refuses everything that is not named here: another
//! program, signer, writable account, position, byte. Pure: what only the chain knows is checked by the facilitator.

mod layout;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use self::layout::Layout;
use super::PAYMENT_CHANNELS;
use super::program::{self, Call};
use super::transaction::{Instruction, TRANSACTION_BYTES_MAX, Transaction, TransactionError};
use crate::amount::Amount;
use crate::ledger::channel::Terms;
use crate::x402::Reason;

/// The highest compute unit limit that any sponsor may sign.
pub const COMPUTE_UNITS_MAX: u32 = 400_000;
/// The highest price that any sponsor may sign, in micro-lamports per compute unit.
pub const COMPUTE_UNIT_PRICE_MICROLAMPORTS_MAX: u64 = 5_000_000;
/// The most Lighthouse instructions: wallets inject up to three.
pub const LIGHTHOUSE_INSTRUCTIONS_MAX: usize = 3;
/// The most instructions after an `open` of scheme `upto`.
pub const UPTO_SUFFIX_INSTRUCTIONS_MAX: usize = 4;
/// The shortest nonce that may stand in a memo, in hexadecimal digits: 16 bytes.
pub const NONCE_DIGITS_MIN: usize = 32;
/// The longest base64 text of a transaction.
pub const TRANSACTION_TEXT_BYTES_MAX: usize = TRANSACTION_BYTES_MAX.div_ceil(3) * 4;

/// Which transaction it must be, and with how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `open` for scheme `batch-settlement`.
    BatchOpen {
        /// The deposit that the payload names.
        deposit: Amount,
    },
    /// `top_up` for scheme `batch-settlement`.
    BatchTopUp {
        /// The amount that the payload names.
        amount: Amount,
    },
    /// The payer's own `request_close`, sponsored.
    BatchRequestClose,
    /// `open` for scheme `upto`.
    UptoOpen {
        /// The ceiling: the deposit is exactly this.
        deposit: Amount,
    },
}

/// What is to be accepted.
#[derive(Clone, Copy, Debug)]
pub struct AcceptanceRequest<'a> {
    /// The client's transaction.
    pub transaction: &'a Transaction,
    /// The channel that it must set up.
    pub terms: &'a Terms,
    /// What it must be.
    pub form: Form,
    /// The seller's memo, where one was advertised.
    pub memo: Option<&'a str>,
}

/// A transaction that our fee payer may sign. Only [`accept`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    fee_lamports: u64,
}

impl Accepted {
    /// The most that the transaction can cost in fees; rent comes on top.
    #[must_use]
    pub const fn fee_lamports(self) -> u64 {
        self.fee_lamports
    }
}

/// Why a transaction is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejected {
    /// The protocol's code.
    pub reason: Reason,
    /// Which rule, for the client's developer.
    pub detail: String,
}

/// Reads the base64 text that a transaction travels as.
///
/// # Errors
/// The text is too long, not base64, or no transaction that we handle.
pub fn decode(text: &str, form_reason: Reason) -> Result<Transaction, Rejected> {
    let rejected = |detail: String| Rejected { reason: form_reason, detail };
    if text.len() > TRANSACTION_TEXT_BYTES_MAX {
        return Err(rejected(TransactionError::TooLong.to_string()));
    }
    let bytes = STANDARD.decode(text).map_err(|_| rejected("the transaction is not standard base64".into()))?;
    Transaction::decode(&bytes).map_err(|error| rejected(error.to_string()))
}

/// Whether a transaction means to open a channel. Says nothing about whether it may.
#[must_use]
pub fn opens(transaction: &Transaction) -> bool {
    let is_open = |instruction: &Instruction| {
        instruction.program == PAYMENT_CHANNELS && instruction.data.first() == Some(&program::discriminator::OPEN)
    };
    transaction.instructions().iter().any(is_open)
}

/// Applies the whole policy.
///
/// # Errors
/// [`Rejected`] with the first rule that the transaction breaks, in the specification's order.
pub fn accept(request: &AcceptanceRequest<'_>) -> Result<Accepted, Rejected> {
    let instructions = request.transaction.instructions();
    request.signers()?;
    let layout = Layout::read(request, &instructions)?;
    let fee_lamports = layout.compute_budget(request)?;
    layout.isolation(request)?;
    layout.suffix_rules(request)?;
    let canonical = request.canonical();
    request.accounts(layout.main, &canonical)?;
    request.arguments(layout.main)?;
    request.privileges(&canonical)?;
    Ok(Accepted { fee_lamports })
}

impl Form {
    /// The code for a transaction of this form that is not safe to sign.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::BatchOpen { .. } | Self::BatchTopUp { .. } => Reason::BatchSetupTransaction,
            Self::BatchRequestClose => Reason::BatchRefundTransaction,
            Self::UptoOpen { .. } => Reason::UptoOpenTransaction,
        }
    }

    const fn instruction(self) -> &'static str {
        match self {
            Self::BatchOpen { .. } | Self::UptoOpen { .. } => "open",
            Self::BatchTopUp { .. } => "top_up",
            Self::BatchRequestClose => "request_close",
        }
    }

    /// A specific code of scheme `batch-settlement` where the form has one, else the form's own.
    const fn specific(self, batch: Reason) -> Reason {
        match self {
            Self::BatchOpen { .. } | Self::BatchTopUp { .. } => batch,
            Self::BatchRequestClose | Self::UptoOpen { .. } => self.reason(),
        }
    }
}

/// What stands at each position of `open`, for people.
const OPEN_POSITIONS: [&str; 14] = [
    "payer",
    "rent_payer",
    "payee",
    "mint",
    "authorized_signer",
    "channel",
    "payer_token_account",
    "channel_token_account",
    "token_program",
    "system_program",
    "rent",
    "associated_token_program",
    "event_authority",
    "self_program",
];
const TOP_UP_POSITIONS: [&str; 6] =
    ["payer", "channel", "payer_token_account", "channel_token_account", "mint", "token_program"];
const REQUEST_CLOSE_POSITIONS: [&str; 2] = ["payer", "channel"];

impl AcceptanceRequest<'_> {
    fn no<T>(&self, detail: impl Into<String>) -> Result<T, Rejected> {
        Err(Rejected { reason: self.form.reason(), detail: detail.into() })
    }

    fn not<T>(&self, batch: Reason, detail: impl Into<String>) -> Result<T, Rejected> {
        Err(Rejected { reason: self.form.specific(batch), detail: detail.into() })
    }

    /// "Message and signer rules". Versions and lookup tables are refused by [`Transaction::decode`].
    fn signers(&self) -> Result<(), Rejected> {
        let (payer, fee_payer) = (self.terms.payer, self.terms.seller.fee_payer);
        if self.transaction.fee_payer() != fee_payer {
            return self.no(format!("the fee payer is {}, not {fee_payer}", self.transaction.fee_payer()));
        }
        let signers = self.transaction.required_signers();
        if payer == fee_payer || signers.len() != 2 || !signers.contains(&payer) {
            return self.no(format!("the required signers are not exactly {payer} and {fee_payer}"));
        }
        let keys = self.transaction.keys();
        if (1..keys.len()).any(|end| keys[..end].contains(&keys[end])) {
            return self.no("the message names an account twice");
        }
        if !self.transaction.is_signed_by(&payer) {
            return self.no(format!("the payer {payer} has not signed this message"));
        }
        if self.terms.authorizer == fee_payer && !matches!(self.form, Form::UptoOpen { .. }) {
            return self.not(Reason::BatchFeePayerMismatch, "payerAuthorizer is the fee payer");
        }
        Ok(())
    }

    /// The one instruction that we expect, made by ourselves.
    fn canonical(&self) -> Instruction {
        let accounts = self.terms.accounts();
        match self.form {
            Form::BatchOpen { deposit } | Form::UptoOpen { deposit } => {
                let call = Call::Open {
                    salt: self.terms.salt,
                    deposit: deposit.to_u64().unwrap_or(0),
                    grace_period: self.terms.seller.withdraw_delay,
                    open_slot: self.terms.open_slot,
                    recipients: program::all_to(self.terms.seller.pay_to).to_vec(),
                };
                program::open(&accounts, self.terms.authorizer, &call)
            }
            Form::BatchTopUp { amount } => program::top_up(&accounts, amount.to_u64().unwrap_or(0)),
            Form::BatchRequestClose => program::request_close(self.terms.payer, self.terms.id),
        }
    }

    /// "Canonical `open`", "Canonical `top_up`", "Canonical refund `request_close`": which account stands where.
    fn accounts(&self, found: &Instruction, canonical: &Instruction) -> Result<(), Rejected> {
        let name = self.form.instruction();
        if found.data.first() != canonical.data.first() {
            return self.no(format!("the payment-channels instruction is not `{name}`"));
        }
        if found.accounts.len() != canonical.accounts.len() {
            let (count, expected) = (found.accounts.len(), canonical.accounts.len());
            return self.no(format!("`{name}` has {count} accounts instead of {expected}"));
        }
        let positions = match self.form {
            Form::BatchOpen { .. } | Form::UptoOpen { .. } => &OPEN_POSITIONS[..],
            Form::BatchTopUp { .. } => &TOP_UP_POSITIONS,
            Form::BatchRequestClose => &REQUEST_CLOSE_POSITIONS,
        };
        for ((found, expected), role) in found.accounts.iter().zip(&canonical.accounts).zip(positions) {
            if found.key != expected.key {
                let detail = format!("{role} is {}, not {}", found.key, expected.key);
                return match *role {
                    "rent_payer" | "payee" => self.not(Reason::BatchFeePayerMismatch, detail),
                    "channel" => self.not(Reason::BatchChannelIdMismatch, detail),
                    "token_program" => self.not(Reason::BatchTokenProgram, detail),
                    _ => self.no(detail),
                };
            }
        }
        Ok(())
    }

    /// The instruction's data, whole and field by field, and the channel's address that follows from it.
    fn arguments(&self, found: &Instruction) -> Result<(), Rejected> {
        let Ok(call) = Call::decode(&found.data) else {
            return self.no(format!("the data of `{}` is truncated or has trailing bytes", self.form.instruction()));
        };
        match (self.form, call) {
            (
                Form::BatchOpen { deposit } | Form::UptoOpen { deposit },
                Call::Open { salt, deposit: found, grace_period, open_slot, recipients },
            ) => {
                self.moved(Amount::from(found), deposit)?;
                self.open_terms(salt, grace_period, open_slot)?;
                if recipients != program::all_to(self.terms.seller.pay_to) {
                    return self.no("the distribution is not one share of 10000 to payTo");
                }
            }
            (Form::BatchTopUp { amount }, Call::TopUp { amount: found }) => {
                self.moved(Amount::from(found), amount)?;
            }
            (Form::BatchRequestClose, Call::RequestClose) => {}
            _ => return self.no(format!("the payment-channels instruction is not `{}`", self.form.instruction())),
        }
        self.channel_id()
    }

    fn moved(&self, found: Amount, expected: Amount) -> Result<(), Rejected> {
        if found != expected {
            return self.no(format!("the transaction moves {found}, the payload says {expected}"));
        }
        if found.is_zero() {
            return self.no("the deposit is zero");
        }
        Ok(())
    }

    fn open_terms(&self, salt: u64, grace_period: u32, open_slot: u64) -> Result<(), Rejected> {
        let terms = self.terms;
        if salt != terms.salt {
            return self.no(format!("the salt is {salt}, not {}", terms.salt));
        }
        if grace_period != terms.seller.withdraw_delay {
            let delay = terms.seller.withdraw_delay;
            return self.not(
                Reason::BatchWithdrawDelayMismatch,
                format!("the grace period is {grace_period} seconds, not {delay}"),
            );
        }
        if open_slot != terms.open_slot {
            return self.no(format!("the open slot is {open_slot}, not {}", terms.open_slot));
        }
        Ok(())
    }

    /// The terms name their own address; that it is theirs is proven here, once per transaction.
    fn channel_id(&self) -> Result<(), Rejected> {
        let Terms { id, payer, authorizer, salt, open_slot, seller } = self.terms;
        let derived = program::channel_address(payer, &seller.fee_payer, &seller.mint, authorizer, *salt, *open_slot).0;
        if derived != *id {
            return self.not(Reason::BatchChannelIdMismatch, format!("the channel derives to {derived}, not {id}"));
        }
        Ok(())
    }

    /// "Required privileges": every account has exactly those that the union of its roles needs. Solana keeps one set
    /// of flags for each key of a message, so this looks at the message and not at instructions. Who signs is checked
    /// before.
    fn privileges(&self, canonical: &Instruction) -> Result<(), Rejected> {
        for (index, key) in self.transaction.keys().iter().enumerate() {
            let needs = *key == self.terms.seller.fee_payer
                || canonical.accounts.iter().any(|meta| meta.key == *key && meta.is_writable);
            match (self.transaction.is_writable(index), needs) {
                (true, false) => return self.no(format!("{key} is writable, which no role of it needs")),
                (false, true) => return self.no(format!("{key} is not writable, which its role needs")),
                _ => {}
            }
        }
        Ok(())
    }
}
