//! Multicall3: many reads in one call.

use alloy_sol_types::{SolCall, sol};

use super::{address, call_of};
use crate::chain::evm::revert::Revert;
use crate::chain::evm::{Call, EvmError, malformed};
use crate::scheme::evm::contracts::MULTICALL3;

mod contract {
    use super::sol;

    sol! {
        struct Call3 {
            address target;
            bool allowFailure;
            bytes callData;
        }

        struct Result {
            bool success;
            bytes returnData;
        }

        function aggregate3(Call3[] calls) returns (Result[] returnData);
    }
}

/// All calls in one, each of which may fail for itself.
#[must_use]
pub fn aggregate(calls: &[Call]) -> Call {
    let calls = calls.iter().map(|call| contract::Call3 {
        target: address(call.to),
        allowFailure: true,
        callData: call.data.clone().into(),
    });
    call_of(MULTICALL3, &contract::aggregate3Call { calls: calls.collect() })
}

/// The answers to `count` calls.
pub(in crate::chain::evm) fn answers(data: &[u8], count: usize) -> Result<Vec<Result<Vec<u8>, Revert>>, EvmError> {
    let results = contract::aggregate3Call::abi_decode_returns(data)
        .map_err(|_| malformed("aggregate3", "not what Multicall3 answers: is it deployed on this chain?"))?;
    if results.len() != count {
        return Err(malformed("aggregate3", "another number of answers"));
    }
    let answer = |result: contract::Result| {
        let data = result.returnData.to_vec();
        if result.success { Ok(data) } else { Err(Revert::of(&data)) }
    };
    Ok(results.into_iter().map(answer).collect())
}
