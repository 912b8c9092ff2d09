//! A channel as its payer keeps it, and the payments that open, fill and use it.
//!
//! Every value is a function of what was signed and what the server proved: [`ClientChannel::promise`] makes the
//! channel as it will be, and only [`ClientChannel::accept`] with the server's answer makes it the one to go on from.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::{ClientError, base64, sign};
use crate::amount::{Amount, Asset};
use crate::chain::Chain;
use crate::ledger::channel::{Seller, Terms};
use crate::scheme::svm::program::{self, Call};
use crate::scheme::svm::transaction::{Instruction, Transaction};
use crate::scheme::svm::{TOKEN_2022_PROGRAM, TOKEN_PROGRAM, verify_strict};
use crate::x402::header::HeaderError;
use crate::x402::key::Signature;
use crate::x402::wire::{
    BatchPayload, BatchVoucher, ChannelConfig, ChannelState, Deposit, PaymentRequirements, SettlementResponse,
    UptoPayload,
};
use crate::x402::{Key, Network};

/// What identifies the other side of a channel: with equal terms, a channel can be used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SellerTerms {
    /// Where the money moves.
    pub network: Network,
    /// The mint.
    pub token: Key,
    /// Its program.
    pub token_program: Key,
    /// Where the money goes.
    pub pay_to: Key,
    /// Who sponsors.
    pub fee_payer: Key,
    /// Who consents to closes.
    pub receiver_authorizer: Key,
    /// The grace period of a forced close.
    pub withdraw_delay: u32,
}

impl SellerTerms {
    /// The terms that an offer names.
    ///
    /// # Errors
    /// [`ClientError::NoOffer`] where something is missing or cannot be read.
    pub fn of(offer: &PaymentRequirements) -> Result<Self, ClientError> {
        let missing = |what: &str| ClientError::NoOffer(format!("the offer's {what} is missing or wrong"));
        let key = |field: &'static str| {
            offer
                .extra
                .get(field)
                .and_then(|v| v.as_str())
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| missing(field))
        };
        let token_program = key("tokenProgram")?;
        if ![TOKEN_PROGRAM, TOKEN_2022_PROGRAM].contains(&token_program) {
            return Err(missing("tokenProgram"));
        }
        let delay = offer.extra.get("withdrawDelay").and_then(serde_json::Value::as_u64);
        Ok(Self {
            network: offer.network.clone(),
            token: offer.asset.parse().map_err(|_| missing("asset"))?,
            token_program,
            pay_to: offer.pay_to.parse().map_err(|_| missing("payTo"))?,
            fee_payer: key("feePayer")?,
            receiver_authorizer: key("receiverAuthorizer")?,
            withdraw_delay: delay.and_then(|d| u32::try_from(d).ok()).ok_or_else(|| missing("withdrawDelay"))?,
        })
    }

    fn seller(&self) -> Arc<Seller> {
        Arc::new(Seller {
            network: self.network.clone(),
            asset: Arc::new(Asset { address: self.token.to_string().into(), symbol: "".into(), decimals: 0 }),
            mint: self.token,
            token_program: self.token_program,
            pay_to: self.pay_to,
            fee_payer: self.fee_payer,
            receiver_authorizer: self.receiver_authorizer,
            withdraw_delay: self.withdraw_delay,
            treasury_owner: crate::scheme::svm::treasury_owner(&self.network),
        })
    }
}

/// A channel as its payer keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientChannel {
    /// The other side.
    pub seller: SellerTerms,
    /// The channel's address.
    pub id: Key,
    /// The wallet.
    pub payer: Key,
    /// Part of the address.
    pub salt: u64,
    /// Part of the address.
    pub open_slot: u64,
    /// What it holds in all.
    pub deposit: Amount,
    /// What was charged in all, as proven by the server's answers.
    pub charged: Amount,
    /// What was promised last.
    pub promised: Amount,
    /// Our signature under that.
    pub signature: Signature,
}

impl ClientChannel {
    /// The channel's constant terms.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms::derive(self.seller.seller(), self.payer, self.payer, self.salt, self.open_slot)
    }

    /// The terms on the wire.
    #[must_use]
    pub fn config(&self) -> ChannelConfig {
        self.terms().config()
    }

    /// The channel with a promise of `total`.
    #[must_use]
    pub fn promise(&self, key: &SigningKey, total: Amount) -> Self {
        let units = total.to_u64().unwrap_or(u64::MAX);
        let signature = sign(key, &program::voucher_message(&self.id, units, 0));
        Self { promised: total, signature, ..self.clone() }
    }

    /// The last promise on the wire.
    #[must_use]
    pub fn voucher(&self) -> BatchVoucher {
        BatchVoucher {
            channel_id: self.id,
            max_claimable_amount: self.promised,
            expires_at: 0,
            signature: self.signature,
        }
    }

    /// Whether our own key signed a promise of `total`.
    #[must_use]
    pub fn signed(&self, total: Amount, signature: &Signature) -> bool {
        total
            .to_u64()
            .is_some_and(|units| verify_strict(&self.payer, &program::voucher_message(&self.id, units, 0), signature))
    }

    /// The channel with what a corrective answer has proven.
    #[must_use]
    pub fn corrected(&self, charged: Amount, deposit: Amount) -> Self {
        Self { charged, deposit, ..self.clone() }
    }

    /// Checks the server's answer to the last promise; the channel to go on from, and the charge.
    ///
    /// # Errors
    /// [`ClientError::Refused`] or [`ClientError::Dishonest`].
    pub fn accept(
        &self,
        offer: &PaymentRequirements,
        settlement: &SettlementResponse,
    ) -> Result<(Self, Amount), ClientError> {
        if !settlement.success {
            return Err(ClientError::Refused { reason: settlement.error_reason.clone().unwrap_or_default() });
        }
        let read = |field: &str| settlement.extra.get(field).cloned().unwrap_or_default();
        let charged: Amount = serde_json::from_value(read("chargedAmount")).map_err(HeaderError::from)?;
        let state: ChannelState = serde_json::from_value(read("channelState")).map_err(HeaderError::from)?;
        let total = state.charged_cumulative_amount.unwrap_or_default();
        let fits = settlement.network == offer.network
            && state.channel_id == self.id
            && charged <= offer.amount
            && total == self.promised
            && state.balance == self.deposit;
        if !fits {
            return Err(ClientError::Dishonest(format!(
                "channel {}: promised {}, the answer says charged {charged}, in all {total}, of {}",
                self.id, self.promised, state.balance
            )));
        }
        Ok((Self { charged: total, ..self.clone() }, charged))
    }
}

/// What a setup transaction carries besides its one call: limits before, memos after.
fn setup(call: Instruction, memos: &[String]) -> Vec<Instruction> {
    let mut instructions = vec![program::compute_unit_limit(90_000), program::compute_unit_price(1), call];
    instructions.extend(memos.iter().map(|text| program::memo(text)));
    instructions
}

/// The seller's memo, or a random nonce that makes the transaction unique.
fn reference(offer: &PaymentRequirements) -> Result<String, ClientError> {
    match offer.extra.get("memo").and_then(|v| v.as_str()) {
        Some(memo) if !memo.is_empty() => Ok(memo.to_owned()),
        _ => Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], ClientError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| ClientError::Dishonest(format!("no randomness: {error}")))?;
    Ok(bytes)
}

fn units(amount: Amount) -> Result<u64, ClientError> {
    amount.to_u64().ok_or(ClientError::TooExpensive { what: "an amount", amount, limit: Amount::from(u64::MAX) })
}

/// An `open` that this wallet has signed and the sponsor has not, with the channel's terms.
async fn signed_open(
    key: &SigningKey,
    chain: &dyn Chain,
    seller: &SellerTerms,
    authorizer: Key,
    deposit: Amount,
    memos: &[String],
) -> Result<(Terms, Transaction), ClientError> {
    let payer = Key(key.verifying_key().to_bytes());
    let blockhash = chain.latest_blockhash().await?;
    let salt = u64::from_le_bytes(random()?);
    let terms = Terms::derive(seller.seller(), payer, authorizer, salt, blockhash.slot);
    let call = Call::Open {
        salt,
        deposit: units(deposit)?,
        grace_period: seller.withdraw_delay,
        open_slot: blockhash.slot,
        recipients: program::all_to(seller.pay_to).to_vec(),
    };
    let open = program::open(&terms.accounts(), authorizer, &call);
    let mut transaction = Transaction::build(seller.fee_payer, &setup(open, memos), blockhash.hash)?;
    transaction.set_signature(&payer, sign(key, transaction.message()))?;
    Ok((terms, transaction))
}

/// Opens a channel with `deposit` and pays for one call.
pub(super) async fn open(
    key: &SigningKey,
    chain: &dyn Chain,
    seller: &SellerTerms,
    offer: &PaymentRequirements,
    deposit: Amount,
) -> Result<(BatchPayload, ClientChannel), ClientError> {
    let payer = Key(key.verifying_key().to_bytes());
    let memos = [reference(offer)?, program::receiver_authorizer_memo(&seller.receiver_authorizer)];
    let (terms, transaction) = signed_open(key, chain, seller, payer, deposit, &memos).await?;
    let channel = ClientChannel {
        seller: seller.clone(),
        id: terms.id,
        payer,
        salt: terms.salt,
        open_slot: terms.open_slot,
        deposit,
        charged: Amount::ZERO,
        promised: Amount::ZERO,
        signature: Signature([0; 64]),
    };
    Ok(with_deposit(channel.promise(key, offer.amount), deposit, &transaction))
}

/// Fills a channel by `deposit` and pays for one call.
pub(super) async fn top_up(
    key: &SigningKey,
    chain: &dyn Chain,
    channel: &ClientChannel,
    offer: &PaymentRequirements,
    deposit: Amount,
) -> Result<(BatchPayload, ClientChannel), ClientError> {
    let too_much = || ClientError::Dishonest(format!("channel {} passes every limit", channel.id));
    let after = channel.deposit.checked_add(deposit).ok_or_else(too_much)?;
    let total = channel.charged.checked_add(offer.amount).ok_or_else(too_much)?;
    let blockhash = chain.latest_blockhash().await?;
    let call = program::top_up(&channel.terms().accounts(), units(deposit)?);
    let instructions = setup(call, &[reference(offer)?]);
    let mut transaction = Transaction::build(channel.seller.fee_payer, &instructions, blockhash.hash)?;
    transaction.set_signature(&channel.payer, sign(key, transaction.message()))?;
    let channel = ClientChannel { deposit: after, ..channel.promise(key, total) };
    Ok(with_deposit(channel, deposit, &transaction))
}

fn with_deposit(channel: ClientChannel, amount: Amount, transaction: &Transaction) -> (BatchPayload, ClientChannel) {
    let deposit = Deposit { amount, transaction: base64(&transaction.encode()) };
    let payload = BatchPayload::Deposit { channel_config: channel.config(), voucher: channel.voucher(), deposit };
    (payload, channel)
}

/// A one-request channel that holds the most that a metered call may cost.
pub(super) async fn open_metered(
    key: &SigningKey,
    chain: &dyn Chain,
    seller: &SellerTerms,
    offer: &PaymentRequirements,
) -> Result<(UptoPayload, Key), ClientError> {
    let memos = [reference(offer)?];
    let authorizer = seller.receiver_authorizer;
    let (terms, transaction) = signed_open(key, chain, seller, authorizer, offer.amount, &memos).await?;
    let now = crate::clock::Clock::now(&crate::clock::SystemClock).seconds();
    let payload = UptoPayload {
        from: terms.payer,
        max_amount: offer.amount,
        expires_at: now.saturating_add(i64::try_from(offer.max_timeout_seconds).unwrap_or(i64::MAX)),
        valid_after: now,
        nonce: terms.salt,
        open_slot: terms.open_slot,
        channel_id: terms.id,
        deposit: offer.amount,
        authorized_signer: authorizer,
        open_transaction: base64(&transaction.encode()),
        voucher_signature: None,
    };
    Ok((payload, terms.id))
}
