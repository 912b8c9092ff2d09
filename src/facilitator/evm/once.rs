//! Payments of one request: scheme `exact` in both protocol versions, and scheme `upto`.
//!
//! What is asked again is checked again against its terms, though not against the clock: an authorization that settled
//! one request must not settle a dearer one. That it settles no second one of the same price is for the server to see
//! to. Source: `scheme_exact_evm.md` ("Verification Logic", "Settlement Logic"), `scheme_upto_evm.md` phases 3 and 4;
//! `x402-specification-v1.md` section 6.1.

use serde_json::Value;
use tokio::try_join;

use super::jobs::Job;
use super::wire::{self, Once, refused};
use super::{Codes, Inner, Order, codes, other_scheme, unread, used};
use crate::amount::Amount;
use crate::chain::evm::Call;
use crate::chain::evm::abi::{permit2, token};
use crate::facilitator::interface::{InterfaceError, Payment, Settled, Verified};
use crate::scheme::evm::TransferMethod;
use crate::scheme::evm::authorization::{EvmOffer, PaymentWitness, Permit2Payment};
use crate::scheme::evm::contracts::{EXACT_PERMIT2_PROXY, UPTO_PERMIT2_PROXY};
use crate::scheme::evm::eip712::{Permit2Transfer, TransferAuthorization};
use crate::scheme::evm::signature::Signed;
use crate::scheme::exact_evm::{Eip3009Payment, ExactPayload, Version};
use crate::scheme::upto_evm::UptoEvmPayload;
use crate::scheme::{exact_evm, upto_evm};
use crate::x402::Reason;
use crate::x402::evm::{Address, U256};
use crate::x402::v1::PaymentRequirementsV1;
use crate::x402::wire::PaymentRequirements;

const EIP3009: Codes =
    Codes { simulation: codes::EXACT_SIMULATION, transaction: Reason::InvalidTransactionState.as_str() };
const PERMIT2: Codes =
    Codes { simulation: codes::PERMIT2_SIMULATION, transaction: Reason::InvalidTransactionState.as_str() };

/// A payment that is to be made with one transaction.
struct Due {
    order: Order,
    token: Address,
    payer: Address,
    pay_to: Address,
    /// What moves.
    amount: Amount,
    signed: Signed,
}

impl Due {
    fn is_permit2(&self) -> bool {
        matches!(self.order.job, Job::Permit2 { .. })
    }
}

impl Inner {
    pub(super) async fn verify_exact(
        &self,
        payload: Value,
        requirements: &PaymentRequirements,
    ) -> Result<Verified, InterfaceError> {
        self.verify_due(&self.exact(payload, &once(requirements), Version::V2)?).await
    }

    pub(super) async fn settle_exact(
        &self,
        payload: Value,
        requirements: &PaymentRequirements,
    ) -> Result<Settled, InterfaceError> {
        self.settle_due(&self.exact(payload, &once(requirements), Version::V2)?).await
    }

    pub(super) async fn verify_v1(&self, payment: &Payment) -> Result<Verified, InterfaceError> {
        let (payload, requirements) = self.read_v1(payment)?;
        self.verify_due(&self.exact(payload, &self.once_v1(&requirements), Version::V1)?).await
    }

    pub(super) async fn settle_v1(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        let (payload, requirements) = self.read_v1(payment)?;
        self.settle_due(&self.exact(payload, &self.once_v1(&requirements), Version::V1)?).await
    }

    fn read_v1(&self, payment: &Payment) -> Result<(Value, PaymentRequirementsV1), InterfaceError> {
        let (payload, requirements) = wire::payment_v1(&payment.payload, &payment.requirements)?;
        if requirements.scheme != exact_evm::SCHEME || payload.scheme != requirements.scheme {
            return Err(other_scheme(&payload.scheme));
        }
        let ours = payload.known_network().is_some_and(|network| network == self.network);
        if !ours || payload.network != requirements.network {
            let detail = format!("this facilitator serves {}", self.network);
            return Err(refused(Reason::InvalidNetwork.as_str(), detail));
        }
        Ok((payload.payload, requirements))
    }

    fn once_v1<'a>(&self, requirements: &'a PaymentRequirementsV1) -> Once<'a> {
        Once {
            network: self.network.clone(),
            asset: &requirements.asset,
            pay_to: &requirements.pay_to,
            amount: requirements.max_amount_required,
            extra: &requirements.extra,
        }
    }

    fn exact(&self, payload: Value, once: &Once<'_>, version: Version) -> Result<Due, InterfaceError> {
        let payload = exact_evm::parse(payload)?;
        let sent = match payload {
            ExactPayload::Eip3009(_) => TransferMethod::Eip3009,
            ExactPayload::Permit2(_) => TransferMethod::Permit2,
        };
        let offer = wire::offer(once, self.chain.chain_id(), sent)?;
        let (order, valid_after) = match &payload {
            ExactPayload::Eip3009(payment) => (eip3009_order(offer.token, payment), payment.authorization.valid_after),
            ExactPayload::Permit2(payment) => {
                let authorization = &payment.permit2_authorization;
                let witness = authorization.witness;
                let transfer = transfer(payment, EXACT_PERMIT2_PROXY);
                let signature = payment.signature.as_slice();
                let call = permit2::exact(&transfer, authorization.from, witness.to, witness.valid_after, signature);
                (permit2_order(payment, call), witness.valid_after)
            }
        };
        let now = self.when(&order, valid_after)?;
        let checked = exact_evm::check(&offer, payload, now, version)?;
        let (payer, signed) = (checked.payer(), checked.signed());
        Ok(due(order, &offer, payer, offer.amount, signed))
    }

    pub(super) async fn verify_upto(
        &self,
        payload: Value,
        requirements: &PaymentRequirements,
    ) -> Result<Verified, InterfaceError> {
        let payload = upto_evm::parse(payload)?;
        let ceiling = requirements.amount;
        self.verify_due(&self.upto(payload, &once(requirements), ceiling)?).await
    }

    pub(super) async fn settle_upto(
        &self,
        payload: Value,
        requirements: &PaymentRequirements,
    ) -> Result<Settled, InterfaceError> {
        let payload = upto_evm::parse(payload)?;
        // What is offered at this step is the charge, and what was signed is the ceiling.
        let ceiling = payload.permit2_authorization.permitted.amount;
        let (charge, once) = (requirements.amount, Once { amount: ceiling, ..once(requirements) });
        let due = self.upto(payload, &once, charge)?;
        if !charge.is_zero() {
            return self.settle_due(&due).await;
        }
        self.may_be_signed(due.payer, due.signed, Reason::Permit2Signature).await?;
        Ok(Settled { payer: Some(due.payer.to_string()), amount: Some("0".into()), ..Settled::default() })
    }

    /// `once.amount` is the ceiling.
    fn upto(&self, payload: UptoEvmPayload, once: &Once<'_>, charge: Amount) -> Result<Due, InterfaceError> {
        let offer = wire::offer(once, self.chain.chain_id(), TransferMethod::Permit2)?;
        let authorization = &payload.permit2_authorization;
        let witness = permit2::UptoWitness {
            to: authorization.witness.to,
            facilitator: authorization.witness.facilitator,
            valid_after: authorization.witness.valid_after,
        };
        let transfer = transfer(&payload, UPTO_PERMIT2_PROXY);
        let call = permit2::upto(&transfer, charge, authorization.from, &witness, payload.signature.as_slice());
        let order = permit2_order(&payload, call);
        let now = self.when(&order, witness.valid_after)?;
        let checked = upto_evm::check(&offer, self.sender.address(), payload, now)?;
        checked.check_charge(charge)?;
        Ok(due(order, &offer, checked.payer(), charge, checked.signed()))
    }

    /// The time to check a payment at: now, but for one that was checked before, a time at which it was good.
    fn when(&self, order: &Order, valid_after: U256) -> Result<u64, InterfaceError> {
        Ok(if self.knows(order)? { valid_after.to_u64().unwrap_or_default() } else { self.now() })
    }

    async fn verify_due(&self, due: &Due) -> Result<Verified, InterfaceError> {
        if self.check_due(due).await? {
            let reason = if due.is_permit2() { codes::PERMIT2_NONCE } else { codes::EXACT_NONCE_USED };
            return Err(refused(reason, "the authorization's nonce is used, or was cancelled"));
        }
        self.simulate(&due.order).await?;
        Ok(Verified { payer: Some(due.payer.to_string()), ..Verified::default() })
    }

    async fn settle_due(&self, due: &Due) -> Result<Settled, InterfaceError> {
        if !self.knows(&due.order)? && self.check_due(due).await? {
            return Err(used("the authorization's nonce"));
        }
        let receipt = self.carry(&due.order).await?;
        let transaction = receipt.transaction.to_string();
        if !token::transferred(&receipt, due.token, due.payer, due.pay_to, due.amount) {
            let detail = format!("the transaction is confirmed, but token {} tells of no such transfer", due.token);
            return Err(InterfaceError::Unknown { transaction: Some(transaction), detail });
        }
        Ok(Settled {
            transaction,
            payer: Some(due.payer.to_string()),
            amount: Some(due.amount.to_string()),
            ..Settled::default()
        })
    }

    /// What the chain says of a payment, but for the simulation. Tells too whether its nonce is used.
    async fn check_due(&self, due: &Due) -> Result<bool, InterfaceError> {
        let signature = if due.is_permit2() { Reason::Permit2Signature } else { Reason::ExactEvmSignature };
        self.may_be_signed(due.payer, due.signed, signature).await?;
        let (is_used, balance, may_take) = try_join!(
            async {
                match due.order.job {
                    Job::Authorization { token, owner, nonce } => {
                        self.chain.authorization_used(token, owner, &nonce).await
                    }
                    Job::Permit2 { owner, nonce } => self.chain.permit2_nonce_used(owner, nonce).await,
                    Job::Claim(_) | Job::Payout { .. } | Job::Refund { .. } => Ok(false),
                }
            },
            self.chain.token_balance(due.token, due.payer),
            async {
                if due.is_permit2() {
                    return self.chain.permit2_may_take(due.token, due.payer, due.amount).await;
                }
                Ok(true)
            },
        )
        .map_err(|error| unread(&error))?;
        if is_used {
            return Ok(true);
        }
        if !may_take {
            let detail = format!("{} must let Permit2 take the token first", due.payer);
            return Err(refused(Reason::Permit2Allowance.as_str(), detail));
        }
        if balance < U256::from(due.amount) {
            let detail = format!("{} has {balance} of the token, and would pay {}", due.payer, due.amount);
            return Err(refused(Reason::InsufficientFunds.as_str(), detail));
        }
        Ok(false)
    }
}

fn once(requirements: &PaymentRequirements) -> Once<'_> {
    Once {
        network: requirements.network.clone(),
        asset: &requirements.asset,
        pay_to: &requirements.pay_to,
        amount: requirements.amount,
        extra: &requirements.extra,
    }
}

fn due(order: Order, offer: &EvmOffer, payer: Address, amount: Amount, signed: Signed) -> Due {
    Due { order, token: offer.token, payer, pay_to: offer.pay_to, amount, signed }
}

fn eip3009_order(asset: Address, payment: &Eip3009Payment) -> Order {
    let authorization = payment.authorization;
    let transfer = TransferAuthorization {
        from: authorization.from,
        to: authorization.to,
        value: authorization.value,
        valid_after: authorization.valid_after,
        valid_before: authorization.valid_before,
        nonce: authorization.nonce,
    };
    let job = Job::Authorization { token: asset, owner: authorization.from, nonce: authorization.nonce };
    let call = token::transfer_with_authorization(asset, &transfer, &payment.signature);
    Order { job, call, codes: EIP3009 }
}

fn transfer<W: PaymentWitness>(payment: &Permit2Payment<W>, spender: Address) -> Permit2Transfer {
    let authorization = &payment.permit2_authorization;
    Permit2Transfer {
        token: authorization.permitted.token,
        amount: authorization.permitted.amount,
        spender,
        nonce: authorization.nonce,
        deadline: authorization.deadline,
        witness: authorization.witness.signed(),
    }
}

fn permit2_order<W>(payment: &Permit2Payment<W>, call: Call) -> Order {
    let authorization = &payment.permit2_authorization;
    let job = Job::Permit2 { owner: authorization.from, nonce: authorization.nonce };
    Order { job, call, codes: PERMIT2 }
}
