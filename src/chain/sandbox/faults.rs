//! What the sandbox can be told to do wrong, as networks and nodes do.
//!
//! A fault with a count is used up by what it meets; the others hold until they are changed.

use serde::{Deserialize, Serialize};

/// The most faults per method that are kept.
const RPC_FAULTS_MAX: usize = 64;

/// What goes wrong from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Faults {
    /// This many transactions are answered with their signature and then forgotten.
    pub drop_next: u32,
    /// This many transactions are executed and answered with an error.
    pub lose_answers: u32,
    /// Transactions are answered with their signature and wait until they are released.
    pub hold: bool,
    /// Every HTTP answer waits this long, in milliseconds. Calls within the process do not wait.
    pub delay_ms: u64,
    /// Transactions that land in a block and fail there, though simulating them succeeds.
    pub fail_next: Option<InjectedFailure>,
    /// Calls that are answered with an error instead of being carried out.
    pub rpc_errors: Vec<RpcFault>,
}

/// A failure of executed transactions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InjectedFailure {
    /// How many transactions fail.
    pub count: u32,
    /// Which instruction is blamed.
    pub instruction: u8,
    /// Its `Custom` code.
    pub code: u32,
}

/// An error in place of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RpcFault {
    /// The method.
    pub method: String,
    /// How many calls.
    pub count: u32,
    /// The JSON-RPC error code.
    pub code: i64,
    /// The error's message.
    pub message: String,
}

/// Counts a fault down; whether it was there.
fn take(count: &mut u32) -> bool {
    let left = count.checked_sub(1);
    *count = left.unwrap_or(0);
    left.is_some()
}

impl Faults {
    /// The same with bounded lists.
    pub(super) fn bounded(mut self) -> Self {
        self.rpc_errors.truncate(RPC_FAULTS_MAX);
        self
    }

    /// Whether the next transaction is forgotten.
    pub(super) fn take_drop(&mut self) -> bool {
        take(&mut self.drop_next)
    }

    /// Whether the next answer is lost.
    pub(super) fn take_lost(&mut self) -> bool {
        take(&mut self.lose_answers)
    }

    /// How the next executed transaction fails, if it does: the instruction and its code.
    pub(super) fn take_failure(&mut self) -> Option<(u8, u32)> {
        let failure = self.fail_next.as_mut()?;
        take(&mut failure.count).then_some((failure.instruction, failure.code))
    }

    /// The error that a call of `method` is answered with, if it is.
    pub(super) fn take_rpc(&mut self, method: &str) -> Option<(i64, String)> {
        let fault = self.rpc_errors.iter_mut().find(|fault| fault.method == method && fault.count > 0)?;
        fault.count = fault.count.saturating_sub(1);
        Some((fault.code, fault.message.clone()))
    }
}
