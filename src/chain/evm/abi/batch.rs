//! `x402BatchSettlement` and its deposit collectors.

use alloy_primitives::aliases::U40;
use alloy_sol_types::{SolCall, SolEvent, SolValue, sol};

use super::{address, call_of, number, uint, word};
use crate::amount::Amount;
use crate::chain::evm::revert::Revert;
use crate::chain::evm::{Call, ChannelState, EvmError, Receipt, ReceiverState, malformed};
use crate::scheme::evm::contracts::BATCH_SETTLEMENT;
use crate::scheme::evm::eip712::ChannelConfig;
use crate::x402::evm::{Address, B256, U256};

mod contract {
    use super::sol;

    sol! {
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }

        struct Voucher {
            ChannelConfig channel;
            uint128 maxClaimableAmount;
        }

        struct VoucherClaim {
            Voucher voucher;
            bytes signature;
            uint128 totalClaimed;
        }

        function deposit(ChannelConfig config, uint128 amount, address collector, bytes collectorData);
        function claimWithSignature(VoucherClaim[] voucherClaims, bytes authorizerSignature);
        function settle(address receiver, address token);
        function refundWithSignature(ChannelConfig config, uint128 amount, uint256 nonce,
            bytes receiverAuthorizerSignature);
        function multicall(bytes[] data) returns (bytes[] results);

        function channels(bytes32 channelId) returns (uint128 balance, uint128 totalClaimed);
        function pendingWithdrawals(bytes32 channelId) returns (uint128 amount, uint40 initiatedAt);
        function refundNonce(bytes32 channelId) returns (uint256);
        function receivers(address receiver, address token) returns (uint128 totalClaimed, uint128 totalSettled);

        event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
        event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
    }
}

/// A claim on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoucherClaim {
    /// The channel's terms.
    pub config: ChannelConfig,
    /// What its voucher allows.
    pub max_claimable_amount: Amount,
    /// The voucher's signature.
    pub signature: Vec<u8>,
    /// What shall have been claimed in all.
    pub total_claimed: Amount,
}

fn config_of(config: &ChannelConfig) -> contract::ChannelConfig {
    contract::ChannelConfig {
        payer: address(config.payer),
        payerAuthorizer: address(config.payer_authorizer),
        receiver: address(config.receiver),
        receiverAuthorizer: address(config.receiver_authorizer),
        token: address(config.token),
        // Reading it made sure that it fits.
        withdrawDelay: U40::saturating_from(config.withdraw_delay),
        salt: word(&config.salt),
    }
}

/// Deposits into a channel, through a collector that `collector_data` is for.
#[must_use]
pub fn deposit(config: &ChannelConfig, amount: Amount, collector: Address, collector_data: Vec<u8>) -> Call {
    let call = contract::depositCall {
        config: config_of(config),
        amount: amount.get(),
        collector: address(collector),
        collectorData: collector_data.into(),
    };
    call_of(BATCH_SETTLEMENT, &call)
}

/// What the EIP-3009 collector needs beside the channel.
#[must_use]
pub fn eip3009_collector_data(valid_after: U256, valid_before: U256, salt: U256, signature: &[u8]) -> Vec<u8> {
    let signature = alloy_primitives::Bytes::copy_from_slice(signature);
    (uint(valid_after), uint(valid_before), uint(salt), signature).abi_encode_params()
}

/// What the Permit2 collector needs beside the channel. `permit` is an EIP-2612 permit for Permit2, or empty.
#[must_use]
pub fn permit2_collector_data(nonce: U256, deadline: U256, signature: &[u8], permit: &[u8]) -> Vec<u8> {
    let bytes = alloy_primitives::Bytes::copy_from_slice;
    (uint(nonce), uint(deadline), bytes(signature), bytes(permit)).abi_encode_params()
}

/// Claims from channels that share one receiver authorizer, which signed the batch.
#[must_use]
pub fn claim_with_signature(claims: &[VoucherClaim], authorizer_signature: &[u8]) -> Call {
    let claims = claims.iter().map(|claim| contract::VoucherClaim {
        voucher: contract::Voucher {
            channel: config_of(&claim.config),
            maxClaimableAmount: claim.max_claimable_amount.get(),
        },
        signature: claim.signature.clone().into(),
        totalClaimed: claim.total_claimed.get(),
    });
    let call = contract::claimWithSignatureCall {
        voucherClaims: claims.collect(),
        authorizerSignature: authorizer_signature.to_vec().into(),
    };
    call_of(BATCH_SETTLEMENT, &call)
}

/// Pays out what was claimed for a receiver.
#[must_use]
pub fn settle(receiver: Address, token: Address) -> Call {
    call_of(BATCH_SETTLEMENT, &contract::settleCall { receiver: address(receiver), token: address(token) })
}

/// Returns up to `amount` to the payer.
#[must_use]
pub fn refund_with_signature(config: &ChannelConfig, amount: Amount, nonce: U256, signature: &[u8]) -> Call {
    let call = contract::refundWithSignatureCall {
        config: config_of(config),
        amount: amount.get(),
        nonce: uint(nonce),
        receiverAuthorizerSignature: signature.to_vec().into(),
    };
    call_of(BATCH_SETTLEMENT, &call)
}

/// Several calls of the contract in one transaction, all or none.
#[must_use]
pub fn together(calls: Vec<Call>) -> Call {
    let data = calls.into_iter().map(|call| call.data.into()).collect();
    call_of(BATCH_SETTLEMENT, &contract::multicallCall { data })
}

/// The three calls that read a channel, in the order that their answers are read in.
#[must_use]
pub fn read_channel(id: &B256) -> [Call; 3] {
    let id = word(id);
    [
        call_of(BATCH_SETTLEMENT, &contract::channelsCall { channelId: id }),
        call_of(BATCH_SETTLEMENT, &contract::pendingWithdrawalsCall { channelId: id }),
        call_of(BATCH_SETTLEMENT, &contract::refundNonceCall { channelId: id }),
    ]
}

/// The channel in three answers.
pub(in crate::chain::evm) fn channel(answers: &[Result<Vec<u8>, Revert>; 3]) -> Result<ChannelState, EvmError> {
    let unreadable = |what: &'static str| move |_| malformed(what, "not what the settlement contract answers");
    let [state, withdrawal, nonce] = answers.each_ref().map(|answer| answer.as_ref().map_err(Clone::clone));
    let state = contract::channelsCall::abi_decode_returns(state.map_err(EvmError::Reverted)?);
    let state = state.map_err(unreadable("channels"))?;
    let withdrawal = contract::pendingWithdrawalsCall::abi_decode_returns(withdrawal.map_err(EvmError::Reverted)?);
    let withdrawal = withdrawal.map_err(unreadable("pendingWithdrawals"))?;
    let nonce = number(nonce.map_err(EvmError::Reverted)?);
    Ok(ChannelState {
        balance: Amount::new(state.balance),
        total_claimed: Amount::new(state.totalClaimed),
        withdraw_amount: Amount::new(withdrawal.amount),
        withdraw_requested_at: withdrawal.initiatedAt.to::<u64>(),
        refund_nonce: nonce.ok_or_else(|| malformed("refundNonce", "not a number"))?,
    })
}

/// Reads what a receiver has.
#[must_use]
pub fn receivers(receiver: Address, token: Address) -> Call {
    call_of(BATCH_SETTLEMENT, &contract::receiversCall { receiver: address(receiver), token: address(token) })
}

pub(in crate::chain::evm) fn receiver(answer: &[u8]) -> Result<ReceiverState, EvmError> {
    let state = contract::receiversCall::abi_decode_returns(answer);
    let state = state.map_err(|_| malformed("receivers", "not what the settlement contract answers"))?;
    Ok(ReceiverState { total_claimed: Amount::new(state.totalClaimed), total_settled: Amount::new(state.totalSettled) })
}

/// What a transaction paid out to a receiver, by the contract's own event; `None` where it paid nothing.
#[must_use]
pub fn settled(receipt: &Receipt, receiver: Address, token: Address) -> Option<Amount> {
    events::<contract::Settled>(receipt, BATCH_SETTLEMENT)
        .find(|event| event.receiver == address(receiver) && event.token == address(token))
        .map(|event| Amount::new(event.amount))
}

/// What a transaction returned to a channel's payer, by the contract's own event; `None` where it returned nothing.
#[must_use]
pub fn refunded(receipt: &Receipt, channel_id: &B256) -> Option<Amount> {
    events::<contract::Refunded>(receipt, BATCH_SETTLEMENT)
        .find(|event| event.channelId == word(channel_id))
        .map(|event| Amount::new(event.amount))
}

/// The events of one kind that a contract emitted in a transaction.
pub(super) fn events<E: SolEvent>(receipt: &Receipt, contract: Address) -> impl Iterator<Item = E> {
    receipt
        .logs
        .iter()
        .filter(move |log| log.address == contract)
        .filter_map(|log| E::decode_raw_log(log.topics.iter().map(word), &log.data).ok())
}
