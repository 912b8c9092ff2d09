//! The checks of a deposit's authorization that need no chain.
//!
//! Promises that a [`CheckedDeposit`] moves exactly the named amount of the seller's token from the channel's payer to
//! the collector, into this channel and no other, that it is good now and for a while, and says whose signature it has.
//! Whether the payer holds that much, and whether a contract accepts the signature, is the facilitator's to find out.
//! Source: `scheme_batch_settlement_evm.md`, "Deposit Payload" and its error codes.

use super::payload::{DepositAuthorization, Eip3009Deposit, EvmDeposit, Permit2Deposit};
use crate::amount::Amount;
use crate::scheme::evm::eip712::{
    Domain, Permit2Transfer, TransferAuthorization, Witness, deposit_nonce, permit2_digest,
    receive_with_authorization_digest,
};
use crate::scheme::evm::signature::{Signed, signed_by};
use crate::scheme::evm::{AUTHORIZATION_SECONDS_LEFT_MIN, EvmTerms, TransferMethod, contracts};
use crate::scheme::{Refused, ensure};
use crate::x402::Reason;

/// A deposit that the chain may accept. Only [`check`] makes one.
#[derive(Clone, Debug)]
pub struct CheckedDeposit {
    amount: Amount,
    authorization: DepositAuthorization,
    signed: Signed,
}

impl CheckedDeposit {
    /// How much is put in.
    #[must_use]
    pub fn amount(&self) -> Amount {
        self.amount
    }

    /// The payer's leave to take it.
    #[must_use]
    pub fn authorization(&self) -> &DepositAuthorization {
        &self.authorization
    }

    /// Whether the payer's key signed it, or only a contract can say.
    #[must_use]
    pub fn signed(&self) -> Signed {
        self.signed
    }
}

/// Checks a deposit into the channel of `terms`. `now` is in Unix seconds.
///
/// # Errors
/// [`Refused`] with the first check that failed.
pub fn check(terms: &EvmTerms, deposit: &EvmDeposit, now: u64) -> Result<CheckedDeposit, Refused> {
    ensure(!deposit.amount.is_zero(), Reason::EvmBatchDepositPayload, "deposit.amount must be above zero")?;
    let signed = match (terms.seller.transfer_method, &deposit.authorization) {
        (TransferMethod::Eip3009, DepositAuthorization::Eip3009(authorization)) => {
            eip3009(terms, deposit.amount, authorization, now)?
        }
        (TransferMethod::Permit2, DepositAuthorization::Permit2(authorization)) => {
            permit2(terms, deposit.amount, authorization, now)?
        }
        (TransferMethod::Eip3009, DepositAuthorization::Permit2(_)) => {
            let detail = "deposits of this token need deposit.authorization.erc3009Authorization";
            return Err(Refused::new(Reason::EvmBatchErc3009Required, detail));
        }
        (TransferMethod::Permit2, DepositAuthorization::Eip3009(_)) => {
            let detail = "deposits of this token need deposit.authorization.permit2Authorization";
            return Err(Refused::new(Reason::EvmBatchPermit2Required, detail));
        }
    };
    Ok(CheckedDeposit { amount: deposit.amount, authorization: deposit.authorization.clone(), signed })
}

fn eip3009(terms: &EvmTerms, amount: Amount, authorization: &Eip3009Deposit, now: u64) -> Result<Signed, Refused> {
    ensure(
        authorization.valid_before >= now.saturating_add(AUTHORIZATION_SECONDS_LEFT_MIN).into(),
        Reason::EvmBatchValidBefore,
        "erc3009Authorization.validBefore has passed or leaves no time to send the deposit",
    )?;
    ensure(
        authorization.valid_after <= now.into(),
        Reason::EvmBatchValidAfter,
        "erc3009Authorization.validAfter lies ahead of our clock",
    )?;
    let transfer = TransferAuthorization {
        from: terms.payer,
        to: contracts::EIP3009_COLLECTOR,
        value: amount,
        valid_after: authorization.valid_after,
        valid_before: authorization.valid_before,
        nonce: deposit_nonce(&terms.id, authorization.salt.into()),
    };
    let digest = receive_with_authorization_digest(&terms.seller.token_domain(), &transfer);
    let signed = signed_by(&terms.payer, &digest, &authorization.signature);
    ensure(
        signed == Signed::ByKey || !is_plain_key(terms),
        Reason::EvmBatchReceiveSignature,
        "erc3009Authorization.signature is not the payer's over ReceiveWithAuthorization to the deposit collector",
    )?;
    Ok(signed)
}

fn permit2(terms: &EvmTerms, amount: Amount, authorization: &Permit2Deposit, now: u64) -> Result<Signed, Refused> {
    ensure(
        authorization.from == terms.payer,
        Reason::EvmBatchPermit2Signature,
        "permit2Authorization.from is not channelConfig.payer",
    )?;
    ensure(
        authorization.spender == contracts::PERMIT2_COLLECTOR,
        Reason::EvmBatchPermit2Spender,
        "permit2Authorization.spender is not the deposit collector",
    )?;
    ensure(
        authorization.permitted.token == terms.seller.token,
        Reason::EvmBatchTokenMismatch,
        "permit2Authorization.permitted.token is not the offered asset",
    )?;
    ensure(
        authorization.permitted.amount == amount,
        Reason::EvmBatchPermit2Amount,
        "permit2Authorization.permitted.amount is not deposit.amount",
    )?;
    ensure(
        authorization.witness.channel_id == terms.id,
        Reason::EvmBatchChannelIdMismatch,
        "permit2Authorization.witness.channelId is not the channel",
    )?;
    ensure(
        authorization.deadline >= now.saturating_add(AUTHORIZATION_SECONDS_LEFT_MIN).into(),
        Reason::EvmBatchPermit2Expired,
        "permit2Authorization.deadline has passed or leaves no time to send the deposit",
    )?;
    let transfer = Permit2Transfer {
        token: authorization.permitted.token,
        amount,
        spender: authorization.spender,
        nonce: authorization.nonce,
        deadline: authorization.deadline,
        witness: Witness::Deposit { channel_id: terms.id },
    };
    let digest = permit2_digest(&Domain::permit2(terms.seller.chain_id), &transfer);
    let signed = signed_by(&terms.payer, &digest, &authorization.signature);
    ensure(
        signed == Signed::ByKey || !is_plain_key(terms),
        Reason::EvmBatchPermit2Signature,
        "permit2Authorization.signature is not the payer's over PermitWitnessTransferFrom to the deposit collector",
    )?;
    Ok(signed)
}

/// A payer whose own key signs vouchers has one, so it can sign its deposits; the chain need not be asked.
fn is_plain_key(terms: &EvmTerms) -> bool {
    terms.payer == terms.payer_authorizer
}

#[cfg(test)]
mod tests;
