//! The flows of schemes `exact` and `upto` on EVM networks: an authorization that pays once.
//!
//! It is checked here as far as that needs no chain, verified by the facilitator, and settled after the upstream has
//! answered: in full, or for `upto` at the charge, which is never above what was signed. Where nothing is to be charged
//! nothing is settled. From the moment that a facilitator may have been asked to settle, a task of its own sees to the
//! end of it, whatever becomes of the request.
//!
//! Promises that one authorization is delivered for once: while its request is in flight, and for a while after it was
//! delivered, its nonce lets no other in; after that the chain does not. What is known of a settlement decides:
//!
//! | the facilitator says | the answer | the authorization |
//! |---|---|---|
//! | settled | is delivered | is spent |
//! | refused, or cannot be asked | is not delivered | may be sent again |
//! | unknown, and asked again: settled | is delivered | is spent |
//! | unknown by a transaction with a name, and asked again: the nonce is used | is delivered | is spent |
//! | unknown, and nothing more comes of asking again | is not delivered | may be sent again |
//!
//! To ask again is safe, because the token and Permit2 take a nonce once, and it is the only question whose answer
//! proves anything: our own facilitator and the reference one answer it with the fate of the transaction that they sent
//! before. That a nonce is used proves little by itself, for a payer can use it up for nothing, at any time, by
//! cancelling it; so that alone never delivers. Source: `scheme_exact_evm.md` sections 1 and 2, `scheme_upto_evm.md` section 1, phases 3 and 4.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::recent::{Entered, Shut};
use super::super::refusal::Denial;
use super::super::{Context, Gate, Held, Paid, Passed, Retry};
use super::{EvmNetwork, LOOKS};
use crate::amount::Amount;
use crate::audit::{Entry, Kind, Position, Recorder};
use crate::facilitator::interface::{InterfaceError, Payment, Settled};
use crate::gate::batch::duplicate;
use crate::ledger::Ledger;
use crate::ledger::channel::Evm;
use crate::ledger::payers::Allowance;
use crate::scheme::evm::authorization::EvmOffer;
use crate::scheme::evm::contracts;
use crate::scheme::exact_evm::{self, ExactPayload};
use crate::scheme::upto_evm::{self, CheckedUpto};
use crate::x402::evm::{Address, B256};
use crate::x402::wire::SettlementResponse;
use crate::x402::{Account, Reason};

/// What an authorization uses up on chain: the contract that counts it takes it once from each payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Nonce {
    chain_id: u64,
    contract: Address,
    payer: Address,
    nonce: B256,
}

/// A verified authorization whose request is served. Dropped, nothing is settled.
pub(in crate::gate) struct OnceHold {
    settlement: Settlement,
    ceiling: Option<Box<CheckedUpto>>,
    payer: Address,
    held: Option<Allowance>,
    entered: Entered<Nonce>,
    permit: OwnedSemaphorePermit,
}

impl Gate {
    /// Checks a payload of `exact` and has it verified. `payment` is the same for the facilitator.
    pub(in crate::gate) async fn admit_evm_exact(
        &self,
        context: &Context,
        offer: &EvmOffer,
        payload: Value,
        payment: Payment,
    ) -> Result<Passed, Denial> {
        let checked = exact_evm::check(offer, exact_evm::parse(payload)?, self.unix_seconds(), context.version)?;
        let (contract, nonce) = match checked.payload() {
            ExactPayload::Eip3009(payment) => (offer.token, payment.authorization.nonce),
            ExactPayload::Permit2(payment) => (contracts::PERMIT2, payment.permit2_authorization.nonce.word()),
        };
        let nonce = Nonce { chain_id: offer.chain_id, contract, payer: checked.payer(), nonce };
        self.admit_evm_once(context, payment, nonce, None).await
    }

    /// The same for `upto`, which only `facilitator` can settle.
    pub(in crate::gate) async fn admit_evm_upto(
        &self,
        context: &Context,
        offer: &EvmOffer,
        facilitator: Address,
        payload: Value,
        payment: Payment,
    ) -> Result<Passed, Denial> {
        let checked = upto_evm::check(offer, facilitator, upto_evm::parse(payload)?, self.unix_seconds())?;
        let nonce = checked.payload().permit2_authorization.nonce.word();
        let nonce = Nonce { chain_id: offer.chain_id, contract: contracts::PERMIT2, payer: checked.payer(), nonce };
        self.admit_evm_once(context, payment, nonce, Some(Box::new(checked))).await
    }

    async fn admit_evm_once(
        &self,
        context: &Context,
        payment: Payment,
        nonce: Nonce,
        ceiling: Option<Box<CheckedUpto>>,
    ) -> Result<Passed, Denial> {
        let evm = self.evm()?;
        if let Some(recorder) = &self.options.recorder {
            // Before anything is served that could not be settled.
            recorder.health().map_err(|error| Denial::ours(error.to_string()))?;
        }
        let network = evm.network(&context.offer)?.clone();
        let permit = Arc::clone(&evm.once_open)
            .try_acquire_owned()
            .map_err(|_| Denial::busy("too many payments are being settled; try again"))?;
        let entered = evm.once.enter(nonce, self.clock.now()).map_err(|shut| match shut {
            Shut::Seen => duplicate("this authorization is being used, or was; sign another"),
            Shut::Full => Denial::busy("too many payments were settled lately; try again"),
        })?;
        network.facilitator.verify(&payment).await?;
        let held = self.clear(context, evm.ledger.payers(), Account::Evm(nonce.payer), false).await?;
        let paid = Paid {
            payer: Account::Evm(nonce.payer),
            amount: context.offer.offer.amount,
            channel: None,
            network: context.network().clone(),
            scheme: context.offer.way.scheme(),
        };
        let time_max = Duration::from_secs(context.offer.offer.max_timeout_seconds);
        let settlement = Settlement { network, payment, retry: self.options.retry, time_max };
        let hold = OnceHold { settlement, ceiling, payer: nonce.payer, held, entered, permit };
        Ok(Passed::Paid { paid, held: Held::EvmOnce(Box::new(hold)) })
    }

    fn unix_seconds(&self) -> u64 {
        u64::try_from(self.clock.now().seconds()).unwrap_or(0)
    }
}

impl OnceHold {
    /// Whether the charge is the upstream's to say.
    pub(in crate::gate) fn is_metered(&self) -> bool {
        self.ceiling.is_some()
    }

    /// Settles the charge.
    pub(in crate::gate) async fn charge(
        self,
        gate: &Gate,
        context: &Context,
        paid: &Paid,
        charge: Amount,
    ) -> Result<Box<SettlementResponse>, Denial> {
        let Self { mut settlement, ceiling, payer, held, mut entered, permit } = self;
        if let Some(ceiling) = ceiling {
            ceiling.check_charge(charge)?;
            settlement.bring_to(charge);
        }
        let told = match charge.is_zero() {
            true => None,
            false => Told::begin(gate, context, paid, charge, &settlement).await?,
        };
        let ledger = Arc::clone(&gate.evm()?.ledger);
        let held = held.map(|held| held.charging(charge));
        let clock = Arc::clone(&gate.clock);
        let (sender, settled) = oneshot::channel();
        gate.tasks.spawn(async move {
            let _permit = permit;
            let settled =
                if charge.is_zero() { Ok(Settled::default()) } else { settlement.run_counted(&ledger, held).await };
            if let Some(told) = told {
                told.end(&settled).await;
            }
            if settled.is_ok() {
                entered.keep(clock.now());
            }
            drop(entered);
            // The request may be gone, then nobody asks.
            let _ = sender.send(settled);
        });
        match settled.await {
            Ok(Ok(settled)) => Ok(response(context, paid, charge, settled)),
            Ok(Err(error)) => Err(context.not_settled(payer, error)),
            Err(_) => Err(Denial::ours("a settlement ended without an answer")),
        }
    }
}

/// A payment of which the audit record knows that it is being settled.
struct Told {
    recorder: Arc<dyn Recorder>,
    begun: Position,
    payer: String,
    amount: Amount,
}

impl Told {
    /// Records that a charge is about to be settled. What cannot be recorded is not settled.
    async fn begin(
        gate: &Gate,
        context: &Context,
        paid: &Paid,
        charge: Amount,
        settlement: &Settlement,
    ) -> Result<Option<Self>, Denial> {
        let Some(recorder) = gate.options.recorder.clone() else { return Ok(None) };
        let entry = Entry::new(Kind::Payment)
            .text("step", "settling")
            .text("network", &paid.network)
            .text("asset", settlement.payment.requirements.get("asset").and_then(Value::as_str).unwrap_or_default())
            .text("scheme", paid.scheme)
            .text("payer", paid.payer)
            .text("amount", charge)
            .text("route", context.prepared.name());
        let begun = recorder.record(entry).await.map_err(|error| {
            tracing::error!(%error, "a payment is not settled");
            Denial::ours("the payment cannot be recorded, so it is not settled; nothing was charged")
        })?;
        Ok(Some(Self { recorder, begun, payer: paid.payer.to_string(), amount: charge }))
    }

    /// Records what came of it. Where that fails the money may have moved all the same, and the record's end says so: a
    /// payment that was begun and has no end.
    async fn end(self, settled: &Result<Settled, InterfaceError>) {
        let entry = Entry::new(Kind::Payment).number("begun", self.begun.seq).text("payer", self.payer);
        let entry = match settled {
            Ok(settled) => {
                entry.text("step", "charged").text("amount", self.amount).text("transaction", &settled.transaction)
            }
            Err(InterfaceError::Unknown { transaction, detail }) => {
                entry.text("step", "unknown").text_if("transaction", transaction.as_deref()).text("why", detail)
            }
            Err(error) => entry.text("step", "not_charged").text("why", error),
        };
        if let Err(error) = self.recorder.record(entry).await {
            tracing::error!(%error, begun = self.begun.seq, "what came of a payment could not be recorded");
        }
    }
}

/// "Phase 3: Settlement Logic", and section 3 of `scheme_upto_evm.md`.
fn response(context: &Context, paid: &Paid, charge: Amount, settled: Settled) -> Box<SettlementResponse> {
    Box::new(SettlementResponse {
        success: true,
        error_reason: None,
        payer: Some(paid.payer.to_string()),
        transaction: settled.transaction,
        network: context.network().clone(),
        amount: Some(charge.to_string()),
        extra: Map::new(),
        extensions: Map::new(),
    })
}

/// A payment that a facilitator is to settle.
struct Settlement {
    network: EvmNetwork,
    payment: Payment,
    retry: Retry,
    /// How long all of it may take, looking after it included.
    time_max: Duration,
}

impl Settlement {
    /// Of `upto`: what is settled of the ceiling ("Settle-Time Verification").
    fn bring_to(&mut self, charge: Amount) {
        if let Some(requirements) = self.payment.requirements.as_object_mut() {
            requirements.insert("amount".to_owned(), charge.to_string().into());
        }
    }

    /// Has it settled, and counts it in its payer's daily limit: before it is asked for, so that a crash in between does
    /// not forget it, and no more once it is known not to have been made.
    async fn run_counted(self, ledger: &Ledger<Evm>, held: Option<Allowance>) -> Result<Settled, InterfaceError> {
        let Some(held) = held else { return self.run().await };
        let stopped = |error| InterfaceError::Unavailable(format!("the charge could not be counted: {error}"));
        let counted = ledger.count(held).await.map_err(stopped)?;
        let settled = self.run().await;
        if let (Err(InterfaceError::Refused { .. } | InterfaceError::Unavailable(_)), Some(counted)) =
            (&settled, counted)
            && let Err(error) = ledger.give_back(counted).await
        {
            tracing::error!(%error, "what was not charged stays counted in its payer's daily limit");
        }
        settled
    }

    /// Has it settled, and looks after it where its fate is unknown.
    async fn run(self) -> Result<Settled, InterfaceError> {
        let now = Instant::now();
        let deadline = now.checked_add(self.time_max).unwrap_or(now);
        let error = match self.ask(deadline).await {
            Err(error @ InterfaceError::Unknown { .. }) => error,
            known => return known,
        };
        let InterfaceError::Unknown { transaction: mut named, detail } = error else { return Err(error) };
        let mut wait = self.retry.wait_min;
        for _ in 0..LOOKS {
            if timeout_at(deadline, sleep(wait)).await.is_err() {
                break;
            }
            wait = wait.saturating_mul(2).min(self.retry.wait_max);
            match self.ask(deadline).await {
                Ok(settled) => return Ok(settled),
                Err(InterfaceError::Unknown { transaction, .. }) => named = transaction.or(named),
                Err(InterfaceError::Unavailable(_)) => {}
                Err(InterfaceError::Refused { reason, .. }) if is_used(&reason) && named.is_some() => {
                    return Ok(Settled { transaction: named.unwrap_or_default(), ..Settled::default() });
                }
                // What was asked for before may still come to pass.
                Err(InterfaceError::Refused { .. }) => break,
            }
        }
        Err(InterfaceError::Unknown { transaction: named, detail })
    }

    async fn ask(&self, deadline: Instant) -> Result<Settled, InterfaceError> {
        timeout_at(deadline, self.network.facilitator.settle(&self.payment)).await.unwrap_or_else(|_| {
            let detail = format!("no answer within maxTimeoutSeconds, {}", self.time_max.as_secs());
            Err(InterfaceError::Unknown { transaction: None, detail })
        })
    }
}

/// Whether a facilitator refuses a payment because its nonce is used.
fn is_used(reason: &str) -> bool {
    [Reason::ExactEvmNonceUsed, Reason::Permit2NonceUsed].iter().any(|used| used.as_str() == reason)
}
