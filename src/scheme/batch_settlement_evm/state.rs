//! A channel's state on the wire, in both directions.
//!
//! Source: `scheme_batch_settlement_evm.md`, "Payment Response Contract", "Corrective 402" and "POST /verify".

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::channel::{ChainState, EvmOnChain};
use crate::scheme::evm::EvmTerms;
use crate::x402::evm::{AnySignature, B256};

/// A channel as facilitators and servers tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvmChannelState {
    /// The channel's id.
    pub channel_id: B256,
    /// All that was deposited, less what was refunded and withdrawn.
    pub balance: Amount,
    /// All that was claimed.
    pub total_claimed: Amount,
    /// Unix seconds of a pending withdrawal's request, or 0.
    pub withdraw_requested_at: i64,
    /// The nonce that the next signed refund needs.
    #[serde(with = "nonce")]
    pub refund_nonce: u64,
    /// What was charged; the base of the next voucher. Only servers know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged_cumulative_amount: Option<Amount>,
}

/// The client's own last voucher, as proof in a corrective 402.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvmVoucherState {
    /// The cumulative total of the voucher accepted last.
    pub signed_max_claimable: Amount,
    /// The client's signature over it.
    pub signature: AnySignature,
}

impl EvmChannelState {
    /// The state that we tell of a channel.
    #[must_use]
    pub fn of(id: B256, on_chain: &EvmOnChain, charged: Option<Amount>) -> Self {
        Self {
            channel_id: id,
            balance: on_chain.balance,
            total_claimed: on_chain.claimed,
            withdraw_requested_at: on_chain.withdraw_since,
            refund_nonce: on_chain.refund_nonce,
            charged_cumulative_amount: charged,
        }
    }

    /// The state that a facilitator told of the channel of `terms`; `None` where it told of none, or of another. How
    /// much a payer withdraws is not on this wire: all that is unclaimed has to be expected.
    #[must_use]
    pub fn read(extra: &Map<String, Value>, terms: &EvmTerms, read_at: UnixMillis) -> Option<EvmOnChain> {
        let state = extra.get("channelState").cloned().unwrap_or_else(|| Value::Object(extra.clone()));
        let state: Self = serde_json::from_value(state).ok()?;
        let block = extra.get("blockNumber").and_then(Value::as_u64).unwrap_or(0);
        (state.channel_id == terms.id).then(|| state.on_chain(terms, block, read_at)).filter(EvmOnChain::plausible)
    }

    fn on_chain(&self, terms: &EvmTerms, block: u64, read_at: UnixMillis) -> EvmOnChain {
        let delay = i64::try_from(terms.seller.withdraw_delay).unwrap_or(i64::MAX);
        let withdrawing = self.withdraw_requested_at != 0;
        EvmOnChain {
            balance: self.balance,
            claimed: self.total_claimed,
            withdrawal: if withdrawing { self.balance.saturating_sub(self.total_claimed) } else { Amount::ZERO },
            withdraw_since: self.withdraw_requested_at,
            withdraw_ends_at: if withdrawing { self.withdraw_requested_at.saturating_add(delay) } else { 0 },
            refund_nonce: self.refund_nonce,
            block,
            read_at,
        }
    }
}

/// Decimal text of a `uint256`, of which no channel gets beyond a `u64`.
mod nonce {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(D::Error::custom("expected decimal digits"));
        }
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::scheme::evm::{TransferMethod, testing};
    use crate::x402::evm::Address;

    #[test]
    fn what_a_facilitator_tells_is_taken_up_for_its_own_channel_only() {
        let seller = Arc::new(testing::seller(TransferMethod::Eip3009));
        let terms = EvmTerms::derive(seller, Address([1; 20]), Address([2; 20]), B256([3; 32]));
        let told = json!({
            "channelId": terms.id, "balance": "100", "totalClaimed": "30", "withdrawRequestedAt": 7, "refundNonce": "2",
        });
        let Value::Object(extra) = told.clone() else { unreachable!() };
        let read = EvmChannelState::read(&extra, &terms, UnixMillis(9)).unwrap();
        assert_eq!((read.balance, read.claimed, read.refund_nonce), (100u64.into(), 30u64.into(), 2));
        assert_eq!(read.withdrawal, 70u64.into(), "how much is not told, so all of it");
        assert_eq!(read.withdraw_ends_at, 7 + i64::try_from(terms.seller.withdraw_delay).unwrap());
        let Value::Object(nested) = json!({ "channelState": told, "blockNumber": 5 }) else { unreachable!() };
        assert_eq!(EvmChannelState::read(&nested, &terms, UnixMillis(9)), Some(EvmOnChain { block: 5, ..read }));
        let other = EvmTerms::derive(Arc::clone(&terms.seller), terms.payer, terms.payer_authorizer, B256([9; 32]));
        assert_eq!(EvmChannelState::read(&extra, &other, UnixMillis(9)), None);
        let Value::Object(more) = json!({ "channelId": terms.id, "balance": "1", "totalClaimed": "2", "withdrawRequestedAt": 0, "refundNonce": "0" })
        else {
            unreachable!()
        };
        assert_eq!(EvmChannelState::read(&more, &terms, UnixMillis(9)), None, "more claimed than there is");
        assert_eq!(EvmChannelState::read(&Map::new(), &terms, UnixMillis(9)), None);
    }
}
