//! What a route offers: its requirements, prepared once, and the [`Demand`] made from them.
//!
//! Only hints change from challenge to challenge. A corrective answer adds the channel's state to the one offer that
//! the client accepted, and begins with it (`scheme_batch_settlement_svm.md`, section 4.6;
//! `scheme_batch_settlement_evm.md`, "Recovery After State Loss"). What version 1 of the protocol has words for is
//! offered in these too; since a payment of that version does not say which terms it accepts, it is offered once on each
//! network.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};

use super::charge::{self, Answered, Charge, Meter};
use super::evm::{Served, state as evm_state};
use super::policy::Policy;
use super::quick::{self, Words};
use super::refusal::{AnyRecord, Denial};
use super::route::{EvmScheme, Offer, Pack, Payee, Pricing, Route};
use crate::chain::Blockhash;
use crate::ledger::channel::Seller;
use crate::ledger::store::ChannelRecord;
use crate::scheme::evm::EvmSeller;
use crate::scheme::evm::authorization::EvmOffer;
use crate::scheme::{batch_settlement_evm, batch_settlement_svm, exact_evm, offer, upto_evm, upto_svm};
use crate::x402::call_pack::{self, PackOffer};
use crate::x402::evm::Address;
use crate::x402::header;
use crate::x402::v1::{self, PaymentPayloadV1, PaymentRequiredV1, PaymentRequirementsV1};
use crate::x402::wire::{ChannelState, PaymentRequired, PaymentRequirements, ResourceInfo, VoucherState, X402_VERSION};
use crate::x402::{Key, Network, Reason};

/// How to pay for a request that was not served: what goes into a 402.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// For clients of version 2, in a header.
    pub v2: PaymentRequired,
    /// For clients of version 1, in the body; `None` where nothing is offered that they could pay.
    pub v1: Option<PaymentRequiredV1>,
}

/// A demand as it is sent: written once for all who ask for the same address.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// What it says.
    pub demand: Demand,
    /// The value of `PAYMENT-REQUIRED`.
    pub(super) header: HeaderValue,
    /// The body, as JSON: version 1's words where it has some, else those of the header.
    pub(super) body: Bytes,
}

impl Challenge {
    /// Our own words always can be written as JSON, and base64 is always a header's value.
    fn new(demand: Demand) -> Self {
        let written = serde_json::to_vec(&demand.v2).unwrap_or_default();
        let header = HeaderValue::try_from(header::encode_bytes(&written));
        let header = header.unwrap_or_else(|_| HeaderValue::from_static(""));
        let body = demand.v1.as_ref().map(|v1| serde_json::to_vec(v1).unwrap_or_default());
        Self { demand, header, body: body.unwrap_or(written).into() }
    }
}

/// Challenges that were sent lately.
#[derive(Debug, Default)]
struct Sent {
    /// The hints that they gave, for each offer.
    hints: Vec<Option<Blockhash>>,
    by_url: HashMap<Box<str>, Arc<Challenge>>,
}

/// How many addresses of a route have their challenge kept; it is cheap to write a new one.
const SENT_MAX: usize = 8;
/// The longest address for which it is kept.
const SENT_URL_BYTES_MAX: usize = 512;

/// A scheme on a family of networks, with who is paid by it.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// `batch-settlement`: the same price each time, by vouchers.
    SvmBatch(Arc<Seller>),
    /// `upto`: a ceiling, and a channel for each request.
    SvmUpto(Arc<Seller>),
    /// `batch-settlement`: a price or a ceiling, by vouchers.
    EvmBatch(Arc<EvmSeller>),
    /// `exact`: a price, by an authorization.
    EvmExact(Arc<EvmOffer>),
    /// `upto`: a ceiling, by an authorization that only this facilitator can use.
    EvmUpto(Arc<EvmOffer>, Address),
}

impl Way {
    /// The scheme's name on the wire.
    pub(super) const fn scheme(&self) -> &'static str {
        match self {
            Self::SvmBatch(_) => batch_settlement_svm::SCHEME,
            Self::SvmUpto(_) => upto_svm::SCHEME,
            Self::EvmBatch(_) => batch_settlement_evm::SCHEME,
            Self::EvmExact(_) => exact_evm::SCHEME,
            Self::EvmUpto(..) => upto_evm::SCHEME,
        }
    }
}

/// A route's offer with its words.
#[derive(Debug)]
pub(super) struct PreparedOffer {
    pub(super) way: Way,
    pub(super) offer: Offer,
    /// Without hints.
    pub(super) requirements: PaymentRequirements,
    /// The same, to be compared with.
    pub(super) words: Words,
    /// What it buys, where that is more than one call.
    pub(super) pack: Option<Arc<Pack>>,
}

impl PreparedOffer {
    /// `None` where nobody would settle it.
    fn new(metered: bool, offer: &Offer, served: Served) -> Option<Self> {
        let memo = offer.memo.as_deref();
        let once = |seller: &EvmSeller| Arc::new(EvmOffer::new(seller, offer.amount));
        let way = match (&offer.payee, metered) {
            (Payee::Svm(seller), false) => Way::SvmBatch(Arc::clone(seller)),
            (Payee::Svm(seller), true) => Way::SvmUpto(Arc::clone(seller)),
            (Payee::Evm(seller, EvmScheme::BatchSettlement), _) => Way::EvmBatch(Arc::clone(seller)),
            (Payee::Evm(seller, EvmScheme::Exact), _) => Way::EvmExact(once(seller)),
            (Payee::Evm(seller, EvmScheme::Upto), _) => {
                let Some(facilitator) = served.upto_facilitator else {
                    tracing::error!(network = %seller.network, "upto is not offered: no facilitator serves it there");
                    return None;
                };
                Way::EvmUpto(once(seller), facilitator)
            }
        };
        let extra = match &way {
            Way::SvmBatch(seller) => batch_settlement_svm::extra(seller, offer.min_deposit, memo),
            Way::SvmUpto(seller) => upto_svm::extra(seller, memo),
            Way::EvmBatch(seller) => batch_settlement_evm::extra(seller, offer.min_deposit),
            Way::EvmExact(terms) => terms.extra(),
            Way::EvmUpto(terms, facilitator) => upto_evm::extra(terms, *facilitator),
        };
        let (asset, pay_to) = match &way {
            Way::SvmBatch(seller) | Way::SvmUpto(seller) => (seller.mint.to_string(), seller.pay_to.to_string()),
            Way::EvmBatch(seller) => (seller.token.to_string(), seller.pay_to.to_string()),
            Way::EvmExact(terms) | Way::EvmUpto(terms, _) => (terms.token.to_string(), terms.pay_to.to_string()),
        };
        let requirements = PaymentRequirements {
            scheme: way.scheme().to_owned(),
            network: offer.payee.network().clone(),
            amount: offer.amount,
            asset,
            pay_to,
            max_timeout_seconds: offer.max_timeout_seconds,
            extra,
        };
        Some(Self { way, offer: offer.clone(), words: Words::of(&requirements), requirements, pack: None })
    }

    /// An offer of a whole pack; `None` where nothing is kept that could charge for it together with its pass.
    fn of_pack(pack: &Arc<Pack>, offer: &Offer, served: Served) -> Option<Self> {
        let prepared = Self::new(false, offer, served)?;
        match prepared.way {
            Way::SvmBatch(_) | Way::EvmBatch(_) => Some(Self { pack: Some(Arc::clone(pack)), ..prepared }),
            Way::SvmUpto(_) | Way::EvmExact(_) | Way::EvmUpto(..) => None,
        }
    }

    /// Whether a client that accepted `other` pays for this from the same channel.
    fn shares_channel(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.requirements, &other.requirements);
        ours.scheme == theirs.scheme
            && ours.network == theirs.network
            && ours.asset == theirs.asset
            && ours.pay_to == theirs.pay_to
    }

    /// Whether a payload for it asks for a refund of a channel: then it is read as nothing else.
    pub(super) fn asks_refund(&self, payload: &Value) -> bool {
        matches!(self.way, Way::SvmBatch(_) | Way::EvmBatch(_))
            && payload.get("type").is_some_and(|kind| kind == "refund")
    }

    /// What version 1 says of it; `None` where it has no words for it.
    fn v1(&self, resource: &ResourceInfo) -> Option<PaymentRequirementsV1> {
        let Way::EvmExact(terms) = &self.way else { return None };
        exact_evm::requirements_v1(terms, resource, self.offer.max_timeout_seconds)
    }
}

/// What a route's challenges say under `extensions`, its pack included.
fn with_pack(extensions: &Map<String, Value>, pack: &Pack, offers: &[Arc<PreparedOffer>]) -> Map<String, Value> {
    let offer = PackOffer {
        calls: pack.calls,
        expires_after_seconds: pack.lifetime.as_secs(),
        header: call_pack::HEADER.to_owned(),
        accepts: offers.iter().map(|offer| offer.requirements.clone()).collect(),
    };
    let mut extensions = extensions.clone();
    extensions.insert(call_pack::NAME.to_owned(), call_pack::declaration(&offer));
    extensions
}

/// A channel's state for the client that got it wrong.
#[derive(Clone, Copy)]
pub(super) struct Correction<'a> {
    pub(super) offer: &'a Arc<PreparedOffer>,
    pub(super) channel: &'a AnyRecord,
}

impl Correction<'_> {
    /// Whether the channel pays for this offer. That of a pack is not among the plain ones: then it is the one that is paid
    /// for from the same channel.
    fn is_for(&self, offer: &Arc<PreparedOffer>) -> bool {
        Arc::ptr_eq(self.offer, offer) || (self.offer.pack.is_some() && self.offer.shares_channel(offer))
    }
}

/// A priced route with its offers.
#[derive(Debug)]
pub(super) struct Prepared {
    route: Arc<Route>,
    offers: Vec<Arc<PreparedOffer>>,
    /// Those that version 1 has words for and a facilitator takes in that version, the first of each network.
    offers_v1: Vec<Arc<PreparedOffer>>,
    /// Those that buy several calls. They do not stand among the others, where a client would take them for one call.
    packs: Vec<Arc<PreparedOffer>>,
    extensions: Arc<Map<String, Value>>,
    extensions_text: String,
    sent: Mutex<Sent>,
}

impl Prepared {
    fn new(route: &Arc<Route>, extensions: &Arc<Map<String, Value>>, served: &HashMap<Network, Served>) -> Self {
        let (metered, offers): (_, &[Offer]) = match &route.pricing {
            Pricing::Free => (false, &[]),
            Pricing::Fixed(offers) => (false, offers),
            Pricing::Metered { offers, .. } => (true, offers),
        };
        let served = |network: &Network| served.get(network).copied().unwrap_or_default();
        let prepare = |offer| PreparedOffer::new(metered, offer, served(offer.payee.network())).map(Arc::new);
        let offers: Vec<_> = offers.iter().filter_map(prepare).collect();
        let mut offers_v1: Vec<Arc<PreparedOffer>> = Vec::new();
        for offer in &offers {
            let network = &offer.requirements.network;
            let is_first = offers_v1.iter().all(|other| other.requirements.network != *network);
            if is_first && served(network).exact_v1 && offer.v1(&ResourceInfo::default()).is_some() {
                offers_v1.push(Arc::clone(offer));
            }
        }
        let packs = route.pack.as_ref().map_or_else(Vec::new, |pack| {
            let prepare = |offer: &Offer| PreparedOffer::of_pack(pack, offer, served(offer.payee.network()));
            pack.offers.iter().filter_map(prepare).map(Arc::new).collect()
        });
        let extensions = match route.pack.as_ref().filter(|_| !packs.is_empty()) {
            Some(pack) => Arc::new(with_pack(extensions, pack, &packs)),
            None => Arc::clone(extensions),
        };
        Self {
            route: Arc::clone(route),
            offers,
            offers_v1,
            packs,
            extensions_text: quick::written(&*extensions),
            extensions,
            sent: Mutex::default(),
        }
    }

    /// The route's offers, the merchant's favourite first.
    pub(super) fn offers(&self) -> &[Arc<PreparedOffer>] {
        &self.offers
    }

    /// What challenges say under `extensions`, as it is written.
    pub(super) fn extensions_text(&self) -> &str {
        &self.extensions_text
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.route.name
    }

    pub(super) fn policy(&self) -> Option<&Policy> {
        self.route.policy.as_deref()
    }

    /// What its passes are good for.
    pub(super) fn scope(&self) -> &Arc<str> {
        &self.route.scope
    }

    /// The offer that the client accepted: of one call, or of a pack where it sends that extension back.
    pub(super) fn select(
        &self,
        accepted: &PaymentRequirements,
        extensions: &Map<String, Value>,
    ) -> Result<Arc<PreparedOffer>, Denial> {
        let of_one = offer::select(self.offers.iter(), |offer| &offer.requirements, accepted);
        let found = of_one.or_else(|refused| {
            let packs = if call_pack::is_echoed(extensions) { self.packs.as_slice() } else { &[] };
            offer::select(packs.iter(), |offer| &offer.requirements, accepted).map_err(|_| refused)
        })?;
        if let Way::SvmBatch(_) = found.way {
            batch_settlement_svm::check_payment_flow(&accepted.extra)?;
        }
        Ok(Arc::clone(found))
    }

    /// The offer that a payment of version 1 can only be for, as that version says it.
    pub(super) fn select_v1(
        &self,
        payment: &PaymentPayloadV1,
        url: &str,
    ) -> Result<(Arc<PreparedOffer>, PaymentRequirementsV1), Denial> {
        if self.offers_v1.is_empty() {
            let detail = "this resource is paid for with version 2 of the protocol: send PAYMENT-SIGNATURE";
            return Err(Denial::payment(Reason::InvalidVersion, detail));
        }
        if payment.scheme != exact_evm::SCHEME {
            return Err(Denial::payment(Reason::UnsupportedScheme, "scheme is not offered for this resource"));
        }
        let network = payment.known_network();
        let found = self.offers_v1.iter().find(|offer| network.as_ref() == Some(&offer.requirements.network));
        let found = found.and_then(|offer| Some((Arc::clone(offer), offer.v1(&self.resource(url))?)));
        found.ok_or_else(|| Denial::payment(Reason::InvalidNetwork, "network is not offered for this resource"))
    }

    /// What a metered answer costs.
    pub(super) fn charge(&self, offer: &PreparedOffer, answered: &Answered<'_>) -> Charge {
        charge::decide(self.name(), self.meter(), answered, offer.offer.payee.asset(), offer.offer.amount)
    }

    /// How a metered answer's charge is found.
    pub(super) fn meter(&self) -> Option<&Meter> {
        match &self.route.pricing {
            Pricing::Free | Pricing::Fixed(_) => None,
            Pricing::Metered { meter, .. } => meter.as_ref(),
        }
    }

    /// How to pay for a request that came without payment.
    pub(super) fn challenge(&self, url: &str, hints: &dyn Fn(&Network) -> Option<Blockhash>) -> Arc<Challenge> {
        let given: Vec<_> = self.offers.iter().map(|offer| hints(&offer.requirements.network)).collect();
        {
            let mut sent = self.sent.lock();
            if sent.hints != given {
                sent.by_url.clear();
                sent.hints.clone_from(&given);
            }
            if let Some(challenge) = sent.by_url.get(url) {
                return Arc::clone(challenge);
            }
        }
        let challenge = Arc::new(Challenge::new(self.required(url, Reason::PaymentRequired.as_str(), hints, None)));
        if url.len() <= SENT_URL_BYTES_MAX {
            let mut sent = self.sent.lock();
            if sent.by_url.len() >= SENT_MAX {
                sent.by_url.clear();
            }
            // Others may have seen newer hints meanwhile.
            if sent.hints == given {
                sent.by_url.insert(url.into(), Arc::clone(&challenge));
            }
        }
        challenge
    }

    /// How to pay, and why the request was not served.
    pub(super) fn required(
        &self,
        url: &str,
        error: &str,
        hints: &dyn Fn(&Network) -> Option<Blockhash>,
        correction: Option<Correction<'_>>,
    ) -> Demand {
        let resource = self.resource(url);
        let accepts_v1: Vec<_> = self.offers_v1.iter().filter_map(|offer| offer.v1(&resource)).collect();
        let v1 = (!accepts_v1.is_empty()).then(|| PaymentRequiredV1 {
            x402_version: v1::X402_VERSION,
            error: error.to_owned(),
            accepts: accepts_v1,
        });
        let mut offers: Vec<_> = self.offers.iter().collect();
        if let Some(correction) = correction {
            // The reference client for EVM looks for its channel's state in the first offer of the scheme, whatever the
            // network of that.
            offers.sort_by_key(|offer| !correction.is_for(offer));
        }
        let accepts = offers.into_iter().map(|offer| {
            let mut requirements = offer.requirements.clone();
            if let Some(blockhash) = hints(&requirements.network) {
                add_hints(&mut requirements.extra, &offer.way, &blockhash);
            }
            match correction {
                Some(correction) if correction.is_for(offer) => {
                    add_state(&mut requirements.extra, correction.channel);
                }
                Some(_) | None => {}
            }
            requirements
        });
        let v2 = PaymentRequired {
            x402_version: X402_VERSION,
            error: Some(error.to_owned()),
            resource,
            accepts: accepts.collect(),
            extensions: Map::clone(&self.extensions),
        };
        Demand { v2, v1 }
    }

    /// What is paid for, at the address that the client asked for.
    fn resource(&self, url: &str) -> ResourceInfo {
        ResourceInfo {
            url: url.to_owned(),
            description: self.route.description.as_deref().map(str::to_owned),
            mime_type: self.route.mime_type.as_deref().map(str::to_owned),
        }
    }
}

fn add_hints(extra: &mut Map<String, Value>, way: &Way, blockhash: &Blockhash) {
    extra.insert("recentBlockhash".to_owned(), Key(blockhash.hash).to_string().into());
    extra.insert("recentSlot".to_owned(), blockhash.slot.into());
    if let Way::SvmUpto(_) = way {
        extra.insert("lastValidBlockHeight".to_owned(), blockhash.last_valid_block_height.to_string().into());
    }
}

/// Our own words always can be written as JSON.
fn add_state(extra: &mut Map<String, Value>, channel: &AnyRecord) {
    match channel {
        AnyRecord::Svm(channel) => add_svm_state(extra, channel),
        AnyRecord::Evm(channel) => {
            let states = evm_state::corrective(channel);
            extra.extend(states.into_iter().map(|(name, state)| (name.to_owned(), state)));
        }
    }
}

fn add_svm_state(extra: &mut Map<String, Value>, channel: &ChannelRecord) {
    if let Ok(state) = serde_json::to_value(channel_state(channel)) {
        extra.insert("channelState".to_owned(), state);
    }
    let voucher = channel.voucher.map(|voucher| VoucherState {
        signed_max_claimable: voucher.cumulative,
        expires_at: 0,
        signature: voucher.signature,
    });
    if let Some(Ok(state)) = voucher.map(serde_json::to_value) {
        extra.insert("voucherState".to_owned(), state);
    }
}

/// A channel as clients see it.
pub(super) fn channel_state(channel: &ChannelRecord) -> ChannelState {
    ChannelState {
        channel_id: channel.terms.id,
        balance: channel.on_chain.deposit,
        total_claimed: channel.on_chain.claimed,
        withdraw_requested_at: channel.on_chain.closing_since,
        charged_cumulative_amount: Some(channel.charged),
    }
}

/// The most routes that are kept prepared; above that, all are prepared anew.
const PREPARED_MAX: usize = 4_096;

/// The routes that were asked for, prepared. A route is known by its address, which stays its own while it is held
/// here.
pub(super) struct Challenges {
    prepared: RwLock<HashMap<usize, Arc<Prepared>>>,
    extensions: Arc<Map<String, Value>>,
    /// What facilitators of EVM networks serve.
    served: HashMap<Network, Served>,
}

impl Challenges {
    /// Challenges that all offer these extensions of the protocol.
    pub(super) fn new(extensions: Map<String, Value>, served: HashMap<Network, Served>) -> Self {
        Self { prepared: RwLock::default(), extensions: Arc::new(extensions), served }
    }

    pub(super) fn of(&self, route: &Arc<Route>) -> Arc<Prepared> {
        let address = Arc::as_ptr(route).addr();
        if let Some(prepared) = self.prepared.read().get(&address) {
            return Arc::clone(prepared);
        }
        let prepared = Arc::new(Prepared::new(route, &self.extensions, &self.served));
        let mut all = self.prepared.write();
        if all.len() >= PREPARED_MAX {
            all.clear();
        }
        all.insert(address, Arc::clone(&prepared));
        prepared
    }
}
