//! The associated token account program: `Create` and `CreateIdempotent`.
//!
//! What is special here: accounts of Token-2022 are made with 165 bytes too, without the `ImmutableOwner` extension
//! that a cluster gives them; the sandbox knows no extensions.

use solana_instruction_error::InstructionError;

use super::{rent, system, token};
use crate::chain::sandbox::runtime::{Frame, Grant, Outcome};
use crate::scheme::svm::SYSTEM_PROGRAM;

const INVALID_OWNER: InstructionError = InstructionError::Custom(0);

const FUNDER: usize = 0;
const ACCOUNT: usize = 1;
const WALLET: usize = 2;
const MINT: usize = 3;
const TOKEN_PROGRAM: usize = 5;

/// Runs an instruction.
pub(in crate::chain::sandbox) fn run(frame: &mut Frame<'_, '_>, data: &[u8]) -> Outcome {
    let idempotent = match data {
        [] | [0] => false,
        [1] => true,
        _ => return Err(InstructionError::InvalidInstructionData),
    };
    let token_program = frame.key(TOKEN_PROGRAM)?;
    let (wallet, mint) = (frame.key(WALLET)?, frame.key(MINT)?);
    if frame.ata(&wallet, &mint, &token_program) != frame.key(ACCOUNT)? {
        return Err(InstructionError::InvalidSeeds);
    }
    let account = frame.account(ACCOUNT)?;
    if idempotent
        && account.owner == token_program
        && let Ok(existing) = token::TokenAccount::read(&account.data)
    {
        return match existing {
            existing if existing.owner != wallet => Err(INVALID_OWNER),
            existing if existing.mint != mint => Err(InstructionError::InvalidAccountData),
            _ => Ok(()),
        };
    }
    if account.owner != SYSTEM_PROGRAM {
        return Err(InstructionError::IllegalOwner);
    }
    let lacking = rent(token::ACCOUNT_BYTES).saturating_sub(account.lamports);
    if frame.account(MINT)?.owner != token_program {
        return Err(InstructionError::IncorrectProgramId);
    }
    if token::Mint::read(&frame.account(MINT)?.data).is_err() {
        return Err(token::INVALID_MINT);
    }
    if lacking > 0 {
        let grants = [Grant::write(FUNDER).signed(), Grant::write(ACCOUNT)];
        frame.invoke(SYSTEM_PROGRAM, &grants, &system::transfer(lacking), &[])?;
    }
    let itself = [Grant::write(ACCOUNT).signed()];
    frame.invoke(SYSTEM_PROGRAM, &itself, &system::allocate(token::ACCOUNT_BYTES), &[ACCOUNT])?;
    frame.invoke(SYSTEM_PROGRAM, &itself, &system::assign(&token_program), &[ACCOUNT])?;
    let grants = [Grant::write(ACCOUNT), Grant::read(MINT)];
    frame.invoke(token_program, &grants, &token::initialize_account(&wallet), &[])
}
