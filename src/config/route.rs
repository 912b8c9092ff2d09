//! Routes: what the file says of each, and the gate's [`Route`] that it becomes.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::amount::Amount;
use crate::gate::charge::Meter;
use crate::gate::route::{Offer, Payee, Pricing, Route};
use crate::ledger::channel::Seller;
use crate::x402::{Key, Network};

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

/// A price on one of the configured networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPrice {
    /// The network.
    pub network: Network,
    /// The asset's mint.
    pub mint: Key,
    /// How much.
    pub amount: Amount,
    /// Proposed as a channel's first deposit.
    pub min_deposit: Option<Amount>,
}

impl RouteConfig {
    /// The gate's route, with one offer for each price whose network and mint one of `sellers` has. A priced route
    /// for which no seller is given keeps no offer: it can then not be paid, and is never free.
    #[must_use]
    pub fn resolve(&self, sellers: &[Arc<Seller>]) -> Route {
        let offers = |prices: &[NetworkPrice]| -> Vec<Offer> {
            prices.iter().filter_map(|price| self.offer(price, sellers)).collect()
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
        }
    }

    fn offer(&self, price: &NetworkPrice, sellers: &[Arc<Seller>]) -> Option<Offer> {
        let seller = sellers.iter().find(|s| s.network == price.network && s.mint == price.mint)?;
        Some(Offer {
            payee: Payee::Svm(Arc::clone(seller)),
            amount: price.amount,
            min_deposit: price.min_deposit,
            max_timeout_seconds: self.max_timeout_seconds,
            memo: self.memo.clone(),
        })
    }
}
