//! Very many channels that do nothing, in a ledger's file before it is opened.

use std::path::Path;
use std::sync::Arc;

use super::BenchError;
use super::stage::PAY_TO;
use crate::amount::Amount;
use crate::clock::{Clock, SystemClock};
use crate::ledger::channel::{ChainState, Evm, EvmOnChain};
use crate::ledger::sqlite::{Settings, SqliteStore};
use crate::ledger::store::{ChannelRecord, Store, Write};
use crate::scheme::evm::eip712::Domain;
use crate::scheme::evm::{EvmSeller, EvmTerms, TransferMethod, assets};
use crate::x402::Network;
use crate::x402::evm::{Address, B256};

/// How many are written at once.
const HANDFUL: u64 = 10_000;

/// Enters `count` channels, each with a deposit and nothing charged.
///
/// # Errors
/// [`BenchError`].
pub(super) async fn enter(path: &Path, count: u64) -> Result<(), BenchError> {
    let store = SqliteStore::open(path, Settings::default())?;
    let seller = seller()?;
    for first in (0..count).step_by(HANDFUL as usize) {
        let writes = (first..count.min(first + HANDFUL)).map(|number| channel(&seller, number)).collect();
        Store::<Evm>::write(&store, writes).await?;
    }
    Ok(())
}

fn channel(seller: &Arc<EvmSeller>, number: u64) -> Write<Evm> {
    let (mut payer, mut salt) = ([2; 20], [2; 32]);
    payer[..8].copy_from_slice(&number.to_be_bytes());
    salt[..8].copy_from_slice(&number.to_be_bytes());
    let now = SystemClock.now();
    Write::Channel(Box::new(ChannelRecord {
        terms: EvmTerms::derive(Arc::clone(seller), Address(payer), Address(payer), B256(salt)),
        on_chain: EvmOnChain { balance: Amount::from(1_000_000_u64), ..EvmOnChain::none(now) },
        charged: Amount::ZERO,
        voucher: None,
        unclaimed_since: None,
        last_used: now,
        closed: false,
    }))
}

fn seller() -> Result<Arc<EvmSeller>, BenchError> {
    let network = Network::eip155(84_532);
    let token = assets::by_symbol(&network, "USDC").ok_or("no USDC is known on the network")?;
    Ok(Arc::new(EvmSeller {
        network,
        chain_id: token.chain_id,
        asset: Arc::new(token.asset()),
        token: token.address,
        token_name: token.name.into(),
        token_version: token.version.into(),
        transfer_method: TransferMethod::Eip3009,
        pay_to: PAY_TO.parse()?,
        // Not whose key the run has: nothing of these is settled.
        receiver_authorizer: Address([3; 20]),
        withdraw_delay: 86_400,
        domain: Domain::batch_settlement(token.chain_id),
    }))
}
