//! Closing: one transaction that applies the last voucher, pays the seller and returns the rest.

use super::close::{self, FinalVoucher, Plan};
use super::in_flight::{Job, Taken, Turn};
use super::{BATCH, Codes, Fate, LocalFacilitator, UPTO, channel_in, not_signed, not_taken, nothing_sent, refused};
use crate::amount::Amount;
use crate::chain::{Account, Blockhash};
use crate::facilitator::{CloseRequest, FacilitatorError, SettledClose};
use crate::ledger::channel::Terms;
use crate::scheme::svm::program::{ChannelAccount, ChannelStatus, voucher_message};
use crate::scheme::svm::transaction::Transaction;
use crate::scheme::svm::verify_strict;
use crate::signer::{SignerError, SigningRequest};
use crate::x402::Reason;
use crate::x402::key::Signature;

/// How often a close is built again after its transaction is known never to land.
const CLOSE_ATTEMPTS_MAX: u32 = 3;

/// Why a channel is closed.
#[derive(Clone, Copy)]
enum Closing {
    /// A refund, or a seal.
    Cooperative,
    /// The end of a metered request.
    Metered { deposit: Amount },
}

impl Closing {
    const fn codes(self) -> Codes {
        match self {
            Self::Cooperative => BATCH,
            Self::Metered { .. } => UPTO,
        }
    }
}

impl LocalFacilitator {
    pub(super) async fn close_cooperatively(&self, request: CloseRequest) -> Result<SettledClose, FacilitatorError> {
        let CloseRequest { terms, voucher, voucher_expires_at } = request;
        self.is_ours(&terms)?;
        let voucher = match voucher {
            None => None,
            Some(voucher) => {
                let over = || refused(Reason::BatchCumulativeExceedsDeposit, "the voucher is above any deposit");
                let cumulative = voucher.cumulative.to_u64().ok_or_else(over)?;
                Some(FinalVoucher { cumulative, signature: voucher.signature, expires_at: voucher_expires_at })
            }
        };
        if let Some(voucher) = voucher.filter(|voucher| voucher.cumulative > 0) {
            let message = voucher_message(&terms.id, voucher.cumulative, voucher.expires_at);
            if !verify_strict(&terms.authorizer, &message, &voucher.signature) {
                return Err(refused(Reason::BatchVoucherSignature, "the final voucher's signature does not verify"));
            }
        }
        let cumulative = voucher.map_or(0, |voucher| voucher.cumulative);
        let mut turn = match self.take(Job::Close { channel: terms.id, cumulative }) {
            Ok(turn) => turn,
            Err(Taken::Done(close)) => return Ok(*close),
            Err(taken) => return Err(not_taken(&taken)),
        };
        let close = self.close_channel(&terms, Closing::Cooperative, voucher.as_ref(), &mut turn).await?;
        turn.done(&close);
        Ok(close)
    }

    pub(super) async fn close_at_charge(
        &self,
        terms: &Terms,
        charge: Amount,
        deposit: Amount,
        expires_at: i64,
    ) -> Result<SettledClose, FacilitatorError> {
        self.is_ours(terms)?;
        let (charged, ceiling) = match (charge.to_u64(), deposit.to_u64()) {
            (Some(charged), Some(ceiling)) if charged <= ceiling => (charged, ceiling),
            _ => {
                let detail = format!("the charge {charge} is above the ceiling {deposit}");
                return Err(refused(Reason::UptoSettlementExceedsAmount, detail));
            }
        };
        if terms.authorizer != self.seller.receiver_authorizer {
            return Err(refused(Reason::UptoChannelState, "the channel's vouchers are not ours to sign"));
        }
        let mut turn = self.take(Job::Meter(terms.id)).map_err(|taken| not_taken(&taken))?;
        let request = SigningRequest::Voucher { channel: terms.id, cumulative: charged, deposit: ceiling, expires_at };
        let signature = self.sign(request, charge).await?;
        if !verify_strict(&terms.authorizer, &voucher_message(&terms.id, charged, expires_at), &signature) {
            return Err(not_signed(&SignerError::Broken("a voucher over a metered charge".into())));
        }
        let voucher = FinalVoucher { cumulative: charged, signature, expires_at };
        self.close_channel(terms, Closing::Metered { deposit }, Some(&voucher), &mut turn).await
    }

    /// Closes a channel in one transaction, building it again only after the one before is known never to land.
    async fn close_channel(
        &self,
        terms: &Terms,
        closing: Closing,
        voucher: Option<&FinalVoucher>,
        turn: &mut Turn<'_>,
    ) -> Result<SettledClose, FacilitatorError> {
        let mut last = String::new();
        for _ in 0..CLOSE_ATTEMPTS_MAX {
            let keys = [terms.id, self.payer_ata(terms), self.pay_to_ata, self.treasury_ata];
            let (accounts, blockhash) = tokio::join!(self.chain.accounts(&keys), self.chain.latest_blockhash());
            let accounts = accounts.map_err(|error| nothing_sent(&error))?;
            let blockhash = blockhash.map_err(|error| nothing_sent(&error))?;
            let (before, plan) = self.plan(terms, closing, voucher, &accounts)?;
            let transaction = self.signed_close(terms, &before, &plan, &blockhash).await?;
            turn.hold(self.clock.now());
            match self.broadcast(&transaction, blockhash.last_valid_block_height).await {
                Fate::Confirmed => return Ok(self.closed(terms, &before, &plan, transaction.id()).await),
                Fate::Unknown => return Err(FacilitatorError::Pending { transaction: transaction.id() }),
                Fate::Unfunded { detail } => {
                    turn.free();
                    return Err(FacilitatorError::Unavailable(detail));
                }
                Fate::Dead { detail, expired } => {
                    turn.free();
                    if !expired {
                        return Err(refused(closing.codes().close, detail));
                    }
                    last = detail;
                }
            }
        }
        Err(FacilitatorError::Unavailable(format!("gave up after {CLOSE_ATTEMPTS_MAX} attempts: {last}")))
    }

    fn plan(
        &self,
        terms: &Terms,
        closing: Closing,
        voucher: Option<&FinalVoucher>,
        accounts: &[Option<Account>],
    ) -> Result<(ChannelAccount, Plan), FacilitatorError> {
        let codes = closing.codes();
        let at = |index: usize| accounts.get(index).and_then(Option::as_ref);
        let channel = channel_in(at(0)).map_err(|what| refused(codes.state, what))?;
        let channel = channel.ok_or_else(|| refused(codes.close, "there is no channel to close"))?;
        if !terms.matches(&channel) {
            return Err(refused(codes.state, "the channel on chain has other terms"));
        }
        if let Closing::Metered { deposit } = closing
            && Amount::from(channel.deposit) != deposit
        {
            return Err(refused(codes.state, format!("the channel holds {}, not {deposit}", channel.deposit)));
        }
        let plan = close::plan(terms, &channel, voucher, self.clock.now().seconds())
            .map_err(|what| refused(codes.close, what))?;
        // Ours to repair, and then the close goes through: never a reason to give the charge up.
        self.usable("treasury's", self.seller.treasury_owner, at(3)).map_err(FacilitatorError::Unavailable)?;
        if plan.pays_seller {
            self.usable("recipient's", self.seller.pay_to, at(2)).map_err(FacilitatorError::Unavailable)?;
        }
        // A payer could otherwise hold up a charge by closing its own account. Only where nobody is in a hurry does it
        // get the chance to repair it before the program sends its money to the treasury.
        if plan.pays_payer && matches!(closing, Closing::Cooperative) && channel.status == ChannelStatus::Open {
            self.usable("payer's", terms.payer, at(1)).map_err(|what| refused(codes.simulation, what))?;
        }
        Ok((channel, plan))
    }

    async fn signed_close(
        &self,
        terms: &Terms,
        before: &ChannelAccount,
        plan: &Plan,
        blockhash: &Blockhash,
    ) -> Result<Transaction, FacilitatorError> {
        let fee_payer = self.seller.fee_payer;
        let built = Transaction::build(fee_payer, &plan.instructions, blockhash.hash);
        let mut transaction = built.map_err(|error| FacilitatorError::Unavailable(error.to_string()))?;
        let request =
            SigningRequest::Close { channel: terms.id, cumulative: plan.applied, transaction: transaction.clone() };
        let moving = Amount::from(plan.claimed.saturating_sub(before.settled));
        let signature = self.sign(request, moving).await?;
        let set = transaction.set_signature(&fee_payer, signature);
        set.map_err(|error| FacilitatorError::Unavailable(error.to_string()))?;
        Ok(transaction)
    }

    /// What a confirmed close moved. The transaction is whole or nothing, so the plan tells the final watermark; the
    /// deposit is read again, as a top-up may have landed in between, unless the account is gone with its rent.
    async fn closed(&self, terms: &Terms, before: &ChannelAccount, plan: &Plan, id: Signature) -> SettledClose {
        let after = self.chain.account(&terms.id).await.ok().flatten();
        let after =
            channel_in(after.as_ref()).ok().flatten().filter(|after| after.status == ChannelStatus::Distributed);
        let deposit = after.as_ref().map_or(before.deposit, |after| after.deposit);
        let claimed = after.as_ref().map_or(plan.claimed, |after| after.settled);
        let (deposit, claimed) = (Amount::from(deposit), Amount::from(claimed));
        SettledClose { transaction: id, returned: deposit.saturating_sub(claimed), claimed, deposit }
    }
}
