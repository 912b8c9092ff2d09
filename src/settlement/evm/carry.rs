//! One claim's way: approval, signature, journal, facilitator, reading back.
//!
//! Promises that a batch is durable before anybody is asked to send it, and that a claim ends as confirmed only when its
//! channels have been read back, or where an answer says so and nobody can read them. A facilitator's refusal means that
//! nothing changed; no answer means nothing at all: then the channels are read, and the same signed claim is asked for
//! again after a while, which on chain passes over what is claimed already.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::Outcome;
use super::EvmSettlement;
use super::plan::{EvmLine, Urgency};
use super::report::EvmBatchReport;
use super::wait::Vain;
use crate::amount::Amount;
use crate::facilitator::interface::{InterfaceError, Payment};
use crate::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use crate::ledger::channel::{Evm, EvmOnChain};
use crate::ledger::store::{BatchState, RecordOf};
use crate::policy::{Deployment, EvmClaim, EvmRequest};
use crate::scheme::batch_settlement_evm::SCHEME;
use crate::scheme::batch_settlement_evm::payload::{EvmClaimRow, EvmClaimVoucher};
use crate::scheme::evm::{EvmSeller, contracts};
use crate::signer::SignerError;
use crate::x402::Reason;
use crate::x402::evm::{Address, B256, EvmSignature};
use crate::x402::wire::X402_VERSION;

/// What reading its channels says of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Every channel has come to its total; so much was newly claimed.
    All(Amount),
    /// A channel is below its total.
    Missing,
    /// No channel that could be told is below its total, and some could not be told.
    Untold,
}

/// Why a batch was not made.
enum Unmade {
    /// A rule forbids this batch; a smaller one may pass.
    Forbidden(String),
    /// No channel's fault.
    Halted(String),
}

impl EvmSettlement {
    /// Makes a claim of what is due and takes it as far as it goes.
    pub(super) async fn carry(&self, due: Vec<EvmLine>) -> EvmBatchReport {
        match self.make(&due).await {
            Ok(batch) => self.send_claim(batch).await,
            Err(unmade) => self.refused(&due, unmade),
        }
    }

    /// Approves, signs and journals.
    async fn make(&self, due: &[EvmLine]) -> Result<EvmBatch, Unmade> {
        let seller = due.first().map(|line| &line.record.terms.seller);
        let seller = seller.ok_or_else(|| Unmade::Halted("an empty batch".to_owned()))?;
        let started = Instant::now();
        let claims: Option<Vec<EvmClaim>> = due.iter().map(|line| claim_of(&line.record, line.due.total)).collect();
        let claims = claims.ok_or_else(|| Unmade::Halted("a channel without a voucher is due".to_owned()))?;
        let contract = Deployment { chain_id: seller.chain_id, address: contracts::BATCH_SETTLEMENT };
        let moving = due.iter().fold(Amount::ZERO, |sum, line| sum.saturating_add(line.due.moving()));
        let request = EvmRequest::ClaimBatch { contract, claims: claims.clone() };
        let approved = self.parts.policy.approve(request, moving).map_err(|why| Unmade::Forbidden(why.to_string()))?;
        let signature = self.parts.signer.sign(approved).await.map_err(|error| match error {
            SignerError::Refused { .. } => Unmade::Forbidden(error.to_string()),
            SignerError::NoQuorum(_) | SignerError::Broken(_) => Unmade::Halted(error.to_string()),
        })?;
        let took = started.elapsed();
        let batch = EvmBatch {
            id: self.parts.ledger.next_batch(),
            kind: EvmBatchKind::Claim,
            network: seller.network.clone(),
            token: seller.token,
            lines: due.iter().map(|line| (line.due.channel, line.due.total)).collect(),
            request: claim_request(&claims, &signature).to_string(),
            transaction: None,
            state: BatchState::Signed,
            created_at: self.parts.clock.now(),
        };
        let journalled = self.parts.ledger.journal_batch(batch.clone()).await;
        journalled.map_err(|error| Unmade::Halted(error.to_string()))?;
        self.parts.observer.signed(&batch, took);
        Ok(batch)
    }

    fn refused(&self, due: &[EvmLine], unmade: Unmade) -> EvmBatchReport {
        let lines: Vec<_> = due.iter().map(|line| (line.due.channel, line.due.total)).collect();
        let why = match unmade {
            Unmade::Forbidden(why) => {
                match due {
                    [line] => self.blame(line.due.channel, &why, line.due.urgency == Urgency::Withdrawal),
                    // A limit on the whole may let parts of it pass.
                    _ => self.split(&lines.iter().map(|(channel, _)| *channel).collect::<Vec<_>>(), &why),
                }
                lines.iter().for_each(|(channel, _)| self.note(channel));
                why
            }
            Unmade::Halted(why) => {
                self.hold(&why);
                why
            }
        };
        self.parts.observer.refused(EvmBatchKind::Claim, &lines, &why);
        EvmBatchReport {
            id: 0,
            token: due.first().map_or(Address::ZERO, |line| line.record.terms.seller.token),
            kind: EvmBatchKind::Claim,
            lines,
            transaction: None,
            outcome: Outcome::Refused { why },
        }
    }

    /// Finds out what became of a journalled batch; one that is not on chain is asked for again.
    pub(super) async fn follow(&self, batch: EvmBatch) -> EvmBatchReport {
        if batch.kind == EvmBatchKind::Settle {
            return self.follow_settle(batch).await;
        }
        let asked = self.asked(&batch);
        match self.read_back(&batch).await {
            Ok(Seen::All(moved)) => self.confirmed(batch, moved).await,
            Ok(_) if !self.may_ask(&batch) => {
                self.unknown(batch, "it does not show yet; it is asked for again".to_owned())
            }
            Ok(Seen::Untold) if asked.answered => self.believed(batch).await,
            Ok(Seen::Untold | Seen::Missing) => self.send_claim(batch).await,
            Err(why) => self.unknown(batch, why),
        }
    }

    /// Whether the chain has a claim: reads its channels, and takes up what it says.
    async fn read_back(&self, batch: &EvmBatch) -> Result<Seen, String> {
        let ids: Vec<B256> = batch.lines.iter().map(|(id, _)| *id).collect();
        let claimed = |id: &B256| self.parts.ledger.channel(id).map(|record| record.on_chain.claimed);
        let before: Vec<Amount> = ids.iter().map(|id| claimed(id).unwrap_or(Amount::ZERO)).collect();
        let told = self.refresh(&ids).await.map_err(|error| error.to_string())?;
        let mut seen = Seen::All(Amount::ZERO);
        for ((id, total), was) in batch.lines.iter().zip(before) {
            let Some(now) = claimed(id) else { continue };
            seen = match seen {
                Seen::All(moved) if now >= *total => Seen::All(moved.saturating_add(now.saturating_sub(was))),
                _ if now >= *total => seen,
                Seen::All(_) | Seen::Untold if !told.contains(id) => Seen::Untold,
                _ => Seen::Missing,
            };
        }
        Ok(seen)
    }

    async fn send_claim(&self, mut batch: EvmBatch) -> EvmBatchReport {
        let payment = match self.payment(&batch) {
            Ok(payment) => payment,
            // Where its token is configured again, its channels are claimed anew.
            Err(why) => return self.dropped(batch, why).await,
        };
        match self.parts.facilitator.settle(&payment).await {
            Ok(settled) => {
                self.name(&mut batch, &settled.transaction).await;
                let why = match self.read_back(&batch).await {
                    Ok(Seen::All(moved)) => return self.confirmed(batch, moved).await,
                    Ok(Seen::Missing | Seen::Untold) => "it was sent, and its channels do not show it yet".to_owned(),
                    Err(why) => why,
                };
                self.in_vain(batch, Vain::Unseen, why).await
            }
            Err(InterfaceError::Refused { reason, .. }) if is_nobodys(&reason) => {
                self.hold(&reason);
                self.in_vain(batch, Vain::NotSent, reason).await
            }
            Err(error @ InterfaceError::Refused { .. }) => {
                // A refusal can come after another way led to the chain.
                match self.read_back(&batch).await {
                    Ok(Seen::All(moved)) => self.confirmed(batch, moved).await,
                    Ok(Seen::Missing | Seen::Untold) => self.dropped(batch, error.to_string()).await,
                    Err(why) => self.unknown(batch, why),
                }
            }
            Err(InterfaceError::Unavailable(why)) => {
                self.hold(&why);
                self.in_vain(batch, Vain::NotSent, why).await
            }
            Err(InterfaceError::Unknown { transaction, detail }) => {
                self.name(&mut batch, transaction.as_deref().unwrap_or_default()).await;
                self.hold(&detail);
                self.in_vain(batch, Vain::Unanswered, detail).await
            }
        }
    }

    /// A claim was asked for and cannot be seen: it is looked for and asked for again, and where that was done often
    /// enough its channels are tried in parts, since one of them may be what nobody can answer.
    async fn in_vain(&self, batch: EvmBatch, how: Vain, why: String) -> EvmBatchReport {
        if self.asked_in_vain(&batch, how) {
            return self.dropped(batch, format!("{why}; its channels are tried in parts")).await;
        }
        self.unknown(batch, why)
    }

    /// Ends a claim that was answered for and whose channels nobody can tell, a while after the answer: then the answer
    /// is what there is. It is a facilitator's, and where there is no other reader the readings are its word too.
    async fn believed(&self, batch: EvmBatch) -> EvmBatchReport {
        let ledger = &self.parts.ledger;
        let mut moved = Amount::ZERO;
        for (id, total) in &batch.lines {
            let Some(record) = ledger.channel(id).filter(|record| record.on_chain.claimed < *total) else { continue };
            moved = moved.saturating_add(total.saturating_sub(record.on_chain.claimed));
            let balance = record.on_chain.balance.max(*total);
            // Nothing else was told, so what else is known is as old as it was.
            let on_chain = EvmOnChain { claimed: *total, balance, ..record.on_chain };
            if let Err(error) = ledger.observe(id, on_chain).await {
                return self.unknown(batch, error.to_string());
            }
        }
        self.confirmed(batch, moved).await
    }

    /// Keeps the name of a batch's transaction, for people. What became of it is not found out by name.
    pub(super) async fn name(&self, batch: &mut EvmBatch, transaction: &str) {
        let Ok(transaction) = transaction.parse() else { return };
        if batch.transaction.replace(transaction) == Some(transaction) {
            return;
        }
        if let Err(error) = self.parts.ledger.journal_batch(batch.clone()).await {
            tracing::error!(batch = batch.id, %error, "a transaction's hash could not be recorded");
        }
    }

    /// What a facilitator is asked, from the journal.
    fn payment(&self, batch: &EvmBatch) -> Result<Payment, String> {
        let seller = self.seller(batch).ok_or("no configured seller has its token")?;
        let payload = serde_json::from_str(&batch.request).map_err(|error| format!("its journal entry: {error}"))?;
        Ok(payment(&seller, payload))
    }

    /// Journals a batch's end.
    async fn end(&self, batch: EvmBatch, state: BatchState) -> Result<EvmBatch, EvmBatchReport> {
        let over = EvmBatch { state, request: String::new(), ..batch.clone() };
        match self.parts.ledger.journal_batch(over.clone()).await {
            Ok(()) => {
                self.state.lock().asked.remove(&over.id);
                Ok(over)
            }
            Err(error) => Err(self.unknown(batch, error.to_string())),
        }
    }

    pub(super) async fn confirmed(&self, batch: EvmBatch, moved: Amount) -> EvmBatchReport {
        let batch = match self.end(batch, BatchState::Confirmed).await {
            Ok(batch) => batch,
            Err(report) => return report,
        };
        {
            let mut state = self.state.lock();
            for (channel, _) in &batch.lines {
                state.waits.remove(channel);
            }
            state.hold = None;
            state.last_success = Some(self.parts.clock.now());
            state.confirmed = state.confirmed.saturating_add(1);
            state.last_error = None;
        }
        if batch.kind == EvmBatchKind::Claim {
            self.claimed_more(batch.token);
        }
        self.parts.observer.confirmed(&batch, moved);
        let transaction = batch.transaction.map(|hash| hash.to_string()).unwrap_or_default();
        tracing::info!(batch = batch.id, kind = ?batch.kind, channels = batch.lines.len(), %moved, transaction,
            "settlement batch confirmed");
        report(batch, Outcome::Confirmed { moved })
    }

    pub(super) async fn dropped(&self, batch: EvmBatch, why: String) -> EvmBatchReport {
        let batch = match self.end(batch, BatchState::Dropped { why: why.clone() }).await {
            Ok(batch) => batch,
            Err(report) => return report,
        };
        {
            let mut state = self.state.lock();
            state.dropped = state.dropped.saturating_add(1);
            state.last_error = Some(format!("batch {}: {why}", batch.id));
        }
        tracing::warn!(batch = batch.id, kind = ?batch.kind, why, "settlement batch dropped; what it left is tried again");
        match batch.lines.as_slice() {
            [] => self.payout_failed(batch.token, &why),
            [(channel, _)] => {
                let record = self.parts.ledger.channel(channel);
                self.blame(*channel, &why, record.is_some_and(|record| record.on_chain.is_withdrawing()));
            }
            lines => self.split(&lines.iter().map(|(channel, _)| *channel).collect::<Vec<_>>(), &why),
        }
        batch.lines.iter().for_each(|(channel, _)| self.note(channel));
        self.parts.observer.dropped(&batch, &why);
        report(batch, Outcome::Dropped { why })
    }

    pub(super) fn unknown(&self, batch: EvmBatch, why: String) -> EvmBatchReport {
        self.state.lock().last_error = Some(format!("batch {}: {why}", batch.id));
        tracing::warn!(batch = batch.id, kind = ?batch.kind, why, "the fate of a settlement batch is not known yet");
        report(batch, Outcome::Unknown { why })
    }

    pub(super) fn seller(&self, batch: &EvmBatch) -> Option<std::sync::Arc<EvmSeller>> {
        let mut sellers = self.options.sellers.iter();
        sellers.find(|seller| seller.network == batch.network && seller.token == batch.token).cloned()
    }
}

/// Whether a facilitator refuses for a reason that lies in nothing that it was asked: then nothing was sent, and the same
/// is asked for again.
fn is_nobodys(reason: &str) -> bool {
    [Reason::EvmBatchRpcReadFailed, Reason::EvmBatchChannelStateReadFailed].iter().any(|known| known.as_str() == reason)
}

/// A channel's claim up to a total. `None` where it has no voucher for that much.
fn claim_of(record: &RecordOf<Evm>, total: Amount) -> Option<EvmClaim> {
    let voucher = record.voucher.as_ref().filter(|voucher| voucher.cumulative >= total)?;
    // L3, once more and at the last moment.
    (total <= record.charged).then(|| EvmClaim {
        config: record.terms.config(),
        max_claimable: voucher.cumulative,
        total_claimed: total,
        voucher: voucher.signature.clone(),
    })
}

/// "POST /settle", `type: "claim"`.
fn claim_request(claims: &[EvmClaim], signature: &EvmSignature) -> Value {
    let claims = claims.iter().map(|claim| EvmClaimRow {
        voucher: EvmClaimVoucher { channel: claim.config, max_claimable_amount: claim.max_claimable },
        signature: claim.voucher.clone(),
        total_claimed: claim.total_claimed,
    });
    json!({ "type": "claim", "claims": claims.collect::<Vec<_>>(), "claimAuthorizerSignature": signature })
}

/// A step of settlement as a facilitator is asked for it: as the reference server writes it.
pub(super) fn payment(seller: &EvmSeller, payload: Value) -> Payment {
    let requirements = json!({
        "scheme": SCHEME,
        "network": seller.network,
        "asset": seller.token,
        "amount": "0",
        "payTo": seller.pay_to,
        "maxTimeoutSeconds": 0,
        "extra": {},
    });
    let payload = json!({ "x402Version": X402_VERSION, "accepted": requirements, "payload": payload });
    Payment { x402_version: X402_VERSION, payload, requirements }
}

pub(super) fn report(batch: EvmBatch, outcome: Outcome) -> EvmBatchReport {
    EvmBatchReport {
        id: batch.id,
        kind: batch.kind,
        token: batch.token,
        lines: batch.lines,
        transaction: batch.transaction,
        outcome,
    }
}
