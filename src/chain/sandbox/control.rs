//! What only a sandbox can be told: to let time pass, to make money, to put accounts into a state, to go wrong.

use std::time::Duration;

use solana_instruction_error::InstructionError;

use super::bank::Bank;
use super::faults::Faults;
use super::programs::{self, token};
use super::{SandboxChain, svm};
use crate::chain::Account;
use crate::scheme::svm::program::ChannelAccount;
use crate::scheme::svm::{PAYMENT_CHANNELS, SYSTEM_PROGRAM};
use crate::x402::Key;
use crate::x402::key::Signature;

/// Why the sandbox cannot do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// No mint is there.
    #[error("{0} is not a mint of this sandbox; make one with create_mint")]
    NotAMint(Key),
    /// No token account is there.
    #[error("{0} is not a token account of this sandbox; mint_to makes the owner's")]
    NotATokenAccount(Key),
    /// The sum does not fit.
    #[error("the amount would overflow 64 bits; use a smaller one")]
    Overflow,
}

impl SandboxChain {
    /// Lets slots pass, beside those that the clock lets pass. The chain's time stands still.
    pub fn advance_slots(&self, slots: u64) {
        self.with(|bank| bank.advance_slots(slots));
    }

    /// Moves the chain's time ahead of the clock. No slots pass.
    pub fn advance_time(&self, by: Duration) {
        self.with(|bank| bank.advance_millis(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)));
    }

    /// The chain's time in Unix seconds.
    #[must_use]
    pub fn unix_time(&self) -> i64 {
        self.with(|bank| bank.now())
    }

    /// The present slot.
    #[must_use]
    pub fn current_slot(&self) -> u64 {
        self.with(Bank::slot)
    }

    /// Gives lamports to an account. The answer names a transaction that counts as executed.
    ///
    /// # Errors
    /// [`SandboxError::Overflow`]
    pub fn airdrop(&self, to: &Key, lamports: u64) -> Result<Signature, SandboxError> {
        self.with(|bank| {
            let mut account = bank.accounts.copy(to);
            account.lamports = account.lamports.checked_add(lamports).ok_or(SandboxError::Overflow)?;
            bank.accounts.set(*to, account);
            let mut id = [0; 64];
            id[..32].copy_from_slice(&bank.draw());
            id[32..].copy_from_slice(&bank.draw());
            bank.record(Signature(id), &id, None, None);
            Ok(Signature(id))
        })
    }

    /// Makes a mint, and the treasury's account for it. `authority` may mint and freeze.
    pub fn create_mint(&self, decimals: u8, token_program: Key, authority: Key) -> Key {
        let mint = Key(self.with(Bank::draw));
        self.put_mint(mint, decimals, token_program, Some(authority));
        mint
    }

    pub(super) fn put_mint(&self, mint: Key, decimals: u8, token_program: Key, authority: Option<Key>) {
        let treasury = self.treasury_owner();
        self.with(|bank| {
            let content = token::Mint { authority, supply: 0, decimals, freeze_authority: authority };
            put(bank, mint, token_program, content.write());
            ensure_ata(bank, &treasury, &mint, &token_program);
        });
    }

    /// Makes USDC for `owner`, and the owner's account for it where there is none; answers the account's address.
    ///
    /// # Errors
    /// [`SandboxError::Overflow`]
    pub fn mint_to(&self, owner: &Key, amount: u64) -> Result<Key, SandboxError> {
        self.mint_tokens(&self.usdc(), owner, amount)
    }

    /// Makes tokens of `mint` for `owner`, and the owner's account for them where there is none.
    ///
    /// # Errors
    /// [`SandboxError::NotAMint`], [`SandboxError::Overflow`], and [`SandboxError::NotATokenAccount`] where something
    /// else stands at the owner's address.
    pub fn mint_tokens(&self, mint: &Key, owner: &Key, amount: u64) -> Result<Key, SandboxError> {
        self.with(|bank| {
            let (mut supplied, program) = read_mint(bank, mint)?;
            let address = ensure_ata(bank, owner, mint, &program);
            let mut tokens = read_tokens(bank, &address)?;
            supplied.supply = supplied.supply.checked_add(amount).ok_or(SandboxError::Overflow)?;
            tokens.amount = tokens.amount.checked_add(amount).ok_or(SandboxError::Overflow)?;
            put(bank, *mint, program, supplied.write());
            put(bank, address, program, tokens.write());
            Ok(address)
        })
    }

    /// The USDC that `owner` holds in the associated account; nothing where there is none.
    #[must_use]
    pub fn token_balance(&self, owner: &Key) -> u64 {
        self.token_balance_of(&self.usdc(), owner)
    }

    /// The tokens of `mint` that `owner` holds in the associated account; nothing where there is none.
    #[must_use]
    pub fn token_balance_of(&self, mint: &Key, owner: &Key) -> u64 {
        self.with(|bank| {
            let (_, program) = read_mint(bank, mint).ok()?;
            let address = bank.ata(owner, mint, &program);
            Some(read_tokens(bank, &address).ok()?.amount)
        })
        .unwrap_or(0)
    }

    /// The lamports at `key`.
    #[must_use]
    pub fn lamports(&self, key: &Key) -> u64 {
        self.with(|bank| bank.accounts.get(key).map_or(0, |account| account.lamports))
    }

    /// The channel at `address`, where one is.
    #[must_use]
    pub fn channel(&self, address: &Key) -> Option<ChannelAccount> {
        self.with(|bank| {
            let account = bank.accounts.get(address).filter(|account| account.owner == PAYMENT_CHANNELS)?;
            ChannelAccount::decode(&account.data).ok()
        })
    }

    /// Freezes a token account, or thaws it.
    ///
    /// # Errors
    /// [`SandboxError::NotATokenAccount`]
    pub fn freeze(&self, token_account: &Key, frozen: bool) -> Result<(), SandboxError> {
        self.with(|bank| {
            let mut tokens = read_tokens(bank, token_account)?;
            let program = bank.accounts.copy(token_account).owner;
            tokens.frozen = frozen;
            put(bank, *token_account, program, tokens.write());
            Ok(())
        })
    }

    /// Puts an account into any state, or removes it with no lamports. What it holds is not checked.
    pub fn set_account(&self, key: Key, account: Account) {
        self.with(|bank| bank.accounts.set(key, account));
    }

    /// Sets what goes wrong from now on, in place of what was set before.
    pub fn set_faults(&self, faults: Faults) {
        self.with(|bank| bank.faults = faults.bounded());
    }

    /// What still goes wrong.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.with(|bank| bank.faults.clone())
    }

    /// Makes every blockhash that was given out expire now.
    pub fn expire_blockhashes(&self) {
        self.with(Bank::expire_blockhashes);
    }

    /// Executes the transactions that were held, in the order of their coming; answers how many got into a block.
    /// Whether later ones are held is as [`Faults::hold`] says.
    pub fn release_held(&self) -> usize {
        self.with(Bank::release_held)
    }
}

fn put(bank: &mut Bank, key: Key, owner: Key, data: Vec<u8>) {
    let lamports = bank.accounts.copy(&key).lamports.max(programs::rent(data.len()));
    bank.accounts.set(key, Account { lamports, owner, data });
}

fn ensure_ata(bank: &mut Bank, owner: &Key, mint: &Key, program: &Key) -> Key {
    let address = bank.ata(owner, mint, program);
    if bank.accounts.copy(&address).owner == SYSTEM_PROGRAM {
        put(bank, address, *program, token::TokenAccount::new(*mint, *owner).write());
    }
    address
}

fn read_mint(bank: &Bank, mint: &Key) -> Result<(token::Mint, Key), SandboxError> {
    let account = bank.accounts.get(mint).filter(|account| is_token_program(&account.owner));
    let account = account.ok_or(SandboxError::NotAMint(*mint))?;
    let content = token::Mint::read(&account.data).map_err(|_: InstructionError| SandboxError::NotAMint(*mint))?;
    Ok((content, account.owner))
}

fn read_tokens(bank: &Bank, key: &Key) -> Result<token::TokenAccount, SandboxError> {
    let account = bank.accounts.get(key).filter(|account| is_token_program(&account.owner));
    let account = account.ok_or(SandboxError::NotATokenAccount(*key))?;
    token::TokenAccount::read(&account.data).map_err(|_| SandboxError::NotATokenAccount(*key))
}

pub(super) fn is_token_program(key: &Key) -> bool {
    [svm::TOKEN_PROGRAM, svm::TOKEN_2022_PROGRAM].contains(key)
}
