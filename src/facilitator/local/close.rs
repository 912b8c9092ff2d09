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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::amount::Asset;
    use crate::ledger::channel::Seller;
    use crate::scheme::svm::program::Call;
    use crate::scheme::svm::{PAYMENT_CHANNELS, TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET};
    use crate::x402::{Key, network};

    fn terms() -> Terms {
        let seller = Seller {
            network: network::SOLANA_DEVNET.parse().unwrap(),
            asset: Arc::new(Asset { address: "x".into(), symbol: "USDC".into(), decimals: 6 }),
            mint: USDC_DEVNET,
            token_program: TOKEN_PROGRAM,
            pay_to: Key([4; 32]),
            fee_payer: Key([2; 32]),
            receiver_authorizer: Key([2; 32]),
            withdraw_delay: 900,
            treasury_owner: TREASURY_PLACEHOLDER,
        };
        Terms::derive(Arc::new(seller), Key([1; 32]), Key([3; 32]), 1, 2)
    }

    fn status() -> impl Strategy<Value = ChannelStatus> {
        use ChannelStatus::{Closing, Distributed, Open, Sealed};
        prop_oneof![Just(Open), Just(Sealed), Just(Closing), Just(Distributed)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_plan_pays_what_the_state_and_the_voucher_say(
            status in status(),
            (settled, deposit, cumulative) in (0..50_u64, 0..50_u64, prop::option::of(0..60_u64)),
            paid in 0..50_u64,
            (since, now) in (any::<i64>(), any::<i64>()),
            withdrawn in any::<bool>(),
        ) {
            let terms = terms();
            let account = ChannelAccount {
                bump: 1, status, salt: 1, deposit, settled, payout_watermark: paid.min(settled),
                closure_started_at: since, payer_withdrawn_at: i64::from(withdrawn), grace_period: 900,
                distribution_hash: [0; 32], payer: terms.payer, payee: terms.seller.fee_payer,
                authorized_signer: terms.authorizer, mint: terms.seller.mint, rent_payer: terms.seller.fee_payer,
                open_slot: 2,
            };
            let signature = Signature([7; 64]);
            let voucher = cumulative.map(|cumulative| FinalVoucher { cumulative, signature, expires_at: 0 });
            match plan(&terms, &account, voucher.as_ref(), now) {
                Err(_) => prop_assert!(
                    status == ChannelStatus::Distributed || settled > deposit
                        || cumulative.is_some_and(|cumulative| cumulative < settled || cumulative > deposit)
                ),
                Ok(plan) => {
                    prop_assert_eq!(plan.claimed + plan.returned, deposit);
                    prop_assert_eq!(plan.claimed, plan.applied.unwrap_or(settled));
                    prop_assert!(plan.applied.is_none_or(|applied| applied > settled && Some(applied) == cumulative));
                    prop_assert_eq!(plan.pays_seller, plan.claimed > account.payout_watermark);
                    prop_assert!(!(plan.pays_payer && withdrawn));
                    let calls: Vec<_> = plan.instructions.iter()
                        .filter(|instruction| instruction.program == PAYMENT_CHANNELS)
                        .map(|instruction| Call::decode(&instruction.data).unwrap())
                        .collect();
                    let voucher_used = calls.contains(&Call::SettleAndSeal { has_voucher: true });
                    prop_assert_eq!(voucher_used, plan.applied.is_some());
                    prop_assert_eq!(plan.instructions.len() - calls.len(), usize::from(voucher_used));
                    let pays_last = matches!(calls.last(), Some(Call::Distribute { .. }));
                    prop_assert!(pays_last);
                    prop_assert_eq!(calls.len(), if status == ChannelStatus::Sealed { 1 } else { 2 });
                }
            }
        }
    }
}
