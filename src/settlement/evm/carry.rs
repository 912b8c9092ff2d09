//! One batch's way: approval, signature, journal, facilitator, reading back.
//!
//! Promises that a batch is durable before anybody is asked to send it, and ends as confirmed only when the channels
//! have been read back, or the payout was told by whoever made it. A facilitator's refusal means that nothing changed;
//! no answer means nothing at all: then the channels are read, and the same signed claim is asked for again, which on
//! chain passes over what is claimed already.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::Outcome;
use super::EvmSettlement;
use super::plan::{EvmDue, Urgency};
use super::report::{EvmBatchReport, EvmReport};
use crate::amount::Amount;
use crate::facilitator::interface::{InterfaceError, Payment, Settled};
use crate::ledger::channel::Evm;
use crate::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use crate::ledger::store::{BatchState, RecordOf};
use crate::policy::{Deployment, EvmClaim, EvmRequest};
use crate::scheme::batch_settlement_evm::SCHEME;
use crate::scheme::evm::{EvmSeller, contracts};
use crate::signer::SignerError;
use crate::x402::Reason;
use crate::x402::evm::{Address, B256, EvmSignature};
use crate::x402::wire::X402_VERSION;

/// How often a claim is asked for without an answer before it is given up and taken apart.
const UNANSWERED_MAX: u32 = 6;

/// Why a batch was not made.
enum Unmade {
    /// A rule forbids this batch; a smaller one may pass.
    Forbidden(String),
    /// No channel's fault.
    Halted(String),
}

impl EvmSettlement {
    /// Makes a claim of what is due and takes it as far as it goes.
    pub(super) async fn carry(&self, due: Vec<EvmDue>) -> EvmBatchReport {
        match self.make(&due).await {
            Ok(batch) => self.send_claim(batch).await,
            Err(unmade) => self.refused(&due, unmade),
        }
    }

    /// Approves, signs and journals.
    async fn make(&self, due: &[EvmDue]) -> Result<EvmBatch, Unmade> {
        let seller = due.first().map(|line| &line.record.terms.seller);
        let seller = seller.ok_or_else(|| Unmade::Halted("an empty batch".to_owned()))?;
        let started = Instant::now();
        let claims: Option<Vec<EvmClaim>> = due.iter().map(|line| claim_of(&line.record, line.total)).collect();
        let claims = claims.ok_or_else(|| Unmade::Halted("a channel without a voucher is due".to_owned()))?;
        let contract = Deployment { chain_id: seller.chain_id, address: contracts::BATCH_SETTLEMENT };
        let moving = due.iter().fold(Amount::ZERO, |sum, line| sum.saturating_add(line.moving()));
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
            lines: due.iter().map(|line| (line.record.terms.id, line.total)).collect(),
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

    fn refused(&self, due: &[EvmDue], unmade: Unmade) -> EvmBatchReport {
        let lines: Vec<_> = due.iter().map(|line| (line.record.terms.id, line.total)).collect();
        let why = match unmade {
            Unmade::Forbidden(why) => {
                match due {
                    [line] => self.blame(line.record.terms.id, &why, line.urgency == Urgency::Withdrawal),
                    // A limit on the whole may let each pass alone.
                    _ => self.split(lines.iter().map(|(channel, _)| *channel), &why),
                }
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
        match batch.kind {
            EvmBatchKind::Claim => match self.read_back(&batch).await {
                Ok(Some(moved)) => self.confirmed(batch, moved).await,
                Ok(None) => self.send_claim(batch).await,
                Err(why) => self.unknown(batch, why),
            },
            EvmBatchKind::Settle => match self.seller(&batch) {
                Some(seller) => match self.parts.channels.unsettled(&seller).await {
                    Ok(Some(owed)) if owed.is_zero() => self.confirmed(batch, Amount::ZERO).await,
                    Ok(_) => self.send_settle(batch).await,
                    Err(error) => self.unknown(batch, error.to_string()),
                },
                None => self.unknown(batch, "no configured seller has its token".to_owned()),
            },
        }
    }

    /// Whether the chain has a claim: reads its channels, and takes up what it says. The sum that it newly claimed where
    /// every channel has come to its total, else `None`.
    async fn read_back(&self, batch: &EvmBatch) -> Result<Option<Amount>, String> {
        let ids: Vec<B256> = batch.lines.iter().map(|(id, _)| *id).collect();
        let before: HashMap<B256, Amount> =
            ids.iter().filter_map(|id| Some((*id, self.parts.ledger.channel(id)?.on_chain.claimed))).collect();
        let after = self.refresh(&ids).await.map_err(|error| error.to_string())?;
        let mut moved = Amount::ZERO;
        for (id, total) in &batch.lines {
            let Some(record) = after.iter().find(|record| record.terms.id == *id) else { continue };
            if record.on_chain.claimed < *total {
                return Ok(None);
            }
            let was = before.get(id).copied().unwrap_or(Amount::ZERO);
            moved = moved.saturating_add(record.on_chain.claimed.saturating_sub(was));
        }
        Ok(Some(moved))
    }

    async fn send_claim(&self, mut batch: EvmBatch) -> EvmBatchReport {
        let payment = match self.payment(&batch) {
            Ok(payment) => payment,
            Err(why) => return self.unknown(batch, why),
        };
        match self.parts.facilitator.settle(&payment).await {
            Ok(settled) => {
                self.name(&mut batch, &settled.transaction).await;
                match self.read_back(&batch).await {
                    Ok(Some(moved)) => self.confirmed(batch, moved).await,
                    Ok(None) => self.unknown(batch, "it was sent, and its channels do not show it yet".to_owned()),
                    Err(why) => self.unknown(batch, why),
                }
            }
            Err(error @ InterfaceError::Refused { .. }) => {
                // A refusal can come after another way led to the chain.
                match self.read_back(&batch).await {
                    Ok(Some(moved)) => self.confirmed(batch, moved).await,
                    Ok(None) => self.dropped(batch, error.to_string()).await,
                    Err(why) => self.unknown(batch, why),
                }
            }
            Err(InterfaceError::Unavailable(why)) => {
                self.hold(&why);
                self.unknown(batch, why)
            }
            Err(InterfaceError::Unknown { transaction, detail }) => {
                if let Some(transaction) = transaction {
                    self.name(&mut batch, &transaction).await;
                }
                if self.is_hopeless(&batch) {
                    let why = format!("{detail}; its channels are tried one by one");
                    return self.dropped(batch, why).await;
                }
                self.hold(&detail);
                self.unknown(batch, detail)
            }
        }
    }

    /// Whether a batch was asked for so often without an answer that one of its channels may be what nobody can answer.
    /// To give it up is safe: should it land later, it claims what was charged and signed, and a claim of more passes
    /// over it.
    fn is_hopeless(&self, batch: &EvmBatch) -> bool {
        let mut state = self.state.lock();
        let asked = state.unanswered.entry(batch.id).or_insert(0);
        *asked = asked.saturating_add(1);
        *asked >= UNANSWERED_MAX
    }

    /// Keeps the name of a batch's transaction, for people. What became of it is not found out by name.
    async fn name(&self, batch: &mut EvmBatch, transaction: &str) {
        batch.transaction = transaction.parse().ok().or(batch.transaction);
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
                self.state.lock().unanswered.remove(&over.id);
                Ok(over)
            }
            Err(error) => Err(self.unknown(batch, error.to_string())),
        }
    }

    async fn confirmed(&self, batch: EvmBatch, moved: Amount) -> EvmBatchReport {
        let batch = match self.end(batch, BatchState::Confirmed).await {
            Ok(batch) => batch,
            Err(report) => return report,
        };
        {
            let mut state = self.state.lock();
            for (channel, _) in &batch.lines {
                state.waits.remove(channel);
            }
            let owes = batch.kind == EvmBatchKind::Claim;
            state.owed.insert(batch.token, owes);
            state.hold = None;
            state.last_success = Some(self.parts.clock.now());
            state.confirmed = state.confirmed.saturating_add(1);
            state.last_error = None;
        }
        self.parts.observer.confirmed(&batch, moved);
        let transaction = batch.transaction.map(|hash| hash.to_string()).unwrap_or_default();
        tracing::info!(batch = batch.id, kind = ?batch.kind, channels = batch.lines.len(), %moved, transaction,
            "settlement batch confirmed");
        report(batch, Outcome::Confirmed { moved })
    }

    async fn dropped(&self, batch: EvmBatch, why: String) -> EvmBatchReport {
        let batch = match self.end(batch, BatchState::Dropped { why: why.clone() }).await {
            Ok(batch) => batch,
            Err(report) => return report,
        };
        {
            let mut state = self.state.lock();
            state.dropped = state.dropped.saturating_add(1);
            state.last_error = Some(format!("batch {}: {why}", batch.id));
        }
        tracing::warn!(batch = batch.id, kind = ?batch.kind, why, "settlement batch dropped; it changed nothing");
        match batch.lines.as_slice() {
            [] => self.hold(&why),
            [(channel, _)] => {
                let record = self.parts.ledger.channel(channel);
                self.blame(*channel, &why, record.is_some_and(|record| record.on_chain.is_withdrawing()));
            }
            lines => self.split(lines.iter().map(|(channel, _)| *channel), &why),
        }
        self.parts.observer.dropped(&batch, &why);
        report(batch, Outcome::Dropped { why })
    }

    fn unknown(&self, batch: EvmBatch, why: String) -> EvmBatchReport {
        self.state.lock().last_error = Some(format!("batch {}: {why}", batch.id));
        tracing::warn!(batch = batch.id, kind = ?batch.kind, why, "the fate of a settlement batch is not known yet");
        report(batch, Outcome::Unknown { why })
    }

    fn seller(&self, batch: &EvmBatch) -> Option<std::sync::Arc<EvmSeller>> {
        let mut sellers = self.options.sellers.iter();
        sellers.find(|seller| seller.network == batch.network && seller.token == batch.token).cloned()
    }

    /// Pays out what is claimed and not paid out.
    pub(super) async fn pay_out(&self, report: &mut EvmReport) {
        for seller in &self.options.sellers {
            let owed = self.state.lock().owed.get(&seller.token).copied().unwrap_or(true);
            if !owed || self.stopping() || self.is_held() {
                continue;
            }
            match self.parts.channels.unsettled(seller).await {
                Ok(Some(amount)) if amount.is_zero() => {
                    self.state.lock().owed.insert(seller.token, false);
                    continue;
                }
                // Nobody can tell, and nothing was claimed since this process started: a payout of nothing costs
                // nothing where the facilitator simulates it, as it must.
                Ok(_) => {}
                Err(error) => {
                    self.hold(&error.to_string());
                    continue;
                }
            }
            let batch = EvmBatch {
                id: self.parts.ledger.next_batch(),
                kind: EvmBatchKind::Settle,
                network: seller.network.clone(),
                token: seller.token,
                lines: Vec::new(),
                request: settle_request(seller).to_string(),
                transaction: None,
                state: BatchState::Signed,
                created_at: self.parts.clock.now(),
            };
            match self.parts.ledger.journal_batch(batch.clone()).await {
                Ok(()) => report.batches.push(self.send_settle(batch).await),
                Err(error) => self.hold(&error.to_string()),
            }
        }
    }

    async fn send_settle(&self, mut batch: EvmBatch) -> EvmBatchReport {
        let payment = match self.payment(&batch) {
            Ok(payment) => payment,
            Err(why) => return self.unknown(batch, why),
        };
        match self.parts.facilitator.settle(&payment).await {
            Ok(settled) => {
                let moved = paid_out(&settled);
                self.name(&mut batch, &settled.transaction).await;
                self.confirmed(batch, moved).await
            }
            Err(InterfaceError::Refused { reason, .. }) if reason == Reason::EvmBatchNothingToSettle.as_str() => {
                self.confirmed(batch, Amount::ZERO).await
            }
            Err(error @ InterfaceError::Refused { .. }) => self.dropped(batch, error.to_string()).await,
            Err(error) => {
                if let InterfaceError::Unknown { transaction: Some(transaction), .. } = &error {
                    self.name(&mut batch, transaction).await;
                }
                let why = error.to_string();
                self.hold(&why);
                self.unknown(batch, why)
            }
        }
    }
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
    let claims = claims.iter().map(|claim| {
        json!({
            "voucher": { "channel": claim.config, "maxClaimableAmount": claim.max_claimable },
            "signature": claim.voucher,
            "totalClaimed": claim.total_claimed,
        })
    });
    json!({ "type": "claim", "claims": claims.collect::<Vec<_>>(), "claimAuthorizerSignature": signature })
}

/// "POST /settle", `type: "settle"`.
fn settle_request(seller: &EvmSeller) -> Value {
    json!({ "type": "settle", "receiver": seller.pay_to, "token": seller.token })
}

/// A step of settlement as a facilitator is asked for it: as the reference server writes it.
fn payment(seller: &EvmSeller, payload: Value) -> Payment {
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

/// What a payout moved, as it was told.
fn paid_out(settled: &Settled) -> Amount {
    settled.amount.as_deref().and_then(|text| text.parse().ok()).unwrap_or(Amount::ZERO)
}

fn report(batch: EvmBatch, outcome: Outcome) -> EvmBatchReport {
    EvmBatchReport {
        id: batch.id,
        kind: batch.kind,
        token: batch.token,
        lines: batch.lines,
        transaction: batch.transaction,
        outcome,
    }
}
