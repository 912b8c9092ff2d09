//! The signer's own policy: what a threshold key may be used for, judged from the bytes that would be signed.
//!
//! Owns [`Rules`] (what the operator allows), [`Judge`] (the rules of one key) and [`BytesToSign`], which only a judge
//! makes and without which the key signs nothing. Promises: a transaction is accepted only where every instruction and
//! every privilege in it is one that its kind needs, money goes to nobody but an allowed `pay_to` and back to the
//! payer, and the key itself spends bounded fees and rent, nothing else. Refuses the rest, each time by a
//! rule of a stable name ([`rule`]). What needs the chain or the books (is the voucher newer, is the channel ours) is
//! not judged here: the program refuses the one, the facilitator and the ledger the other.
//!
//! This is Solana's part; that of EVM networks, in the same manner, is in [`evm`].
//!
//! Source: `scheme_batch_settlement_svm.md` sections 4.2, 4.5 and 5; `scheme_upto_svm.md` section 5.

mod close;
pub mod evm;
mod shape;
mod sponsor;

use crate::scheme::svm::program;
use crate::scheme::svm::transaction::Transaction;
use crate::signer::{ClaimLine, SignerError, SigningRequest};
use crate::x402::{Key, Network};

/// The names of the rules that a refusal may give.
pub mod rule {
    /// The kind of request is not allowed for this key.
    pub const KIND: &str = "kind";
    /// The request is for another network.
    pub const NETWORK: &str = "network";
    /// The transaction's fee payer is not the key.
    pub const FEE_PAYER: &str = "fee_payer";
    /// Others must sign than may.
    pub const SIGNERS: &str = "signers";
    /// The payer has not signed, or not this message.
    pub const PAYER_SIGNATURE: &str = "payer_signature";
    /// A compute budget instruction is above its cap, out of order or malformed.
    pub const COMPUTE_BUDGET: &str = "compute_budget";
    /// An instruction is missing, too many, of another program or malformed.
    pub const INSTRUCTION: &str = "instruction";
    /// The key is named where it must not be.
    pub const GROUP_KEY: &str = "group_key";
    /// The payee or rent payer is not the key.
    pub const PAYEE: &str = "payee";
    /// Money would go to another recipient, or not all of it.
    pub const PAY_TO: &str = "pay_to";
    /// The mint, or its token program, is not allowed.
    pub const MINT: &str = "mint";
    /// A token account is not its owner's associated one.
    pub const TOKEN_ACCOUNT: &str = "token_account";
    /// The channel is not the one that was asked for, or not the one that the terms derive.
    pub const CHANNEL: &str = "channel";
    /// An amount is not the one that was asked for, or above its bound.
    pub const AMOUNT: &str = "amount";
    /// A voucher is not well formed or not signed.
    pub const VOUCHER: &str = "voucher";
    /// Too many or too few channels in one request.
    pub const BATCH: &str = "batch";
    /// An account may be changed that need not be, or may not that must be, or is named twice.
    pub const ACCOUNTS: &str = "accounts";
    /// A time that must be set is not.
    pub const EXPIRY: &str = "expiry";
    /// The signature would be for another contract.
    pub const CONTRACT: &str = "contract";
    /// The channel's claims are for another key to authorize.
    pub const RECEIVER_AUTHORIZER: &str = "receiver_authorizer";
    /// The channel's token is not allowed.
    pub const TOKEN: &str = "token";
    /// One signature would newly move more than it may.
    pub const PER_SIGNATURE: &str = "per_signature";
    /// More than may newly move in an hour.
    pub const PER_HOUR: &str = "per_hour";
    /// More than may newly move in a day.
    pub const PER_DAY: &str = "per_day";
    /// More signatures than a minute may have.
    pub const SIGNATURES_PER_MINUTE: &str = "signatures_per_minute";
    /// Not at this time.
    pub const HOURS: &str = "hours";
    /// Somebody has to approve it first.
    pub const APPROVAL: &str = "approval";
    /// A rule that only a newer cosigner knows.
    pub const OTHER: &str = "other";

    /// Every rule.
    pub const ALL: [&str; 28] = [
        KIND,
        NETWORK,
        FEE_PAYER,
        SIGNERS,
        PAYER_SIGNATURE,
        COMPUTE_BUDGET,
        INSTRUCTION,
        GROUP_KEY,
        PAYEE,
        PAY_TO,
        MINT,
        TOKEN_ACCOUNT,
        CHANNEL,
        AMOUNT,
        VOUCHER,
        BATCH,
        ACCOUNTS,
        EXPIRY,
        CONTRACT,
        RECEIVER_AUTHORIZER,
        TOKEN,
        PER_SIGNATURE,
        PER_HOUR,
        PER_DAY,
        SIGNATURES_PER_MINUTE,
        HOURS,
        APPROVAL,
        OTHER,
    ];

    /// The rule of this name, as a cosigner elsewhere has written it.
    #[must_use]
    pub fn named(name: &str) -> &'static str {
        ALL.into_iter().find(|known| *known == name).unwrap_or(OTHER)
    }
}

/// The most channels in one claim or distribution (section 4.5).
pub const CHANNELS_PER_TRANSACTION_MAX: usize = 4;

/// The kinds of requests that a key may be allowed to sign, as [`SigningRequest::kind`] names them.
pub const KINDS: [&str; 9] = [
    "open",
    "top_up",
    "request_close",
    "claim",
    "distribute",
    "close",
    "voucher",
    "close_authorization",
    "audit_checkpoint",
];

/// What the operator allows a key to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The network that the key is used on.
    pub network: Network,
    /// Who may be paid.
    pub pay_to: Vec<Key>,
    /// What may be paid with: a mint and the program that owns it.
    pub mints: Vec<(Key, Key)>,
    /// Who receives rounding dust; the channel program insists on it.
    pub treasury_owner: Key,
    /// The most that one `open` or `top_up` may deposit, in atomic units.
    pub deposit_max: u64,
    /// The most that one signature may claim: the sum of the cumulative amounts that it names, in atomic units. The
    /// signer knows no earlier claims, so a channel's whole cumulative amount counts each time.
    pub claim_max: u64,
    /// Bounds on what a transaction may spend on fees.
    pub compute: ComputeCaps,
    /// The kinds of requests that are allowed, of [`KINDS`].
    pub kinds: Vec<&'static str>,
}

/// Bounds on compute budget instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeCaps {
    /// Compute units.
    pub units_max: u32,
    /// Micro-lamports per compute unit.
    pub micro_lamports_max: u64,
}

impl Default for ComputeCaps {
    /// The most that the specification lets a sponsor admit (section 5).
    fn default() -> Self {
        Self { units_max: 400_000, micro_lamports_max: 5_000_000 }
    }
}

/// Bytes that a [`Judge`] has accepted. Nobody else can make them.
pub struct BytesToSign(Vec<u8>);

impl BytesToSign {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for BytesToSign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BytesToSign({} bytes)", self.0.len())
    }
}

/// The rules of one key.
#[derive(Clone, Debug)]
pub struct Judge {
    rules: Rules,
    group: Key,
}

/// A refusal on its way out.
#[derive(Debug)]
struct Refusal {
    rule: &'static str,
    detail: String,
}

type Verdict<T> = Result<T, Refusal>;

fn refuse<T>(rule: &'static str, detail: impl Into<String>) -> Verdict<T> {
    Err(Refusal { rule, detail: detail.into() })
}

fn ensure(holds: bool, rule: &'static str, detail: impl FnOnce() -> String) -> Verdict<()> {
    if holds { Ok(()) } else { refuse(rule, detail()) }
}

impl Judge {
    /// The rules for signing with the key `group`.
    #[must_use]
    pub const fn new(rules: Rules, group: Key) -> Self {
        Self { rules, group }
    }

    /// Judges a request from its own content, and says which bytes to sign.
    ///
    /// # Errors
    /// [`SignerError::Refused`] with the rule that forbids it.
    pub fn judge(&self, request: &SigningRequest) -> Result<BytesToSign, SignerError> {
        self.verdict(request).map(BytesToSign).map_err(|Refusal { rule, detail }| SignerError::Refused { rule, detail })
    }

    fn verdict(&self, request: &SigningRequest) -> Verdict<Vec<u8>> {
        let kind = request.kind();
        ensure(self.rules.kinds.contains(&kind), rule::KIND, || {
            format!("{kind} is not among the allowed kinds: {}", self.rules.kinds.join(", "))
        })?;
        match request {
            SigningRequest::Sponsor { setup, transaction } => {
                self.sponsor(*setup, transaction).map(|()| of(transaction))
            }
            SigningRequest::Claim { lines, transaction } => self.claim(lines, transaction).map(|()| of(transaction)),
            SigningRequest::Distribute { channels, transaction } => {
                self.distribute(channels, transaction).map(|()| of(transaction))
            }
            SigningRequest::Close { channel, cumulative, transaction } => {
                self.close(channel, *cumulative, transaction).map(|()| of(transaction))
            }
            SigningRequest::Voucher { channel, cumulative, deposit, expires_at } => {
                self.voucher(channel, *cumulative, *deposit, *expires_at)
            }
            SigningRequest::CloseAuthorization { network, channel, cumulative, valid_before } => {
                self.close_authorization(network, channel, *cumulative, *valid_before)
            }
            // Nothing but the domain decides what the signature is good for, and the message is built here.
            SigningRequest::AuditCheckpoint(checkpoint) => Ok(checkpoint.message()),
        }
    }

    /// A voucher of ours over a metered charge; the message is built here.
    fn voucher(&self, channel: &Key, cumulative: u64, deposit: u64, expires_at: i64) -> Verdict<Vec<u8>> {
        self.deposit_within(deposit, self.rules.deposit_max)?;
        ensure(cumulative <= deposit, rule::AMOUNT, || {
            format!("the charge of {cumulative} is above the deposit of {deposit}")
        })?;
        self.claim_within(cumulative)?;
        ensure(expires_at > 0, rule::EXPIRY, || format!("a voucher of ours must expire; expires_at is {expires_at}"))?;
        Ok(program::voucher_message(channel, cumulative, expires_at).to_vec())
    }

    /// The receiver authorizer's consent to a close; the digest is built here, for vouchers that do not expire.
    fn close_authorization(
        &self,
        network: &Network,
        channel: &Key,
        cumulative: u64,
        valid_before: i64,
    ) -> Verdict<Vec<u8>> {
        ensure(*network == self.rules.network, rule::NETWORK, || {
            format!("the consent is for {network}, the key is for {}", self.rules.network)
        })?;
        self.claim_within(cumulative)?;
        ensure(valid_before > 0, rule::EXPIRY, || format!("a consent must end; valid_before is {valid_before}"))?;
        Ok(program::close_digest(network.as_str(), &self.group, channel, cumulative, 0, valid_before).to_vec())
    }

    fn deposit_within(&self, deposit: u64, asked: u64) -> Verdict<()> {
        let most = self.rules.deposit_max.min(asked);
        ensure((1..=most).contains(&deposit), rule::AMOUNT, || {
            format!("the deposit of {deposit} is not between 1 and {most}")
        })
    }

    fn claim_within(&self, sum: u64) -> Verdict<()> {
        let most = self.rules.claim_max;
        ensure(sum <= most, rule::AMOUNT, || format!("{sum} would be claimed, one signature may claim {most}"))
    }

    fn sum_of(lines: &[ClaimLine]) -> Verdict<u64> {
        match lines.iter().try_fold(0_u64, |sum, line| sum.checked_add(line.cumulative)) {
            Some(sum) => Ok(sum),
            None => refuse(rule::AMOUNT, "the sum of what would be claimed is greater than any amount"),
        }
    }

    /// The program that owns an allowed mint.
    fn token_program(&self, mint: &Key) -> Verdict<Key> {
        match self.rules.mints.iter().find(|(allowed, _)| allowed == mint) {
            Some((_, token_program)) => Ok(*token_program),
            None => refuse(rule::MINT, format!("the mint {mint} is not allowed")),
        }
    }

    /// All of a distribution must go to one allowed recipient.
    fn recipient(&self, shares: &[program::Share]) -> Verdict<Key> {
        let [share] = shares else {
            return refuse(rule::PAY_TO, format!("{} recipients where one receives everything", shares.len()));
        };
        let program::Share { recipient, bps } = *share;
        ensure(bps == program::BPS_ALL, rule::PAY_TO, || {
            format!("{bps} of {} basis points go to {recipient}; it must be all", program::BPS_ALL)
        })?;
        ensure(self.rules.pay_to.contains(&recipient), rule::PAY_TO, || {
            format!("{recipient} is not an allowed pay_to")
        })?;
        Ok(recipient)
    }
}

fn of(transaction: &Transaction) -> Vec<u8> {
    transaction.message().to_vec()
}
