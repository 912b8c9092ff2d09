//! SPL Token, and Token-2022 as far as it is the same: mints of 82 bytes and accounts of 165, no extensions, no
//! multisignatures, no wrapped SOL.
//!
//! Errors are the programs' own numbers (`TokenError`), in their order of checks. A frozen account moves nothing.

use solana_instruction_error::InstructionError;

use super::Bytes;
use crate::chain::sandbox::runtime::{Frame, Outcome};
use crate::x402::Key;

/// The size of a mint.
pub(in crate::chain::sandbox) const MINT_BYTES: usize = 82;
/// The size of a token account.
pub(in crate::chain::sandbox) const ACCOUNT_BYTES: usize = 165;

const INSUFFICIENT_FUNDS: InstructionError = InstructionError::Custom(1);
pub(in crate::chain::sandbox) const INVALID_MINT: InstructionError = InstructionError::Custom(2);
const MINT_MISMATCH: InstructionError = InstructionError::Custom(3);
const OWNER_MISMATCH: InstructionError = InstructionError::Custom(4);
const FIXED_SUPPLY: InstructionError = InstructionError::Custom(5);
const ALREADY_IN_USE: InstructionError = InstructionError::Custom(6);
const NON_NATIVE_HAS_BALANCE: InstructionError = InstructionError::Custom(11);
const INVALID_INSTRUCTION: InstructionError = InstructionError::Custom(12);
const INVALID_STATE: InstructionError = InstructionError::Custom(13);
const OVERFLOW: InstructionError = InstructionError::Custom(14);
const AUTHORITY_TYPE_NOT_SUPPORTED: InstructionError = InstructionError::Custom(15);
const MINT_CANNOT_FREEZE: InstructionError = InstructionError::Custom(16);
const ACCOUNT_FROZEN: InstructionError = InstructionError::Custom(17);
const MINT_DECIMALS_MISMATCH: InstructionError = InstructionError::Custom(18);
const NOT_RENT_EXEMPT: InstructionError = InstructionError::Custom(0);

/// A mint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::chain::sandbox) struct Mint {
    pub(in crate::chain::sandbox) authority: Option<Key>,
    pub(in crate::chain::sandbox) supply: u64,
    pub(in crate::chain::sandbox) decimals: u8,
    pub(in crate::chain::sandbox) freeze_authority: Option<Key>,
}

/// A token account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::chain::sandbox) struct TokenAccount {
    pub(in crate::chain::sandbox) mint: Key,
    pub(in crate::chain::sandbox) owner: Key,
    pub(in crate::chain::sandbox) amount: u64,
    pub(in crate::chain::sandbox) delegate: Option<Key>,
    pub(in crate::chain::sandbox) frozen: bool,
    pub(in crate::chain::sandbox) delegated_amount: u64,
    pub(in crate::chain::sandbox) close_authority: Option<Key>,
}

fn read_optional(data: &mut Bytes<'_>) -> Option<Option<Key>> {
    let (tag, key) = (data.u32()?, data.key()?);
    match tag {
        0 => Some(None),
        1 => Some(Some(key)),
        _ => None,
    }
}

fn write_optional(data: &mut Vec<u8>, key: Option<&Key>) {
    data.extend(u32::from(key.is_some()).to_le_bytes());
    data.extend(key.map_or([0; 32], |key| key.0));
}

impl Mint {
    /// Reads a mint that is in use.
    pub(in crate::chain::sandbox) fn read(data: &[u8]) -> Result<Self, InstructionError> {
        if data.len() != MINT_BYTES {
            return Err(InstructionError::InvalidAccountData);
        }
        let mut data = Bytes(data);
        let mut read = || {
            let (authority, supply, decimals) = (read_optional(&mut data)?, data.u64()?, data.u8()?);
            let initialized = data.u8()?;
            Some((initialized, Self { authority, supply, decimals, freeze_authority: read_optional(&mut data)? }))
        };
        match read() {
            Some((1, mint)) => Ok(mint),
            Some((0, _)) => Err(InstructionError::UninitializedAccount),
            _ => Err(InstructionError::InvalidAccountData),
        }
    }

    /// Writes it.
    pub(in crate::chain::sandbox) fn write(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(MINT_BYTES);
        write_optional(&mut data, self.authority.as_ref());
        data.extend(self.supply.to_le_bytes());
        data.extend([self.decimals, 1]);
        write_optional(&mut data, self.freeze_authority.as_ref());
        data
    }
}

impl TokenAccount {
    /// A new account of `owner`, empty.
    pub(in crate::chain::sandbox) const fn new(mint: Key, owner: Key) -> Self {
        Self { mint, owner, amount: 0, delegate: None, frozen: false, delegated_amount: 0, close_authority: None }
    }

    /// Reads an account that is in use.
    pub(in crate::chain::sandbox) fn read(data: &[u8]) -> Result<Self, InstructionError> {
        if data.len() != ACCOUNT_BYTES {
            return Err(InstructionError::InvalidAccountData);
        }
        let mut data = Bytes(data);
        let mut read = || {
            let (mint, owner, amount) = (data.key()?, data.key()?, data.u64()?);
            let (delegate, state) = (read_optional(&mut data)?, data.u8()?);
            let (_native, _reserve) = (data.u32()?, data.u64()?);
            let (delegated_amount, close_authority) = (data.u64()?, read_optional(&mut data)?);
            let frozen = state == 2;
            Some((state, Self { mint, owner, amount, delegate, frozen, delegated_amount, close_authority }))
        };
        match read() {
            Some((1 | 2, account)) => Ok(account),
            Some((0, _)) => Err(InstructionError::UninitializedAccount),
            _ => Err(InstructionError::InvalidAccountData),
        }
    }

    /// Writes it.
    pub(in crate::chain::sandbox) fn write(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(ACCOUNT_BYTES);
        data.extend(self.mint.0);
        data.extend(self.owner.0);
        data.extend(self.amount.to_le_bytes());
        write_optional(&mut data, self.delegate.as_ref());
        data.push(if self.frozen { 2 } else { 1 });
        data.extend([0; 12]);
        data.extend(self.delegated_amount.to_le_bytes());
        write_optional(&mut data, self.close_authority.as_ref());
        data
    }
}

/// `InitializeAccount3`'s data.
pub(in crate::chain::sandbox) fn initialize_account(owner: &Key) -> Vec<u8> {
    [&[18][..], &owner.0].concat()
}

/// `TransferChecked`'s data.
pub(in crate::chain::sandbox) fn transfer_checked(amount: u64, decimals: u8) -> Vec<u8> {
    [&[12][..], &amount.to_le_bytes(), &[decimals]].concat()
}

/// `CloseAccount`'s data.
pub(in crate::chain::sandbox) const CLOSE_ACCOUNT: [u8; 1] = [9];

/// Runs an instruction.
pub(in crate::chain::sandbox) fn run(frame: &mut Frame<'_, '_>, data: &[u8]) -> Outcome {
    process(frame, Bytes(data)).unwrap_or(Err(INVALID_INSTRUCTION))
}

fn process(frame: &mut Frame<'_, '_>, mut data: Bytes<'_>) -> Option<Outcome> {
    Some(match data.u8()? {
        0 | 20 => {
            let (decimals, authority) = (data.u8()?, data.key()?);
            let freeze_authority = new_authority(&mut data)?;
            initialize_mint(frame, Mint { authority: Some(authority), supply: 0, decimals, freeze_authority })
        }
        1 => frame.key(2).and_then(|owner| initialize(frame, owner)),
        16 | 18 => {
            let owner = data.key()?;
            initialize(frame, owner)
        }
        3 => {
            let amount = data.u64()?;
            transfer(frame, amount, None)
        }
        12 => {
            let (amount, decimals) = (data.u64()?, data.u8()?);
            transfer(frame, amount, Some(decimals))
        }
        4 => {
            let amount = data.u64()?;
            approve(frame, amount)
        }
        5 => revoke(frame),
        6 => {
            let (kind, key) = (data.u8()?, new_authority(&mut data)?);
            set_authority(frame, kind, key)
        }
        7 | 14 => {
            let checked = data.0.len() > 8;
            let (amount, decimals) = (data.u64()?, if checked { Some(data.u8()?) } else { None });
            mint_to(frame, amount, decimals)
        }
        8 | 15 => {
            let checked = data.0.len() > 8;
            let (amount, decimals) = (data.u64()?, if checked { Some(data.u8()?) } else { None });
            burn(frame, amount, decimals)
        }
        9 => close(frame),
        10 => freeze(frame, true),
        11 => freeze(frame, false),
        // InitializeImmutableOwner: only a mark on accounts that have no extensions.
        22 => Ok(()),
        _ => return None,
    })
}

fn new_authority(data: &mut Bytes<'_>) -> Option<Option<Key>> {
    match data.u8()? {
        0 => Some(None),
        1 => data.key().map(Some),
        _ => None,
    }
}

fn account(frame: &Frame<'_, '_>, place: usize) -> Result<TokenAccount, InstructionError> {
    TokenAccount::read(&frame.account(place)?.data)
}

fn mint(frame: &Frame<'_, '_>, place: usize) -> Result<Mint, InstructionError> {
    Mint::read(&frame.account(place)?.data)
}

fn require(condition: bool, otherwise: InstructionError) -> Outcome {
    if condition { Ok(()) } else { Err(otherwise) }
}

/// Whether `expected` is who signs at `place`.
fn authorize(frame: &Frame<'_, '_>, place: usize, expected: &Key) -> Outcome {
    require(frame.key(place)? == *expected, OWNER_MISMATCH)?;
    frame.require_signer(place)
}

fn initialize_mint(frame: &mut Frame<'_, '_>, mint: Mint) -> Outcome {
    let current = frame.account(0)?;
    require(current.data.len() == MINT_BYTES, InstructionError::InvalidAccountData)?;
    require(Mint::read(&current.data).is_err(), ALREADY_IN_USE)?;
    require(current.lamports >= super::rent(MINT_BYTES), NOT_RENT_EXEMPT)?;
    frame.set_data(0, mint.write())
}

fn initialize(frame: &mut Frame<'_, '_>, owner: Key) -> Outcome {
    let current = frame.account(0)?;
    require(current.data.len() == ACCOUNT_BYTES, InstructionError::InvalidAccountData)?;
    require(TokenAccount::read(&current.data).is_err(), ALREADY_IN_USE)?;
    require(current.lamports >= super::rent(ACCOUNT_BYTES), NOT_RENT_EXEMPT)?;
    require(frame.account(1)?.owner == frame.program, InstructionError::IncorrectProgramId)?;
    mint(frame, 1).map_err(|_| INVALID_MINT)?;
    let fresh = TokenAccount::new(frame.key(1)?, owner);
    frame.set_data(0, fresh.write())
}

fn transfer(frame: &mut Frame<'_, '_>, amount: u64, decimals: Option<u8>) -> Outcome {
    let (to, by) = if decimals.is_some() { (2, 3) } else { (1, 2) };
    let (mut source, mut destination) = (account(frame, 0)?, account(frame, to)?);
    require(!source.frozen && !destination.frozen, ACCOUNT_FROZEN)?;
    let left = source.amount.checked_sub(amount).ok_or(INSUFFICIENT_FUNDS)?;
    require(source.mint == destination.mint, MINT_MISMATCH)?;
    if let Some(decimals) = decimals {
        require(frame.key(1)? == source.mint, MINT_MISMATCH)?;
        require(mint(frame, 1)?.decimals == decimals, MINT_DECIMALS_MISMATCH)?;
    }
    spend(frame, by, &mut source, amount)?;
    let to_itself = frame.key(0)? == frame.key(to)?;
    if to_itself || amount == 0 {
        let program = frame.program;
        require(frame.account(0)?.owner == program, InstructionError::IncorrectProgramId)?;
        require(frame.account(to)?.owner == program, InstructionError::IncorrectProgramId)?;
    }
    if to_itself {
        return Ok(());
    }
    source.amount = left;
    destination.amount = destination.amount.checked_add(amount).ok_or(OVERFLOW)?;
    frame.set_data(0, source.write())?;
    frame.set_data(to, destination.write())
}

/// Checks that who signs at `by` may take `amount`: the owner, or a delegate within what was approved.
fn spend(frame: &Frame<'_, '_>, by: usize, source: &mut TokenAccount, amount: u64) -> Outcome {
    let authority = frame.key(by)?;
    if source.delegate == Some(authority) && source.owner != authority {
        frame.require_signer(by)?;
        source.delegated_amount = source.delegated_amount.checked_sub(amount).ok_or(INSUFFICIENT_FUNDS)?;
        if source.delegated_amount == 0 {
            source.delegate = None;
        }
        return Ok(());
    }
    let owner = source.owner;
    authorize(frame, by, &owner)
}

fn approve(frame: &mut Frame<'_, '_>, amount: u64) -> Outcome {
    let mut source = account(frame, 0)?;
    require(!source.frozen, ACCOUNT_FROZEN)?;
    authorize(frame, 2, &source.owner)?;
    source.delegate = Some(frame.key(1)?);
    source.delegated_amount = amount;
    frame.set_data(0, source.write())
}

fn revoke(frame: &mut Frame<'_, '_>) -> Outcome {
    let mut source = account(frame, 0)?;
    require(!source.frozen, ACCOUNT_FROZEN)?;
    authorize(frame, 1, &source.owner)?;
    source.delegate = None;
    source.delegated_amount = 0;
    frame.set_data(0, source.write())
}

fn set_authority(frame: &mut Frame<'_, '_>, kind: u8, new: Option<Key>) -> Outcome {
    if frame.account(0)?.data.len() == ACCOUNT_BYTES {
        let mut changed = account(frame, 0)?;
        require(!changed.frozen, ACCOUNT_FROZEN)?;
        match kind {
            2 => {
                authorize(frame, 1, &changed.owner)?;
                changed.owner = new.ok_or(INVALID_INSTRUCTION)?;
                changed.delegate = None;
                changed.delegated_amount = 0;
            }
            3 => {
                authorize(frame, 1, &changed.close_authority.unwrap_or(changed.owner))?;
                changed.close_authority = new;
            }
            _ => return Err(AUTHORITY_TYPE_NOT_SUPPORTED),
        }
        return frame.set_data(0, changed.write());
    }
    let mut changed = mint(frame, 0)?;
    match kind {
        0 => {
            authorize(frame, 1, &changed.authority.ok_or(FIXED_SUPPLY)?)?;
            changed.authority = new;
        }
        1 => {
            authorize(frame, 1, &changed.freeze_authority.ok_or(MINT_CANNOT_FREEZE)?)?;
            changed.freeze_authority = new;
        }
        _ => return Err(AUTHORITY_TYPE_NOT_SUPPORTED),
    }
    frame.set_data(0, changed.write())
}

fn mint_to(frame: &mut Frame<'_, '_>, amount: u64, decimals: Option<u8>) -> Outcome {
    let mut destination = account(frame, 1)?;
    require(!destination.frozen, ACCOUNT_FROZEN)?;
    require(destination.mint == frame.key(0)?, MINT_MISMATCH)?;
    let mut source = mint(frame, 0)?;
    require(decimals.is_none_or(|decimals| decimals == source.decimals), MINT_DECIMALS_MISMATCH)?;
    authorize(frame, 2, &source.authority.ok_or(FIXED_SUPPLY)?)?;
    source.supply = source.supply.checked_add(amount).ok_or(OVERFLOW)?;
    destination.amount = destination.amount.checked_add(amount).ok_or(OVERFLOW)?;
    frame.set_data(0, source.write())?;
    frame.set_data(1, destination.write())
}

fn burn(frame: &mut Frame<'_, '_>, amount: u64, decimals: Option<u8>) -> Outcome {
    let mut source = account(frame, 0)?;
    require(!source.frozen, ACCOUNT_FROZEN)?;
    let left = source.amount.checked_sub(amount).ok_or(INSUFFICIENT_FUNDS)?;
    require(source.mint == frame.key(1)?, MINT_MISMATCH)?;
    let mut of = mint(frame, 1)?;
    require(decimals.is_none_or(|decimals| decimals == of.decimals), MINT_DECIMALS_MISMATCH)?;
    spend(frame, 2, &mut source, amount)?;
    source.amount = left;
    of.supply = of.supply.checked_sub(amount).ok_or(OVERFLOW)?;
    frame.set_data(0, source.write())?;
    frame.set_data(1, of.write())
}

fn close(frame: &mut Frame<'_, '_>) -> Outcome {
    require(frame.key(0)? != frame.key(1)?, InstructionError::InvalidAccountData)?;
    let closed = account(frame, 0)?;
    require(closed.amount == 0, NON_NATIVE_HAS_BALANCE)?;
    authorize(frame, 2, &closed.close_authority.unwrap_or(closed.owner))?;
    let lamports = frame.account(0)?.lamports;
    frame.move_lamports(0, 1, lamports)?;
    frame.delete(0)
}

fn freeze(frame: &mut Frame<'_, '_>, frozen: bool) -> Outcome {
    let mut changed = account(frame, 0)?;
    require(changed.frozen != frozen, INVALID_STATE)?;
    require(changed.mint == frame.key(1)?, MINT_MISMATCH)?;
    let authority = mint(frame, 1)?.freeze_authority.ok_or(MINT_CANNOT_FREEZE)?;
    authorize(frame, 2, &authority)?;
    changed.frozen = frozen;
    frame.set_data(0, changed.write())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Key> {
        any::<[u8; 32]>().prop_map(Key)
    }

    proptest! {
        #[test]
        fn mints_and_accounts_read_back(
            keys in (key(), key(), proptest::option::of(key()), proptest::option::of(key())),
            numbers in (any::<u64>(), any::<u64>(), any::<u8>()),
            frozen in any::<bool>(),
        ) {
            let (mint, owner, first, second) = keys;
            let (amount, delegated_amount, decimals) = numbers;
            let account = TokenAccount {
                mint, owner, amount, delegate: first, frozen, delegated_amount, close_authority: second,
            };
            let bytes = account.write();
            prop_assert_eq!(bytes.len(), ACCOUNT_BYTES);
            prop_assert_eq!(TokenAccount::read(&bytes).unwrap(), account);
            let mint = Mint { authority: first, supply: amount, decimals, freeze_authority: second };
            let bytes = mint.write();
            prop_assert_eq!(bytes.len(), MINT_BYTES);
            prop_assert_eq!(Mint::read(&bytes).unwrap(), mint);
        }

        #[test]
        fn arbitrary_account_data_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (TokenAccount::read(&data), Mint::read(&data));
        }
    }
}
