//! The signer's own policy on EVM networks: which claims and refunds a receiver authorizer signs.
//!
//! Owns [`EvmRules`] (what the operator allows), [`EvmJudge`] (the rules of one key) and [`DigestToSign`], which only a
//! judge makes and without which the key signs nothing. Promises: every channel id and the digest are derived here from
//! the channels' whole terms; money goes to nobody but an allowed `pay_to`, and never more than the payer has signed for.
//! Refuses the rest, each time by a rule of a stable name ([`rule`]). What needs the chain is not judged here: whether a
//! claim is newer than the last, and, for a payer that is a contract, whether its voucher is good, the settlement contract
//! decides; a refund's balance and total are the proxy's word, and only compared with each other.
//!
//! Source: `scheme_batch_settlement_evm.md`, "Claim and settle", "Refund and withdrawal", "Authorizer roles".

use std::collections::HashSet;

use super::{Refusal, Verdict, ensure, refuse, rule};
use crate::amount::Amount;
use crate::policy::{Deployment, EvmClaim, EvmRefund, EvmRequest};
use crate::scheme::evm::contracts::BATCH_SETTLEMENT;
use crate::scheme::evm::eip712::{
    ChannelConfig, ClaimEntry, Domain, WITHDRAW_DELAY_SECONDS_TYPE_MAX, channel_id, claim_batch_digest, refund_digest,
    voucher_digest,
};
use crate::scheme::evm::signature;
use crate::signer::SignerError;
use crate::x402::evm::{Address, AnySignature, B256};

/// The most channels in one batch of claims, as the reference facilitator takes them.
pub const CLAIMS_PER_BATCH_MAX: usize = 100;

/// The kinds of requests that a key may be allowed to sign, as [`EvmRequest::kind`] names them.
pub const EVM_KINDS: [&str; 3] = ["claim_batch", "refund", "audit_checkpoint"];

/// What the operator allows a receiver authorizer to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmRules {
    /// The chain that the key is used on.
    pub chain_id: u64,
    /// Who may be paid.
    pub pay_to: Vec<Address>,
    /// What may be paid with.
    pub tokens: Vec<Address>,
    /// The most that may ever have been claimed from one channel, in atomic units.
    pub channel_max: Amount,
    /// The most that one signature may claim: the sum of the totals that it names, in atomic units. The signer knows no
    /// earlier claims, so a channel's whole total counts each time.
    pub claim_max: Amount,
    /// The kinds of requests that are allowed, of [`EVM_KINDS`].
    pub kinds: Vec<&'static str>,
}

/// A digest that an [`EvmJudge`] has computed over what it has accepted. Nobody else can make one.
#[derive(Clone, Debug)]
pub struct DigestToSign(B256);

impl DigestToSign {
    /// The digest.
    #[must_use]
    pub const fn digest(&self) -> &B256 {
        &self.0
    }

    /// For tests of what comes after a judge.
    #[cfg(test)]
    pub(in crate::signer) const fn for_tests(digest: B256) -> Self {
        Self(digest)
    }
}

/// The rules of one key.
#[derive(Clone, Debug)]
pub struct EvmJudge {
    rules: EvmRules,
    authorizer: Address,
    domain: Domain,
}

impl EvmJudge {
    /// The rules for signing with the key whose address is `authorizer`.
    #[must_use]
    pub fn new(rules: EvmRules, authorizer: Address) -> Self {
        Self { domain: Domain::batch_settlement(rules.chain_id), rules, authorizer }
    }

    /// Judges a request from its own content, and says what to sign.
    ///
    /// # Errors
    /// [`SignerError::Refused`] with the rule that forbids it.
    pub fn judge(&self, request: &EvmRequest) -> Result<DigestToSign, SignerError> {
        self.verdict(request)
            .map(DigestToSign)
            .map_err(|Refusal { rule, detail }| SignerError::Refused { rule, detail })
    }

    fn verdict(&self, request: &EvmRequest) -> Verdict<B256> {
        let kind = request.kind();
        ensure(self.rules.kinds.contains(&kind), rule::KIND, || {
            format!("{kind} is not among the allowed kinds: {}", self.rules.kinds.join(", "))
        })?;
        match request {
            EvmRequest::ClaimBatch { contract, claims } => {
                self.contract(contract)?;
                self.claims(claims)
            }
            EvmRequest::Refund { contract, refund } => {
                self.contract(contract)?;
                self.refund(refund)
            }
            // Nothing but the domain decides what the signature is good for, and the digest is made here.
            EvmRequest::AuditCheckpoint(checkpoint) => Ok(checkpoint.evm_digest()),
        }
    }

    /// The digest is made for the one chain and contract that the rules know; a request for another is a mistake.
    fn contract(&self, contract: &Deployment) -> Verdict<()> {
        let Deployment { chain_id, address } = contract;
        ensure(*chain_id == self.rules.chain_id, rule::NETWORK, || {
            format!("the request is for chain {chain_id}, the key is for chain {}", self.rules.chain_id)
        })?;
        ensure(*address == BATCH_SETTLEMENT, rule::CONTRACT, || {
            format!("the request is for the contract {address}, the channels are in {BATCH_SETTLEMENT}")
        })
    }

    fn claims(&self, claims: &[EvmClaim]) -> Verdict<B256> {
        ensure((1..=CLAIMS_PER_BATCH_MAX).contains(&claims.len()), rule::BATCH, || {
            format!("{} claims; one signature takes 1 to {CLAIMS_PER_BATCH_MAX}", claims.len())
        })?;
        let mut channels = HashSet::with_capacity(claims.len());
        let mut entries = Vec::with_capacity(claims.len());
        let mut sum = Amount::ZERO;
        for claim in claims {
            let entry = self.claim(claim)?;
            ensure(channels.insert(entry.channel_id), rule::CHANNEL, || {
                format!("the channel {} stands twice", entry.channel_id)
            })?;
            sum = match sum.checked_add(entry.total_claimed) {
                Some(sum) => sum,
                None => return refuse(rule::AMOUNT, "the sum of what would be claimed is greater than any amount"),
            };
            entries.push(entry);
        }
        let most = self.rules.claim_max;
        ensure(sum <= most, rule::AMOUNT, || format!("{sum} would be claimed, one signature may claim {most}"))?;
        Ok(claim_batch_digest(&self.domain, &entries))
    }

    fn claim(&self, claim: &EvmClaim) -> Verdict<ClaimEntry> {
        let channel_id = self.channel(&claim.config)?;
        let EvmClaim { max_claimable, total_claimed, .. } = *claim;
        ensure(!total_claimed.is_zero(), rule::AMOUNT, || format!("nothing would be claimed from {channel_id}"))?;
        ensure(total_claimed <= max_claimable, rule::AMOUNT, || {
            format!("{total_claimed} would be claimed from {channel_id}, its voucher is over {max_claimable}")
        })?;
        let most = self.rules.channel_max;
        ensure(total_claimed <= most, rule::AMOUNT, || {
            format!("{total_claimed} would be claimed from {channel_id}, a channel may give {most}")
        })?;
        self.voucher(claim, &channel_id)?;
        Ok(ClaimEntry { channel_id, max_claimable_amount: max_claimable, total_claimed })
    }

    /// A key's signature is checked as the contract will. A payer that is a contract judges for itself, on chain.
    fn voucher(&self, claim: &EvmClaim, channel_id: &B256) -> Verdict<()> {
        let key = claim.config.payer_authorizer;
        if key.is_zero() {
            return Ok(());
        }
        let digest = voucher_digest(&self.domain, channel_id, claim.max_claimable);
        let signer = match &claim.voucher {
            AnySignature::Key(voucher) => signature::signer(&digest, voucher),
            AnySignature::Contract(_) => None,
        };
        ensure(signer == Some(key), rule::VOUCHER, || format!("the voucher of {channel_id} is not signed by {key}"))
    }

    fn refund(&self, refund: &EvmRefund) -> Verdict<B256> {
        let EvmRefund { config, nonce, amount, balance, total } = refund;
        let channel_id = self.channel(config)?;
        ensure(!amount.is_zero(), rule::AMOUNT, || format!("nothing would be refunded from {channel_id}"))?;
        let free = balance.saturating_sub(*total);
        ensure(*amount <= free, rule::AMOUNT, || {
            format!("{amount} would be refunded from {channel_id}, it holds {balance} of which {total} are ours")
        })?;
        Ok(refund_digest(&self.domain, &channel_id, *nonce, *amount))
    }

    /// A channel that pays an allowed receiver in an allowed token and that this key speaks for; its id.
    fn channel(&self, config: &ChannelConfig) -> Verdict<B256> {
        let ChannelConfig { receiver, receiver_authorizer, token, withdraw_delay, .. } = *config;
        ensure(self.rules.pay_to.contains(&receiver), rule::PAY_TO, || format!("{receiver} is not an allowed pay_to"))?;
        ensure(receiver_authorizer == self.authorizer, rule::RECEIVER_AUTHORIZER, || {
            format!("the channel's receiver authorizer is {receiver_authorizer}, this key is {}", self.authorizer)
        })?;
        ensure(self.rules.tokens.contains(&token), rule::TOKEN, || format!("the token {token} is not allowed"))?;
        ensure(withdraw_delay <= WITHDRAW_DELAY_SECONDS_TYPE_MAX, rule::CHANNEL, || {
            format!("no channel has a withdrawal delay of {withdraw_delay} s")
        })?;
        Ok(channel_id(&self.domain, config))
    }
}
