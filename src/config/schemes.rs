//! `schemes`: how a network's routes, or one route, are paid, in order of preference.
//!
//! | scheme | Solana | EVM |
//! |---|---|---|
//! | `batch-settlement` | a fixed price | a fixed or metered price |
//! | `upto` | a metered price, or a fixed one from a channel of its own | a metered price |
//! | `exact` | | a fixed price |
//!
//! A network's schemes are for routes that name none; a route's take their place. What does not fit a route's price is
//! passed over where the network says it, and refused where the route does, since it would do nothing.

use super::Family;
use super::reader::{Complaint, Value};

/// How a price is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// By vouchers of a prepaid channel.
    BatchSettlement,
    /// By one transfer for each request.
    Exact,
    /// By one authorization for each request, of which a part is charged.
    Upto,
}

/// Every scheme by its name.
const ALL: [(&str, Scheme); 3] =
    [("batch-settlement", Scheme::BatchSettlement), ("exact", Scheme::Exact), ("upto", Scheme::Upto)];

impl Scheme {
    /// The name on the wire and in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BatchSettlement => "batch-settlement",
            Self::Exact => "exact",
            Self::Upto => "upto",
        }
    }
}

/// How a price comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The same each time.
    Fixed,
    /// At most this.
    Metered,
    /// The same each time, by `upto` alone: on Solana each request then has a channel of its own.
    Whole,
}

impl Kind {
    /// For messages.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed | Self::Whole => "a fixed price",
            Self::Metered => "a metered price",
        }
    }
}

/// The schemes by which a price can be paid on a family of networks, the usual one first.
pub(super) const fn possible(family: &Family, kind: Kind) -> &'static [Scheme] {
    match (family, kind) {
        (Family::Svm(_), Kind::Fixed) => &[Scheme::BatchSettlement],
        (Family::Svm(_), Kind::Metered | Kind::Whole) => &[Scheme::Upto],
        (Family::Evm(_), Kind::Fixed | Kind::Whole) => &[Scheme::BatchSettlement, Scheme::Exact],
        (Family::Evm(_), Kind::Metered) => &[Scheme::BatchSettlement, Scheme::Upto],
    }
}

/// Names of schemes, as in `batch-settlement or exact`.
pub(super) fn names(schemes: &[Scheme]) -> String {
    super::value::or_list(&schemes.iter().map(|scheme| scheme.as_str()).collect::<Vec<_>>())
}

/// One name or a list of them.
pub(super) fn read(value: &Value<'_, '_>) -> Option<Vec<Scheme>> {
    let items = value.one_or_many();
    if items.is_empty() {
        value.problem("holds no scheme.", "Write at least one, or leave the key out.");
        return None;
    }
    let mut schemes = Vec::new();
    for item in &items {
        match item.choice(&ALL)? {
            scheme if schemes.contains(&scheme) => {
                item.reject(Complaint::new("is in the list already", "Keep one of the two."));
                return None;
            }
            scheme => schemes.push(scheme),
        }
    }
    Some(schemes)
}
