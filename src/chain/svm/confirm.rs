//! Waiting for a transaction: polls, sends again, and decides when it can never land.
//!
//! "Expired" is final for the caller, who may then build another transaction, so it is said only after all of this:
//! a lookup that does not know the transaction; a block height, read after that lookup, beyond the last at which its
//! blockhash is taken; a slot, read after that height; and a last lookup with history, on a node that has reached that
//! slot, that still does not know it.

use std::time::Duration;

use tokio::time::Instant;

use super::SvmRpc;
use crate::chain::{Chain, ChainError, Confirmation, TransactionStatus};
use crate::x402::key::Signature;

/// How waiting is paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The first pause between two lookups; it grows by half each time.
    pub poll_min: Duration,
    /// The longest pause between two lookups.
    pub poll_max: Duration,
    /// How often an unknown transaction is sent again, and its expiry looked at.
    pub resend_every: Duration,
}

impl Pace {
    /// For a cluster, whose slots last 400 ms.
    pub const CLUSTER: Self = Self {
        poll_min: Duration::from_millis(400),
        poll_max: Duration::from_secs(2),
        resend_every: Duration::from_secs(2),
    };
    /// For the sandbox, which runs a transaction when it is sent.
    pub const SANDBOX: Self = Self {
        poll_min: Duration::from_millis(2),
        poll_max: Duration::from_millis(50),
        resend_every: Duration::from_millis(200),
    };
}

/// Waits for one transaction.
pub(super) async fn confirm(
    rpc: &SvmRpc,
    transaction: &[u8],
    id: &Signature,
    last_valid_block_height: u64,
    deadline: Duration,
) -> Result<Confirmation, ChainError> {
    let waiting = wait(rpc, transaction, id, last_valid_block_height);
    tokio::time::timeout(deadline, waiting)
        .await
        .map_err(|_| ChainError::Unavailable(format!("{id} was not confirmed within {} ms", deadline.as_millis())))
}

/// Outages are waited out: only the deadline, held by the caller, ends this without an answer.
async fn wait(rpc: &SvmRpc, transaction: &[u8], id: &Signature, last_valid_block_height: u64) -> Confirmation {
    let pace = rpc.pace();
    let mut pause = pace.poll_min;
    let mut next_resend = Instant::now().checked_add(pace.resend_every);
    loop {
        match rpc.status_in_context(id, false).await {
            Ok((_, Some(status))) => {
                if let Some(confirmation) = conclude(rpc, status) {
                    return confirmation;
                }
            }
            Ok((_, None)) if next_resend.is_none_or(|due| due <= Instant::now()) => {
                match expiry(rpc, id, last_valid_block_height).await {
                    Ok(Some(confirmation)) => return confirmation,
                    Ok(None) => {
                        let sent = rpc.send_again(transaction).await;
                        tracing::debug!(%id, ?sent, "sent again while unknown");
                    }
                    Err(error) => tracing::debug!(%id, %error, "expiry is not known"),
                }
                next_resend = Instant::now().checked_add(pace.resend_every);
            }
            Ok((_, None)) => {}
            Err(error) => tracing::debug!(%id, %error, "status is not known"),
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_add(pause / 2).min(pace.poll_max);
    }
}

/// What a status means, once a supermajority has voted for it.
fn conclude(rpc: &SvmRpc, status: TransactionStatus) -> Option<Confirmation> {
    if !status.confirmed {
        return None;
    }
    rpc.seen(status.slot);
    Some(match status.error {
        Some(error) => Confirmation::Failed { error },
        None => Confirmation::Confirmed { slot: status.slot },
    })
}

/// Whether a transaction that was just unknown can still land; `None` while it can, or while nobody can tell.
async fn expiry(
    rpc: &SvmRpc,
    id: &Signature,
    last_valid_block_height: u64,
) -> Result<Option<Confirmation>, ChainError> {
    if rpc.block_height().await? <= last_valid_block_height {
        return Ok(None);
    }
    let slot = rpc.slot().await?;
    let (context, status) = rpc.status_in_context(id, true).await?;
    Ok(match status {
        Some(status) => conclude(rpc, status),
        None => (context >= slot).then_some(Confirmation::Expired),
    })
}
