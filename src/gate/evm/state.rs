//! What a client is told of its channel.

use serde_json::Value;

use crate::ledger::channel::Evm;
use crate::ledger::store::RecordOf;
use crate::scheme::batch_settlement_evm::state::{EvmChannelState, EvmVoucherState};

/// A channel as its client sees it.
pub(super) fn channel_state(channel: &RecordOf<Evm>) -> EvmChannelState {
    EvmChannelState::of(channel.terms.id, &channel.on_chain, Some(channel.charged))
}

/// What a corrective 402 adds to the offer that the client accepted ("Recovery After State Loss"). Our own words always
/// can be written as JSON.
pub(in crate::gate) fn corrective(channel: &RecordOf<Evm>) -> Vec<(&'static str, Value)> {
    let voucher = channel.voucher.as_ref().map(|voucher| EvmVoucherState {
        signed_max_claimable: voucher.cumulative,
        signature: voucher.signature.clone(),
    });
    let states = [
        ("channelState", serde_json::to_value(channel_state(channel)).ok()),
        ("voucherState", voucher.and_then(|voucher| serde_json::to_value(voucher).ok())),
    ];
    states.into_iter().filter_map(|(name, state)| Some((name, state?))).collect()
}
