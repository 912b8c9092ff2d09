//! Reason codes: what `error`, `invalidReason` and `errorReason` say, exactly as the specifications spell them.
//!
//! Sources: `scheme_batch_settlement_svm.md` section 7, `scheme_upto_svm.md` section 7,
//! `scheme_batch_settlement_evm.md` ("Error Codes"), `scheme_upto_evm.md` section 4, section 9 of x402 versions 2 and
//! 1. Codes without a scheme's prefix after the first group are ours. What these leave open of Permit2 is named as the reference package (npm's `@x402/evm`) names it.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a payment was refused, in the protocol's own words.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, for tables and metrics.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason of a code on the wire, where it is one of these.
            #[must_use]
            pub fn parse(code: &str) -> Option<Self> {
                match code {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The code on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// No payment came with the request.
    PaymentRequired = "PAYMENT-SIGNATURE header is required",
    /// The payment cannot be read.
    InvalidPayload = "invalid_payload",
    /// Another protocol version.
    InvalidVersion = "invalid_x402_version",
    /// A scheme that was not offered.
    UnsupportedScheme = "unsupported_scheme",
    /// A network that was not offered.
    InvalidNetwork = "invalid_network",
    /// The terms that the client accepted are none that were offered.
    InvalidRequirements = "invalid_payment_requirements",
    /// The payer's token account holds too little.
    InsufficientFunds = "insufficient_funds",
    /// A facilitator refuses the payment with a code that is none of these.
    UnexpectedVerifyError = "unexpected_verify_error",
    /// Something of ours failed while the payment was handled.
    UnexpectedSettleError = "unexpected_settle_error",
    /// The settlement was sent and is not confirmed yet.
    SettlementPending = "settlement_pending",
    /// The same setup or refund is being settled, or was.
    DuplicateSettlement = "duplicate_settlement",

    /// `type` does not fit the operation.
    BatchPayloadType = "invalid_batch_settlement_svm_payload_type",
    /// `paymentFlow` is not `authorization`.
    BatchPaymentFlow = "invalid_batch_settlement_svm_payment_flow",
    /// The token program is not supported or does not own the mint.
    BatchTokenProgram = "invalid_batch_settlement_svm_token_program",
    /// The voucher's signature does not verify under the channel's authorizer.
    BatchVoucherSignature = "invalid_batch_settlement_svm_voucher_signature",
    /// The channel's address is not the derived one.
    BatchChannelIdMismatch = "invalid_batch_settlement_svm_channel_id_mismatch",
    /// The channel's payee or rent payer is not our fee payer.
    BatchFeePayerMismatch = "invalid_batch_settlement_svm_fee_payer_mismatch",
    /// The bound receiver authorizer is not ours.
    BatchReceiverAuthorizerMismatch = "invalid_batch_settlement_svm_receiver_authorizer_mismatch",
    /// The binding of the receiver authorizer cannot be read.
    BatchReceiverBindingUnavailable = "invalid_batch_settlement_svm_receiver_binding_unavailable",
    /// A close is not authorized, or not this one.
    BatchCloseAuthorization = "invalid_batch_settlement_svm_close_authorization",
    /// A refund names an amount.
    BatchCloseAmountUnsupported = "invalid_batch_settlement_svm_close_amount_unsupported",
    /// The channel cannot be closed in this state, or not with this voucher.
    BatchCloseState = "invalid_batch_settlement_svm_close_state",
    /// The payer has started a forced close.
    BatchChannelClosing = "invalid_batch_settlement_svm_channel_closing",
    /// The channel's grace period is not the advertised one.
    BatchWithdrawDelayMismatch = "invalid_batch_settlement_svm_withdraw_delay_mismatch",
    /// The advertised grace period is out of range.
    BatchWithdrawDelayOutOfRange = "invalid_batch_settlement_svm_withdraw_delay_out_of_range",
    /// The voucher's total is not what was charged plus the price.
    BatchCumulativeAmountMismatch = "invalid_batch_settlement_svm_cumulative_amount_mismatch",
    /// The voucher's total is above the deposit.
    BatchCumulativeExceedsDeposit = "invalid_batch_settlement_svm_cumulative_exceeds_deposit",
    /// The voucher expires.
    BatchVoucherExpiry = "invalid_batch_settlement_svm_voucher_expiry",
    /// The setup transaction is not safe to sign.
    BatchSetupTransaction = "invalid_batch_settlement_svm_setup_transaction",
    /// The setup would fail on chain, or its settlement would.
    BatchSettlementSimulation = "invalid_batch_settlement_svm_settlement_simulation",
    /// The deposit is below the merchant's minimum.
    BatchDepositBelowMin = "invalid_batch_settlement_svm_deposit_below_min_deposit",
    /// The channel on chain is not the one that was agreed.
    BatchChannelState = "invalid_batch_settlement_svm_channel_state",
    /// The refund's transaction is not a plain `request_close`.
    BatchRefundTransaction = "invalid_batch_settlement_svm_refund_transaction",

    /// The client sent the server's own field.
    UptoUnexpectedVoucher = "invalid_upto_svm_payload_unexpected_voucher",
    /// The charge is above the ceiling.
    UptoSettlementExceedsAmount = "invalid_upto_svm_payload_settlement_exceeds_amount",
    /// The open would fail on chain, or its settlement would.
    UptoSettlementSimulation = "invalid_upto_svm_settlement_simulation",
    /// The open could not be sent or confirmed.
    UptoChannelBroadcast = "invalid_upto_svm_channel_broadcast",
    /// The opened channel is not the one that was agreed.
    UptoChannelState = "invalid_upto_svm_channel_state",
    /// The channel exists already.
    UptoChannelAlreadyOpen = "invalid_upto_svm_channel_already_open",
    /// The channel would live too long.
    UptoLifetimeExceeded = "invalid_upto_svm_payload_channel_lifetime_exceeded",
    /// The deadline is later than the time that was offered.
    UptoExpiresAtMismatch = "invalid_upto_svm_payload_expires_at_mismatch",
    /// The terms of the payload are not those that were offered.
    UptoPayload = "invalid_upto_svm_payload",
    /// `authorizedSigner` is not our receiver authorizer.
    UptoReceiverAuthorizer = "invalid_upto_svm_payload_receiver_authorizer",
    /// `maxAmount` is not the advertised amount.
    UptoAmountMismatch = "invalid_upto_svm_payload_amount_mismatch",
    /// `deposit` is not `maxAmount`.
    UptoDepositNotCeiling = "invalid_upto_svm_payload_deposit_not_ceiling",
    /// `validAfter` lies ahead.
    UptoNotYetActive = "invalid_upto_svm_payload_not_yet_active",
    /// `expiresAt` is 0, has passed, or leaves no time to serve the request.
    UptoExpired = "invalid_upto_svm_payload_expired",
    /// `channelId` is not the derived address.
    UptoChannelId = "invalid_upto_svm_payload_channel_id",
    /// The payer is our own fee payer.
    UptoPayerMismatch = "invalid_upto_svm_payload_payer_mismatch",
    /// The open transaction is not safe to sign.
    UptoOpenTransaction = "invalid_upto_svm_payload_open_transaction",

    /// `type` does not fit the operation.
    EvmBatchPayloadType = "invalid_batch_settlement_evm_payload_type",
    /// A deposit cannot be read.
    EvmBatchDepositPayload = "invalid_batch_settlement_evm_deposit_payload",
    /// A voucher cannot be read.
    EvmBatchVoucherPayload = "invalid_batch_settlement_evm_voucher_payload",
    /// A refund cannot be read.
    EvmBatchRefundPayload = "invalid_batch_settlement_evm_refund_payload",
    /// A claim cannot be read.
    EvmBatchClaimPayload = "invalid_batch_settlement_evm_claim_payload",
    /// A settlement cannot be read.
    EvmBatchSettlePayload = "invalid_batch_settlement_evm_settle_payload",
    /// A settlement asks for something unknown.
    EvmBatchUnknownSettleAction = "invalid_batch_settlement_evm_unknown_settle_action",
    /// `scheme` is not `batch-settlement`.
    EvmBatchScheme = "invalid_batch_settlement_evm_scheme",
    /// `accepted.network` is not the network of the requirements.
    EvmBatchNetworkMismatch = "invalid_batch_settlement_evm_network_mismatch",
    /// The token's EIP-712 name or version is missing from the requirements.
    EvmBatchMissingEip712Domain = "invalid_batch_settlement_evm_missing_eip712_domain",
    /// The channel's terms do not hash to its id.
    EvmBatchChannelIdMismatch = "invalid_batch_settlement_evm_channel_id_mismatch",
    /// The channel's receiver is not `payTo`.
    EvmBatchReceiverMismatch = "invalid_batch_settlement_evm_receiver_mismatch",
    /// The channel's receiver authorizer is not the offered one.
    EvmBatchReceiverAuthorizerMismatch = "invalid_batch_settlement_evm_receiver_authorizer_mismatch",
    /// Whoever signs for the receiver is not the channel's receiver authorizer.
    EvmBatchAuthorizerAddressMismatch = "invalid_batch_settlement_evm_authorizer_address_mismatch",
    /// The channel's token is not `asset`.
    EvmBatchTokenMismatch = "invalid_batch_settlement_evm_token_mismatch",
    /// The channel's withdrawal delay is not the offered one.
    EvmBatchWithdrawDelayMismatch = "invalid_batch_settlement_evm_withdraw_delay_mismatch",
    /// The withdrawal delay is not 15 minutes to 30 days.
    EvmBatchWithdrawDelayOutOfRange = "invalid_batch_settlement_evm_withdraw_delay_out_of_range",
    /// The voucher's signature is not by whom it must be.
    EvmBatchVoucherSignature = "invalid_batch_settlement_evm_voucher_signature",
    /// The voucher's total is not what was charged plus the price.
    EvmBatchCumulativeAmountMismatch = "invalid_batch_settlement_evm_cumulative_amount_mismatch",
    /// The voucher's total is above the channel's balance.
    EvmBatchCumulativeExceedsBalance = "invalid_batch_settlement_evm_cumulative_exceeds_balance",
    /// The voucher's total is not above what was claimed.
    EvmBatchCumulativeBelowClaimed = "invalid_batch_settlement_evm_cumulative_below_claimed",
    /// The charge would be above the voucher's total.
    EvmBatchChargeExceedsSigned = "invalid_batch_settlement_evm_charge_exceeds_signed_cumulative",
    /// Another request of the channel is being served.
    EvmBatchChannelBusy = "invalid_batch_settlement_evm_channel_busy",
    /// The channel has no balance on chain.
    EvmBatchChannelNotFound = "invalid_batch_settlement_evm_channel_not_found",
    /// There is no such channel here.
    EvmBatchMissingChannel = "invalid_batch_settlement_evm_missing_channel",
    /// The channel cannot be read from the chain.
    EvmBatchChannelStateReadFailed = "invalid_batch_settlement_evm_channel_state_read_failed",
    /// The chain cannot be read.
    EvmBatchRpcReadFailed = "invalid_batch_settlement_evm_rpc_read_failed",
    /// A deposit needs an EIP-3009 authorization.
    EvmBatchErc3009Required = "invalid_batch_settlement_evm_erc3009_authorization_required",
    /// The EIP-3009 authorization's signature is not the payer's.
    EvmBatchReceiveSignature = "invalid_batch_settlement_evm_receive_authorization_signature",
    /// The EIP-3009 authorization is not good yet.
    EvmBatchValidAfter = "invalid_batch_settlement_evm_payload_authorization_valid_after",
    /// The EIP-3009 authorization has expired, or is about to.
    EvmBatchValidBefore = "invalid_batch_settlement_evm_payload_authorization_valid_before",
    /// A deposit needs a Permit2 authorization.
    EvmBatchPermit2Required = "invalid_batch_settlement_evm_permit2_authorization_required",
    /// The Permit2 authorization's signature is not the payer's.
    EvmBatchPermit2Signature = "invalid_batch_settlement_evm_permit2_invalid_signature",
    /// The Permit2 authorization is for another spender than the collector.
    EvmBatchPermit2Spender = "invalid_batch_settlement_evm_permit2_invalid_spender",
    /// The Permit2 authorization's amount is not the deposit's.
    EvmBatchPermit2Amount = "invalid_batch_settlement_evm_permit2_amount_mismatch",
    /// The Permit2 authorization has expired, or is about to.
    EvmBatchPermit2Expired = "invalid_batch_settlement_evm_permit2_deadline_expired",
    /// The payer must let Permit2 move the token first.
    EvmBatchPermit2Allowance = "invalid_batch_settlement_evm_permit2_allowance_required",
    /// The deposit is below the merchant's minimum (the reference package's code; the specification has none).
    EvmBatchDepositBelowMin = "invalid_batch_settlement_evm_deposit_below_min_deposit",
    /// The payer holds too little of the token for the deposit.
    EvmBatchInsufficientBalance = "invalid_batch_settlement_evm_insufficient_balance",
    /// The deposit would fail on chain.
    EvmBatchDepositSimulation = "invalid_batch_settlement_evm_deposit_simulation_failed",
    /// The deposit failed on chain.
    EvmBatchDepositTransaction = "invalid_batch_settlement_evm_deposit_transaction_failed",
    /// The claim would fail on chain.
    EvmBatchClaimSimulation = "invalid_batch_settlement_evm_claim_simulation_failed",
    /// The claim failed on chain.
    EvmBatchClaimTransaction = "invalid_batch_settlement_evm_claim_transaction_failed",
    /// Nothing is claimed that is not settled.
    EvmBatchNothingToSettle = "invalid_batch_settlement_evm_nothing_to_settle",
    /// The settlement would fail on chain.
    EvmBatchSettleSimulation = "invalid_batch_settlement_evm_settle_simulation_failed",
    /// The settlement failed on chain.
    EvmBatchSettleTransaction = "invalid_batch_settlement_evm_settle_transaction_failed",
    /// A refund's amount is no number above zero.
    EvmBatchRefundAmount = "invalid_batch_settlement_evm_refund_amount_invalid",
    /// There is nothing to give back.
    EvmBatchRefundNoBalance = "invalid_batch_settlement_evm_refund_no_balance",
    /// The refund would fail on chain.
    EvmBatchRefundSimulation = "invalid_batch_settlement_evm_refund_simulation_failed",
    /// The refund failed on chain.
    EvmBatchRefundTransaction = "invalid_batch_settlement_evm_refund_transaction_failed",
    /// A transaction reverted.
    EvmBatchReverted = "invalid_batch_settlement_evm_transaction_reverted",
    /// A transaction was sent, and what became of it is not known.
    EvmBatchReceipt = "invalid_batch_settlement_evm_wait_for_receipt_failed",

    /// The authorization is not good yet.
    ExactEvmValidAfter = "invalid_exact_evm_payload_authorization_valid_after",
    /// The authorization has expired, or is about to.
    ExactEvmValidBefore = "invalid_exact_evm_payload_authorization_valid_before",
    /// The authorization's value is not the price (version 1's code).
    ExactEvmValue = "invalid_exact_evm_payload_authorization_value",
    /// The authorization's value is not the price.
    ExactEvmValueMismatch = "invalid_exact_evm_payload_authorization_value_mismatch",
    /// The authorization's signature is not the payer's.
    ExactEvmSignature = "invalid_exact_evm_payload_signature",
    /// The authorization pays somebody else.
    ExactEvmRecipient = "invalid_exact_evm_payload_recipient_mismatch",
    /// The authorization's nonce was used before, or its payer has cancelled it.
    ExactEvmNonceUsed = "invalid_exact_evm_nonce_already_used",
    /// The transaction failed on chain.
    InvalidTransactionState = "invalid_transaction_state",

    /// The Permit2 authorization is for another spender than the scheme's proxy.
    Permit2Spender = "invalid_permit2_spender",
    /// The Permit2 authorization pays somebody else.
    Permit2Recipient = "invalid_permit2_recipient_mismatch",
    /// The Permit2 authorization has expired, or is about to.
    Permit2Expired = "permit2_deadline_expired",
    /// The Permit2 authorization is not good yet.
    Permit2NotYetValid = "permit2_not_yet_valid",
    /// The Permit2 authorization's amount is not the price.
    Permit2Amount = "permit2_amount_mismatch",
    /// The Permit2 authorization is for another token.
    Permit2Token = "permit2_token_mismatch",
    /// The Permit2 authorization's signature is not the payer's.
    Permit2Signature = "invalid_permit2_signature",
    /// The Permit2 authorization's nonce was used before, or its payer has cancelled it.
    Permit2NonceUsed = "permit2_invalid_nonce",
    /// The payer must let Permit2 move the token first.
    Permit2Allowance = "permit2_allowance_required",
    /// The Permit2 authorization is bound to another facilitator.
    UptoEvmFacilitator = "upto_facilitator_mismatch",
    /// The charge is above the authorized amount.
    UptoEvmSettlementExceedsAmount = "invalid_upto_evm_payload_settlement_exceeds_amount",

    /// The merchant's limit of unredeemed charges is reached.
    ExposureLimit = "exposure_limit",
    /// By policy: the request, or its payer, looks like one that is not served.
    PolicyBlockPatterns = "policy_block_patterns",
    /// By policy: nothing is served at this time.
    PolicyTimeWindow = "policy_time_window",
    /// By policy: the payer is not served.
    PolicyBlocklist = "policy_blocklist",
    /// By policy: the payer is none of those that are served.
    PolicyAllowlist = "policy_allowlist",
    /// By policy: the request may cost more than one may.
    PolicyPerRequestCap = "policy_per_request_cap",
    /// By policy: the payer is on a compliance list.
    PolicyScreening = "policy_screening",
    /// By policy: whether the payer is on a compliance list cannot be found out.
    PolicyScreeningUnavailable = "policy_screening_unavailable",
    /// By policy: the payer asks too often.
    PolicyRateLimit = "policy_rate_limit",
    /// By policy: the payer would spend more than it may in a day.
    PolicyDailyLimit = "policy_daily_limit",
    /// By policy: the payer's unredeemed charges are as high as they may be.
    PolicyPayerExposure = "policy_payer_exposure_max",
    /// There is no pass of this text.
    CallPackUnknown = "call_pack_unknown",
    /// All calls of the pass were used.
    CallPackSpent = "call_pack_spent",
    /// The pass's time is over.
    CallPackExpired = "call_pack_expired",
    /// The merchant has ended the pass.
    CallPackRevoked = "call_pack_revoked",
    /// The pass is good for another route.
    CallPackOtherRoute = "call_pack_other_route",
    /// All calls that are left on the pass are being served.
    CallPackBusy = "call_pack_busy",
    /// As many passes are outstanding as may be, so none is sold.
    CallPackUnavailable = "call_pack_unavailable",
    /// Too many requests of this channel wait already, or this one waited too long.
    ChannelBusy = "channel_busy",
    /// The payment's id came before, with another payment or for another request.
    PaymentIdentifierConflict = "payment_identifier_conflict",
    /// The request with this payment's id is still being served.
    PaymentInProcess = "payment_in_process",
    /// The chain cannot be reached, and what is known of the channel is too old to go by.
    ChainUnavailable = "chain_unavailable",
}

impl Reason {
    /// Whether the payment could not even be read, which is the sender's program's fault and not the payment's.
    #[must_use]
    pub const fn is_malformed(self) -> bool {
        matches!(
            self,
            Self::InvalidPayload
                | Self::EvmBatchDepositPayload
                | Self::EvmBatchVoucherPayload
                | Self::EvmBatchRefundPayload
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_reasons_have_one_code() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
    }
}
