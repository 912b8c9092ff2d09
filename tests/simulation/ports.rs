//! What a life of the proxy reaches the world through: chain and signer, each with points at which others go on and at
//! which the power may fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ed25519_dalek::{Signer as _, SigningKey};
use parking_lot::Mutex;
use turnpike::chain::sandbox::SandboxChain;
use turnpike::chain::{Account, Blockhash, Chain, ChainError, Confirmation, Simulation, TransactionStatus};
use turnpike::scheme::svm::program::ChannelAccount;
use turnpike::scheme::svm::transaction::Transaction;
use turnpike::signer::rules::Judge;
use turnpike::signer::{Approved, Signer, SignerError};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

use crate::chance::Power;

/// The chain, as a life sees it. Remembers what was sent.
pub struct Node {
    pub chain: SandboxChain,
    pub power: Arc<Power>,
    pub sent: Arc<Mutex<HashMap<Signature, Vec<u8>>>>,
}

impl Node {
    async fn ask<T>(&self, answer: impl Future<Output = T> + Send) -> T {
        self.power.point().await;
        let answer = answer.await;
        self.power.point().await;
        answer
    }
}

#[async_trait]
impl Chain for Node {
    async fn latest_blockhash(&self) -> Result<Blockhash, ChainError> {
        self.ask(self.chain.latest_blockhash()).await
    }

    async fn slot(&self) -> Result<u64, ChainError> {
        self.ask(self.chain.slot()).await
    }

    async fn block_height(&self) -> Result<u64, ChainError> {
        self.ask(self.chain.block_height()).await
    }

    async fn accounts(&self, keys: &[Key]) -> Result<Vec<Option<Account>>, ChainError> {
        self.ask(self.chain.accounts(keys)).await
    }

    async fn channels_by(&self, offset: usize, key: &Key) -> Result<Vec<(Key, ChannelAccount)>, ChainError> {
        self.ask(self.chain.channels_by(offset, key)).await
    }

    async fn simulate(&self, transaction: &[u8]) -> Result<Simulation, ChainError> {
        self.ask(self.chain.simulate(transaction)).await
    }

    async fn send(&self, transaction: &[u8]) -> Result<(), ChainError> {
        self.ask(async {
            let id = Transaction::decode(transaction).unwrap().id();
            self.sent.lock().insert(id, transaction.to_vec());
            self.chain.send(transaction).await
        })
        .await
    }

    async fn statuses(&self, ids: &[Signature]) -> Result<Vec<Option<TransactionStatus>>, ChainError> {
        self.ask(self.chain.statuses(ids)).await
    }

    async fn confirm(
        &self,
        transaction: &[u8],
        id: &Signature,
        last_valid_block_height: u64,
        deadline: Duration,
    ) -> Result<Confirmation, ChainError> {
        self.ask(async {
            // Waiting sends again.
            self.sent.lock().insert(*id, transaction.to_vec());
            self.chain.confirm(transaction, id, last_valid_block_height, deadline).await
        })
        .await
    }

    async fn rent(&self, bytes: usize) -> Result<u64, ChainError> {
        self.ask(self.chain.rent(bytes)).await
    }
}

/// One key in place of a quorum, behind the same rules.
pub struct OneKey {
    pub key: SigningKey,
    pub judge: Arc<Judge>,
    pub power: Arc<Power>,
}

#[async_trait]
impl Signer for OneKey {
    fn public_key(&self) -> Key {
        Key(self.key.verifying_key().to_bytes())
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        self.power.point().await;
        let request = approved.request();
        let bytes =
            self.judge.judge(request).unwrap_or_else(|error| panic!("the rules refuse a {}: {error}", request.kind()));
        let signature = Signature(self.key.sign(bytes.as_bytes()).to_bytes());
        self.power.point().await;
        Ok(signature)
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}
