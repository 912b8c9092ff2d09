//! Runs one transaction's instructions over copies of its accounts.
//!
//! Promises what a cluster's runtime promises to every program: an account changes only where the instruction was
//! given it writable, only its owner takes lamports from it or changes its data, a program called by another gets no
//! more rights than its caller holds, and an instruction neither makes nor burns lamports. Nothing here knows what was
//! there before or what becomes of the copies; that is the bank's.

use std::collections::HashMap;
use std::fmt;

use solana_instruction_error::InstructionError;

use super::programs;
use crate::chain::Account;
use crate::scheme::svm::{self, SYSTEM_PROGRAM, transaction::Instruction};
use crate::x402::Key;

/// How deep programs may call programs.
const CALL_DEPTH_MAX: usize = 5;
/// Derived addresses that are remembered.
const DERIVATIONS_MAX: usize = 16_384;

/// What deployed programs still answer where accounts are missing, though the node itself no longer does.
#[allow(deprecated, reason = "it is on the wire")]
pub(super) const NOT_ENOUGH_ACCOUNTS: InstructionError = InstructionError::NotEnoughAccountKeys;

/// How a program ends.
pub(super) type Outcome = Result<(), InstructionError>;

/// Remembers associated token addresses: deriving one costs as much as everything else that a transfer does.
#[derive(Debug, Default)]
pub(super) struct Derivations(HashMap<(Key, Key, Key), Key>);

impl Derivations {
    /// The associated token account of `owner` for `mint`.
    pub(super) fn ata(&mut self, owner: &Key, mint: &Key, token_program: &Key) -> Key {
        let name = (*owner, *mint, *token_program);
        if let Some(address) = self.0.get(&name) {
            return *address;
        }
        if self.0.len() >= DERIVATIONS_MAX {
            self.0.clear();
        }
        let address = svm::associated_token_account(owner, mint, token_program);
        self.0.insert(name, address);
        address
    }
}

/// An account as one transaction holds it.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    /// Its address.
    pub(super) key: Key,
    /// What it holds now.
    pub(super) account: Account,
    /// Whether the transaction lets it change.
    pub(super) writable: bool,
    /// Whether the transaction is signed for it.
    pub(super) signer: bool,
}

/// A line of a transaction's log; made into text only when somebody asks.
#[derive(Clone, Debug)]
pub(super) enum Log {
    /// A program starts.
    Invoke(Key, usize),
    /// A program has ended well.
    Success(Key),
    /// A program has failed.
    Failed(Key, InstructionError),
    /// What a program says.
    Text(String),
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invoke(program, depth) => write!(f, "Program {program} invoke [{depth}]"),
            Self::Success(program) => write!(f, "Program {program} success"),
            Self::Failed(program, error) => write!(f, "Program {program} failed: {error}"),
            Self::Text(text) => write!(f, "Program log: {text}"),
        }
    }
}

/// An instruction that a program gave to another.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    /// The transaction's instruction that it happened in.
    pub(super) top: usize,
    /// How deep.
    pub(super) depth: usize,
    /// The program that was called, by its place among the transaction's accounts.
    pub(super) program: usize,
    /// The accounts that it was given, by their places.
    pub(super) accounts: Vec<usize>,
    /// What it was told.
    pub(super) data: Vec<u8>,
}

/// What programs may know of the chain, and the accounts that they work on.
#[derive(Debug)]
pub(super) struct Execution<'a> {
    /// The accounts, in the transaction's order.
    pub(super) accounts: Vec<Loaded>,
    /// The transaction's instructions.
    pub(super) instructions: &'a [Instruction],
    /// What the Ed25519 precompile says to each instruction: its error code, where it fails.
    pub(super) precompiles: &'a [Option<u32>],
    /// The present slot.
    pub(super) slot: u64,
    /// The chain's time in Unix seconds.
    pub(super) now: i64,
    /// Who owns the treasury that the payment-channels program insists on.
    pub(super) treasury_owner: Key,
    /// Remembered addresses.
    pub(super) derivations: &'a mut Derivations,
    /// Compute units that are left.
    pub(super) units_left: u64,
    /// The log so far.
    pub(super) logs: Vec<Log>,
    /// Instructions between programs so far.
    pub(super) inner: Vec<Inner>,
}

/// An account's place in a call, with what the call may do to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    index: usize,
    signer: bool,
    writable: bool,
}

/// What a caller grants for one of its own accounts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    place: usize,
    signer: bool,
    writable: bool,
}

impl Grant {
    /// The caller's account at `place`, to read.
    pub(super) const fn read(place: usize) -> Self {
        Self { place, signer: false, writable: false }
    }
    /// The caller's account at `place`, to change.
    pub(super) const fn write(place: usize) -> Self {
        Self { place, signer: false, writable: true }
    }
    /// The same, signing.
    pub(super) const fn signed(mut self) -> Self {
        self.signer = true;
        self
    }
}

impl Execution<'_> {
    /// Runs the transaction's instruction at `top`.
    pub(super) fn run(&mut self, top: usize) -> Outcome {
        let instructions = self.instructions;
        let instruction = instructions.get(top).ok_or(InstructionError::GenericError)?;
        let metas = instruction
            .accounts
            .iter()
            .map(|meta| {
                let index = self.position(&meta.key)?;
                let loaded = self.accounts.get(index).ok_or(InstructionError::MissingAccount)?;
                Ok(Meta { index, signer: loaded.signer, writable: loaded.writable })
            })
            .collect::<Result<Vec<_>, InstructionError>>()?;
        let before = self.lamports();
        self.enter(top, 1, instruction.program, metas, &instruction.data)?;
        if self.lamports() == before { Ok(()) } else { Err(InstructionError::UnbalancedInstruction) }
    }

    fn enter(&mut self, top: usize, depth: usize, program: Key, metas: Vec<Meta>, data: &[u8]) -> Outcome {
        self.logs.push(Log::Invoke(program, depth));
        let units = programs::units(&program);
        let ended = match self.units_left.checked_sub(units) {
            None => Err(InstructionError::ComputationalBudgetExceeded),
            Some(left) => {
                self.units_left = left;
                programs::run(&mut Frame { execution: self, program, metas, top, depth }, data)
            }
        };
        self.logs.push(match &ended {
            Ok(()) => Log::Success(program),
            Err(error) => Log::Failed(program, error.clone()),
        });
        ended
    }

    fn position(&self, key: &Key) -> Result<usize, InstructionError> {
        self.accounts.iter().position(|loaded| loaded.key == *key).ok_or(InstructionError::MissingAccount)
    }

    fn lamports(&self) -> u128 {
        self.accounts.iter().map(|loaded| u128::from(loaded.account.lamports)).sum()
    }
}

/// One call of a program: what it sees and what it may do.
#[derive(Debug)]
pub(super) struct Frame<'e, 'a> {
    execution: &'e mut Execution<'a>,
    /// The program that runs.
    pub(super) program: Key,
    metas: Vec<Meta>,
    top: usize,
    depth: usize,
}

impl<'a> Frame<'_, 'a> {
    /// How many accounts it was given.
    pub(super) fn len(&self) -> usize {
        self.metas.len()
    }

    fn meta(&self, place: usize) -> Result<Meta, InstructionError> {
        let builtin = programs::is_builtin(&self.program);
        let missing = if builtin { InstructionError::MissingAccount } else { NOT_ENOUGH_ACCOUNTS };
        self.metas.get(place).copied().ok_or(missing)
    }

    fn loaded(&self, place: usize) -> Result<&Loaded, InstructionError> {
        let index = self.meta(place)?.index;
        self.execution.accounts.get(index).ok_or(InstructionError::MissingAccount)
    }

    /// The address at `place`.
    pub(super) fn key(&self, place: usize) -> Result<Key, InstructionError> {
        Ok(self.loaded(place)?.key)
    }

    /// The account at `place`.
    pub(super) fn account(&self, place: usize) -> Result<&Account, InstructionError> {
        Ok(&self.loaded(place)?.account)
    }

    /// Whether the account at `place` has signed.
    pub(super) fn is_signer(&self, place: usize) -> Result<bool, InstructionError> {
        Ok(self.meta(place)?.signer)
    }

    /// Refuses where the account at `place` has not signed.
    pub(super) fn require_signer(&self, place: usize) -> Outcome {
        if self.is_signer(place)? { Ok(()) } else { Err(InstructionError::MissingRequiredSignature) }
    }

    /// The present slot.
    pub(super) fn slot(&self) -> u64 {
        self.execution.slot
    }

    /// The chain's time in Unix seconds.
    pub(super) fn now(&self) -> i64 {
        self.execution.now
    }

    /// Who owns the treasury.
    pub(super) fn treasury_owner(&self) -> Key {
        self.execution.treasury_owner
    }

    /// The transaction's instruction right before this one, and nothing for the first.
    pub(super) fn previous_instruction(&self) -> Option<&'a Instruction> {
        let instructions = self.execution.instructions;
        instructions.get(self.top.checked_sub(1)?)
    }

    /// What the Ed25519 precompile says to this instruction.
    pub(super) fn precompile(&self) -> Option<u32> {
        self.execution.precompiles.get(self.top).copied().flatten()
    }

    /// An associated token address.
    pub(super) fn ata(&mut self, owner: &Key, mint: &Key, token_program: &Key) -> Key {
        self.execution.derivations.ata(owner, mint, token_program)
    }

    /// Says something into the log.
    pub(super) fn log(&mut self, text: impl Into<String>) {
        self.execution.logs.push(Log::Text(text.into()));
    }

    /// Sets the lamports at `place`; only the owner may lower them.
    pub(super) fn set_lamports(&mut self, place: usize, lamports: u64) -> Outcome {
        let meta = self.meta(place)?;
        let program = self.program;
        let loaded = self.execution.accounts.get_mut(meta.index).ok_or(InstructionError::MissingAccount)?;
        if lamports < loaded.account.lamports && loaded.account.owner != program {
            return Err(InstructionError::ExternalAccountLamportSpend);
        }
        if lamports != loaded.account.lamports && !meta.writable {
            return Err(InstructionError::ReadonlyLamportChange);
        }
        loaded.account.lamports = lamports;
        Ok(())
    }

    /// Moves lamports between two accounts of this call.
    pub(super) fn move_lamports(&mut self, from: usize, to: usize, lamports: u64) -> Outcome {
        let left = self.account(from)?.lamports.checked_sub(lamports).ok_or(InstructionError::InsufficientFunds)?;
        self.set_lamports(from, left)?;
        let sum = self.account(to)?.lamports.checked_add(lamports).ok_or(InstructionError::ArithmeticOverflow)?;
        self.set_lamports(to, sum)
    }

    /// Replaces the data at `place`; only the owner may.
    pub(super) fn set_data(&mut self, place: usize, data: Vec<u8>) -> Outcome {
        *self.owned(place, InstructionError::ExternalAccountDataModified)? = data;
        Ok(())
    }

    /// Gives the account at `place` to another program; only the owner may, and only without content.
    pub(super) fn set_owner(&mut self, place: usize, owner: Key) -> Outcome {
        let data = self.owned(place, InstructionError::ModifiedProgramId)?;
        if data.iter().any(|byte| *byte != 0) {
            return Err(InstructionError::ModifiedProgramId);
        }
        let index = self.meta(place)?.index;
        let loaded = self.execution.accounts.get_mut(index).ok_or(InstructionError::MissingAccount)?;
        loaded.account.owner = owner;
        Ok(())
    }

    /// Empties the account at `place` for good: no data, no owner. Its lamports must have left.
    pub(super) fn delete(&mut self, place: usize) -> Outcome {
        self.set_data(place, Vec::new())?;
        self.set_owner(place, SYSTEM_PROGRAM)
    }

    fn owned(&mut self, place: usize, otherwise: InstructionError) -> Result<&mut Vec<u8>, InstructionError> {
        let meta = self.meta(place)?;
        let program = self.program;
        let loaded = self.execution.accounts.get_mut(meta.index).ok_or(InstructionError::MissingAccount)?;
        if !meta.writable {
            return Err(InstructionError::ReadonlyDataModified);
        }
        if loaded.account.owner != program {
            return Err(otherwise);
        }
        Ok(&mut loaded.account.data)
    }

    /// Calls another program with some of this call's accounts. `seeded` are the places of addresses that this
    /// program derives and may therefore sign for.
    pub(super) fn invoke(&mut self, program: Key, grants: &[Grant], data: &[u8], seeded: &[usize]) -> Outcome {
        if self.depth >= CALL_DEPTH_MAX {
            return Err(InstructionError::CallDepth);
        }
        let program_index = self.execution.position(&program)?;
        if !self.metas.iter().any(|meta| meta.index == program_index) {
            return Err(InstructionError::MissingAccount);
        }
        let mut metas = Vec::with_capacity(grants.len());
        for grant in grants {
            let mine = self.meta(grant.place)?;
            let may_sign = mine.signer || seeded.contains(&grant.place);
            if (grant.writable && !mine.writable) || (grant.signer && !may_sign) {
                return Err(InstructionError::PrivilegeEscalation);
            }
            metas.push(Meta { index: mine.index, signer: grant.signer, writable: grant.writable });
        }
        let accounts = metas.iter().map(|meta| meta.index).collect();
        let (top, depth) = (self.top, self.depth.saturating_add(1));
        self.execution.inner.push(Inner { top, depth, program: program_index, accounts, data: data.to_vec() });
        self.execution.enter(top, depth, program, metas, data)
    }
}
