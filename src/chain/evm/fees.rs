//! What a transaction pays for gas, and what a replacement of it has to pay.
//!
//! A quote allows for a base fee that doubles before the transaction is mined. A replacement pays at least an eighth
//! more of both fees, since nodes take none that pays less than a tenth more. Nothing ever pays more than the
//! operator's cap.

/// What a transaction pays for gas, in wei per gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// The most that it pays in all.
    pub max_fee_per_gas: u128,
    /// What of it goes to the block's maker.
    pub max_priority_fee_per_gas: u128,
}

/// The operator's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeeLimits {
    /// The most that any transaction pays, in wei per gas.
    pub max_fee_per_gas_max: u128,
    /// The least that the block's maker gets, in wei per gas, whatever the chain says is usual.
    pub priority_fee_per_gas_min: u128,
    /// How much more a replacement pays, in thousandths. At least [`BUMP_PERMILLE_MIN`].
    pub bump_permille: u32,
}

/// An eighth.
pub const BUMP_PERMILLE_MIN: u32 = 125;

impl FeeLimits {
    /// Fits the chains of rollups and, in quiet hours, the main chain: at most 200 gwei.
    pub const DEFAULT: Self = Self {
        max_fee_per_gas_max: 200_000_000_000,
        priority_fee_per_gas_min: 1_000,
        bump_permille: BUMP_PERMILLE_MIN,
    };

    /// What a new transaction pays, with the base fee and the usual priority fee of the moment. `None` where the base
    /// fee alone is above the cap.
    #[must_use]
    pub fn quote(&self, base_fee: u128, usual_priority_fee: u128) -> Option<Fees> {
        let cap = self.max_fee_per_gas_max;
        let priority = usual_priority_fee.max(self.priority_fee_per_gas_min);
        let max_fee_per_gas = base_fee.saturating_mul(2).saturating_add(priority).min(cap);
        (base_fee < cap).then_some(Fees { max_fee_per_gas, max_priority_fee_per_gas: priority.min(max_fee_per_gas) })
    }

    /// What takes the place of a transaction that paid `old`, at least as much as `fresh`. `None` where that is more
    /// than the cap.
    #[must_use]
    pub fn bump(&self, old: Fees, fresh: Option<Fees>) -> Option<Fees> {
        let more = |fee| raised(fee, self.bump_permille.max(BUMP_PERMILLE_MIN));
        let (least_max, least_priority) = (more(old.max_fee_per_gas), more(old.max_priority_fee_per_gas));
        if least_max > self.max_fee_per_gas_max || least_priority > least_max {
            return None;
        }
        let fresh = fresh.unwrap_or(old);
        let max_fee_per_gas = least_max.max(fresh.max_fee_per_gas).min(self.max_fee_per_gas_max);
        let max_priority_fee_per_gas = least_priority.max(fresh.max_priority_fee_per_gas).min(max_fee_per_gas);
        Some(Fees { max_fee_per_gas, max_priority_fee_per_gas })
    }
}

/// A fee with so many thousandths more, rounded up, and in any case more.
fn raised(fee: u128, permille: u32) -> u128 {
    let whole = (fee / 1000).saturating_mul(u128::from(permille));
    let part = (fee % 1000).saturating_mul(u128::from(permille)).div_ceil(1000);
    fee.saturating_add(whole.saturating_add(part).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: FeeLimits =
        FeeLimits { max_fee_per_gas_max: 10_000, priority_fee_per_gas_min: 10, bump_permille: 125 };

    #[test]
    fn a_quote_allows_for_a_doubled_base_fee_within_the_cap() {
        let fees = |max_fee_per_gas, max_priority_fee_per_gas| Some(Fees { max_fee_per_gas, max_priority_fee_per_gas });
        assert_eq!(LIMITS.quote(1_000, 50), fees(2_050, 50));
        assert_eq!(LIMITS.quote(0, 0), fees(10, 10));
        assert_eq!(LIMITS.quote(9_000, 50), fees(10_000, 50));
        assert_eq!(LIMITS.quote(9_000, 50_000), fees(10_000, 10_000));
        assert_eq!(LIMITS.quote(10_000, 1), None);
        assert_eq!(LIMITS.quote(u128::MAX, u128::MAX), None);
    }

    proptest! {
        /// Nodes take a replacement that pays at least a tenth more of both; and a cap is a cap.
        #[test]
        fn a_replacement_pays_an_eighth_more_or_there_is_none(
            max_fee in any::<u128>(), priority in any::<u128>(),
            fresh_max in any::<u128>(), fresh_priority in any::<u128>(),
        ) {
            let limits = FeeLimits { max_fee_per_gas_max: u128::MAX / 2, ..LIMITS };
            let old = Fees { max_fee_per_gas: max_fee, max_priority_fee_per_gas: priority.min(max_fee) };
            let fresh = Fees { max_fee_per_gas: fresh_max, max_priority_fee_per_gas: fresh_priority.min(fresh_max) };
            if let Some(new) = limits.bump(old, Some(fresh)) {
                for (old, new) in [
                    (old.max_fee_per_gas, new.max_fee_per_gas),
                    (old.max_priority_fee_per_gas, new.max_priority_fee_per_gas),
                ] {
                    prop_assert!(new > old && new - old >= old / 8);
                }
                prop_assert!(new.max_fee_per_gas <= limits.max_fee_per_gas_max);
                prop_assert!(new.max_priority_fee_per_gas <= new.max_fee_per_gas);
            } else {
                prop_assert!(old.max_fee_per_gas > limits.max_fee_per_gas_max / 9 * 8 - 9
                    || old.max_priority_fee_per_gas >= old.max_fee_per_gas / 9 * 8);
            }
        }
    }
}
