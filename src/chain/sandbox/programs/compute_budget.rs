//! The compute budget program: what a transaction may use and what it offers for priority.
//!
//! Its instructions are read before any other runs; at its own turn the program does nothing.

use solana_instruction_error::InstructionError;
use solana_transaction_error::TransactionError;

use super::{Bytes, is_builtin};
use crate::scheme::svm::{COMPUTE_BUDGET_PROGRAM, transaction::Instruction};

/// The most compute units of a transaction.
const UNITS_MAX: u64 = 1_400_000;
/// What an instruction is given where the transaction sets no limit.
const UNITS_PER_INSTRUCTION: u64 = 200_000;
/// The same for a program that is part of the node.
const UNITS_PER_BUILTIN: u64 = 3_000;
/// Heap frames come in steps of a kibibyte, between these.
const HEAP_BYTES: std::ops::RangeInclusive<u32> = 32 * 1024..=256 * 1024;

/// What a transaction may use and offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::chain::sandbox) struct Budget {
    /// Compute units.
    pub(in crate::chain::sandbox) units: u64,
    /// Lamports on top of the fee for signatures.
    pub(in crate::chain::sandbox) priority_fee: u64,
}

/// Reads the budget instructions of a transaction.
pub(in crate::chain::sandbox) fn budget(instructions: &[Instruction]) -> Result<Budget, TransactionError> {
    let (mut units, mut price, mut heap, mut loaded) = (None, None, None, None);
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.program != COMPUTE_BUDGET_PROGRAM {
            continue;
        }
        let index = u8::try_from(index).unwrap_or(u8::MAX);
        let invalid = || TransactionError::InstructionError(index, InstructionError::InvalidInstructionData);
        let mut data = Bytes(&instruction.data);
        let repeated = match data.u8().ok_or_else(invalid)? {
            1 => heap
                .replace(data.u32().filter(|n| HEAP_BYTES.contains(n) && n % 1024 == 0).ok_or_else(invalid)?)
                .is_some(),
            2 => units.replace(data.u32().ok_or_else(invalid)?).is_some(),
            3 => price.replace(data.u64().ok_or_else(invalid)?).is_some(),
            4 => loaded.replace(data.u32().ok_or_else(invalid)?).is_some(),
            _ => return Err(invalid()),
        };
        if repeated {
            return Err(TransactionError::DuplicateInstruction(index));
        }
    }
    if loaded == Some(0) {
        return Err(TransactionError::InvalidLoadedAccountsDataSizeLimit);
    }
    let units = units.map_or_else(|| default_units(instructions), u64::from).min(UNITS_MAX);
    // Both factors are below 2^64, so the product fits; the quotient is capped rather than wrapped.
    let fee = u128::from(price.unwrap_or(0)).saturating_mul(u128::from(units)).div_ceil(1_000_000);
    Ok(Budget { units, priority_fee: u64::try_from(fee).unwrap_or(u64::MAX) })
}

fn default_units(instructions: &[Instruction]) -> u64 {
    let units = |instruction: &Instruction| {
        if is_builtin(&instruction.program) { UNITS_PER_BUILTIN } else { UNITS_PER_INSTRUCTION }
    };
    instructions.iter().map(units).sum()
}
