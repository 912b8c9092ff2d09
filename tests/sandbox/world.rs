//! A sandbox with a payer, an operator and a merchant, and short words for what they do.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use turnpike::chain::sandbox::{Options, SandboxChain};
use turnpike::clock::{ManualClock, UnixMillis};
use turnpike::scheme::svm::program::{self, Call, ChannelAccount, ChannelAccounts, Share, channel_address};
use turnpike::scheme::svm::transaction::{Instruction, Transaction};
use turnpike::scheme::svm::{TOKEN_PROGRAM, associated_token_account};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

pub const GRACE: u32 = 900;
pub const DEPOSIT: u64 = 1_000_000;
/// Custom error of the token program for missing tokens.
pub const TOKEN_INSUFFICIENT: u32 = 1;

pub fn public(key: &SigningKey) -> Key {
    Key(key.verifying_key().to_bytes())
}

pub fn custom(index: usize, code: u32) -> Value {
    json!({ "InstructionError": [index, { "Custom": code }] })
}

/// Signs with every key that has a slot.
pub fn sign(transaction: &mut Transaction, signers: &[&SigningKey]) {
    for signer in signers {
        let signature = Signature(signer.sign(transaction.message()).to_bytes());
        transaction.set_signature(&public(signer), signature).unwrap();
    }
}

pub struct World {
    pub chain: SandboxChain,
    pub clock: Arc<ManualClock>,
    /// Who puts money in and signs vouchers.
    pub payer: SigningKey,
    /// Fee payer, rent payer and payee.
    pub operator: SigningKey,
    /// Who the money is for.
    pub merchant: Key,
    pub salt: u64,
}

/// A channel that was opened.
#[derive(Clone)]
pub struct Opened {
    pub accounts: ChannelAccounts,
    pub shares: Vec<Share>,
}

impl World {
    pub fn new() -> Self {
        Self::seeded(0)
    }

    pub fn seeded(seed: u64) -> Self {
        let clock = Arc::new(ManualClock::new(UnixMillis(1_760_000_000_000)));
        let options = Options::new("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1".parse().unwrap());
        let chain = SandboxChain::new(options.clock(clock.clone()).seed(seed));
        let (payer, operator) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let merchant = public(&SigningKey::from_bytes(&[3; 32]));
        chain.airdrop(&public(&operator), 10_000_000_000).unwrap();
        chain.mint_to(&public(&payer), 10_000_000).unwrap();
        chain.mint_to(&public(&operator), 0).unwrap();
        chain.mint_to(&merchant, 0).unwrap();
        Self { chain, clock, payer, operator, merchant, salt: 0 }
    }

    pub fn ata(&self, owner: &Key) -> Key {
        associated_token_account(owner, &self.chain.usdc(), &TOKEN_PROGRAM)
    }

    pub fn blockhash(&self) -> [u8; 32] {
        let answer = self.chain.call("getLatestBlockhash", &json!([{ "commitment": "confirmed" }])).unwrap();
        answer["value"]["blockhash"].as_str().unwrap().parse::<Key>().unwrap().0
    }

    /// A transaction that the operator pays for.
    pub fn transaction(&self, instructions: &[Instruction], signers: &[&SigningKey]) -> Transaction {
        let mut transaction = Transaction::build(public(&self.operator), instructions, self.blockhash()).unwrap();
        sign(&mut transaction, &[&self.operator]);
        sign(&mut transaction, signers);
        transaction
    }

    /// Sends with preflight; the error is Solana's own.
    pub fn submit(&self, transaction: &Transaction) -> Result<Signature, Value> {
        let params = json!([STANDARD.encode(transaction.encode()), { "encoding": "base64" }]);
        let answer = self.chain.call("sendTransaction", &params);
        // Every transaction gets a blockhash of its own, so that equal ones are not the same.
        self.chain.advance_slots(1);
        answer
            .map(|id| id.as_str().unwrap().parse().unwrap())
            .map_err(|error| error.data.map_or(json!(error.code), |data| data["err"].clone()))
    }

    pub fn send(&self, instructions: &[Instruction], signers: &[&SigningKey]) -> Result<Signature, Value> {
        self.submit(&self.transaction(instructions, signers))
    }

    pub fn all_to_merchant(&self) -> Vec<Share> {
        program::all_to(self.merchant).to_vec()
    }

    /// What `open` needs: accounts, the call, the instruction.
    pub fn opening(&mut self, deposit: u64, shares: &[Share]) -> (ChannelAccounts, Call, Instruction) {
        self.salt += 1;
        let (payer, payee, mint) = (public(&self.payer), public(&self.operator), self.chain.usdc());
        let open_slot = self.chain.current_slot();
        let (channel, _) = channel_address(&payer, &payee, &mint, &payer, self.salt, open_slot);
        let accounts = ChannelAccounts { channel, payer, payee, rent_payer: payee, mint, token_program: TOKEN_PROGRAM };
        let (salt, recipients) = (self.salt, shares.to_vec());
        let call = Call::Open { salt, deposit, grace_period: GRACE, open_slot, recipients };
        let instruction = program::open(&accounts, payer, &call);
        (accounts, call, instruction)
    }

    pub fn open_with(&mut self, deposit: u64, shares: Vec<Share>) -> Opened {
        let (accounts, _, instruction) = self.opening(deposit, &shares);
        let payer = self.payer.clone();
        self.send(&[instruction], &[&payer]).unwrap();
        Opened { accounts, shares }
    }

    pub fn open(&mut self) -> Opened {
        let shares = self.all_to_merchant();
        self.open_with(DEPOSIT, shares)
    }

    pub fn voucher(&self, channel: &Key, cumulative: u64, expires_at: i64) -> Instruction {
        let message = program::voucher_message(channel, cumulative, expires_at);
        let signature = Signature(self.payer.sign(&message).to_bytes());
        program::ed25519(&public(&self.payer), &signature, &message)
    }

    pub fn settle(&self, opened: &Opened, cumulative: u64) -> Result<Signature, Value> {
        let channel = opened.accounts.channel;
        self.send(&[self.voucher(&channel, cumulative, 0), program::settle(channel)], &[])
    }

    pub fn distribution(&self, opened: &Opened) -> Instruction {
        program::distribute(&opened.accounts, &self.chain.treasury_owner(), &opened.shares)
    }

    pub fn distribute(&self, opened: &Opened) -> Result<Signature, Value> {
        self.send(&[self.distribution(opened)], &[])
    }

    pub fn request_close(&self, opened: &Opened) -> Result<Signature, Value> {
        let instruction = program::request_close(opened.accounts.payer, opened.accounts.channel);
        self.send(&[instruction], &[&self.payer])
    }

    pub fn withdrawal(&self, opened: &Opened) -> Instruction {
        // The builder has no `withdraw_payer`; its accounts are `top_up`'s in another order.
        let mut instruction = program::top_up(&opened.accounts, 1);
        instruction.data = Call::WithdrawPayer.encode();
        instruction.accounts.swap(2, 3);
        instruction
    }

    pub fn state(&self, opened: &Opened) -> Option<ChannelAccount> {
        self.chain.channel(&opened.accounts.channel)
    }

    pub fn escrow(&self, opened: &Opened) -> u64 {
        self.chain.token_balance(&opened.accounts.channel)
    }

    pub fn pass_grace(&self) {
        self.chain.advance_time(Duration::from_secs(u64::from(GRACE)));
    }
}
