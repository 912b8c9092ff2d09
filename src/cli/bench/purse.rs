//! Payments that are signed before they are measured: for each connection a channel of its own, its vouchers in order.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use http::{HeaderValue, Uri};
use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use serde_json::{Value, json};

use super::BenchError;
use super::load::paying;
use crate::amount::Amount;
use crate::chain::svm::{SvmRpc, SvmRpcOptions};
use crate::client::http::{Http, Request};
use crate::client::{Client, Spending, payment_header};
use crate::scheme::evm::eip712::{ChannelConfig, Domain, channel_id, voucher_digest};
use crate::scheme::evm::signature::address_of;
use crate::x402::Key;
use crate::x402::evm::{B256, EvmSignature};
use crate::x402::header::{self, PAYMENT_REQUIRED};
use crate::x402::wire::{PaymentRequired, PaymentRequirements};

/// What each payer has and puts into its channel, in atomic units.
const FUNDS: u64 = 100_000_000;

/// One payer with one channel.
pub enum Purse {
    /// On the sandbox.
    Svm(Box<(Client, Request)>),
    /// On an EVM network.
    Evm(Box<EvmPurse>),
    /// A pass, for any number of calls.
    Pass(HeaderValue),
}

impl Purse {
    /// A payer with funds on a sandbox, whose channel at `uri` is open and has paid once.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn svm(number: u32, rpc_url: &str, uri: Uri) -> Result<Self, BenchError> {
        let key = SigningKey::from_bytes(&seed(number));
        fund(rpc_url, &Key(key.verifying_key().to_bytes())).await?;
        let chain = SvmRpc::new(SvmRpcOptions::sandbox(rpc_url.to_owned()))?;
        let (call_max, deposit) = (Amount::from(1_000_000_u64), Amount::from(FUNDS));
        let client = Client::new(key, Arc::new(chain), Spending { call_max, deposit, deposit_max: deposit })?;
        let request = Request::get(uri);
        client.call(&request).await?;
        Ok(Self::Svm(Box::new((client, request))))
    }

    /// A payer on an EVM network; its channel is full as soon as it is asked for.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn evm(number: u32, uri: Uri) -> Result<Self, BenchError> {
        let answer = Http::new()?.send(&Request::get(uri), None).await?;
        let required: PaymentRequired = header::decode(answer.header(PAYMENT_REQUIRED).ok_or("no challenge")?)?;
        let offer = required.accepts.iter().find(|offer| offer.scheme == "batch-settlement").ok_or("no offer")?;
        Ok(Self::Evm(Box::new(EvmPurse::open(number, &required, offer)?)))
    }

    /// A payer with funds on a sandbox, which has bought a pack of calls at `uri`.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn pass(number: u32, rpc_url: &str, uri: Uri) -> Result<Self, BenchError> {
        let Self::Svm(payer) = Self::svm(number, rpc_url, uri).await? else { return Err("no payer on Solana".into()) };
        let (client, request) = *payer;
        client.call_on_pack(&request, Amount::from(FUNDS)).await?;
        let pass = client.passes().await.pop().ok_or("a pack was bought and there is no pass")?;
        Ok(Self::Pass(HeaderValue::from_str(&pass.pass)?))
    }

    /// Makes the header fields of the next calls, to be sent in this order.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn sign(&mut self, calls: usize) -> Result<Vec<String>, BenchError> {
        match self {
            Self::Svm(payer) => {
                Ok(payer.0.sign_ahead(&payer.1, calls).await?.iter().map(|value| paying(value)).collect())
            }
            Self::Evm(purse) => (0..calls).map(|_| purse.sign().map(|value| paying(&value))).collect(),
            Self::Pass(pass) => Ok(vec![format!("Payment-Pass: {}\r\n", pass.to_str()?); calls]),
        }
    }
}

/// A payer on an EVM network.
pub struct EvmPurse {
    payer: EvmPayer,
    required: PaymentRequired,
    offer: PaymentRequirements,
    config: ChannelConfig,
    domain: Domain,
    id: B256,
    total: Amount,
}

impl EvmPurse {
    fn open(number: u32, required: &PaymentRequired, offer: &PaymentRequirements) -> Result<Self, BenchError> {
        let payer = EvmPayer::new(seed(number))?;
        let address = address_of(&PublicKey::from_secret_key(&payer.0));
        let term = |name: &str| offer.extra.get(name).cloned().unwrap_or_default();
        let config: ChannelConfig = serde_json::from_value(json!({
            "payer": address,
            "payerAuthorizer": address,
            "receiver": offer.pay_to,
            "receiverAuthorizer": term("receiverAuthorizer"),
            "token": offer.asset,
            "withdrawDelay": term("withdrawDelay"),
            "salt": B256([0; 32]),
        }))?;
        let chain = offer.network.as_str().rsplit(':').next().and_then(|id| id.parse().ok()).unwrap_or_default();
        let domain = Domain::batch_settlement(chain);
        let id = channel_id(&domain, &config);
        Ok(Self { payer, required: required.clone(), offer: offer.clone(), config, domain, id, total: Amount::ZERO })
    }

    fn sign(&mut self) -> Result<String, BenchError> {
        self.total = self.total.checked_add(self.offer.amount).ok_or("a channel is used up")?;
        let signature = self.payer.sign(&voucher_digest(&self.domain, &self.id, self.total));
        let voucher = json!({ "channelId": self.id, "maxClaimableAmount": self.total, "signature": signature });
        let payload = json!({ "type": "voucher", "channelConfig": self.config, "voucher": voucher });
        Ok(payment_header(&self.required, &self.offer, payload)?)
    }
}

/// The key of a payer on an EVM network.
pub struct EvmPayer(SecretKey);

impl EvmPayer {
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`BenchError`] where the curve has no such key.
    pub fn new(secret: [u8; 32]) -> Result<Self, BenchError> {
        Ok(Self(SecretKey::from_secret_bytes(secret)?))
    }

    /// Signs as a contract recovers it.
    #[must_use]
    pub fn sign(&self, digest: &B256) -> EvmSignature {
        let signed = RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.0);
        let (id, compact) = signed.serialize_compact();
        let mut bytes = [27_u8.saturating_add(id.to_u8()); 65];
        bytes[..64].copy_from_slice(&compact);
        EvmSignature(bytes)
    }
}

fn seed(number: u32) -> [u8; 32] {
    let mut seed = [1; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    seed
}

async fn fund(rpc_url: &str, owner: &Key) -> Result<(), BenchError> {
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "sandbox_mintTo", "params": [owner, FUNDS] });
    let mut request = Request::get(rpc_url.parse()?);
    request.method = http::Method::POST;
    request.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.body = call.to_string().into();
    let answer = Http::new()?.send(&request, None).await?.bytes(64 << 10).await?;
    let answer: Value = serde_json::from_slice(&answer)?;
    if answer.get("error").is_some() {
        return Err(format!("the sandbox gives no funds: {answer}").into());
    }
    Ok(())
}
