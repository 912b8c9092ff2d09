//! How the payment-channels program checks what it is given: the channel account, the mint, token accounts.
//!
//! The same check answers different codes for different roles; the table of `docs/003` is kept per role.

use solana_instruction_error::InstructionError;

use super::{code, custom, require, token};
use crate::chain::sandbox::runtime::{Frame, Grant, Outcome};
use crate::scheme::svm::program::{CHANNEL_ACCOUNT_BYTES, ChannelAccount};
use crate::scheme::svm::{PAYMENT_CHANNELS, TOKEN_2022_PROGRAM, TOKEN_PROGRAM};
use crate::x402::Key;

/// Refuses any other number of accounts.
pub(super) fn expect(frame: &Frame<'_, '_>, count: usize, otherwise: InstructionError) -> Outcome {
    if frame.len() == count { Ok(()) } else { Err(otherwise) }
}

/// Reads the channel account at `place`.
pub(super) fn load(frame: &Frame<'_, '_>, place: usize) -> Result<ChannelAccount, InstructionError> {
    let account = frame.account(place)?;
    if account.owner != PAYMENT_CHANNELS {
        return Err(InstructionError::InvalidAccountOwner);
    }
    if account.data.len() != CHANNEL_ACCOUNT_BYTES {
        return Err(InstructionError::InvalidAccountData);
    }
    require(account.data.first() == Some(&1), code::INVALID_ACCOUNT_DISCRIMINATOR)?;
    require(account.data.get(1) == Some(&1), code::UNSUPPORTED_CHANNEL_VERSION)?;
    // With length, discriminator and version as they are, only the status can still be unknown; every instruction
    // looks at it first.
    ChannelAccount::decode(&account.data).map_err(|_| custom(code::INVALID_CHANNEL_STATUS))
}

/// Writes the channel account at `place`.
pub(super) fn store(frame: &mut Frame<'_, '_>, place: usize, channel: &ChannelAccount) -> Outcome {
    frame.set_data(place, channel.encode())
}

/// What is wrong with an associated token account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// Not the owner's associated address.
    Address,
    /// No token account is there.
    Unreadable,
    /// Frozen.
    NotInitialized,
    /// Given away to another owner.
    Owner,
}

/// A mint with its token program, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    mint_at: usize,
    mint: Key,
    program: Key,
    decimals: u8,
}

impl Tokens {
    /// Checks the token program and the mint.
    pub(super) fn check(frame: &Frame<'_, '_>, mint_at: usize, program_at: usize) -> Result<Self, InstructionError> {
        let program = frame.key(program_at)?;
        require([TOKEN_PROGRAM, TOKEN_2022_PROGRAM].contains(&program), code::INVALID_MINT_TOKEN_PROGRAM)?;
        let account = frame.account(mint_at)?;
        require(account.owner == program, code::MINT_ACCOUNT_MISMATCH)?;
        let mint = token::Mint::read(&account.data).map_err(|_| custom(code::MINT_ACCOUNT_MISMATCH))?;
        Ok(Self { mint_at, mint: frame.key(mint_at)?, program, decimals: mint.decimals })
    }

    /// Checks that `place` is the associated address of `owner`, and nothing else.
    pub(super) fn check_address(
        &self,
        frame: &mut Frame<'_, '_>,
        place: usize,
        owner: &Key,
        otherwise: u32,
    ) -> Outcome {
        let address = frame.ata(owner, &self.mint, &self.program);
        require(frame.key(place)? == address, otherwise)
    }

    /// What keeps `place` from being the associated token account of `owner`, in use; nothing where it is.
    pub(super) fn defect(
        &self,
        frame: &mut Frame<'_, '_>,
        place: usize,
        owner: &Key,
    ) -> Result<Option<Defect>, InstructionError> {
        if frame.ata(owner, &self.mint, &self.program) != frame.key(place)? {
            return Ok(Some(Defect::Address));
        }
        let account = frame.account(place)?;
        if account.owner != self.program {
            return Ok(Some(Defect::Unreadable));
        }
        Ok(match token::TokenAccount::read(&account.data) {
            Err(InstructionError::UninitializedAccount) => Some(Defect::NotInitialized),
            Err(_) => Some(Defect::Unreadable),
            Ok(tokens) if tokens.frozen => Some(Defect::NotInitialized),
            Ok(tokens) if tokens.owner != *owner || tokens.mint != self.mint => Some(Defect::Owner),
            Ok(_) => None,
        })
    }

    fn check_role(
        &self,
        frame: &mut Frame<'_, '_>,
        place: usize,
        owner: &Key,
        (mismatch, unreadable): (u32, u32),
    ) -> Outcome {
        match self.defect(frame, place, owner)? {
            None => Ok(()),
            Some(Defect::Unreadable) => Err(custom(unreadable)),
            Some(Defect::Address | Defect::NotInitialized | Defect::Owner) => Err(custom(mismatch)),
        }
    }

    /// Checks the channel's escrow.
    pub(super) fn check_escrow(&self, frame: &mut Frame<'_, '_>, place: usize, channel: usize) -> Outcome {
        let owner = frame.key(channel)?;
        let codes = (code::CHANNEL_ACCOUNT_MISMATCH, code::INVALID_CHANNEL_TOKEN_ACCOUNT);
        self.check_role(frame, place, &owner, codes)
    }

    /// Checks the payer's token account.
    pub(super) fn check_payer(&self, frame: &mut Frame<'_, '_>, place: usize, payer: &Key) -> Outcome {
        let codes = (code::PAYER_ACCOUNT_MISMATCH, code::INVALID_PAYER_TOKEN_ACCOUNT);
        self.check_role(frame, place, payer, codes)
    }

    /// Checks the treasury's token account.
    pub(super) fn check_treasury(&self, frame: &mut Frame<'_, '_>, place: usize) -> Outcome {
        let owner = frame.treasury_owner();
        let codes = (code::TREASURY_ACCOUNT_MISMATCH, code::INVALID_TREASURY_TOKEN_ACCOUNT);
        self.check_role(frame, place, &owner, codes)
    }

    /// What the token account at `place` holds.
    pub(super) fn amount(&self, frame: &Frame<'_, '_>, place: usize) -> Result<u64, InstructionError> {
        let account = token::TokenAccount::read(&frame.account(place)?.data);
        account.map(|account| account.amount).map_err(|_| custom(code::MALFORMED_MINT_TOKEN_ACCOUNT_DATA))
    }

    /// Moves tokens through the token program; nothing where `amount` is nothing.
    pub(super) fn transfer(
        &self,
        frame: &mut Frame<'_, '_>,
        from: usize,
        to: usize,
        authority: usize,
        amount: u64,
        seeded: &[usize],
    ) -> Outcome {
        if amount == 0 {
            return Ok(());
        }
        let grants = [Grant::write(from), Grant::read(self.mint_at), Grant::write(to), Grant::read(authority).signed()];
        frame.invoke(self.program, &grants, &token::transfer_checked(amount, self.decimals), seeded)
    }

    /// Closes the escrow; its rent goes to the rent payer.
    pub(super) fn close(&self, frame: &mut Frame<'_, '_>, escrow: usize, rent_payer: usize, channel: usize) -> Outcome {
        let grants = [Grant::write(escrow), Grant::write(rent_payer), Grant::read(channel).signed()];
        frame.invoke(self.program, &grants, &token::CLOSE_ACCOUNT, &[channel])
    }
}
