//! The request flow without HTTP: admit a request, then finish it.
//!
//! ```text
//! admit  -> Free | Admitted(Admission) | Challenge | Refused | Answered | Replayed
//! finish -> Charged | Counted | Released | Refused | Unmetered
//! ```
//!
//! Promises: nothing is charged but by [`Admission::finish`] and its like with a status below 400,
//! and what is charged is durable when it returns; every other way out, dropping included, gives everything back. Names
//! the ledger and the facilitator, and never a signer, so nothing on the request path can reach a key share.
//!
//! Source: `scheme_batch_settlement_svm.md` and `scheme_upto_svm.md`, section 5 of both; on EVM networks [`evm`]. A
//! payment of protocol version 1 is one of scheme `exact` on an EVM network.

pub mod challenge;
pub mod charge;
mod charged;
pub mod evm;
pub mod policy;
pub mod refusal;
pub mod replay;
pub mod reply;
pub mod route;

mod admission;
mod batch;
mod clearance;
mod closer;
mod metered;
mod pack;
mod quick;
mod recent;
mod refund;
mod tasks;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use serde::de::DeserializeOwned;
use serde_json::Map;
use tokio::sync::Semaphore;

pub use self::admission::Admission;
use self::admission::Held;
use self::challenge::{Challenge, Challenges, Demand, Prepared, PreparedOffer, Way};
pub use self::charged::Charged;
pub use self::clearance::PolicyOptions;
use self::clearance::{Clearances, Judged};
use self::closer::MeteredCloser;
use self::evm::{EvmGate, EvmSide};
use self::pack::Sale;
use self::policy::Policy;
use self::quick::{Quick, QuickVoucher};
use self::recent::Recent;
use self::refusal::{Denial, Refusal};
use self::replay::{Claim, Known, Replays};
use self::route::{Pricing, Route};
use self::tasks::Tasks;
use crate::amount::Amount;
use crate::audit::Recorder;
use crate::chain::Blockhash;
use crate::clock::Clock;
use crate::facilitator::{Facilitator, FacilitatorError};
use crate::ledger::Ledger;
use crate::ledger::answers::KeptAnswers;
use crate::ledger::channel::Evm;
use crate::ledger::store::Answer;
use crate::scheme::exact_evm::Version;
use crate::telemetry::Telemetry;
use crate::x402::header::{self, HeaderError};
use crate::x402::key::Signature;
use crate::x402::v1::{self, PaymentPayloadV1, PaymentRequirementsV1};
use crate::x402::wire::{PaymentPayload, SettlementResponse, X402_VERSION};
use crate::x402::{Account, ChannelId, Key, Network, Reason, payment_identifier};

/// The gate's own bounds and choices.
#[derive(Clone, Debug)]
pub struct Options {
    /// How old a channel's mirrored chain state may be before it is read again.
    pub freshness: Duration,
    /// How old it may be while the chain cannot be reached. A quarter of the channel's withdraw delay bounds it too.
    pub staleness_max: Duration,
    /// How many chain reads may run at once for requests.
    pub chain_reads_max: usize,
    /// How many metered requests may hold a channel open at once.
    pub metered_open_max: usize,
    /// The longest that a metered request's channel may live.
    pub metered_lifetime_max: Duration,
    /// How many requests that an authorization pays once, on EVM networks, may be open at once: from before it is
    /// verified until it is settled.
    pub once_open_max: usize,
    /// Whether challenges offer a recent blockhash and slot, so that a client need not ask the chain.
    pub hints: bool,
    /// How the gate tries again what the chain did not confirm.
    pub retry: Retry,
    /// How answers are kept for clients that lost theirs, where the ledger keeps any; `None` to offer nothing of it.
    pub replay: Option<replay::Options>,
    /// What holds on all routes that have a policy.
    pub policy: PolicyOptions,
    /// What is told of payments that no ledger keeps: those by `exact` and `upto` on EVM networks.
    pub recorder: Option<Arc<dyn Recorder>>,
    /// Where the steps of a payment are timed.
    pub telemetry: Option<Arc<Telemetry>>,
}

/// How the gate tries again what the chain did not confirm.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// The first wait; it doubles from try to try.
    pub wait_min: Duration,
    /// The longest wait.
    pub wait_max: Duration,
    /// How many tries a waiting request sees before it is answered without.
    pub tries_in_request_max: u32,
    /// After how long a transaction that was sent can no longer land: its blockhash has expired.
    pub landing_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            freshness: Duration::from_secs(60),
            staleness_max: Duration::from_secs(600),
            chain_reads_max: 64,
            metered_open_max: 256,
            metered_lifetime_max: Duration::from_secs(3600),
            once_open_max: 1024,
            hints: true,
            retry: Retry {
                wait_min: Duration::from_millis(500),
                wait_max: Duration::from_secs(60),
                tries_in_request_max: 4,
                landing_max: Duration::from_secs(120),
            },
            replay: Some(replay::Options::default()),
            policy: PolicyOptions::default(),
            recorder: None,
            telemetry: None,
        }
    }
}

/// A request as the gate sees it.
#[derive(Clone, Copy, Debug)]
pub struct AdmitRequest<'a> {
    /// The route that it matched.
    pub route: &'a Arc<Route>,
    /// Its method.
    pub method: &'a Method,
    /// The host that it was sent to.
    pub host: Option<&'a str>,
    /// Its path and query.
    pub target: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its address as the client asked for it, for challenges.
    pub url: &'a str,
    /// The payment that it came with.
    pub payment_header: Option<PaymentHeader<'a>>,
}

/// A payment's header, by the protocol version that it belongs to.
#[derive(Clone, Copy)]
pub enum PaymentHeader<'a> {
    /// The value of `X-PAYMENT`.
    V1(&'a [u8]),
    /// The value of `PAYMENT-SIGNATURE`.
    V2(&'a [u8]),
    /// The value of `Payment-Pass`, where nothing is paid: a call of a pack. A secret.
    Pass(&'a [u8]),
}

impl fmt::Debug for PaymentHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1(_) => "V1(...)",
            Self::V2(_) => "V2(...)",
            Self::Pass(_) => "Pass(...)",
        })
    }
}

/// Who paid what from where: for the upstream's `Turnpike-*` headers, logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    /// The client's wallet.
    pub payer: Account,
    /// The price; for a metered request the most that will be charged.
    pub amount: Amount,
    /// The channel, where the scheme has one.
    pub channel: Option<ChannelId>,
    /// Where the money moves.
    pub network: Network,
    /// By which scheme, such as `batch-settlement`.
    pub scheme: &'static str,
}

/// What becomes of a request.
pub enum Outcome {
    /// It costs nothing.
    Free,
    /// It is paid for; forward it, then finish.
    Admitted(Box<Admission>),
    /// It came without payment.
    Challenge(Arc<Challenge>),
    /// Its payment does not pass.
    Refused(Box<Refusal>),
    /// It was no paid request but a refund, and is done. The upstream sees nothing of it.
    Answered(Box<SettlementResponse>),
    /// It was answered before, and its client asks for that answer. The upstream sees nothing of it, and it costs
    /// nothing.
    Replayed(Box<Answer>),
}

/// How an admitted request ended.
#[derive(Debug)]
pub enum Finished {
    /// It was charged; this goes into `PAYMENT-RESPONSE`.
    Charged(Charged),
    /// It was not charged. A metered request says in `PAYMENT-RESPONSE` that its deposit went back.
    Released(Option<Box<SettlementResponse>>),
    /// It was a call on a pass, and was counted.
    Counted {
        /// How many are left.
        left: u32,
    },
    /// It could not be charged: the upstream's answer must not be delivered.
    Refused(Box<Refusal>),
    /// It was not charged, for the answer does not say its charge and the route's rule is to refuse then: the answer
    /// must not be delivered. What is said is as for [`Self::Released`].
    Unmetered(Option<Box<SettlementResponse>>),
}

/// The request flow of all routes.
pub struct Gate {
    ledger: Arc<Ledger>,
    facilitators: HashMap<Network, Arc<dyn Facilitator>>,
    clock: Arc<dyn Clock>,
    options: Options,
    challenges: Challenges,
    /// Setup transactions that are being settled or were (section 5, phase 5).
    setups: Arc<Recent<Signature>>,
    /// Channels that a deposit is in flight for, that are being read, and that are being refunded.
    depositing: Arc<Recent<Key>>,
    reading: Arc<Recent<Key>>,
    refunds: Arc<refund::Refunds>,
    /// Metered channels whose open was sent.
    opened: Arc<Recent<Key>>,
    /// Answers that clients may ask for again; `None` where that is not offered.
    replays: Option<Arc<Replays>>,
    /// What policies count and tell.
    clearances: Clearances,
    chain_reads: Semaphore,
    metered_open: Arc<Semaphore>,
    closer: Arc<MeteredCloser>,
    /// Payments on EVM networks, where any are taken.
    evm: Option<EvmGate>,
    tasks: Tasks,
}

/// How long a setup transaction is remembered: twice the life of a blockhash.
const SETUP_TTL: Duration = Duration::from_secs(120);
/// How many setup transactions, or channels, are remembered at once.
const RECENT_MAX: usize = 65_536;

impl Gate {
    /// A gate over `ledger`, with one facilitator for each Solana-like network that routes are paid on.
    #[must_use]
    pub fn new(
        ledger: Arc<Ledger>,
        facilitators: impl IntoIterator<Item = (Network, Arc<dyn Facilitator>)>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Arc<Self> {
        Self::with_evm(ledger, facilitators, None, clock, options)
    }

    /// The same, where EVM networks are paid on too.
    #[must_use]
    pub fn with_evm(
        ledger: Arc<Ledger>,
        facilitators: impl IntoIterator<Item = (Network, Arc<dyn Facilitator>)>,
        evm: Option<EvmSide>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Arc<Self> {
        let facilitators: HashMap<_, _> = facilitators.into_iter().collect();
        let tasks = Tasks::default();
        let replay = options.replay.filter(|_| ledger.keeps_answers());
        let extensions = replay.map(|_| (payment_identifier::NAME.to_owned(), payment_identifier::declaration()));
        let served = evm.iter().flat_map(|evm| &evm.networks).map(|(name, network)| (name.clone(), network.served));
        Arc::new(Self {
            closer: Arc::new(MeteredCloser::new(
                Arc::clone(&ledger),
                facilitators.clone(),
                Arc::clone(&clock),
                options.retry,
                tasks.clone(),
            )),
            challenges: Challenges::new(extensions.into_iter().collect(), served.collect()),
            setups: Recent::new(SETUP_TTL, RECENT_MAX),
            depositing: Recent::new(SETUP_TTL, RECENT_MAX),
            reading: Recent::new(SETUP_TTL, RECENT_MAX),
            opened: Recent::new(SETUP_TTL, RECENT_MAX),
            refunds: Arc::default(),
            replays: replay.map(|options| {
                let mut kept: Vec<Arc<dyn KeptAnswers>> = vec![Arc::<Ledger>::clone(&ledger)];
                if let Some(evm) = &evm {
                    kept.push(Arc::<Ledger<Evm>>::clone(&evm.ledger));
                }
                Replays::new(kept, options)
            }),
            evm: evm.map(|evm| EvmGate::new(evm, options.once_open_max)),
            clearances: Clearances::new(options.policy.clone(), options.telemetry.clone()),
            chain_reads: Semaphore::new(options.chain_reads_max),
            metered_open: Arc::new(Semaphore::new(options.metered_open_max)),
            ledger,
            facilitators,
            clock,
            options,
            tasks,
        })
    }

    /// Takes up the metered requests that a crash or a stop left open: closes their channels in the background. To be
    /// called once, when the ledger is open and before requests are served.
    pub fn recover(self: &Arc<Self>) {
        self.closer.recover();
    }

    /// Resolves when nothing is left that goes on behind a request: closes, refunds, retries. For an orderly stop,
    /// under the caller's own deadline; what is cut off is taken up by [`Self::recover`].
    pub async fn settled(&self) {
        self.tasks.idle().await;
    }

    /// Decides whether a request may pass. Waits for predecessors on its channel and, seldom, for the chain.
    pub async fn admit(self: &Arc<Self>, request: AdmitRequest<'_>) -> Outcome {
        if matches!(request.route.pricing, Pricing::Free) {
            return Outcome::Free;
        }
        match request.payment_header {
            None => self.challenge(&request).map_or_else(Outcome::Refused, Outcome::Challenge),
            Some(PaymentHeader::V2(value)) => self.admit_v2(self.challenges.of(request.route), &request, value).await,
            Some(PaymentHeader::Pass(value)) => self.admit_pass(&request, value).await,
            // What is seldom asked for lives apart, so that the rest is small.
            Some(PaymentHeader::V1(value)) => {
                Box::pin(self.admit_v1(self.challenges.of(request.route), &request, value)).await
            }
        }
    }

    /// How to pay for a request that came without payment. On a free route there is nothing to ask.
    ///
    /// # Errors
    /// [`Refusal`] where policy would not let it pass if it were paid for.
    pub fn challenge(&self, request: &AdmitRequest<'_>) -> Result<Arc<Challenge>, Box<Refusal>> {
        let prepared = self.challenges.of(request.route);
        match self.judge(request) {
            Ok(_) => Ok(prepared.challenge(request.url, &|network| self.hints(network))),
            Err(denial) => Err(Box::new(self.refuse(&prepared, None, Version::V2, request.url, denial))),
        }
    }

    async fn admit_v2(self: &Arc<Self>, prepared: Arc<Prepared>, request: &AdmitRequest<'_>, value: &[u8]) -> Outcome {
        let refused =
            |denial| Outcome::Refused(Box::new(self.refuse(&prepared, None, Version::V2, request.url, denial)));
        let json = match header::decode_bytes(value) {
            Ok(json) => json,
            Err(error) => return refused(Denial::malformed(error.to_string())),
        };
        let mut judged_before = None;
        if let Some(Quick { offer, voucher }) = quick::read(&prepared, &json) {
            let judged = match self.judge(request) {
                Ok(judged) => judged,
                Err(denial) => return refused(denial),
            };
            judged_before = Some(judged);
            let prepared = Arc::clone(&prepared);
            let url = request.url.to_owned();
            let context = Context { prepared, offer, version: Version::V2, url, judged, sale: None };
            if let Some(admitted) = self.pass_quick(&context, voucher).await {
                return self.admitted(context, None, admitted);
            }
        }
        Box::pin(self.admit_other(prepared, request, value, &json, judged_before)).await
    }

    /// A payment of protocol version 2 that is not a plain voucher.
    async fn admit_other(
        self: &Arc<Self>,
        prepared: Arc<Prepared>,
        request: &AdmitRequest<'_>,
        value: &[u8],
        json: &[u8],
        judged_before: Option<Judged>,
    ) -> Outcome {
        let refused =
            |denial| Outcome::Refused(Box::new(self.refuse(&prepared, None, Version::V2, request.url, denial)));
        let payment = match Self::read(json) {
            Ok(payment) => payment,
            Err(denial) => return refused(denial),
        };
        // Before anything is verified: what was charged does not verify again.
        let claim = match self.known(request, value, &payment).await {
            Ok(Some(Known::Answer(answer))) => return Outcome::Replayed(pack::unsealed(answer, value)),
            Ok(Some(Known::New(claim))) => Some(claim),
            Ok(None) => None,
            Err(denial) => return refused(denial),
        };
        let offer = match prepared.select(&payment.accepted, &payment.extensions) {
            Ok(offer) => offer,
            Err(denial) => return refused(denial),
        };
        // A payer gets its money back whatever it may buy.
        let refunds = offer.asks_refund(&payment.payload);
        let judged = match judged_before {
            Some(judged) => Ok(judged),
            None if refunds => Ok(Judged::default()),
            None => self.judge(request),
        };
        let sale = if refunds { Ok(None) } else { self.sale(&offer, value) };
        let (judged, sale) = match judged.and_then(|judged| Ok((judged, sale?))) {
            Ok(both) => both,
            Err(denial) => return refused(denial),
        };
        let url = request.url.to_owned();
        let context = Context { prepared, offer, version: Version::V2, url, judged, sale };
        let admitted = self.pass(&context, payment).await;
        self.admitted(context, claim, admitted)
    }

    /// A payment of the protocol's first version: by `exact`, with no extensions.
    async fn admit_v1(self: &Arc<Self>, prepared: Arc<Prepared>, request: &AdmitRequest<'_>, value: &[u8]) -> Outcome {
        let refused =
            |denial| Outcome::Refused(Box::new(self.refuse(&prepared, None, Version::V1, request.url, denial)));
        let payment: PaymentPayloadV1 = match Self::decode_v1(value) {
            Ok(payment) => payment,
            Err(denial) => return refused(denial),
        };
        let (offer, requirements) = match prepared.select_v1(&payment, request.url) {
            Ok(selected) => selected,
            Err(denial) => return refused(denial),
        };
        let judged = match self.judge(request) {
            Ok(judged) => judged,
            Err(denial) => return refused(denial),
        };
        let url = request.url.to_owned();
        let context = Context { prepared, offer, version: Version::V1, url, judged, sale: None };
        let admitted = self.pass_v1(&context, payment, &requirements).await;
        self.admitted(context, None, admitted)
    }

    async fn pass(self: &Arc<Self>, context: &Context, payment: PaymentPayload) -> Result<Passed, Denial> {
        match &context.offer.way {
            Way::SvmBatch(seller) => self.admit_batch(context, seller, payment.payload).await,
            Way::SvmUpto(seller) => self.admit_metered(context, seller, payment.payload).await,
            Way::EvmBatch(seller) => self.admit_evm_batch(context, seller, payment).await,
            Way::EvmExact(terms) => {
                let asked = evm::asked(context, &payment)?;
                self.admit_evm_exact(context, terms, payment.payload, asked).await
            }
            Way::EvmUpto(terms, facilitator) => {
                let asked = evm::asked(context, &payment)?;
                self.admit_evm_upto(context, terms, *facilitator, payment.payload, asked).await
            }
        }
    }

    /// The same for a voucher that was recognized; `None` where it has to go the general way after all.
    async fn pass_quick(self: &Arc<Self>, context: &Context, voucher: QuickVoucher) -> Option<Result<Passed, Denial>> {
        match (&context.offer.way, voucher) {
            (Way::SvmBatch(seller), QuickVoucher::Svm(paid)) => {
                Some(self.admit_voucher(context, seller, &paid.0, &paid.1).await)
            }
            (Way::EvmBatch(seller), QuickVoucher::Evm(paid)) => {
                self.admit_evm_voucher(context, seller, &paid.0, &paid.1).await.transpose()
            }
            _ => None,
        }
    }

    async fn pass_v1(
        &self,
        context: &Context,
        payment: PaymentPayloadV1,
        requirements: &PaymentRequirementsV1,
    ) -> Result<Passed, Denial> {
        match &context.offer.way {
            Way::EvmExact(terms) => {
                let asked = evm::asked_v1(&payment, requirements)?;
                self.admit_evm_exact(context, terms, payment.payload, asked).await
            }
            Way::SvmBatch(_) | Way::SvmUpto(_) | Way::EvmBatch(_) | Way::EvmUpto(..) => {
                Err(Denial::ours("an offer was taken for one of version 1"))
            }
        }
    }

    fn admitted(self: &Arc<Self>, context: Context, claim: Option<Claim>, admitted: Result<Passed, Denial>) -> Outcome {
        match admitted {
            Ok(Passed::Paid { paid, held }) => {
                Outcome::Admitted(Box::new(Admission { gate: Arc::clone(self), context, paid, held, claim }))
            }
            Ok(Passed::Answered(settlement)) => Outcome::Answered(settlement),
            Err(denial) => Outcome::Refused(Box::new(context.refuse(self, denial))),
        }
    }

    /// What is known of a payment's id; `None` where it has none, or ids mean nothing here.
    async fn known(
        &self,
        request: &AdmitRequest<'_>,
        header: &[u8],
        payment: &PaymentPayload,
    ) -> Result<Option<Known>, Denial> {
        match &self.replays {
            Some(replays) if !payment.extensions.is_empty() => replays.look(request, header, payment).await,
            Some(_) | None => Ok(None),
        }
    }

    /// Reads a payment header's JSON. Another version than ours is told from what cannot be read.
    fn read(json: &[u8]) -> Result<PaymentPayload, Denial> {
        Self::of_version(json, X402_VERSION, |payment: &PaymentPayload| payment.x402_version)
    }

    fn decode_v1(value: &[u8]) -> Result<PaymentPayloadV1, Denial> {
        let json = header::decode_bytes(value).map_err(|error| Denial::malformed(error.to_string()))?;
        Self::of_version(&json, v1::X402_VERSION, |payment: &PaymentPayloadV1| payment.x402_version)
    }

    fn of_version<T: DeserializeOwned>(json: &[u8], ours: u32, version: fn(&T) -> u32) -> Result<T, Denial> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Versioned {
            x402_version: u32,
        }
        let other = || Denial::payment(Reason::InvalidVersion, format!("x402Version must be {ours}"));
        match serde_json::from_slice::<T>(json) {
            Ok(payment) if version(&payment) == ours => Ok(payment),
            Ok(_) => Err(other()),
            Err(error) => match serde_json::from_slice::<Versioned>(json) {
                Ok(versioned) if versioned.x402_version != ours => Err(other()),
                Ok(_) | Err(_) => Err(Denial::malformed(HeaderError::from(error).to_string())),
            },
        }
    }

    /// The facilitator of an offer's network.
    fn facilitator(&self, offer: &PreparedOffer) -> Result<Arc<dyn Facilitator>, Denial> {
        let network = &offer.requirements.network;
        self.facilitators
            .get(network)
            .cloned()
            .ok_or_else(|| Denial::ours(format!("no facilitator is configured for {network}; check `network`")))
    }

    /// Payments on EVM networks.
    fn evm(&self) -> Result<&EvmGate, Denial> {
        self.evm.as_ref().ok_or_else(|| Denial::ours("no EVM network is configured; check `network`"))
    }

    /// What to send with a 402.
    fn required(
        &self,
        prepared: &Prepared,
        url: &str,
        reason: Reason,
        correction: Option<challenge::Correction<'_>>,
    ) -> Demand {
        prepared.required(url, reason.as_str(), &|network| self.hints(network), correction)
    }

    /// What a challenge tells of a network's newest blocks.
    fn hints(&self, network: &Network) -> Option<Blockhash> {
        self.options.hints.then(|| self.facilitators.get(network)).flatten().and_then(|found| found.hints())
    }

    fn refuse(
        &self,
        prepared: &Prepared,
        offer: Option<&Arc<PreparedOffer>>,
        version: Version,
        url: &str,
        denial: Denial,
    ) -> Refusal {
        tracing::debug!(route = %prepared.name(), reason = %denial.reason, detail = %denial.detail, "payment refused");
        let correction =
            denial.channel.as_ref().zip(offer).map(|(channel, offer)| challenge::Correction { offer, channel });
        let required =
            denial.fault.is_payments().then(|| Box::new(self.required(prepared, url, denial.reason, correction)));
        Refusal {
            fault: denial.fault,
            reason: denial.reason,
            detail: denial.detail,
            required,
            settlement: denial.settlement,
            version,
        }
    }
}

/// What a request was matched with, kept until it is finished.
struct Context {
    prepared: Arc<Prepared>,
    offer: Arc<PreparedOffer>,
    /// The protocol version that the client speaks.
    version: Version,
    url: String,
    /// What its policy made of it before its payment was looked at.
    judged: Judged,
    /// The pack that it buys.
    sale: Option<Sale>,
}

impl Context {
    fn refuse(&self, gate: &Gate, denial: Denial) -> Refusal {
        gate.refuse(&self.prepared, Some(&self.offer), self.version, &self.url, denial)
    }

    fn policy(&self) -> Option<&Policy> {
        self.prepared.policy()
    }

    fn network(&self) -> &Network {
        &self.offer.requirements.network
    }

    /// A settlement that the facilitator did not bring about.
    fn unsettled(&self, payer: impl fmt::Display, error: FacilitatorError) -> Denial {
        let (reason, transaction) = match &error {
            FacilitatorError::Refused { reason, .. } => (*reason, None),
            FacilitatorError::Unavailable(_) => (Reason::ChainUnavailable, None),
            FacilitatorError::Pending { transaction } => (Reason::SettlementPending, Some(*transaction)),
        };
        Denial::from(error).settling(self.failed(payer, reason, transaction))
    }

    /// A settlement that failed, for the refusal that says so.
    fn failed(
        &self,
        payer: impl fmt::Display,
        reason: Reason,
        transaction: Option<Signature>,
    ) -> Box<SettlementResponse> {
        Box::new(SettlementResponse {
            success: false,
            error_reason: Some(reason.as_str().to_owned()),
            payer: Some(payer.to_string()),
            transaction: transaction.map(|transaction| transaction.to_string()).unwrap_or_default(),
            network: self.network().clone(),
            amount: None,
            extra: Map::new(),
            extensions: Map::new(),
        })
    }
}

/// What a scheme's flow let pass.
#[allow(clippy::large_enum_variant, reason = "lives on the stack, for one call")]
enum Passed {
    Paid { paid: Paid, held: Held },
    Answered(Box<SettlementResponse>),
}
