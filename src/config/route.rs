//! Routes: what the file says of each, and the gate's [`Route`] that it becomes.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::Scheme;
use crate::amount::{Amount, Asset};
use crate::gate::charge::Meter;
use crate::gate::policy::Policy;
use crate::gate::route::{EvmScheme, Offer, Pack, Payee, Pricing, Route};
use crate::ledger::channel::Seller;
use crate::scheme::evm::EvmSeller;
use crate::x402::Network;

/// A route as the operator wrote it, checked, with its prices in atomic units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The line that it begins on.
    pub line: usize,
    /// The host it is limited to, in lower case without port.
    pub host: Option<Arc<str>>,
    /// The methods it is limited to; empty for all.
    pub methods: Vec<Method>,
    /// The path pattern, as written.
    pub path: Arc<str>,
    /// What a call costs.
    pub pricing: RoutePricing,
    /// The name of its upstream, where it has one of its own.
    pub upstream: Option<Arc<str>>,
    /// How long the upstream may take to answer, where the route says so.
    pub timeout: Option<Duration>,
    /// For the challenge.
    pub description: Option<Arc<str>>,
    /// For the challenge.
    pub mime_type: Option<Arc<str>>,
    /// `maxTimeoutSeconds`.
    pub max_timeout_seconds: u64,
    /// The seller's memo.
    pub memo: Option<Arc<str>>,
    /// Who may pay for it, when, how often and how much; `None` for all that does.
    pub policy: Option<Arc<Policy>>,
    /// What tells it from all other routes, from one start to the next.
    pub scope: Arc<str>,
    /// Several calls for one price.
    pub pack: Option<PackConfig>,
}

/// Several calls for one price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackConfig {
    /// How many.
    pub calls: u32,
    /// For how long they are good.
    pub lifetime: Duration,
    /// What all of them cost together, where it can be paid by `batch-settlement`.
    pub prices: Vec<NetworkPrice>,
}

/// What a call costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutePricing {
    /// Nothing.
    Free,
    /// The same each time.
    Fixed(Vec<NetworkPrice>),
    /// At most this; the upstream says how much.
    Metered {
        /// The most that is charged.
        prices: Vec<NetworkPrice>,
        /// How the charge is found; `None` charges the whole price.
        meter: Option<Meter>,
    },
}

impl RoutePricing {
    /// Every price, and how it is paid; none where a call costs nothing.
    #[must_use]
    pub fn prices(&self) -> &[NetworkPrice] {
        match self {
            Self::Free => &[],
            Self::Fixed(prices) | Self::Metered { prices, .. } => prices,
        }
    }
}

/// A price on one of the configured networks, and how it is paid there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPrice {
    /// The network.
    pub network: Network,
    /// What is paid with.
    pub asset: Arc<Asset>,
    /// How.
    pub scheme: Scheme,
    /// How much.
    pub amount: Amount,
    /// Proposed as a channel's first deposit; only with `batch-settlement`.
    pub min_deposit: Option<Amount>,
}

impl RouteConfig {
    /// The gate's route, with one offer for each price whose network and asset one of the sellers has. A priced route
    /// for which no seller is given keeps no offer: it can then not be paid, and is never free.
    #[must_use]
    pub fn resolve(&self, svm: &[Arc<Seller>], evm: &[Arc<EvmSeller>]) -> Route {
        let offers = |prices: &[NetworkPrice]| -> Vec<Offer> {
            prices.iter().filter_map(|price| Some(self.offer(price, payee(price, svm, evm)?))).collect()
        };
        Route {
            name: Arc::clone(&self.path),
            host: self.host.clone(),
            methods: self.methods.clone(),
            path: Arc::clone(&self.path),
            pricing: match &self.pricing {
                RoutePricing::Free => Pricing::Free,
                RoutePricing::Fixed(prices) => Pricing::Fixed(offers(prices)),
                RoutePricing::Metered { prices, meter } => {
                    Pricing::Metered { offers: offers(prices), meter: meter.clone() }
                }
            },
            upstream: self.upstream.clone(),
            timeout: self.timeout,
            description: self.description.clone(),
            mime_type: self.mime_type.clone(),
            policy: self.policy.clone(),
            scope: Arc::clone(&self.scope),
            pack: self.pack.as_ref().map(|pack| {
                Arc::new(Pack { calls: pack.calls, lifetime: pack.lifetime, offers: offers(&pack.prices) })
            }),
        }
    }

    fn offer(&self, price: &NetworkPrice, payee: Payee) -> Offer {
        Offer {
            payee,
            amount: price.amount,
            min_deposit: price.min_deposit,
            max_timeout_seconds: self.max_timeout_seconds,
            memo: self.memo.clone(),
        }
    }
}

/// Who is paid a price, and on EVM networks how. On Solana the gate takes the scheme from the route's pricing.
fn payee(price: &NetworkPrice, svm: &[Arc<Seller>], evm: &[Arc<EvmSeller>]) -> Option<Payee> {
    let same = |network: &Network, asset: &Asset| *network == price.network && asset.address == price.asset.address;
    if let Some(seller) = svm.iter().find(|seller| same(&seller.network, &seller.asset)) {
        return Some(Payee::Svm(Arc::clone(seller)));
    }
    let seller = evm.iter().find(|seller| same(&seller.network, &seller.asset))?;
    Some(Payee::Evm(Arc::clone(seller), evm_scheme(price.scheme)))
}

/// The gate's scheme.
const fn evm_scheme(scheme: Scheme) -> EvmScheme {
    match scheme {
        Scheme::BatchSettlement => EvmScheme::BatchSettlement,
        Scheme::Exact => EvmScheme::Exact,
        Scheme::Upto => EvmScheme::Upto,
    }
}
