//! Why a payment does not pass, and whose move it is.
//!
//! Every refusal of a scheme, a facilitator or the ledger becomes one of these here; `reply.rs` alone turns them into a
//! status. What a chain endpoint or a store says of itself goes to the log and never to a client.

use std::time::Duration;

use super::challenge::Demand;
use super::policy::{Finding, Rule};
use crate::facilitator::FacilitatorError;
use crate::ledger;
use crate::ledger::channel::{Evm, Family};
use crate::ledger::store::{ChannelRecord, RecordOf, StoreError};
use crate::scheme;
use crate::scheme::exact_evm::Version;
use crate::x402::Reason;
use crate::x402::wire::SettlementResponse;

/// Whose move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The payment cannot be read.
    Malformed,
    /// The payment is short, stale, or otherwise not what was offered.
    Payment,
    /// The id of the payment is another payment's, or another request's.
    Conflict,
    /// Nobody's: the same request may pass later.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// Nobody's that a payment could help: who asks, or what, is not served here.
    Forbidden {
        /// When the same may pass, where time alone helps.
        retry_after: Option<Duration>,
    },
    /// The payer's, who asks for more than it may.
    TooMuch {
        /// When the same may pass.
        retry_after: Duration,
    },
    /// Ours.
    Ours,
}

impl Fault {
    /// Whether another payment would help.
    #[must_use]
    pub const fn is_payments(self) -> bool {
        matches!(self, Self::Payment)
    }

    /// When the same request may pass, where time alone helps.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } | Self::TooMuch { retry_after } => Some(retry_after),
            Self::Forbidden { retry_after } => retry_after,
            Self::Malformed | Self::Payment | Self::Conflict | Self::Ours => None,
        }
    }
}

/// A payment that did not pass, ready to be answered.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Whose move it is.
    pub fault: Fault,
    /// The protocol's code.
    pub reason: Reason,
    /// What is wrong, in words; safe to show to the client.
    pub detail: String,
    /// How to pay instead, where another payment would help.
    pub required: Option<Box<Demand>>,
    /// The settlement that failed, where one was tried.
    pub settlement: Option<Box<SettlementResponse>>,
    /// The protocol version that the client speaks.
    pub version: Version,
}

/// A refusal inside the gate, before it is known how to pay instead.
#[derive(Debug)]
pub(super) struct Denial {
    pub(super) fault: Fault,
    pub(super) reason: Reason,
    pub(super) detail: String,
    /// The channel as the client should know it.
    pub(super) channel: Option<AnyRecord>,
    pub(super) settlement: Option<Box<SettlementResponse>>,
}

/// A channel on whatever network.
#[derive(Clone, Debug)]
pub(super) enum AnyRecord {
    Svm(Box<ChannelRecord>),
    Evm(Box<RecordOf<Evm>>),
}

impl From<ChannelRecord> for AnyRecord {
    fn from(record: ChannelRecord) -> Self {
        Self::Svm(Box::new(record))
    }
}

impl From<RecordOf<Evm>> for AnyRecord {
    fn from(record: RecordOf<Evm>) -> Self {
        Self::Evm(Box::new(record))
    }
}

/// When to try again where a channel is busy.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// When to try again where something must first be settled or come back.
pub(super) const UNAVAILABLE_RETRY: Duration = Duration::from_secs(5);

impl Denial {
    fn new(fault: Fault, reason: Reason, detail: impl Into<String>) -> Self {
        Self { fault, reason, detail: detail.into(), channel: None, settlement: None }
    }

    pub(super) fn payment(reason: Reason, detail: impl Into<String>) -> Self {
        Self::new(Fault::Payment, reason, detail)
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Fault::Malformed, Reason::InvalidPayload, detail)
    }

    pub(super) fn busy(detail: impl Into<String>) -> Self {
        Self::new(Fault::Busy { retry_after: BUSY_RETRY }, Reason::ChannelBusy, detail)
    }

    pub(super) fn conflict() -> Self {
        let detail = "this payment identifier came before with another payment or for another request; nothing was \
                      charged. Send the first payment again unchanged, or make a new id";
        Self::new(Fault::Conflict, Reason::PaymentIdentifierConflict, detail)
    }

    pub(super) fn in_process(detail: &'static str) -> Self {
        Self::new(Fault::Busy { retry_after: BUSY_RETRY }, Reason::PaymentInProcess, detail)
    }

    pub(super) fn pass_is_busy(detail: impl Into<String>) -> Self {
        Self::new(Fault::Busy { retry_after: BUSY_RETRY }, Reason::CallPackBusy, detail)
    }

    pub(super) fn no_room_for_pass() -> Self {
        let detail = "no pack can be sold at the moment; nothing was charged. Pay for each call, or come again";
        Self::new(Fault::Busy { retry_after: UNAVAILABLE_RETRY }, Reason::CallPackUnavailable, detail)
    }

    pub(super) fn unavailable() -> Self {
        let detail = "the chain cannot be reached at the moment; nothing was charged";
        Self::new(Fault::Busy { retry_after: UNAVAILABLE_RETRY }, Reason::ChainUnavailable, detail)
    }

    /// A settlement was asked for, and it is not known whether it was made.
    pub(super) fn pending(transaction: Option<&str>) -> Self {
        let detail = match transaction {
            Some(transaction) => format!(
                "transaction {transaction} was sent and is not confirmed yet; nothing was charged. Look it up before \
                 you sign another"
            ),
            None => "the settlement was asked for and has not been confirmed; nothing was charged. Look at your \
                     account on chain before you sign another"
                .to_owned(),
        };
        Self::new(Fault::Ours, Reason::SettlementPending, detail)
    }

    /// `why` is logged; the client learns only that it is our fault.
    pub(super) fn ours(why: impl std::fmt::Display) -> Self {
        tracing::error!(%why, "the gate cannot take payments");
        let detail = "payments cannot be taken at the moment; nothing was charged";
        Self::new(Fault::Ours, Reason::UnexpectedSettleError, detail)
    }

    /// The ledger broke off a commit: nothing was charged, and the ledger has stopped.
    pub(super) fn stopped(error: &StoreError) -> Self {
        Self::ours(error)
    }

    /// Refused by policy.
    pub(super) fn policy(finding: &Finding) -> Self {
        let retry_after = finding.retry_after;
        let fault = match finding.rule {
            Rule::BlockPatterns
            | Rule::TimeWindow
            | Rule::Blocklist
            | Rule::Allowlist
            | Rule::PerRequestCap
            | Rule::Screening => Fault::Forbidden { retry_after },
            Rule::RateLimit | Rule::DailyLimit => Fault::TooMuch { retry_after: retry_after.unwrap_or_default() },
            Rule::ScreeningUnavailable | Rule::PayerExposure => {
                Fault::Busy { retry_after: retry_after.unwrap_or(UNAVAILABLE_RETRY) }
            }
        };
        Self::new(fault, finding.rule.reason(), finding.detail)
    }

    /// Without a way to pay instead.
    pub(super) fn bare(self, version: Version) -> Refusal {
        let Self { fault, reason, detail, channel: _, settlement } = self;
        Refusal { fault, reason, detail, required: None, settlement, version }
    }

    /// With the channel, for a corrective answer.
    pub(super) fn correcting(mut self, channel: impl Into<AnyRecord>) -> Self {
        self.channel = Some(channel.into());
        self
    }

    /// With the settlement that failed.
    pub(super) fn settling(mut self, settlement: Box<SettlementResponse>) -> Self {
        self.settlement = Some(settlement);
        self
    }
}

impl From<scheme::Refused> for Denial {
    fn from(refused: scheme::Refused) -> Self {
        let fault = if refused.reason.is_malformed() { Fault::Malformed } else { Fault::Payment };
        Self::new(fault, refused.reason, refused.detail)
    }
}

impl From<FacilitatorError> for Denial {
    fn from(error: FacilitatorError) -> Self {
        match error {
            FacilitatorError::Refused { reason, detail } => Self::payment(reason, detail),
            FacilitatorError::Unavailable(why) => {
                tracing::warn!(%why, "the facilitator is unavailable");
                Self::unavailable()
            }
            FacilitatorError::Pending { transaction } => Self::pending(Some(&transaction.to_string())),
        }
    }
}

/// How a family's scheme says what the ledger refuses.
struct LedgerReasons {
    mismatch: Reason,
    exceeds: Reason,
    closing: Reason,
}

impl From<ledger::Refused> for Denial {
    fn from(refused: ledger::Refused) -> Self {
        let reasons = LedgerReasons {
            mismatch: Reason::BatchCumulativeAmountMismatch,
            exceeds: Reason::BatchCumulativeExceedsDeposit,
            closing: Reason::BatchChannelClosing,
        };
        Self::of_ledger(refused, &reasons)
    }
}

impl From<ledger::Refused<Evm>> for Denial {
    /// A channel that is closing is one whose refund is under way: it comes back.
    fn from(refused: ledger::Refused<Evm>) -> Self {
        let reasons = LedgerReasons {
            mismatch: Reason::EvmBatchCumulativeAmountMismatch,
            exceeds: Reason::EvmBatchCumulativeExceedsBalance,
            closing: Reason::EvmBatchChannelBusy,
        };
        Self::of_ledger(refused, &reasons)
    }
}

impl Denial {
    fn of_ledger<F: Family>(refused: ledger::Refused<F>, reasons: &LedgerReasons) -> Self
    where
        AnyRecord: From<RecordOf<F>>,
    {
        let detail = refused.to_string();
        match refused {
            ledger::Refused::Unknown => Self::busy("the channel's record changed meanwhile; try again"),
            ledger::Refused::CumulativeMismatch { channel, .. } => {
                Self::payment(reasons.mismatch, detail).correcting(*channel)
            }
            ledger::Refused::ExceedsDeposit { .. } => Self::payment(reasons.exceeds, detail),
            ledger::Refused::Closing => Self::payment(reasons.closing, detail),
            ledger::Refused::Exposure => {
                Self::new(Fault::Busy { retry_after: UNAVAILABLE_RETRY }, Reason::ExposureLimit, detail)
            }
            ledger::Refused::Busy => Self::busy(detail),
            ledger::Refused::Stopped(why) => Self::ours(why),
        }
    }
}
