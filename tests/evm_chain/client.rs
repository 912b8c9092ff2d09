//! What clients and servers write, signed with keys of the tests.

use std::time::{SystemTime, UNIX_EPOCH};

use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, SecretKey};
use serde_json::{Value, json};
use turnpike::amount::Amount;
use turnpike::facilitator::interface::Payment;
use turnpike::scheme::evm::contracts::{EIP3009_COLLECTOR, EXACT_PERMIT2_PROXY, PERMIT2_COLLECTOR, UPTO_PERMIT2_PROXY};
use turnpike::scheme::evm::eip712::{
    ChannelConfig, ClaimEntry, Domain, Permit2Transfer, TransferAuthorization, Witness, channel_id, claim_batch_digest,
    deposit_nonce, permit2_digest, receive_with_authorization_digest, refund_digest,
    transfer_with_authorization_digest, voucher_digest,
};
use turnpike::scheme::evm::signature::address_of;
use turnpike::x402::evm::{Address, B256, EvmSignature, U256};

use super::node::CHAIN_ID;

pub const NETWORK: &str = "eip155:84532";
pub const USDC: Address = Address::literal("0x036CbD53842c5426634e7929541eC2318f3dCF7e");

/// A key and its account.
pub struct Payer(SecretKey);

impl Payer {
    pub fn new(seed: u8) -> Self {
        Self(SecretKey::from_secret_bytes([seed; 32]).unwrap())
    }

    pub fn address(&self) -> Address {
        address_of(&self.0.public_key())
    }

    /// The private key, as the reference clients take it.
    #[allow(dead_code, reason = "only tests with reference clients give it away")]
    pub fn key(&self) -> B256 {
        B256(self.0.to_secret_bytes())
    }

    pub fn sign(&self, digest: &B256) -> EvmSignature {
        let signature = RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.0);
        let (id, compact) = signature.serialize_compact();
        let mut signature = [27 + id.to_u8(); 65];
        signature[..64].copy_from_slice(&compact);
        EvmSignature(signature)
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token() -> Domain {
    Domain::new("USDC", "2", CHAIN_ID, USDC)
}

fn batch() -> Domain {
    Domain::batch_settlement(CHAIN_ID)
}

/// One merchant: who is paid, and whose signature claims and refunds need.
pub struct Merchant {
    pub receiver: Address,
    pub authorizer: Payer,
}

impl Merchant {
    pub fn new() -> Self {
        Self { receiver: Payer::new(0x51).address(), authorizer: Payer::new(0x52) }
    }

    pub fn config(&self, payer: Address, payer_authorizer: Address, salt: u8) -> ChannelConfig {
        ChannelConfig {
            payer,
            payer_authorizer,
            receiver: self.receiver,
            receiver_authorizer: self.authorizer.address(),
            token: USDC,
            withdraw_delay: 900,
            salt: B256([salt; 32]),
        }
    }

    fn requirements(&self, method: &str) -> Value {
        json!({
            "scheme": "batch-settlement", "network": NETWORK, "amount": "1000", "asset": USDC,
            "payTo": self.receiver, "maxTimeoutSeconds": 300,
            "extra": {
                "name": "USDC", "version": "2", "receiverAuthorizer": self.authorizer.address(), "withdrawDelay": 900,
                "assetTransferMethod": method,
            },
        })
    }

    pub fn payment(&self, payload: Value, method: &str) -> Payment {
        let requirements = self.requirements(method);
        payment(payload, &requirements)
    }

    /// A claim on every channel, signed.
    pub fn claim(&self, rows: &[Claim<'_>]) -> Payment {
        let payload = json!({
            "type": "claim", "claims": rows.iter().map(Claim::json).collect::<Vec<_>>(),
            "claimAuthorizerSignature": self.sign_claims(rows),
        });
        self.payment(payload, "eip3009")
    }

    fn sign_claims(&self, rows: &[Claim<'_>]) -> EvmSignature {
        let entries: Vec<_> = rows
            .iter()
            .map(|row| ClaimEntry {
                channel_id: channel_id(&batch(), &row.config),
                max_claimable_amount: Amount::new(row.signed),
                total_claimed: Amount::new(row.total),
            })
            .collect();
        self.authorizer.sign(&claim_batch_digest(&batch(), &entries))
    }

    pub fn payout(&self) -> Payment {
        self.payment(json!({ "type": "settle", "receiver": self.receiver, "token": USDC }), "eip3009")
    }

    pub fn refund(&self, row: &Claim<'_>, amount: u128, nonce: u64) -> Payment {
        let id = channel_id(&batch(), &row.config);
        let digest = refund_digest(&batch(), &id, nonce.into(), Amount::new(amount));
        let payload = json!({
            "type": "refund", "channelConfig": row.config, "voucher": voucher(&row.config, row.by, row.signed),
            "amount": amount.to_string(), "refundNonce": nonce.to_string(), "claims": [row.json()],
            "refundAuthorizerSignature": self.authorizer.sign(&digest),
            "claimAuthorizerSignature": self.sign_claims(std::slice::from_ref(row)),
        });
        self.payment(payload, "eip3009")
    }
}

/// A claim on a channel.
#[derive(Clone)]
pub struct Claim<'a> {
    pub config: ChannelConfig,
    pub by: &'a Payer,
    pub signed: u128,
    pub total: u128,
}

impl Claim<'_> {
    fn json(&self) -> Value {
        json!({
            "voucher": { "channel": self.config, "maxClaimableAmount": self.signed.to_string() },
            "signature": voucher(&self.config, self.by, self.signed)["signature"],
            "totalClaimed": self.total.to_string(),
        })
    }
}

pub fn payment(payload: Value, requirements: &Value) -> Payment {
    let payload = json!({ "x402Version": 2, "accepted": requirements, "payload": payload });
    Payment { x402_version: 2, payload, requirements: requirements.clone() }
}

pub fn voucher(config: &ChannelConfig, by: &Payer, total: u128) -> Value {
    let id = channel_id(&batch(), config);
    let signature = by.sign(&voucher_digest(&batch(), &id, Amount::new(total)));
    json!({ "channelId": id, "maxClaimableAmount": total.to_string(), "signature": signature })
}

pub fn voucher_payload(config: &ChannelConfig, by: &Payer, total: u128) -> Value {
    json!({ "type": "voucher", "channelConfig": config, "voucher": voucher(config, by, total) })
}

pub fn eip3009_deposit(config: &ChannelConfig, by: &Payer, amount: u128, total: u128, salt: u8) -> Value {
    let id = channel_id(&batch(), config);
    let valid_before = now() + 3600;
    let salt = B256([salt; 32]);
    let transfer = TransferAuthorization {
        from: config.payer,
        to: EIP3009_COLLECTOR,
        value: Amount::new(amount),
        valid_after: U256::ZERO,
        valid_before: valid_before.into(),
        nonce: deposit_nonce(&id, salt.into()),
    };
    let authorization = json!({ "erc3009Authorization": {
        "validAfter": "0", "validBefore": valid_before.to_string(), "salt": salt,
        "signature": by.sign(&receive_with_authorization_digest(&token(), &transfer)),
    } });
    deposit(config, by, amount, total, &authorization)
}

pub fn permit2_deposit(config: &ChannelConfig, by: &Payer, amount: u128, total: u128, nonce: u64) -> Value {
    let id = channel_id(&batch(), config);
    let deadline = now() + 3600;
    let transfer = Permit2Transfer {
        token: USDC,
        amount: Amount::new(amount),
        spender: PERMIT2_COLLECTOR,
        nonce: nonce.into(),
        deadline: deadline.into(),
        witness: Witness::Deposit { channel_id: id },
    };
    let authorization = json!({ "permit2Authorization": {
        "from": config.payer, "permitted": { "token": USDC, "amount": amount.to_string() },
        "spender": PERMIT2_COLLECTOR, "nonce": nonce.to_string(), "deadline": deadline.to_string(),
        "witness": { "channelId": id }, "signature": by.sign(&permit2_digest(&Domain::permit2(CHAIN_ID), &transfer)),
    } });
    deposit(config, by, amount, total, &authorization)
}

fn deposit(config: &ChannelConfig, by: &Payer, amount: u128, total: u128, authorization: &Value) -> Value {
    json!({
        "type": "deposit", "channelConfig": config, "voucher": voucher(config, by, total),
        "deposit": { "amount": amount.to_string(), "authorization": authorization },
    })
}

/// A payment of scheme `exact` by EIP-3009: version 2, and the same in version 1.
pub fn exact(by: &Payer, from: Address, to: Address, amount: u128, nonce: u8) -> (Payment, Payment) {
    let valid_before = now() + 3600;
    let nonce = B256([nonce; 32]);
    let transfer = TransferAuthorization {
        from,
        to,
        value: Amount::new(amount),
        valid_after: U256::ZERO,
        valid_before: valid_before.into(),
        nonce,
    };
    let payload = json!({
        "signature": by.sign(&transfer_with_authorization_digest(&token(), &transfer)),
        "authorization": {
            "from": from, "to": to, "value": amount.to_string(), "validAfter": "0",
            "validBefore": valid_before.to_string(), "nonce": nonce,
        },
    });
    let requirements = once("exact", to, amount, &json!({ "name": "USDC", "version": "2" }));
    let v1 = json!({
        "scheme": "exact", "network": "base-sepolia", "maxAmountRequired": amount.to_string(), "asset": USDC,
        "payTo": to, "resource": "http://127.0.0.1/x", "description": "", "mimeType": "", "maxTimeoutSeconds": 60,
        "extra": { "name": "USDC", "version": "2" },
    });
    let payload_v1 = json!({ "x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payload });
    (payment(payload, &requirements), Payment { x402_version: 1, payload: payload_v1, requirements: v1 })
}

fn once(scheme: &str, to: Address, amount: u128, extra: &Value) -> Value {
    json!({
        "scheme": scheme, "network": NETWORK, "amount": amount.to_string(), "asset": USDC, "payTo": to,
        "maxTimeoutSeconds": 60, "extra": extra,
    })
}

fn permit2(by: &Payer, amount: u128, nonce: u64, spender: Address, witness: Witness, written: &Value) -> Value {
    let deadline = now() + 3600;
    let (amount_of, nonce_of) = (Amount::new(amount), U256::from(nonce));
    let transfer = Permit2Transfer {
        token: USDC,
        amount: amount_of,
        spender,
        nonce: nonce_of,
        deadline: deadline.into(),
        witness,
    };
    json!({
        "signature": by.sign(&permit2_digest(&Domain::permit2(CHAIN_ID), &transfer)),
        "permit2Authorization": {
            "permitted": { "token": USDC, "amount": amount.to_string() }, "from": by.address(), "spender": spender,
            "nonce": nonce.to_string(), "deadline": deadline.to_string(), "witness": written,
        },
    })
}

/// A payment of scheme `exact` by Permit2.
pub fn exact_permit2(by: &Payer, to: Address, amount: u128, nonce: u64) -> Payment {
    let witness = Witness::Exact { to, valid_after: U256::ZERO };
    let written = json!({ "to": to, "validAfter": "0" });
    let payload = permit2(by, amount, nonce, EXACT_PERMIT2_PROXY, witness, &written);
    payment(payload, &once("exact", to, amount, &json!({ "assetTransferMethod": "permit2" })))
}

/// A payment of scheme `upto` with a ceiling, and the same with a charge.
pub fn upto(by: &Payer, to: Address, facilitator: Address, ceiling: u128, nonce: u64) -> impl Fn(u128) -> Payment {
    let witness = Witness::Upto { to, facilitator, valid_after: U256::ZERO };
    let written = json!({ "to": to, "facilitator": facilitator, "validAfter": "0" });
    let payload = permit2(by, ceiling, nonce, UPTO_PERMIT2_PROXY, witness, &written);
    let extra = json!({ "name": "USDC", "version": "2", "facilitatorAddress": facilitator });
    let accepted = once("upto", to, ceiling, &extra);
    move |charge| Payment { requirements: once("upto", to, charge, &extra), ..payment(payload.clone(), &accepted) }
}
