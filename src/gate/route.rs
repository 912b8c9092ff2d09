//! The route table: host, method and path to price, ways to pay and upstream.
//!
//! Owns [`Route`] and [`RouteTable`]. Pure: a table is built once and matched without locks, and a request's path is
//! either read in one way only or refused ([`path`]).

pub mod path;
pub mod pattern;
mod table;
mod tree;

use std::sync::Arc;
use std::time::Duration;

use http::Method;

pub use self::path::BadPath;
pub use self::pattern::{Pattern, PatternError};
pub use self::table::{Claim, Match, RouteTable, TableError, conflicts};
use super::charge::Meter;
use super::policy::Policy;
use crate::amount::Amount;
use crate::amount::Asset;
use crate::ledger::channel::Seller;
use crate::scheme::evm::EvmSeller;
use crate::x402::Network;

/// A route as the operator wrote it, with its prices resolved.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in metrics and logs: the pattern as written, such as `/v1/quote/*`.
    pub name: Arc<str>,
    /// The host it is limited to, in lower case without port; `None` for any.
    pub host: Option<Arc<str>>,
    /// The methods it is limited to; empty for all.
    pub methods: Vec<Method>,
    /// The path pattern: `{name}` for a segment, a final `*` for any rest.
    pub path: Arc<str>,
    /// What a call costs and how it is paid.
    pub pricing: Pricing,
    /// The upstream's name where the route has one of its own.
    pub upstream: Option<Arc<str>>,
    /// How long the upstream may take to answer, where the route says so.
    pub timeout: Option<Duration>,
    /// For the challenge's `resource.description`.
    pub description: Option<Arc<str>>,
    /// For the challenge's `resource.mimeType`.
    pub mime_type: Option<Arc<str>>,
    /// Who may pay for it, when, how often and how much; `None` for all that does.
    pub policy: Option<Arc<Policy>>,
    /// What tells it from all other routes, from one start to the next: passes are good for this, whether it offers packs
    /// still or not.
    pub scope: Arc<str>,
    /// Several calls for one price, where it offers them.
    pub pack: Option<Arc<Pack>>,
}

/// Several calls for one price.
#[derive(Clone, Debug)]
pub struct Pack {
    /// How many, the buying request included.
    pub calls: u32,
    /// For how long.
    pub lifetime: Duration,
    /// The ways to pay for it; each offer's amount is the price of the whole pack. Of use are those by `batch-settlement`,
    /// the others are not offered.
    pub offers: Vec<Offer>,
}

/// What happens to a path that no route lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unlisted {
    /// It is refused.
    #[default]
    Deny,
    /// It goes to the upstream without payment.
    Free,
}

/// What a call costs.
#[derive(Clone, Debug)]
pub enum Pricing {
    /// Nothing.
    Free,
    /// The same each time, by vouchers of scheme `batch-settlement`; one offer for each network.
    Fixed(Vec<Offer>),
    /// Up to a maximum, decided by the upstream, by scheme `upto`; one offer for each network.
    Metered {
        /// The ways to pay; each offer's amount is the most that is charged.
        offers: Vec<Offer>,
        /// How the charge is found; `None` charges the whole price.
        meter: Option<Meter>,
    },
}

/// Who is paid, and on EVM networks how. On Solana the scheme follows from the pricing.
#[derive(Clone, Debug)]
pub enum Payee {
    /// On a Solana-like network.
    Svm(Arc<Seller>),
    /// On an EVM network.
    Evm(Arc<EvmSeller>, EvmScheme),
}

/// How a price is paid on an EVM network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EvmScheme {
    /// By vouchers of a channel, any part of which may be charged.
    BatchSettlement,
    /// By an authorization of exactly the price.
    Exact,
    /// By an authorization of at most the price, of which any part may be charged.
    Upto,
}

impl Payee {
    /// Where.
    #[must_use]
    pub fn network(&self) -> &Network {
        match self {
            Self::Svm(seller) => &seller.network,
            Self::Evm(seller, _) => &seller.network,
        }
    }

    /// With what.
    #[must_use]
    pub fn asset(&self) -> &Arc<Asset> {
        match self {
            Self::Svm(seller) => &seller.asset,
            Self::Evm(seller, _) => &seller.asset,
        }
    }
}

/// A price on one network.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Who is paid, where, with what.
    pub payee: Payee,
    /// How much.
    pub amount: Amount,
    /// Proposed as a channel's first deposit.
    pub min_deposit: Option<Amount>,
    /// How long the exchange may take.
    pub max_timeout_seconds: u64,
    /// The seller's memo for setup transactions.
    pub memo: Option<Arc<str>>,
}
