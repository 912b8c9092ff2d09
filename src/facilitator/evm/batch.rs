//! What clients of scheme `batch-settlement` send: deposits, vouchers and refunds.
//!
//! Source: `scheme_batch_settlement_evm.md`, "Verification Rules" 1 to 10.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::try_join;

use super::jobs::Job;
use super::wire::{self, refused};
use super::{Codes, Inner, Order, channel_state, unread, used};
use crate::amount::Amount;
use crate::chain::evm::{ChannelState, abi};
use crate::facilitator::interface::{InterfaceError, Settled, Verified};
use crate::scheme::batch_settlement_evm::payload::{DepositAuthorization, EvmBatchPayload, EvmDeposit, EvmVoucher};
use crate::scheme::batch_settlement_evm::{self as scheme, Checked, deposit};
use crate::scheme::evm::contracts::{EIP3009_COLLECTOR, PERMIT2_COLLECTOR};
use crate::scheme::evm::eip712::{ChannelConfig, deposit_nonce, voucher_digest};
use crate::scheme::evm::signature::signed_by;
use crate::scheme::evm::{EvmSeller, EvmTerms, TransferMethod};
use crate::x402::Reason;
use crate::x402::evm::U256;
use crate::x402::wire::PaymentRequirements;

const DEPOSIT: Codes = Codes {
    simulation: Reason::EvmBatchDepositSimulation.as_str(),
    transaction: Reason::EvmBatchDepositTransaction.as_str(),
};

/// How a voucher's total must stand to what is claimed already.
#[derive(Clone, Copy)]
enum Above {
    /// It pays for something.
    Strictly,
    /// It may pay for nothing.
    OrEqual,
}

impl Inner {
    pub(super) async fn verify_batch(
        &self,
        payload: Value,
        requirements: &PaymentRequirements,
    ) -> Result<Verified, InterfaceError> {
        let (config, voucher, above) = match scheme::parse(&payload)? {
            EvmBatchPayload::Deposit { channel_config, voucher, deposit } => {
                return self.verify_deposit(&channel_config, &voucher, &deposit, requirements).await;
            }
            EvmBatchPayload::Voucher { channel_config, voucher } => (channel_config, voucher, Above::Strictly),
            EvmBatchPayload::Refund { channel_config, voucher, .. } => (channel_config, voucher, Above::OrEqual),
        };
        let seller = Arc::new(wire::seller(requirements, self.chain.chain_id(), None)?);
        let terms = self.verify_voucher(&seller, &config, &voucher).await?;
        let channel = self.channel(&terms.id).await.map_err(|error| unread(&error))?;
        if channel.balance.is_zero() {
            return Err(refused(Reason::EvmBatchChannelNotFound.as_str(), "the channel holds nothing"));
        }
        covers(&voucher, channel.balance, channel.total_claimed, above)?;
        Ok(verified(&terms, &channel))
    }

    pub(super) async fn settle_batch(
        &self,
        payload: Value,
        requirements: &PaymentRequirements,
    ) -> Result<Settled, InterfaceError> {
        match payload.get("type").and_then(Value::as_str) {
            Some("deposit") => {
                let EvmBatchPayload::Deposit { channel_config, voucher, deposit } = scheme::parse(&payload)? else {
                    return Err(refused(Reason::EvmBatchPayloadType.as_str(), "the payload is no deposit"));
                };
                self.settle_deposit(&channel_config, &voucher, &deposit, requirements).await
            }
            Some("claim") => self.settle_claims(&payload).await,
            Some("settle") => self.pay_out(&payload).await,
            Some("refund") => self.settle_refund(&payload, requirements).await,
            _ => {
                let detail = "payload.type is none of deposit, claim, settle and refund";
                Err(refused(Reason::EvmBatchPayloadType.as_str(), detail))
            }
        }
    }

    /// Checks a voucher's terms and signature.
    async fn verify_voucher(
        &self,
        seller: &Arc<EvmSeller>,
        config: &ChannelConfig,
        voucher: &EvmVoucher,
    ) -> Result<EvmTerms, InterfaceError> {
        let checked = scheme::verify(seller, config, voucher, None)?;
        if let Checked::Verified(verified) = checked {
            return Ok(verified.into_parts().0);
        }
        let digest = voucher_digest(&seller.domain, &checked.terms().id, checked.cumulative());
        let signed = signed_by(&config.payer, &digest, &voucher.signature);
        if !self.is_signed(config.payer, &digest, signed, voucher.signature.as_slice()).await? {
            let detail = format!("voucher.signature is not one that the payer {} accepts", config.payer);
            return Err(refused(Reason::EvmBatchVoucherSignature.as_str(), detail));
        }
        Ok(checked.verified_on_chain().into_parts().0)
    }

    async fn verify_deposit(
        &self,
        config: &ChannelConfig,
        voucher: &EvmVoucher,
        deposit: &EvmDeposit,
        requirements: &PaymentRequirements,
    ) -> Result<Verified, InterfaceError> {
        let (terms, channel, is_used) = self.check_deposit(config, voucher, deposit, requirements).await?;
        if is_used {
            return Err(refused(DEPOSIT.simulation, "the authorization's nonce is used, or was cancelled"));
        }
        self.simulate(&order(&terms, deposit)).await?;
        Ok(verified(&terms, &channel))
    }

    async fn settle_deposit(
        &self,
        config: &ChannelConfig,
        voucher: &EvmVoucher,
        deposit: &EvmDeposit,
        requirements: &PaymentRequirements,
    ) -> Result<Settled, InterfaceError> {
        let seller = Arc::new(wire::seller(requirements, self.chain.chain_id(), Some(method(deposit)))?);
        // Whoever asks again may have changed the voucher, which is no part of the transaction.
        let terms = self.verify_voucher(&seller, config, voucher).await?;
        let order = order(&terms, deposit);
        if !self.knows(&order)? {
            let (.., is_used) = self.check_deposit(config, voucher, deposit, requirements).await?;
            if is_used {
                return Err(used("the deposit's nonce"));
            }
        }
        let receipt = self.carry(&order).await?;
        let channel = self.channel_after(&terms.id, &receipt).await?;
        Ok(Settled {
            transaction: receipt.transaction.to_string(),
            payer: Some(terms.payer.to_string()),
            amount: Some(deposit.amount.to_string()),
            extra: state(&terms, &channel),
        })
    }

    /// All checks of a deposit but the simulation. Tells too whether its nonce is used.
    async fn check_deposit(
        &self,
        config: &ChannelConfig,
        voucher: &EvmVoucher,
        deposit: &EvmDeposit,
        requirements: &PaymentRequirements,
    ) -> Result<(EvmTerms, ChannelState, bool), InterfaceError> {
        let seller = Arc::new(wire::seller(requirements, self.chain.chain_id(), Some(method(deposit)))?);
        let terms = self.verify_voucher(&seller, config, voucher).await?;
        let checked = deposit::check(&terms, deposit, self.now())?;
        let signature = match deposit.authorization {
            DepositAuthorization::Eip3009(_) => Reason::EvmBatchReceiveSignature,
            DepositAuthorization::Permit2(_) => Reason::EvmBatchPermit2Signature,
        };
        self.may_be_signed(terms.payer, checked.signed(), signature).await?;
        let (token, payer) = (terms.seller.token, terms.payer);
        let (channel, balance, is_used, may_take) = try_join!(
            self.channel(&terms.id),
            self.chain.token_balance(token, payer),
            async {
                match &deposit.authorization {
                    DepositAuthorization::Eip3009(authorization) => {
                        let nonce = deposit_nonce(&terms.id, authorization.salt.into());
                        self.chain.authorization_used(token, payer, &nonce).await
                    }
                    DepositAuthorization::Permit2(authorization) => {
                        self.chain.permit2_nonce_used(payer, authorization.nonce).await
                    }
                }
            },
            async {
                match &deposit.authorization {
                    DepositAuthorization::Eip3009(_) => Ok(true),
                    DepositAuthorization::Permit2(_) => self.chain.permit2_may_take(token, payer, deposit.amount).await,
                }
            },
        )
        .map_err(|error| unread(&error))?;
        // What is used already was taken from the balance: whether that is enough is of no interest any more.
        if !is_used {
            if !may_take {
                let detail = format!("{payer} must let Permit2 take the token first");
                return Err(refused(Reason::EvmBatchPermit2Allowance.as_str(), detail));
            }
            if balance < U256::from(deposit.amount) {
                let detail = format!("{payer} has {balance} of the token, the deposit is {}", deposit.amount);
                return Err(refused(Reason::EvmBatchInsufficientBalance.as_str(), detail));
            }
            let after = channel.balance.saturating_add(deposit.amount);
            covers(voucher, after, channel.total_claimed, Above::OrEqual)?;
        }
        Ok((terms, channel, is_used))
    }
}

fn method(deposit: &EvmDeposit) -> TransferMethod {
    match deposit.authorization {
        DepositAuthorization::Eip3009(_) => TransferMethod::Eip3009,
        DepositAuthorization::Permit2(_) => TransferMethod::Permit2,
    }
}

/// The transaction of a deposit.
fn order(terms: &EvmTerms, deposit: &EvmDeposit) -> Order {
    let (token, owner) = (terms.seller.token, terms.payer);
    let (job, collector, data) = match &deposit.authorization {
        DepositAuthorization::Eip3009(authorization) => {
            let salt = U256::from(authorization.salt);
            let signature = authorization.signature.as_slice();
            let (after, before) = (authorization.valid_after, authorization.valid_before);
            let data = abi::batch::eip3009_collector_data(after, before, salt, signature);
            (Job::Authorization { token, owner, nonce: deposit_nonce(&terms.id, salt) }, EIP3009_COLLECTOR, data)
        }
        DepositAuthorization::Permit2(authorization) => {
            let nonce = authorization.nonce;
            let signature = authorization.signature.as_slice();
            let data = abi::batch::permit2_collector_data(nonce, authorization.deadline, signature, &[]);
            (Job::Permit2 { owner, nonce }, PERMIT2_COLLECTOR, data)
        }
    };
    Order { job, call: abi::batch::deposit(&terms.config(), deposit.amount, collector, data), codes: DEPOSIT }
}

/// Whether a channel covers a voucher (rules 9 and 10).
fn covers(voucher: &EvmVoucher, balance: Amount, claimed: Amount, above: Above) -> Result<(), InterfaceError> {
    let total = voucher.max_claimable_amount;
    if total > balance {
        let detail = format!("the voucher is over {total}, the channel holds {balance}");
        return Err(refused(Reason::EvmBatchCumulativeExceedsBalance.as_str(), detail));
    }
    let holds = match above {
        Above::Strictly => total > claimed,
        Above::OrEqual => total >= claimed,
    };
    if holds {
        return Ok(());
    }
    let detail = format!("the voucher is over {total}, and {claimed} is claimed already");
    Err(refused(Reason::EvmBatchCumulativeBelowClaimed.as_str(), detail))
}

fn verified(terms: &EvmTerms, channel: &ChannelState) -> Verified {
    Verified { payer: Some(terms.payer.to_string()), extra: channel_state(&terms.id, channel) }
}

fn state(terms: &EvmTerms, channel: &ChannelState) -> Map<String, Value> {
    Map::from_iter([("channelState".to_owned(), Value::Object(channel_state(&terms.id, channel)))])
}
