//! The flow of scheme `upto`: open, serve, close at the charge.
//!
//! A request's channel is opened before the upstream is called and closed before its answer leaves. From the moment the
//! open may be on chain, a task of its own owns the channel, so that it is closed whatever becomes of the request: at
//! the charge where the answer was a success, at nothing everywhere else. Every step is journalled before it is taken.
//! Source: `scheme_upto_svm.md`, section 5, phases 3 and 4.
//!
//! What happens where the close does not go through, by the rules "never charge for what was not delivered" and "never
//! deliver unpaid beyond a bound":
//!
//! | the close | the answer | the channel |
//! |---|---|---|
//! | was not sent, in several tries | is not delivered | is closed at nothing, in the background |
//! | was refused | is not delivered | is closed at nothing, in the background |
//! | was sent and is not confirmed in time | is delivered | is closed at the charge, in the background, until it expires |

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batch::duplicate;
use super::closer::{Closed, MeteredCloser, Plan};
use super::recent::{Entered, Shut};
use super::refusal::Denial;
use super::{Context, Gate, Held, Paid, Passed};
use crate::amount::Amount;
use crate::facilitator::{AcceptedDeposit, DepositRequest, DepositScheme, Facilitator, FacilitatorError};
use crate::ledger::Ledger;
use crate::ledger::channel::{OnChain, Seller};
use crate::ledger::payers::{Allowance, Counted};
use crate::ledger::store::{MeteredRecord, StoreError};
use crate::scheme::svm::program::ChannelStatus;
use crate::scheme::upto_svm::{self as scheme, Offered};
use crate::x402::key::Signature;
use crate::x402::wire::SettlementResponse;
use crate::x402::{Account, ChannelId, Key, Reason};

/// A request whose channel is open. Dropped, the channel is closed at nothing.
pub(super) struct Hold {
    verdict: oneshot::Sender<Verdict>,
    closed: oneshot::Receiver<Result<Closed, FacilitatorError>>,
}

/// How the request ended.
enum Verdict {
    Charge(Amount),
    GiveBack,
}

/// Why the channel was not opened.
enum NotOpened {
    Store(StoreError),
    Facilitator(FacilitatorError),
    /// It was opened, but is not what was agreed.
    Other(Signature),
}

impl Gate {
    /// Checks a payload of the scheme and opens its channel.
    pub(super) async fn admit_metered(
        self: &Arc<Self>,
        context: &Context,
        seller: &Arc<Seller>,
        payload: Value,
    ) -> Result<Passed, Denial> {
        let facilitator = self.facilitator(&context.offer)?;
        let offer = &context.offer.offer;
        let now = self.clock.now();
        let offered = Offered {
            amount: offer.amount,
            timeout_seconds: offer.max_timeout_seconds,
            lifetime_seconds_max: self.options.metered_lifetime_max.as_secs(),
        };
        let verified = scheme::verify(seller, offered, scheme::parse(payload)?, now.seconds())?;
        let permit = Arc::clone(&self.metered_open)
            .try_acquire_owned()
            .map_err(|_| Denial::busy("too many metered requests are open; try again"))?;
        let (deposit, expires_at) = (verified.deposit(), verified.expires_at());
        let (terms, transaction) = verified.into_parts();
        let paid = Paid {
            payer: Account::Svm(terms.payer),
            amount: deposit,
            channel: Some(ChannelId::Svm(terms.id)),
            network: context.network().clone(),
            scheme: context.offer.way.scheme(),
        };
        let accepted = facilitator
            .accept_deposit(DepositRequest {
                terms: terms.clone(),
                amount: deposit,
                transaction,
                memo: offer.memo.as_deref().map(str::to_owned),
                known: None,
                scheme: DepositScheme::Upto,
            })
            .await?;
        let entered = self.opened.enter(terms.id, now).map_err(|shut| match shut {
            Shut::Seen => duplicate("this channel is being opened, or was"),
            Shut::Full => Denial::busy("too many channels were opened lately; try again"),
        })?;
        let held = self.clear(context, self.ledger.payers(), paid.payer, false).await?;
        let record = MeteredRecord { terms, deposit, expires_at, charge: None, close: None };
        let life = Duration::from_secs(u64::try_from(expires_at.saturating_sub(now.seconds())).unwrap_or(0));
        let channel = Metered {
            ledger: Arc::clone(&self.ledger),
            closer: Arc::clone(&self.closer),
            facilitator,
            record,
            held,
            life,
            _permit: permit,
        };
        let hold = self.open(context, &paid, channel, accepted, entered).await?;
        Ok(Passed::Paid { paid, held: Held::Metered(Box::new(hold)) })
    }

    /// Hands the channel to its task and waits until it is open.
    async fn open(
        &self,
        context: &Context,
        paid: &Paid,
        channel: Metered,
        accepted: AcceptedDeposit,
        entered: Entered<Key>,
    ) -> Result<Hold, Denial> {
        let (opened, is_open) = oneshot::channel();
        let (verdict, verdicts) = oneshot::channel();
        let (closing, closed) = oneshot::channel();
        let now = self.clock.now();
        self.tasks.spawn(channel.run(accepted, entered, now, opened, verdicts, closing));
        match is_open.await {
            Ok(Ok(())) => Ok(Hold { verdict, closed }),
            Ok(Err(NotOpened::Store(error))) => Err(Denial::stopped(&error)),
            Ok(Err(NotOpened::Facilitator(error))) => Err(context.unsettled(paid.payer, error)),
            Ok(Err(NotOpened::Other(transaction))) => {
                let failed = context.failed(paid.payer, Reason::UptoChannelState, Some(transaction));
                let detail = "the channel was opened but is not what was agreed; its deposit goes back";
                Err(Denial::payment(Reason::UptoChannelState, detail).settling(failed))
            }
            Err(_) => Err(Denial::ours("a metered channel's task ended without an answer")),
        }
    }
}

/// A metered request's channel, from before its open is sent until its close is done or handed to the closer.
struct Metered {
    ledger: Arc<Ledger>,
    closer: Arc<MeteredCloser>,
    facilitator: Arc<dyn Facilitator>,
    record: MeteredRecord,
    /// What is held back of its payer's limits.
    held: Option<Allowance>,
    /// How long until a charge can no longer be claimed.
    life: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Metered {
    async fn run(
        mut self,
        accepted: AcceptedDeposit,
        entered: Entered<Key>,
        now: crate::clock::UnixMillis,
        opened: oneshot::Sender<Result<(), NotOpened>>,
        verdicts: oneshot::Receiver<Verdict>,
        closing: oneshot::Sender<Result<Closed, FacilitatorError>>,
    ) {
        if let Err(not_opened) = self.open(accepted, entered, now).await {
            // The request may be gone, then nobody asks.
            let _ = opened.send(Err(not_opened));
            return;
        }
        // Where the request is gone, its end of `verdicts` is too.
        let _ = opened.send(Ok(()));
        let charge = match tokio::time::timeout(self.life, verdicts).await {
            Ok(Ok(Verdict::Charge(charge))) => charge,
            Ok(Ok(Verdict::GiveBack) | Err(_)) | Err(_) => Amount::ZERO,
        };
        let closed = self.close(charge).await;
        let _ = closing.send(closed);
    }

    /// Journals and opens. What may be on chain without being confirmed is left to the closer.
    async fn open(
        &self,
        accepted: AcceptedDeposit,
        mut entered: Entered<Key>,
        now: crate::clock::UnixMillis,
    ) -> Result<(), NotOpened> {
        self.ledger.journal_metered(self.record.clone()).await.map_err(NotOpened::Store)?;
        entered.keep(now);
        match self.facilitator.settle_deposit(accepted).await {
            Ok(settled) if self.is_agreed(&settled.channel) => Ok(()),
            Ok(settled) => {
                tracing::error!(channel = %self.record.terms.id, "a metered channel is not what was agreed");
                self.closer.follow(self.record.clone(), Plan::close_now());
                Err(NotOpened::Other(settled.transaction))
            }
            Err(error) => {
                match &error {
                    FacilitatorError::Unavailable(_) => {
                        entered.forget();
                        self.closer.forget(&self.record.terms.id).await;
                    }
                    FacilitatorError::Refused { .. } | FacilitatorError::Pending { .. } => {
                        self.closer.follow(self.record.clone(), self.closer.may_still_open());
                    }
                }
                Err(NotOpened::Facilitator(error))
            }
        }
    }

    /// Step 10: open, and holding exactly the ceiling, of which nothing is claimed.
    fn is_agreed(&self, channel: &OnChain) -> bool {
        channel.status == ChannelStatus::Open
            && channel.deposit == self.record.deposit
            && channel.claimed == Amount::ZERO
    }

    /// Closes at the charge while the request waits.
    async fn close(&mut self, charge: Amount) -> Result<Closed, FacilitatorError> {
        let held = self.held.take().map(|held| held.charging(charge));
        let mut counted = None;
        if !charge.is_zero() {
            self.record.charge = Some(charge);
            counted = match self.ledger.journal_charge(self.record.clone(), held).await {
                Ok(counted) => counted,
                Err(error) => {
                    tracing::error!(channel = %self.record.terms.id, %error, "a charge could not be recorded");
                    self.give_up(None).await;
                    return Err(FacilitatorError::Unavailable("the ledger has stopped".to_owned()));
                }
            };
        }
        let closed = self.closer.close_in_request(&self.facilitator, &mut self.record, charge).await;
        match &closed {
            Ok(Closed { confirmed: true, .. }) => self.closer.forget(&self.record.terms.id).await,
            Ok(Closed { confirmed: false, .. }) => {
                self.closer.follow(self.record.clone(), self.closer.was_sent());
            }
            Err(error) => {
                tracing::error!(channel = %self.record.terms.id, %charge, %error, "a metered request was not charged");
                self.give_up(counted).await;
            }
        }
        closed
    }

    /// The charge is forgone: from here on the channel is to be closed at nothing, after a restart too.
    async fn give_up(&mut self, counted: Option<Counted>) {
        self.record.charge = None;
        if let Err(error) = self.ledger.journal_forgone(self.record.clone(), counted).await {
            tracing::error!(channel = %self.record.terms.id, %error, "a forgone charge could not be recorded");
        }
        self.closer.follow(self.record.clone(), Plan::close_now());
    }
}

impl Hold {
    /// Closes the channel at the charge.
    pub(super) async fn charge(
        self,
        context: &Context,
        paid: &Paid,
        charge: Amount,
    ) -> Result<Box<SettlementResponse>, Denial> {
        // Where nobody listens the request's time was up, and the channel is being closed at nothing.
        let _ = self.verdict.send(Verdict::Charge(charge));
        match self.closed.await {
            Ok(Ok(closed)) if closed.charged == charge => Ok(settled(context, paid, &closed)),
            Ok(Ok(closed)) => {
                let failed = context.failed(paid.payer, Reason::UptoExpired, Some(closed.transaction));
                let detail =
                    "the channel was closed before the answer came, at payload.expiresAt; the deposit goes back";
                Err(Denial::payment(Reason::UptoExpired, detail).settling(failed))
            }
            Ok(Err(error)) => Err(context.unsettled(paid.payer, error)),
            Err(_) => Err(Denial::ours("a metered channel's task ended without an answer")),
        }
    }

    /// Closes the channel at nothing, and says so where it could be done.
    pub(super) async fn give_back(self, context: &Context, paid: &Paid) -> Option<Box<SettlementResponse>> {
        let _ = self.verdict.send(Verdict::GiveBack);
        match self.closed.await {
            Ok(Ok(closed)) if closed.confirmed && closed.charged.is_zero() => Some(settled(context, paid, &closed)),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        }
    }
}

/// Section 4.3.
fn settled(context: &Context, paid: &Paid, closed: &Closed) -> Box<SettlementResponse> {
    Box::new(SettlementResponse {
        success: true,
        error_reason: None,
        payer: Some(paid.payer.to_string()),
        transaction: closed.transaction.to_string(),
        network: context.network().clone(),
        amount: Some(closed.charged.to_string()),
        extra: Map::new(),
        extensions: Map::new(),
    })
}
