//! The chain port on the sandbox's own state: no socket, no JSON.
//!
//! Faults apply as they would over HTTP, by the name of the JSON-RPC method that would be called.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::SandboxChain;
use super::bank::{Bank, Incoming, Run};
use super::programs;
use super::rpc::RpcError;
use crate::chain::{Account, Blockhash, Chain, ChainError, Confirmation, Simulation, TransactionStatus};
use crate::scheme::svm::PAYMENT_CHANNELS;
use crate::scheme::svm::program::{CHANNEL_ACCOUNT_BYTES, ChannelAccount};
use crate::scheme::svm::transaction::Transaction;
use crate::x402::Key;
use crate::x402::key::Signature;

/// How long waiting for a transaction pauses between looks.
const POLL: Duration = Duration::from_millis(10);

impl SandboxChain {
    /// Answers a call of `method`, unless a fault stands in its place.
    fn ask<T>(&self, method: &'static str, work: impl FnOnce(&mut Bank) -> T) -> Result<T, ChainError> {
        self.with(|bank| match bank.faults.take_rpc(method) {
            Some((code, message)) => Err(ChainError::Unavailable(format!("{method}: {message} ({code})"))),
            None => Ok(work(bank)),
        })
    }
}

fn decode(transaction: &[u8]) -> Result<Incoming, ChainError> {
    let decoded = Transaction::decode(transaction).map_err(|error| ChainError::Refused(error.to_string()))?;
    Ok(Incoming::new(decoded))
}

fn text(error: &solana_transaction_error::TransactionError) -> String {
    serde_json::to_string(error).unwrap_or_default()
}

#[async_trait]
impl Chain for SandboxChain {
    async fn latest_blockhash(&self) -> Result<Blockhash, ChainError> {
        self.ask("getLatestBlockhash", |bank| {
            let slot = bank.slot();
            bank.blockhash(slot)
        })
    }

    async fn slot(&self) -> Result<u64, ChainError> {
        self.ask("getSlot", Bank::slot)
    }

    async fn block_height(&self) -> Result<u64, ChainError> {
        self.ask("getBlockHeight", |bank| Bank::height(bank.slot()))
    }

    async fn accounts(&self, keys: &[Key]) -> Result<Vec<Option<Account>>, ChainError> {
        self.ask("getMultipleAccounts", |bank| keys.iter().map(|key| bank.account(key)).collect())
    }

    async fn channels_by(&self, offset: usize, key: &Key) -> Result<Vec<(Key, ChannelAccount)>, ChainError> {
        let found: Vec<_> = self.ask("getProgramAccounts", |bank| {
            let holds = |data: &[u8]| data.get(offset..).is_some_and(|rest| rest.starts_with(&key.0));
            let channels = bank
                .accounts
                .owned_by(&PAYMENT_CHANNELS)
                .filter(|(_, account)| account.data.len() == CHANNEL_ACCOUNT_BYTES && holds(&account.data));
            channels.map(|(key, account)| (*key, account.data.clone())).collect()
        })?;
        found.into_iter().map(|(key, data)| Ok((key, ChannelAccount::decode(&data)?))).collect()
    }

    async fn simulate(&self, transaction: &[u8]) -> Result<Simulation, ChainError> {
        let incoming = decode(transaction)?;
        let run = self.ask("simulateTransaction", |bank| bank.run(&incoming, true).unwrap_or_else(Run::refused))?;
        let logs = run.logs.iter().map(ToString::to_string).collect();
        Ok(Simulation { error: run.result.err().as_ref().map(text), logs })
    }

    async fn send(&self, transaction: &[u8]) -> Result<(), ChainError> {
        let incoming = decode(transaction)?;
        self.ask("sendTransaction", |_| ())?;
        match self.send_incoming(incoming, false) {
            Ok(_) => Ok(()),
            Err(RpcError { code: -32002 | -32003, message, data }) => {
                let error = data.as_ref().and_then(|data| data.get("err")).map(ToString::to_string);
                Err(ChainError::Refused(error.map_or(message.clone(), |error| format!("{message}: {error}"))))
            }
            Err(error) => Err(ChainError::Unavailable(error.to_string())),
        }
    }

    async fn statuses(&self, ids: &[Signature]) -> Result<Vec<Option<TransactionStatus>>, ChainError> {
        self.ask("getSignatureStatuses", |bank| {
            let status = |id: &Signature| {
                let entry = bank.history.get(id)?;
                Some(TransactionStatus { slot: entry.slot, confirmed: true, error: entry.error.as_ref().map(text) })
            };
            ids.iter().map(status).collect()
        })
    }

    async fn confirm(
        &self,
        transaction: &[u8],
        id: &Signature,
        last_valid_block_height: u64,
        deadline: Duration,
    ) -> Result<Confirmation, ChainError> {
        let end = Instant::now().checked_add(deadline);
        loop {
            // The height is read first: what is unknown after its last height can no longer land.
            let height = self.with(|bank| Bank::height(bank.slot()));
            match self.statuses(std::slice::from_ref(id)).await.as_deref() {
                Ok([Some(TransactionStatus { error: Some(error), .. })]) => {
                    return Ok(Confirmation::Failed { error: error.clone() });
                }
                Ok([Some(TransactionStatus { slot, .. })]) => return Ok(Confirmation::Confirmed { slot: *slot }),
                Ok(_) if height > last_valid_block_height => return Ok(Confirmation::Expired),
                // Sending again cannot hurt; a refusal shows as a status or as the expiry.
                Ok(_) => drop(self.send(transaction).await),
                Err(_) => {}
            }
            if end.is_none_or(|end| Instant::now() >= end) {
                let waited = deadline.as_millis();
                return Err(ChainError::Unavailable(format!("{id} was not confirmed in {waited} ms")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn rent(&self, bytes: usize) -> Result<u64, ChainError> {
        self.ask("getMinimumBalanceForRentExemption", |_| programs::rent(bytes))
    }
}
