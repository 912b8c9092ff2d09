//! "Top-level instruction layout": an optional compute budget, one payment-channels instruction, a suffix.
//!
//! Refuses instructions of any other program, in any other order, and any that names the fee payer outside its place.

use super::{
    AcceptanceRequest, COMPUTE_UNIT_PRICE_MICROLAMPORTS_MAX, COMPUTE_UNITS_MAX, Form, LIGHTHOUSE_INSTRUCTIONS_MAX,
    NONCE_DIGITS_MIN, Rejected, UPTO_SUFFIX_INSTRUCTIONS_MAX,
};
use crate::scheme::svm::program::{RECEIVER_AUTHORIZER_MEMO, receiver_authorizer_memo};
use crate::scheme::svm::transaction::Instruction;
use crate::scheme::svm::{COMPUTE_BUDGET_PROGRAM, LIGHTHOUSE_PROGRAM, MEMO_PROGRAM, PAYMENT_CHANNELS};
use crate::x402::Reason;

/// What a cluster takes for each signature.
const LAMPORTS_PER_SIGNATURE: u64 = 5_000;
/// Compute units that a cluster reserves for an instruction where the transaction sets no limit.
const COMPUTE_UNITS_PER_INSTRUCTION: u64 = 200_000;
const MICROLAMPORTS_PER_LAMPORT: u128 = 1_000_000;

/// The top-level instructions, told apart by region.
pub(super) struct Layout<'a> {
    prefix: &'a [Instruction],
    /// The payment-channels instruction.
    pub(super) main: &'a Instruction,
    suffix: &'a [Instruction],
}

impl<'a> Layout<'a> {
    /// Tells the regions apart.
    pub(super) fn read(request: &AcceptanceRequest<'_>, all: &'a [Instruction]) -> Result<Self, Rejected> {
        let budget = all.iter().take_while(|instruction| instruction.program == COMPUTE_BUDGET_PROGRAM).count();
        let (prefix, rest) = all.split_at(budget);
        let Some((main, suffix)) = rest.split_first() else {
            return request.no("there is no payment-channels instruction");
        };
        if main.program != PAYMENT_CHANNELS {
            return request.no(format!("{} stands where payment-channels must", main.program));
        }
        let optional = |program| program == LIGHTHOUSE_PROGRAM || program == MEMO_PROGRAM;
        if let Some(other) = suffix.iter().find(|instruction| !optional(instruction.program)) {
            return request.no(format!("{} is not allowed after the payment-channels instruction", other.program));
        }
        Ok(Self { prefix, main, suffix })
    }

    /// At most a limit and then a price, each within the absolute bounds. Returns the most that the fee can be.
    pub(super) fn compute_budget(&self, request: &AcceptanceRequest<'_>) -> Result<u64, Rejected> {
        let (mut limit, mut price) = (None, None);
        for instruction in self.prefix {
            match instruction.data.split_first() {
                Some((2, units)) if limit.is_none() && price.is_none() => {
                    let Ok(units) = <[u8; 4]>::try_from(units).map(u32::from_le_bytes) else {
                        return request.no("SetComputeUnitLimit is not exactly 5 bytes");
                    };
                    limit = Some(units);
                }
                Some((3, micro)) if price.is_none() => {
                    let Ok(micro) = <[u8; 8]>::try_from(micro).map(u64::from_le_bytes) else {
                        return request.no("SetComputeUnitPrice is not exactly 9 bytes");
                    };
                    price = Some(micro);
                }
                Some((2 | 3, _)) => return request.no("the compute budget is repeated or its limit follows its price"),
                _ => return request.no("only SetComputeUnitLimit and SetComputeUnitPrice are allowed"),
            }
        }
        if limit.is_some_and(|units| units > COMPUTE_UNITS_MAX) {
            return request.no(format!("the compute unit limit is above {COMPUTE_UNITS_MAX}"));
        }
        if price.is_some_and(|micro| micro > COMPUTE_UNIT_PRICE_MICROLAMPORTS_MAX) {
            return request.no(format!("the compute unit price is above {COMPUTE_UNIT_PRICE_MICROLAMPORTS_MAX}"));
        }
        self.fee_lamports(request, limit, price.unwrap_or(0))
    }

    /// Where no limit is set, a cluster charges the price for its own generous default. The two absolute bounds
    /// together bound the priority fee; leaving the limit out must not lift that.
    fn fee_lamports(&self, request: &AcceptanceRequest<'_>, limit: Option<u32>, price: u64) -> Result<u64, Rejected> {
        let charged = u64::try_from(self.suffix.len()).unwrap_or(u64::MAX).saturating_add(1);
        let units = limit.map_or_else(|| charged.saturating_mul(COMPUTE_UNITS_PER_INSTRUCTION), u64::from);
        let priority = u128::from(units).saturating_mul(u128::from(price));
        if priority > u128::from(COMPUTE_UNITS_MAX).saturating_mul(COMPUTE_UNIT_PRICE_MICROLAMPORTS_MAX.into()) {
            return request.no("the priority fee without a compute unit limit is above what any limit could cost");
        }
        let priority = u64::try_from(priority.div_ceil(MICROLAMPORTS_PER_LAMPORT)).unwrap_or(u64::MAX);
        let signatures = u64::try_from(request.transaction.required_signers().len()).unwrap_or(u64::MAX);
        Ok(signatures.saturating_mul(LAMPORTS_PER_SIGNATURE).saturating_add(priority))
    }

    /// The fee payer stands nowhere but in the payment-channels instruction's own positions.
    pub(super) fn isolation(&self, request: &AcceptanceRequest<'_>) -> Result<(), Rejected> {
        let fee_payer = request.terms.seller.fee_payer;
        for instruction in self.prefix.iter().chain(self.suffix) {
            if instruction.accounts.iter().any(|meta| meta.key == fee_payer) {
                return request.no(format!("an instruction of {} names the fee payer", instruction.program));
            }
        }
        Ok(())
    }

    /// How many Lighthouse instructions and which memos may follow.
    pub(super) fn suffix_rules(&self, request: &AcceptanceRequest<'_>) -> Result<(), Rejected> {
        let memos = self.suffix.iter().filter(|instruction| instruction.program == MEMO_PROGRAM);
        let mut memos: Vec<&[u8]> = memos.map(|instruction| instruction.data.as_slice()).collect();
        if self.suffix.len().saturating_sub(memos.len()) > LIGHTHOUSE_INSTRUCTIONS_MAX {
            return request.no(format!("there are more than {LIGHTHOUSE_INSTRUCTIONS_MAX} Lighthouse instructions"));
        }
        match request.form {
            Form::BatchOpen { .. } => {
                take_binding(request, &mut memos)?;
                one_reference(request, &memos)
            }
            Form::BatchTopUp { .. } => one_reference(request, &memos),
            Form::BatchRequestClose if memos.len() > 1 => request.no("there is more than one memo"),
            Form::BatchRequestClose => match (request.memo, memos.first()) {
                (Some(memo), Some(found)) if *found != memo.as_bytes() => request.no("the memo is not the seller's"),
                _ => Ok(()),
            },
            Form::UptoOpen { .. } if self.suffix.len() > UPTO_SUFFIX_INSTRUCTIONS_MAX => {
                request.no(format!("more than {UPTO_SUFFIX_INSTRUCTIONS_MAX} instructions follow `open`"))
            }
            Form::UptoOpen { .. } => match request.memo {
                Some(_) => one_reference(request, &memos),
                None => Ok(()),
            },
        }
    }
}

/// Takes out the one memo that binds our receiver authorizer (section 3).
fn take_binding(request: &AcceptanceRequest<'_>, memos: &mut Vec<&[u8]>) -> Result<(), Rejected> {
    let binding = receiver_authorizer_memo(&request.terms.seller.receiver_authorizer);
    if let Some(place) = memos.iter().position(|memo| *memo == binding.as_bytes()) {
        memos.remove(place);
        return Ok(());
    }
    if memos.iter().any(|memo| memo.starts_with(RECEIVER_AUTHORIZER_MEMO.as_bytes())) {
        return request.not(
            Reason::BatchReceiverAuthorizerMismatch,
            "the binding memo names another receiver authorizer than extra.receiverAuthorizer",
        );
    }
    request.no("there is no memo that binds extra.receiverAuthorizer")
}

/// Exactly one further memo: the seller's text, or a nonce where the seller asks for none.
fn one_reference(request: &AcceptanceRequest<'_>, memos: &[&[u8]]) -> Result<(), Rejected> {
    let [memo] = memos else {
        return request.no(format!("there are {} memos beside any binding memo instead of one", memos.len()));
    };
    match request.memo {
        Some(expected) if *memo != expected.as_bytes() => request.no("the memo is not the seller's"),
        None if !is_nonce(memo) => {
            request.no(format!("the memo is not a nonce of at least {NONCE_DIGITS_MIN} hexadecimal digits"))
        }
        _ => Ok(()),
    }
}

fn is_nonce(memo: &[u8]) -> bool {
    memo.len() >= NONCE_DIGITS_MIN && memo.len().is_multiple_of(2) && memo.iter().all(u8::is_ascii_hexdigit)
}
