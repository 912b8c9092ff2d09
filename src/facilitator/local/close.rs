//! Which instructions close a channel in the state that it is in (specification, sections 3 and 4.5).
//!
//! Pure. A voucher above the watermark is applied with its Ed25519 instruction right before `settle_and_seal`; an equal
//! one or none seals at the watermark; a channel whose forced close has run out can only be sealed as it stands.

use crate::ledger::channel::Terms;
use crate::scheme::svm::program::{self, ChannelAccount, ChannelStatus};
use crate::scheme::svm::transaction::Instruction;
use crate::x402::key::Signature;

/// A voucher that a close may apply.
#[derive(Clone, Copy, Debug)]
pub(super) struct FinalVoucher {
    pub(super) cumulative: u64,
    pub(super) signature: Signature,
    pub(super) expires_at: i64,
}

/// How a channel is closed, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) instructions: Vec<Instruction>,
    /// The voucher that is applied.
    pub(super) applied: Option<u64>,
    /// The final watermark.
    pub(super) claimed: u64,
    /// What the payer gets back.
    pub(super) returned: u64,
    /// Whether anything is paid to `pay_to`.
    pub(super) pays_seller: bool,
    /// Whether anything is paid back within this transaction.
    pub(super) pays_payer: bool,
}

/// The plan for `account`, or why it cannot be closed so. `now` is in Unix seconds.
pub(super) fn plan(
    terms: &Terms,
    account: &ChannelAccount,
    voucher: Option<&FinalVoucher>,
    now: i64,
) -> Result<Plan, String> {
    let mut instructions = Vec::with_capacity(3);
    let applied = match account.status {
        ChannelStatus::Open => seal_with(terms, account, voucher, &mut instructions)?,
        ChannelStatus::Closing => {
            let deadline = account.closure_started_at.saturating_add(account.grace_period.into());
            if now < deadline {
                seal_with(terms, account, voucher, &mut instructions)?
            } else {
                instructions.push(program::seal(terms.id));
                None
            }
        }
        ChannelStatus::Sealed => None,
        ChannelStatus::Distributed => return Err("the channel is closed and paid out already".into()),
    };
    let claimed = applied.unwrap_or(account.settled);
    let returned = account.deposit.checked_sub(claimed).ok_or("the channel's watermark is above its deposit")?;
    instructions.push(program::distribute(
        &terms.accounts(),
        &terms.seller.treasury_owner,
        &program::all_to(terms.seller.pay_to),
    ));
    Ok(Plan {
        instructions,
        applied,
        claimed,
        returned,
        pays_seller: claimed > account.payout_watermark,
        pays_payer: returned > 0 && account.payer_withdrawn_at == 0,
    })
}

/// `settle_and_seal`, with the voucher where it is worth more than the watermark.
fn seal_with(
    terms: &Terms,
    account: &ChannelAccount,
    voucher: Option<&FinalVoucher>,
    instructions: &mut Vec<Instruction>,
) -> Result<Option<u64>, String> {
    let payee = terms.seller.fee_payer;
    let Some(voucher) = voucher.filter(|voucher| voucher.cumulative != account.settled) else {
        instructions.push(program::settle_and_seal(payee, terms.id, false));
        return Ok(None);
    };
    if voucher.cumulative < account.settled {
        return Err(format!("the voucher's {} is behind the watermark {}", voucher.cumulative, account.settled));
    }
    if voucher.cumulative > account.deposit {
        return Err(format!("the voucher's {} is above the deposit {}", voucher.cumulative, account.deposit));
    }
    let message = program::voucher_message(&terms.id, voucher.cumulative, voucher.expires_at);
    instructions.push(program::ed25519(&terms.authorizer, &voucher.signature, &message));
    instructions.push(program::settle_and_seal(payee, terms.id, true));
    Ok(Some(voucher.cumulative))
}
