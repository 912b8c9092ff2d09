//! Every account of the sandbox, by address, with an index by owning program.
//!
//! An account without lamports does not exist. Order is by address, so that answers do not depend on the run.

use std::collections::{BTreeMap, BTreeSet};

use super::programs;
use crate::chain::Account;
use crate::scheme::svm::{RENT_SYSVAR, SYSTEM_PROGRAM};
use crate::x402::Key;

/// Who owns the node's own programs.
pub(super) const NATIVE_LOADER: Key =
    Key(solana_address::Address::from_str_const("NativeLoader1111111111111111111111111111111").to_bytes());
/// Who owns programs that were deployed.
pub(super) const PROGRAM_LOADER: Key =
    Key(solana_address::Address::from_str_const("BPFLoader2111111111111111111111111111111111").to_bytes());
/// Who owns the sysvars.
pub(super) const SYSVAR_OWNER: Key =
    Key(solana_address::Address::from_str_const("Sysvar1111111111111111111111111111111111111").to_bytes());
/// The clock sysvar: slot and time as programs see them.
pub(super) const CLOCK_SYSVAR: Key =
    Key(solana_address::Address::from_str_const("SysvarC1ock11111111111111111111111111111111").to_bytes());

/// The rent sysvar's data: 3480 lamports per byte and year, two years (a float), half of it burnt.
const RENT_DATA: [u8; 17] = [0x98, 0x0d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 50];

/// The accounts.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    by_key: BTreeMap<Key, Account>,
    by_owner: BTreeMap<Key, BTreeSet<Key>>,
}

impl Accounts {
    /// The programs and sysvars that are there from the start.
    pub(super) fn genesis() -> Self {
        let mut accounts = Self::default();
        for (program, builtin) in programs::ALL {
            let owner = if builtin { NATIVE_LOADER } else { PROGRAM_LOADER };
            accounts.set(program, Account { lamports: 1, owner, data: Vec::new() });
        }
        let rent = Account { lamports: programs::rent(RENT_DATA.len()), owner: SYSVAR_OWNER, data: RENT_DATA.to_vec() };
        accounts.set(RENT_SYSVAR, rent);
        accounts
    }

    /// The account at `key`.
    pub(super) fn get(&self, key: &Key) -> Option<&Account> {
        self.by_key.get(key)
    }

    /// A copy of the account at `key`; an empty one of the system program where there is none.
    pub(super) fn copy(&self, key: &Key) -> Account {
        let absent = || Account { lamports: 0, owner: SYSTEM_PROGRAM, data: Vec::new() };
        self.by_key.get(key).cloned().unwrap_or_else(absent)
    }

    /// Puts an account at `key`, or nothing where it has no lamports.
    pub(super) fn set(&mut self, key: Key, account: Account) {
        let owner = account.owner;
        let alive = account.lamports > 0;
        let before = if alive { self.by_key.insert(key, account) } else { self.by_key.remove(&key) };
        if let Some(before) = before
            && (!alive || before.owner != owner)
            && let Some(keys) = self.by_owner.get_mut(&before.owner)
        {
            keys.remove(&key);
        }
        if alive {
            self.by_owner.entry(owner).or_default().insert(key);
        }
    }

    /// The accounts that a program owns, by address.
    pub(super) fn owned_by(&self, program: &Key) -> impl Iterator<Item = (&Key, &Account)> {
        let keys = self.by_owner.get(program).into_iter().flatten();
        keys.filter_map(|key| self.by_key.get_key_value(key))
    }
}
