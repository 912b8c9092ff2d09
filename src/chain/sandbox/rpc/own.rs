//! Methods that no cluster has, and the airdrop that only test clusters have.

use std::time::Duration;

use serde_json::json;

use super::params::Params;
use super::{Answer, RpcError};
use crate::chain::sandbox::{Faults, SandboxChain, SandboxError};

fn refused(error: SandboxError) -> RpcError {
    RpcError::invalid_params(error)
}

pub(super) fn airdrop(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let id = chain.airdrop(&params.key(0)?, params.number(1)?).map_err(refused)?;
    Ok(json!(id))
}

/// Tells the sandbox something, or answers that there is no such method.
pub(super) fn call(chain: &SandboxChain, method: &str, params: &Params<'_>) -> Answer {
    match method {
        "sandbox_setFaults" => {
            let faults: Result<Faults, _> = serde_json::from_value(params.at(0).clone());
            chain.set_faults(faults.map_err(RpcError::invalid_params)?);
            Ok(json!(chain.faults()))
        }
        "sandbox_faults" => Ok(json!(chain.faults())),
        "sandbox_expireBlockhashes" => {
            chain.expire_blockhashes();
            Ok(json!(null))
        }
        "sandbox_releaseHeld" => Ok(json!(chain.release_held())),
        "sandbox_advanceSlots" => {
            chain.advance_slots(params.number(0)?);
            Ok(json!(chain.current_slot()))
        }
        "sandbox_advanceTime" => {
            chain.advance_time(Duration::from_secs(params.number(0)?));
            Ok(json!(chain.unix_time()))
        }
        "sandbox_mintTo" => {
            let account = chain.mint_to(&params.key(0)?, params.number(1)?).map_err(refused)?;
            Ok(json!(account))
        }
        "sandbox_freeze" => {
            let frozen = params.at(1).as_bool().unwrap_or(true);
            chain.freeze(&params.key(0)?, frozen).map_err(refused)?;
            Ok(json!(null))
        }
        _ => Err(RpcError::new(-32601, "Method not found")),
    }
}
