//! The chain's state: slots and time, blockhashes, accounts, and the transactions that changed them.
//!
//! One value under one lock; nothing here waits, and signatures have been verified before it is asked. Slots pass with
//! the clock it was given, one every 400 ms, and can be advanced by hand; the chain's time can be moved on its own.
//! Blockhashes are derived from the slot and remembered when they are given out, so a slot that nobody looks at costs
//! nothing.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use solana_instruction_error::InstructionError;
use solana_transaction_error::TransactionError;

use super::accounts::{Accounts, CLOCK_SYSVAR, SYSVAR_OWNER};
use super::faults::Faults;
use super::history::{Details, Entry, History, TokenBalance};
use super::programs::{self, compute_budget, compute_budget::Budget, ed25519, token};
use super::runtime::{Derivations, Execution, Inner, Loaded, Log};
use crate::chain::{Account, Blockhash};
use crate::clock::{Clock, UnixMillis};
use crate::scheme::svm::transaction::{Instruction, Transaction};
use crate::scheme::svm::{self, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM};
use crate::x402::Key;
use crate::x402::key::Signature;

/// How long a slot lasts.
const SLOT_MILLIS: i64 = 400;
/// The first slot. Not small, so that what a client computes from it does not fall below zero.
const GENESIS_SLOT: u64 = 10_000;
/// Slots without a block, as every cluster has them; block height lags by so many, so that mixing the two up shows.
const SKIPPED_SLOTS: u64 = 700;
/// Block heights for which a blockhash lives.
const BLOCKHASH_LIFE: u64 = 150;
/// Slots after which a slot is final.
pub(super) const FINALITY_SLOTS: u64 = 32;
/// Slots of an epoch.
pub(super) const SLOTS_PER_EPOCH: u64 = 432_000;
/// What a signature costs.
pub(super) const LAMPORTS_PER_SIGNATURE: u64 = 5_000;
/// Transactions that can wait for their release.
const HELD_MAX: usize = 1_024;

/// A transaction with everything checked that needs no state.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    pub(super) transaction: Transaction,
    pub(super) wire: Vec<u8>,
    pub(super) instructions: Vec<Instruction>,
    /// Whether every required signature verifies.
    pub(super) signed: bool,
    /// The transaction's fee before priority.
    base_fee: u64,
    budget: Result<Budget, TransactionError>,
    precompiles: Vec<Option<u32>>,
}

impl Incoming {
    /// Checks what needs no state.
    pub(super) fn new(transaction: Transaction) -> Self {
        let instructions = transaction.instructions();
        let message = transaction.message();
        let signed = transaction
            .required_signers()
            .iter()
            .zip(transaction.signatures())
            .all(|(key, signature)| svm::verify_strict(key, message, &signature));
        let signers = u64::try_from(transaction.required_signers().len()).unwrap_or(u64::MAX);
        let signatures = signers.saturating_add(ed25519::signatures(&instructions));
        Self {
            wire: transaction.encode(),
            signed,
            base_fee: signatures.saturating_mul(LAMPORTS_PER_SIGNATURE),
            budget: compute_budget::budget(&instructions),
            precompiles: ed25519::verify_all(&instructions),
            instructions,
            transaction,
        }
    }

    /// What being taken costs.
    pub(super) fn fee(&self) -> u64 {
        let priority = self.budget.as_ref().map_or(0, |budget| budget.priority_fee);
        self.base_fee.saturating_add(priority)
    }
}

/// What running a transaction led to; nothing of it has happened yet.
#[derive(Debug)]
pub(super) struct Run {
    /// How it ended.
    pub(super) result: Result<(), TransactionError>,
    /// The log.
    pub(super) logs: Vec<Log>,
    /// Calls between programs.
    pub(super) inner: Vec<Inner>,
    /// Compute units that it took.
    pub(super) units: u64,
    /// The accounts as they would be.
    pub(super) after: Vec<Loaded>,
    before: Vec<Account>,
    fee: u64,
}

/// How sending ended.
#[derive(Debug)]
pub(super) enum Sent {
    /// The transaction was taken, as far as its sender is told.
    Taken(Signature),
    /// It was refused before it ran.
    Preflight(Box<Run>),
    /// It was executed and its answer is lost.
    Lost,
    /// Too many transactions wait for their release.
    Full,
}

/// The chain's state.
#[derive(Debug)]
pub(super) struct Bank {
    pub(super) accounts: Accounts,
    pub(super) history: History,
    pub(super) faults: Faults,
    pub(super) genesis_hash: [u8; 32],
    seed: u64,
    treasury_owner: Key,
    clock: Arc<dyn Clock>,
    started: UnixMillis,
    slots_added: u64,
    millis_added: i64,
    slot_seen: u64,
    /// How often every known blockhash was made to expire.
    generation: u64,
    blockhashes: HashMap<[u8; 32], u64>,
    held: Vec<Incoming>,
    derivations: Derivations,
    drawn: u64,
}

impl Bank {
    /// A chain that starts now.
    pub(super) fn new(genesis_hash: [u8; 32], seed: u64, treasury_owner: Key, clock: Arc<dyn Clock>) -> Self {
        let started = clock.now();
        Self {
            accounts: Accounts::genesis(),
            history: History::default(),
            faults: Faults::default(),
            genesis_hash,
            seed,
            treasury_owner,
            clock,
            started,
            slots_added: 0,
            millis_added: 0,
            slot_seen: 0,
            generation: 0,
            blockhashes: HashMap::new(),
            held: Vec::new(),
            derivations: Derivations::default(),
            drawn: 0,
        }
    }

    /// The present slot; never falls, whatever the clock does.
    pub(super) fn slot(&mut self) -> u64 {
        let passed = self.clock.now().0.saturating_sub(self.started.0).div_euclid(SLOT_MILLIS);
        let slot = GENESIS_SLOT.saturating_add(u64::try_from(passed).unwrap_or(0)).saturating_add(self.slots_added);
        self.slot_seen = self.slot_seen.max(slot);
        self.slot_seen
    }

    /// The height of a slot's block.
    pub(super) const fn height(slot: u64) -> u64 {
        slot.saturating_sub(SKIPPED_SLOTS)
    }

    /// The account at `key`, the clock's own among them.
    pub(super) fn account(&mut self, key: &Key) -> Option<Account> {
        if *key != CLOCK_SYSVAR {
            return self.accounts.get(key).cloned();
        }
        let (slot, now) = (self.slot(), self.now());
        let epoch = slot.checked_div(SLOTS_PER_EPOCH).unwrap_or(0);
        let fields = [slot.to_le_bytes(), now.to_le_bytes(), epoch.to_le_bytes()];
        let data = [fields.concat(), [epoch.saturating_add(1).to_le_bytes(), now.to_le_bytes()].concat()].concat();
        Some(Account { lamports: programs::rent(data.len()), owner: SYSVAR_OWNER, data })
    }

    /// The decimals of the mint that a token account or a mint counts with.
    pub(super) fn decimals(&self, account: &Account) -> Option<u8> {
        let mint = token::TokenAccount::read(&account.data).ok().map(|tokens| tokens.mint);
        let data = mint.map_or(Some(&account.data), |mint| self.accounts.get(&mint).map(|mint| &mint.data));
        Some(token::Mint::read(data?).ok()?.decimals)
    }

    /// An associated token address.
    pub(super) fn ata(&mut self, owner: &Key, mint: &Key, token_program: &Key) -> Key {
        self.derivations.ata(owner, mint, token_program)
    }

    /// The chain's time in Unix seconds.
    pub(super) fn now(&self) -> i64 {
        UnixMillis(self.clock.now().0.saturating_add(self.millis_added)).seconds()
    }

    /// Lets slots pass.
    pub(super) fn advance_slots(&mut self, slots: u64) {
        self.slots_added = self.slots_added.saturating_add(slots);
    }

    /// Moves the chain's time.
    pub(super) fn advance_millis(&mut self, millis: i64) {
        self.millis_added = self.millis_added.saturating_add(millis);
    }

    /// The blockhash of a slot.
    pub(super) fn blockhash(&mut self, slot: u64) -> Blockhash {
        let hash = self.digest(b"blockhash", slot, self.generation);
        let present = self.slot();
        let known = self.blockhashes.len();
        if self.blockhashes.insert(hash, slot).is_none() && known >= 512 {
            self.blockhashes.retain(|_, slot| slot.saturating_add(2 * BLOCKHASH_LIFE) >= present);
        }
        Blockhash { hash, last_valid_block_height: Self::height(slot).saturating_add(BLOCKHASH_LIFE), slot }
    }

    /// Whether a transaction with this blockhash is taken now.
    pub(super) fn is_blockhash_valid(&mut self, hash: &[u8; 32]) -> bool {
        let present = Self::height(self.slot());
        let of = self.blockhashes.get(hash);
        of.is_some_and(|slot| present <= Self::height(*slot).saturating_add(BLOCKHASH_LIFE))
    }

    /// Makes every blockhash that is known expire.
    pub(super) fn expire_blockhashes(&mut self) {
        self.blockhashes.clear();
        self.generation = self.generation.saturating_add(1);
    }

    /// Bytes that were never drawn before, the same for the same seed.
    pub(super) fn draw(&mut self) -> [u8; 32] {
        self.drawn = self.drawn.saturating_add(1);
        self.digest(b"draw", self.drawn, 0)
    }

    fn digest(&self, what: &[u8], first: u64, second: u64) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"turnpike sandbox\0").chain_update(what).chain_update(self.genesis_hash);
        let numbers = [self.seed, first, second].map(u64::to_le_bytes).concat();
        hash.chain_update(numbers).finalize().into()
    }

    /// Runs a transaction without effect.
    ///
    /// # Errors
    /// What a cluster refuses without charging its fee.
    pub(super) fn run(&mut self, incoming: &Incoming, check_age: bool) -> Result<Run, TransactionError> {
        let transaction = &incoming.transaction;
        if check_age && !self.is_blockhash_valid(&transaction.blockhash()) {
            return Err(TransactionError::BlockhashNotFound);
        }
        if check_age && self.history.has_message(transaction.message()) {
            return Err(TransactionError::AlreadyProcessed);
        }
        let budget = incoming.budget.clone()?;
        let mut loaded = self.load(incoming)?;
        let before: Vec<_> = loaded.iter().map(|loaded| loaded.account.clone()).collect();
        let fee = incoming.fee();
        charge(loaded.first_mut(), fee)?;
        let charged = loaded.clone();
        let mut execution = Execution {
            accounts: loaded,
            instructions: &incoming.instructions,
            precompiles: &incoming.precompiles,
            slot: self.slot(),
            now: self.now(),
            treasury_owner: self.treasury_owner,
            derivations: &mut self.derivations,
            units_left: budget.units,
            logs: Vec::new(),
            inner: Vec::new(),
        };
        let result = execute(&mut execution).and_then(|()| check_rent(&before, &execution.accounts));
        let units = budget.units.saturating_sub(execution.units_left);
        let after = if result.is_ok() { execution.accounts } else { charged };
        Ok(Run { result, logs: execution.logs, inner: execution.inner, units, after, before, fee })
    }

    fn load(&self, incoming: &Incoming) -> Result<Vec<Loaded>, TransactionError> {
        let transaction = &incoming.transaction;
        let signers = transaction.required_signers().len();
        let mut loaded: Vec<Loaded> = Vec::with_capacity(transaction.keys().len());
        for (index, key) in transaction.keys().iter().enumerate() {
            if loaded.iter().any(|earlier| earlier.key == *key) {
                return Err(TransactionError::AccountLoadedTwice);
            }
            let called = incoming.instructions.iter().any(|instruction| instruction.program == *key);
            let writable = transaction.is_writable(index) && !called && !programs::is_reserved(key);
            loaded.push(Loaded { key: *key, account: self.accounts.copy(key), writable, signer: index < signers });
        }
        Ok(loaded)
    }

    /// Lets what a transaction did happen, or only its fee where it failed.
    pub(super) fn commit(&mut self, incoming: &Incoming, mut run: Run) {
        if let Some((instruction, code)) = self.faults.take_failure() {
            run.fail(instruction, code);
        }
        let tokens_before = self.token_balances(run.after.iter().map(|loaded| &loaded.key).zip(&run.before));
        for loaded in run.after.iter().filter(|loaded| loaded.writable) {
            self.accounts.set(loaded.key, loaded.account.clone());
        }
        let after = run.after.iter().map(|loaded| (&loaded.key, &loaded.account));
        let tokens_after = self.token_balances(after);
        let lamports = run.before.iter().zip(&run.after).map(|(b, a)| (b.lamports, a.account.lamports)).collect();
        let details = Details {
            wire: incoming.wire.clone(),
            keys: incoming.transaction.keys().to_vec(),
            fee: run.fee,
            units: run.units,
            logs: run.logs,
            inner: run.inner,
            lamports,
            tokens_before,
            tokens_after,
        };
        self.record(incoming.transaction.id(), incoming.transaction.message(), run.result.err(), Some(details));
    }

    /// Remembers a transaction as executed in the present slot.
    pub(super) fn record(
        &mut self,
        id: Signature,
        message: &[u8],
        error: Option<TransactionError>,
        details: Option<Details>,
    ) {
        let entry = Entry { slot: self.slot(), time: self.now(), error, details: details.map(Box::new) };
        self.history.push(id, message, entry);
    }

    fn token_balances<'a>(&self, accounts: impl Iterator<Item = (&'a Key, &'a Account)>) -> Vec<TokenBalance> {
        let balance = |(index, (_, account)): (usize, (&Key, &Account))| {
            if account.owner != TOKEN_PROGRAM && account.owner != TOKEN_2022_PROGRAM {
                return None;
            }
            let tokens = token::TokenAccount::read(&account.data).ok()?;
            let decimals = token::Mint::read(&self.accounts.get(&tokens.mint)?.data).ok()?.decimals;
            let (mint, owner, amount) = (tokens.mint, tokens.owner, tokens.amount);
            Some(TokenBalance { index, mint, owner, program: account.owner, amount, decimals })
        };
        accounts.enumerate().filter_map(balance).collect()
    }

    /// Sends a transaction: runs it at once, unless a fault says otherwise.
    pub(super) fn send(&mut self, incoming: Incoming, skip_preflight: bool) -> Sent {
        let id = incoming.transaction.id();
        let run = if incoming.signed { self.run(&incoming, true) } else { Err(TransactionError::SignatureFailure) };
        if !skip_preflight && run.as_ref().map_or(true, |run| run.result.is_err()) {
            return Sent::Preflight(Box::new(run.unwrap_or_else(Run::refused)));
        }
        if self.faults.take_drop() {
            return Sent::Taken(id);
        }
        if self.faults.hold {
            if self.held.len() >= HELD_MAX {
                return Sent::Full;
            }
            self.held.push(incoming);
            return Sent::Taken(id);
        }
        // Without preflight, what no block can hold vanishes as it does on a cluster.
        if let Ok(run) = run {
            self.commit(&incoming, run);
        }
        if self.faults.take_lost() { Sent::Lost } else { Sent::Taken(id) }
    }

    /// Executes the transactions that were held, in the order of their coming; how many got into a block.
    pub(super) fn release_held(&mut self) -> usize {
        let mut landed = 0usize;
        for incoming in std::mem::take(&mut self.held) {
            if incoming.signed
                && let Ok(run) = self.run(&incoming, true)
            {
                self.commit(&incoming, run);
                landed = landed.saturating_add(1);
            }
        }
        landed
    }
}

impl Run {
    /// A transaction that never ran.
    pub(super) fn refused(error: TransactionError) -> Self {
        let (logs, inner, after, before) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { result: Err(error), logs, inner, units: 0, after, before, fee: 0 }
    }

    /// Makes a run fail after the fact: only its fee is left.
    fn fail(&mut self, instruction: u8, code: u32) {
        let error = InstructionError::Custom(code);
        self.logs.push(Log::Text(format!("the sandbox was told to fail here: {error}")));
        self.result = Err(TransactionError::InstructionError(instruction, error));
        for (index, (loaded, before)) in self.after.iter_mut().zip(&self.before).enumerate() {
            loaded.account = before.clone();
            if index == 0 {
                loaded.account.lamports = before.lamports.saturating_sub(self.fee);
            }
        }
    }
}

/// Takes the fee from its payer.
fn charge(payer: Option<&mut Loaded>, fee: u64) -> Result<(), TransactionError> {
    let payer = payer.ok_or(TransactionError::MissingSignatureForFee)?;
    let account = &mut payer.account;
    if account.lamports == 0 {
        return Err(TransactionError::AccountNotFound);
    }
    if account.owner != SYSTEM_PROGRAM || !account.data.is_empty() || !payer.writable {
        return Err(TransactionError::InvalidAccountForFee);
    }
    let left = account.lamports.checked_sub(fee).ok_or(TransactionError::InsufficientFundsForFee)?;
    if left > 0 && left < programs::rent(0) {
        return Err(TransactionError::InsufficientFundsForRent { account_index: 0 });
    }
    account.lamports = left;
    Ok(())
}

fn execute(execution: &mut Execution<'_>) -> Result<(), TransactionError> {
    let instructions = execution.instructions;
    for instruction in instructions {
        if !programs::is_program(&instruction.program) {
            let exists = execution
                .accounts
                .iter()
                .any(|loaded| loaded.key == instruction.program && loaded.account.lamports > 0);
            let (missing, unusable) =
                (TransactionError::ProgramAccountNotFound, TransactionError::InvalidProgramForExecution);
            return Err(if exists { unusable } else { missing });
        }
    }
    for top in 0..instructions.len() {
        let index = u8::try_from(top).unwrap_or(u8::MAX);
        execution.run(top).map_err(|error| TransactionError::InstructionError(index, error))?;
    }
    Ok(())
}

/// Refuses what would leave an account with some lamports, but not enough to be free of rent.
fn check_rent(before: &[Account], after: &[Loaded]) -> Result<(), TransactionError> {
    for (index, (before, loaded)) in before.iter().zip(after).enumerate() {
        let account = &loaded.account;
        let short = account.lamports > 0 && account.lamports < programs::rent(account.data.len());
        if loaded.writable && short && before != account {
            let account_index = u8::try_from(index).unwrap_or(u8::MAX);
            return Err(TransactionError::InsufficientFundsForRent { account_index });
        }
    }
    Ok(())
}
