//! `distribute`: pays what is settled, and from a sealed channel everything.
//!
//! Shares are cumulative floors, so that no order of payments makes or loses a unit; what rounding leaves over goes to
//! the treasury when the channel ends. A beneficiary whose account cannot receive forfeits its share to the treasury.

use solana_instruction_error::InstructionError;

use super::accounts::{Defect, Tokens, load, store};
use super::{BPS_ALL, Plan, code, custom, deallocate, may_be_freed, require};
use crate::chain::sandbox::runtime::{Frame, NOT_ENOUGH_ACCOUNTS, Outcome};
use crate::scheme::svm::program::{ChannelAccount, ChannelStatus, event_authority};
use crate::x402::Key;

const CHANNEL: usize = 0;
const PAYER: usize = 1;
const RENT_PAYER: usize = 2;
const ESCROW: usize = 3;
const PAYER_TOKENS: usize = 4;
const PAYEE_TOKENS: usize = 5;
const TREASURY: usize = 6;
const MINT: usize = 7;
const TOKEN_PROGRAM: usize = 8;
const EVENT_AUTHORITY: usize = 9;
const RECIPIENTS: usize = 11;

/// Runs the instruction.
pub(super) fn distribute(frame: &mut Frame<'_, '_>, plan: &Plan) -> Outcome {
    let recipients = frame.len().checked_sub(RECIPIENTS).ok_or(NOT_ENOUGH_ACCOUNTS)?;
    let mut channel = load(frame, CHANNEL)?;
    let sealed = match channel.status {
        ChannelStatus::Open => false,
        ChannelStatus::Sealed => true,
        ChannelStatus::Closing | ChannelStatus::Distributed => return Err(custom(code::CHANNEL_NOT_DISTRIBUTABLE)),
    };
    require(frame.key(PAYER)? == channel.payer, code::INVALID_CHANNEL_PAYER)?;
    require(frame.key(MINT)? == channel.mint, code::INVALID_CHANNEL_MINT)?;
    require(frame.key(RENT_PAYER)? == channel.rent_payer, code::INVALID_CHANNEL_RENT_PAYER)?;
    let tokens = Tokens::check(frame, MINT, TOKEN_PROGRAM)?;
    tokens.check_escrow(frame, ESCROW, CHANNEL)?;
    tokens.check_treasury(frame, TREASURY)?;
    require(plan.hash == channel.distribution_hash, code::INVALID_DISTRIBUTION_HASH)?;
    require(recipients == plan.shares.len(), code::RECIPIENT_ACCOUNT_COUNT_MISMATCH)?;
    if !sealed {
        let unpaid = channel.settled.checked_sub(channel.payout_watermark);
        require(unpaid.ok_or(custom(code::DISTRIBUTE_POOL_OVERFLOW))? != 0, code::NOTHING_TO_DISTRIBUTE)?;
    }
    let mut payouts = Payouts { tokens, queue: Vec::new() };
    payouts.queue_merchant_side(frame, plan, &channel)?;
    if sealed {
        payouts.queue_rest(frame, &channel)?;
    }
    for (to, amount) in payouts.queue {
        tokens.transfer(frame, ESCROW, to, CHANNEL, amount, &[CHANNEL])?;
    }
    if !sealed {
        channel.payout_watermark = channel.settled;
        return store(frame, CHANNEL, &channel);
    }
    tokens.close(frame, ESCROW, RENT_PAYER, CHANNEL)?;
    if may_be_freed(frame, &channel)? {
        deallocate(frame, CHANNEL, RENT_PAYER)
    } else {
        channel.status = ChannelStatus::Distributed;
        store(frame, CHANNEL, &channel)
    }
}

/// Who a share is for; each role has its own codes.
#[derive(Clone, Copy)]
enum Beneficiary {
    Recipient,
    Payee,
    Payer,
}

impl Beneficiary {
    const fn mismatch(self) -> u32 {
        match self {
            Self::Recipient => code::RECIPIENT_ACCOUNT_MISMATCH,
            Self::Payee => code::PAYEE_ACCOUNT_MISMATCH,
            Self::Payer => code::PAYER_ACCOUNT_MISMATCH,
        }
    }
}

/// What is to be paid, in order: where to, and how much.
struct Payouts {
    tokens: Tokens,
    queue: Vec<(usize, u64)>,
}

impl Payouts {
    fn queue_merchant_side(&mut self, frame: &mut Frame<'_, '_>, plan: &Plan, channel: &ChannelAccount) -> Outcome {
        for (place, share) in (RECIPIENTS..).zip(&plan.shares) {
            let amount = share_of(channel, u32::from(share.bps))?;
            self.push(frame, Beneficiary::Recipient, place, &share.recipient, amount)?;
        }
        let amount = share_of(channel, BPS_ALL.saturating_sub(plan.bps()))?;
        self.push(frame, Beneficiary::Payee, PAYEE_TOKENS, &channel.payee, amount)
    }

    fn queue_rest(&mut self, frame: &mut Frame<'_, '_>, channel: &ChannelAccount) -> Outcome {
        if channel.payer_withdrawn_at == 0
            && let Some(refund) = channel.deposit.checked_sub(channel.settled)
            && refund > 0
        {
            self.push(frame, Beneficiary::Payer, PAYER_TOKENS, &channel.payer, refund)?;
        }
        let overflow = || custom(code::DISTRIBUTE_BALANCE_CALCULATION_OVERFLOW);
        let scheduled = self.queue.iter().try_fold(0u64, |sum, (_, amount)| sum.checked_add(*amount));
        let held = self.tokens.amount(frame, ESCROW)?;
        let dust = held.checked_sub(scheduled.ok_or_else(overflow)?).ok_or_else(overflow)?;
        self.queue.push((TREASURY, dust));
        Ok(())
    }

    fn push(
        &mut self,
        frame: &mut Frame<'_, '_>,
        role: Beneficiary,
        place: usize,
        owner: &Key,
        amount: u64,
    ) -> Outcome {
        if amount == 0 {
            return self.tokens.check_address(frame, place, owner, role.mismatch());
        }
        match self.tokens.defect(frame, place, owner)? {
            None => self.queue.push((place, amount)),
            Some(Defect::Address) => return Err(custom(role.mismatch())),
            Some(Defect::Unreadable | Defect::NotInitialized | Defect::Owner) => {
                // The redirect is announced as an event, which only its authority may sign.
                require(frame.key(EVENT_AUTHORITY)? == event_authority(), code::INVALID_EVENT_AUTHORITY)?;
                frame.log(format!("PayoutRedirected: {amount} of {owner} to the treasury"));
                self.queue.push((TREASURY, amount));
            }
        }
        Ok(())
    }
}

/// A share's part of what was settled since the last payout: a difference of two floors.
fn share_of(channel: &ChannelAccount, bps: u32) -> Result<u64, InstructionError> {
    let floor = |watermark: u64| {
        let part = u128::from(watermark).checked_mul(u128::from(bps))?.checked_div(u128::from(BPS_ALL))?;
        u64::try_from(part).ok()
    };
    let overflow = || custom(code::DISTRIBUTION_AMOUNT_OVERFLOW);
    let (before, after) = (floor(channel.payout_watermark), floor(channel.settled));
    let (before, after) = (before.ok_or_else(overflow)?, after.ok_or_else(overflow)?);
    after.checked_sub(before).ok_or(custom(code::DISTRIBUTE_POOL_OVERFLOW))
}
