//! Reason codes: what `error`, `invalidReason` and `errorReason` say, exactly as the specifications spell them.
//!
//! Sources: `scheme_batch_settlement_svm.md` section 7, `scheme_upto_svm.md` section 7, x402 v2 section 9.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a payment was refused, in the protocol's own words.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, for tables and metrics.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

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

    /// The merchant's limit of unredeemed charges is reached.
    ExposureLimit = "exposure_limit",
    /// Too many requests of this channel wait already, or this one waited too long.
    ChannelBusy = "channel_busy",
    /// The payment's id came before, with another payment or for another request.
    PaymentIdentifierConflict = "payment_identifier_conflict",
    /// The request with this payment's id is still being served.
    PaymentInProcess = "payment_in_process",
    /// The chain cannot be reached, and what is known of the channel is too old to go by.
    ChainUnavailable = "chain_unavailable",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
