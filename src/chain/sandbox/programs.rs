//! The programs that the sandbox knows, by their addresses.
//!
//! The payment-channels program follows its documents and, in the order of its checks, its source; the others do what
//! is publicly known of them. Error codes are the real programs' own. The compute units are nominal: high enough that a
//! limit of zero fails, and not measured on a cluster.

pub(super) mod ata;
pub(super) mod channels;
pub(super) mod compute_budget;
pub(super) mod ed25519;
pub(super) mod memo;
pub(super) mod system;
pub(super) mod token;

use solana_instruction_error::InstructionError;

use super::runtime::{Frame, Outcome};
use crate::scheme::svm::{
    ATA_PROGRAM, COMPUTE_BUDGET_PROGRAM, ED25519_PROGRAM, INSTRUCTIONS_SYSVAR, LIGHTHOUSE_PROGRAM, MEMO_PROGRAM,
    PAYMENT_CHANNELS, RENT_SYSVAR, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM,
};
use crate::x402::Key;

/// Every program that can run, with whether it is part of the node itself.
pub(super) const ALL: [(Key, bool); 9] = [
    (SYSTEM_PROGRAM, true),
    (COMPUTE_BUDGET_PROGRAM, true),
    (ED25519_PROGRAM, true),
    (TOKEN_PROGRAM, false),
    (TOKEN_2022_PROGRAM, false),
    (ATA_PROGRAM, false),
    (MEMO_PROGRAM, false),
    (LIGHTHOUSE_PROGRAM, false),
    (PAYMENT_CHANNELS, false),
];

/// Lamports per byte and year, times the two years that free an account from rent.
const LAMPORTS_PER_BYTE: u64 = 3480 * 2;
/// Bytes that every account counts beside its data.
const ACCOUNT_OVERHEAD_BYTES: u64 = 128;

/// Lamports that an account of `bytes` must hold.
pub(super) fn rent(bytes: usize) -> u64 {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    bytes.saturating_add(ACCOUNT_OVERHEAD_BYTES).saturating_mul(LAMPORTS_PER_BYTE)
}

/// Whether a program lives at this address.
pub(super) fn is_program(key: &Key) -> bool {
    ALL.iter().any(|(program, _)| program == key)
}

/// Whether the program is part of the node itself.
pub(super) fn is_builtin(key: &Key) -> bool {
    ALL.iter().any(|(program, builtin)| program == key && *builtin)
}

/// Whether no transaction may change the account, whatever its message says.
pub(super) fn is_reserved(key: &Key) -> bool {
    is_builtin(key) || *key == RENT_SYSVAR || *key == INSTRUCTIONS_SYSVAR
}

/// Compute units that one call takes.
pub(super) fn units(program: &Key) -> u64 {
    match *program {
        ED25519_PROGRAM => 0,
        SYSTEM_PROGRAM | COMPUTE_BUDGET_PROGRAM => 150,
        PAYMENT_CHANNELS => 1_500,
        ATA_PROGRAM => 2_000,
        _ => 100,
    }
}

/// Runs a program.
pub(super) fn run(frame: &mut Frame<'_, '_>, data: &[u8]) -> Outcome {
    match frame.program {
        SYSTEM_PROGRAM => system::run(frame, data),
        TOKEN_PROGRAM | TOKEN_2022_PROGRAM => token::run(frame, data),
        ATA_PROGRAM => ata::run(frame, data),
        MEMO_PROGRAM => memo::run(frame, data),
        ED25519_PROGRAM => frame.precompile().map_or(Ok(()), |code| Err(InstructionError::Custom(code))),
        PAYMENT_CHANNELS => channels::run(frame, data),
        // Its data was checked before anything ran.
        COMPUTE_BUDGET_PROGRAM => Ok(()),
        // Assertions about accounts: accepted, none is evaluated.
        LIGHTHOUSE_PROGRAM => Ok(()),
        _ => Err(InstructionError::UnsupportedProgramId),
    }
}

/// Takes bytes from the front of instruction or account data; short data answers nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    /// The next `N` bytes.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }
    /// The next byte.
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    /// The next two bytes, little-endian.
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    /// The next four bytes, little-endian.
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    /// The next eight bytes, little-endian.
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    /// The next 32 bytes.
    pub(super) fn key(&mut self) -> Option<Key> {
        self.take().map(Key)
    }
}
