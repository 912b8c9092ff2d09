//! The system program: lamports, and accounts as they come into being.
//!
//! `CreateAccount`, `Assign`, `Transfer` and `Allocate`. Seeds and nonces are refused as unknown instructions.

use solana_instruction_error::InstructionError;

use super::Bytes;
use crate::chain::sandbox::runtime::{Frame, Outcome};
use crate::scheme::svm::SYSTEM_PROGRAM;
use crate::x402::Key;

/// The largest account.
const ACCOUNT_BYTES_MAX: u64 = 10 * 1024 * 1024;

const ACCOUNT_ALREADY_IN_USE: InstructionError = InstructionError::Custom(0);
const RESULT_WITH_NEGATIVE_LAMPORTS: InstructionError = InstructionError::Custom(1);
const INVALID_ACCOUNT_DATA_LENGTH: InstructionError = InstructionError::Custom(3);

/// Instruction numbers.
pub(in crate::chain::sandbox) mod tag {
    pub(in crate::chain::sandbox) const CREATE_ACCOUNT: u32 = 0;
    pub(in crate::chain::sandbox) const ASSIGN: u32 = 1;
    pub(in crate::chain::sandbox) const TRANSFER: u32 = 2;
    pub(in crate::chain::sandbox) const ALLOCATE: u32 = 8;
}

/// `Transfer`'s data.
pub(in crate::chain::sandbox) fn transfer(lamports: u64) -> Vec<u8> {
    [&tag::TRANSFER.to_le_bytes()[..], &lamports.to_le_bytes()].concat()
}

/// `Allocate`'s data.
pub(in crate::chain::sandbox) fn allocate(space: usize) -> Vec<u8> {
    let space = u64::try_from(space).unwrap_or(u64::MAX);
    [&tag::ALLOCATE.to_le_bytes()[..], &space.to_le_bytes()].concat()
}

/// `Assign`'s data.
pub(in crate::chain::sandbox) fn assign(owner: &Key) -> Vec<u8> {
    [&tag::ASSIGN.to_le_bytes()[..], &owner.0].concat()
}

/// Runs an instruction.
pub(in crate::chain::sandbox) fn run(frame: &mut Frame<'_, '_>, data: &[u8]) -> Outcome {
    process(frame, Bytes(data)).unwrap_or(Err(InstructionError::InvalidInstructionData))
}

fn process(frame: &mut Frame<'_, '_>, mut data: Bytes<'_>) -> Option<Outcome> {
    Some(match data.u32()? {
        tag::CREATE_ACCOUNT => {
            let (lamports, space, owner) = (data.u64()?, data.u64()?, data.key()?);
            create_account(frame, lamports, space, owner)
        }
        tag::ASSIGN => {
            let owner = data.key()?;
            assign_to(frame, 0, owner)
        }
        tag::TRANSFER => {
            let lamports = data.u64()?;
            transfer_lamports(frame, lamports)
        }
        tag::ALLOCATE => {
            let space = data.u64()?;
            allocate_space(frame, 0, space)
        }
        _ => return None,
    })
}

fn create_account(frame: &mut Frame<'_, '_>, lamports: u64, space: u64, owner: Key) -> Outcome {
    if frame.account(1)?.lamports > 0 {
        return Err(ACCOUNT_ALREADY_IN_USE);
    }
    allocate_space(frame, 1, space)?;
    assign_to(frame, 1, owner)?;
    transfer_lamports(frame, lamports)
}

fn allocate_space(frame: &mut Frame<'_, '_>, place: usize, space: u64) -> Outcome {
    frame.require_signer(place)?;
    let account = frame.account(place)?;
    if !account.data.is_empty() || account.owner != SYSTEM_PROGRAM {
        return Err(ACCOUNT_ALREADY_IN_USE);
    }
    if space > ACCOUNT_BYTES_MAX {
        return Err(INVALID_ACCOUNT_DATA_LENGTH);
    }
    let space = usize::try_from(space).map_err(|_| INVALID_ACCOUNT_DATA_LENGTH)?;
    frame.set_data(place, vec![0; space])
}

fn assign_to(frame: &mut Frame<'_, '_>, place: usize, owner: Key) -> Outcome {
    if frame.account(place)?.owner == owner {
        return Ok(());
    }
    frame.require_signer(place)?;
    frame.set_owner(place, owner)
}

fn transfer_lamports(frame: &mut Frame<'_, '_>, lamports: u64) -> Outcome {
    frame.require_signer(0)?;
    let from = frame.account(0)?;
    if !from.data.is_empty() {
        return Err(InstructionError::InvalidArgument);
    }
    if lamports > from.lamports {
        let held = from.lamports;
        frame.log(format!("Transfer: insufficient lamports {held}, need {lamports}"));
        return Err(RESULT_WITH_NEGATIVE_LAMPORTS);
    }
    frame.move_lamports(0, 1, lamports)
}
