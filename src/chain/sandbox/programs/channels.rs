//! The payment-channels program as its documents describe it: nine instructions, every guard, every error code.
//!
//! A second reading of the same formats that `scheme/svm/program.rs` writes, on purpose: what one of them gets wrong,
//! the other refuses. Two things are left out: events are not emitted (the event authority is still checked), and
//! Token-2022 extensions do not exist here. Source: `docs/001` (guards), `docs/003` (accounts, error codes).

mod accounts;
mod payout;
mod voucher;

use sha2::{Digest, Sha256};
use solana_instruction_error::InstructionError;

use super::{Bytes, rent, system, token};
use crate::chain::sandbox::runtime::{Frame, Grant, NOT_ENOUGH_ACCOUNTS, Outcome};
use crate::scheme::svm::program::{
    CHANNEL_ACCOUNT_BYTES, ChannelAccount, ChannelStatus, OPEN_SLOT_WINDOW, Share, channel_address, discriminator,
    event_authority,
};
use crate::scheme::svm::{ATA_PROGRAM, PAYMENT_CHANNELS, RENT_SYSVAR, SYSTEM_PROGRAM, is_on_curve};
use accounts::{Tokens, expect, load, store};

/// The program's own error codes (`docs/003`, "Error Codes").
pub(in crate::chain::sandbox) mod code {
    #![allow(missing_docs, reason = "the program's own names")]
    pub const MISSING_REQUIRED_SIGNATURE: u32 = 1;
    pub const INVALID_CHANNEL_STATUS: u32 = 2;
    pub const INVALID_ACCOUNT_DISCRIMINATOR: u32 = 3;
    pub const UNSUPPORTED_CHANNEL_VERSION: u32 = 4;
    pub const INVALID_CHANNEL_PAYER: u32 = 5;
    pub const INVALID_CHANNEL_PAYEE: u32 = 6;
    pub const INVALID_CHANNEL_MINT: u32 = 7;
    pub const INVALID_EVENT_AUTHORITY: u32 = 8;
    pub const NOT_ENOUGH_ACCOUNT_KEYS: u32 = 9;
    pub const INVALID_CHANNEL_RENT_PAYER: u32 = 10;
    pub const CHANNEL_ACCOUNT_MISMATCH: u32 = 50;
    pub const INVALID_CHANNEL_TOKEN_ACCOUNT: u32 = 51;
    pub const MINT_ACCOUNT_MISMATCH: u32 = 53;
    pub const INVALID_MINT_TOKEN_PROGRAM: u32 = 54;
    pub const MALFORMED_MINT_TOKEN_ACCOUNT_DATA: u32 = 55;
    pub const PAYER_ACCOUNT_MISMATCH: u32 = 57;
    pub const INVALID_PAYER_TOKEN_ACCOUNT: u32 = 58;
    pub const PAYEE_ACCOUNT_MISMATCH: u32 = 60;
    pub const DEPOSIT_MUST_BE_NON_ZERO: u32 = 200;
    pub const GRACE_PERIOD_MUST_BE_NON_ZERO: u32 = 201;
    pub const MISSING_ED25519_VERIFICATION: u32 = 230;
    pub const MALFORMED_ED25519_INSTRUCTION: u32 = 231;
    pub const VOUCHER_CHANNEL_MISMATCH: u32 = 232;
    pub const VOUCHER_EXPIRED: u32 = 233;
    pub const VOUCHER_WATERMARK_NOT_MONOTONIC: u32 = 234;
    pub const VOUCHER_OVER_DEPOSIT: u32 = 235;
    pub const VOUCHER_SIGNER_MISMATCH: u32 = 237;
    pub const VOUCHER_BAD_MAGIC: u32 = 238;
    pub const INVALID_RECIPIENT_COUNT: u32 = 260;
    pub const INVALID_SPLIT_CONFIG: u32 = 261;
    pub const DUPLICATE_RECIPIENT: u32 = 263;
    pub const DISTRIBUTION_AMOUNT_OVERFLOW: u32 = 264;
    pub const CHANNEL_ADDRESS_MISMATCH: u32 = 2000;
    pub const PAYER_PAYEE_MUST_DIFFER: u32 = 2001;
    pub const INVALID_AUTHORIZED_SIGNER: u32 = 2002;
    pub const OPEN_SLOT_OUT_OF_WINDOW: u32 = 2003;
    pub const TOP_UP_DEPOSIT_OVERFLOW: u32 = 2100;
    pub const SEAL_DEADLINE_OVERFLOW: u32 = 2200;
    pub const SEAL_GRACE_PERIOD_NOT_ELAPSED: u32 = 2201;
    pub const PAYER_ALREADY_WITHDRAWN: u32 = 2300;
    pub const REFUND_CALCULATION_OVERFLOW: u32 = 2301;
    pub const CHANNEL_NOT_DISTRIBUTABLE: u32 = 2400;
    pub const TREASURY_ACCOUNT_MISMATCH: u32 = 2401;
    pub const INVALID_TREASURY_TOKEN_ACCOUNT: u32 = 2402;
    pub const RECIPIENT_ACCOUNT_MISMATCH: u32 = 2404;
    pub const INVALID_DISTRIBUTION_HASH: u32 = 2407;
    pub const NOTHING_TO_DISTRIBUTE: u32 = 2408;
    pub const RECIPIENT_ACCOUNT_COUNT_MISMATCH: u32 = 2409;
    pub const DISTRIBUTE_POOL_OVERFLOW: u32 = 2410;
    pub const DISTRIBUTE_BALANCE_CALCULATION_OVERFLOW: u32 = 2411;
    pub const RENT_PAYER_BALANCE_OVERFLOW: u32 = 2412;
    pub const CHANNEL_CLOSE_TOO_EARLY: u32 = 2414;
}

/// The instruction that events travel in.
const EMIT_EVENT: u8 = 228;
/// All of a distribution.
const BPS_ALL: u32 = 10_000;
/// The most recipients of a distribution.
const RECIPIENTS_MAX: u32 = 32;
/// One recipient in a preimage.
const ENTRY_BYTES: usize = 34;

const fn custom(code: u32) -> InstructionError {
    InstructionError::Custom(code)
}

fn require(condition: bool, code: u32) -> Outcome {
    if condition { Ok(()) } else { Err(custom(code)) }
}

/// Runs an instruction.
pub(in crate::chain::sandbox) fn run(frame: &mut Frame<'_, '_>, data: &[u8]) -> Outcome {
    let Some((instruction, data)) = data.split_first() else {
        return Err(InstructionError::InvalidInstructionData);
    };
    // Arguments are read before any account is looked at; instructions without arguments ignore what follows.
    match *instruction {
        discriminator::OPEN => OpenArgs::read(data).and_then(|args| open(frame, &args)),
        discriminator::SETTLE => settle(frame),
        discriminator::TOP_UP => exact(data).map(u64::from_le_bytes).and_then(|amount| top_up(frame, amount)),
        discriminator::SETTLE_AND_SEAL => {
            exact(data).and_then(|[has_voucher]| settle_and_seal(frame, has_voucher != 0))
        }
        discriminator::REQUEST_CLOSE => request_close(frame),
        discriminator::SEAL => seal(frame),
        discriminator::DISTRIBUTE => Plan::read(data).and_then(|plan| payout::distribute(frame, &plan)),
        discriminator::WITHDRAW_PAYER => withdraw_payer(frame),
        discriminator::RECLAIM => reclaim(frame),
        EMIT_EVENT => emit_event(frame),
        _ => Err(InstructionError::InvalidInstructionData),
    }
}

fn exact<const N: usize>(data: &[u8]) -> Result<[u8; N], InstructionError> {
    data.try_into().map_err(|_| InstructionError::InvalidInstructionData)
}

/// A distribution as it is revealed, with its hash.
struct Plan {
    shares: Vec<Share>,
    hash: [u8; 32],
}

impl Plan {
    fn read(preimage: &[u8]) -> Result<Self, InstructionError> {
        let invalid = InstructionError::InvalidInstructionData;
        let mut data = Bytes(preimage);
        let count = data.u32().ok_or(invalid.clone())?;
        require(count <= RECIPIENTS_MAX, code::INVALID_RECIPIENT_COUNT)?;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(ENTRY_BYTES));
        if length != Some(data.0.len()) {
            return Err(invalid);
        }
        let mut shares: Vec<Share> = Vec::new();
        for _ in 0..count {
            let share = data.key().zip(data.u16()).map(|(recipient, bps)| Share { recipient, bps });
            let share = share.ok_or(invalid.clone())?;
            require(share.bps != 0, code::INVALID_SPLIT_CONFIG)?;
            let twice = shares.iter().any(|earlier| earlier.recipient == share.recipient);
            require(!twice, code::DUPLICATE_RECIPIENT)?;
            shares.push(share);
        }
        let plan = Self { shares, hash: Sha256::digest(preimage).into() };
        require(plan.bps() <= BPS_ALL, code::INVALID_SPLIT_CONFIG)?;
        Ok(plan)
    }

    fn bps(&self) -> u32 {
        self.shares.iter().map(|share| u32::from(share.bps)).sum()
    }
}

struct OpenArgs {
    salt: u64,
    deposit: u64,
    grace_period: u32,
    open_slot: u64,
    plan: Plan,
}

impl OpenArgs {
    fn read(data: &[u8]) -> Result<Self, InstructionError> {
        let mut data = Bytes(data);
        let mut fields = || Some((data.u64()?, data.u64()?, data.u32()?, data.u64()?));
        let (salt, deposit, grace_period, open_slot) = fields().ok_or(InstructionError::InvalidInstructionData)?;
        Ok(Self { salt, deposit, grace_period, open_slot, plan: Plan::read(data.0)? })
    }
}

/// Places of `open`'s accounts.
mod open_at {
    pub(super) const PAYER: usize = 0;
    pub(super) const RENT_PAYER: usize = 1;
    pub(super) const PAYEE: usize = 2;
    pub(super) const MINT: usize = 3;
    pub(super) const AUTHORIZED_SIGNER: usize = 4;
    pub(super) const CHANNEL: usize = 5;
    pub(super) const PAYER_TOKENS: usize = 6;
    pub(super) const ESCROW: usize = 7;
    pub(super) const TOKEN_PROGRAM: usize = 8;
    pub(super) const SYSTEM_PROGRAM: usize = 9;
    pub(super) const RENT: usize = 10;
    pub(super) const EVENT_AUTHORITY: usize = 12;
    pub(super) const COUNT: usize = 14;
}

fn open(frame: &mut Frame<'_, '_>, args: &OpenArgs) -> Outcome {
    use open_at as at;
    expect(frame, at::COUNT, NOT_ENOUGH_ACCOUNTS)?;
    require(frame.is_signer(at::PAYER)?, code::MISSING_REQUIRED_SIGNATURE)?;
    require(frame.is_signer(at::RENT_PAYER)?, code::MISSING_REQUIRED_SIGNATURE)?;
    let (payer, payee) = (frame.key(at::PAYER)?, frame.key(at::PAYEE)?);
    require(payer != payee, code::PAYER_PAYEE_MUST_DIFFER)?;
    require(args.deposit != 0, code::DEPOSIT_MUST_BE_NON_ZERO)?;
    require(args.grace_period != 0, code::GRACE_PERIOD_MUST_BE_NON_ZERO)?;
    let authorized_signer = frame.key(at::AUTHORIZED_SIGNER)?;
    require(is_on_curve(&authorized_signer), code::INVALID_AUTHORIZED_SIGNER)?;
    let age = frame.slot().checked_sub(args.open_slot);
    require(age.is_some_and(|age| age <= OPEN_SLOT_WINDOW), code::OPEN_SLOT_OUT_OF_WINDOW)?;
    let mint = frame.key(at::MINT)?;
    let (channel, bump) = channel_address(&payer, &payee, &mint, &authorized_signer, args.salt, args.open_slot);
    let to_itself = args.plan.shares.iter().any(|share| share.recipient == channel);
    require(!to_itself, code::INVALID_SPLIT_CONFIG)?;
    require(frame.key(at::CHANNEL)? == channel, code::CHANNEL_ADDRESS_MISMATCH)?;

    let tokens = Tokens::check(frame, at::MINT, at::TOKEN_PROGRAM)?;
    tokens.check_address(frame, at::ESCROW, &channel, code::CHANNEL_ACCOUNT_MISMATCH)?;
    tokens.check_payer(frame, at::PAYER_TOKENS, &payer)?;

    create(frame)?;
    tokens.transfer(frame, at::PAYER_TOKENS, at::ESCROW, at::PAYER, args.deposit, &[])?;
    let account = ChannelAccount {
        bump,
        status: ChannelStatus::Open,
        salt: args.salt,
        deposit: args.deposit,
        settled: 0,
        payout_watermark: 0,
        closure_started_at: 0,
        payer_withdrawn_at: 0,
        grace_period: args.grace_period,
        distribution_hash: args.plan.hash,
        payer,
        payee,
        authorized_signer,
        mint,
        rent_payer: frame.key(at::RENT_PAYER)?,
        open_slot: args.open_slot,
    };
    store(frame, at::CHANNEL, &account)?;
    require(frame.key(at::EVENT_AUTHORITY)? == event_authority(), code::INVALID_EVENT_AUTHORITY)
}

/// Makes the channel account and its escrow, whatever lamports or tokens are there already.
fn create(frame: &mut Frame<'_, '_>) -> Outcome {
    use open_at as at;
    if frame.key(at::RENT)? != RENT_SYSVAR {
        return Err(InstructionError::InvalidArgument);
    }
    let lacking = rent(CHANNEL_ACCOUNT_BYTES).saturating_sub(frame.account(at::CHANNEL)?.lamports);
    if lacking > 0 {
        let grants = [Grant::write(at::RENT_PAYER).signed(), Grant::write(at::CHANNEL)];
        frame.invoke(SYSTEM_PROGRAM, &grants, &system::transfer(lacking), &[])?;
    }
    let itself = [Grant::write(at::CHANNEL).signed()];
    frame.invoke(SYSTEM_PROGRAM, &itself, &system::allocate(CHANNEL_ACCOUNT_BYTES), &[at::CHANNEL])?;
    frame.invoke(SYSTEM_PROGRAM, &itself, &system::assign(&PAYMENT_CHANNELS), &[at::CHANNEL])?;
    let grants = [
        Grant::write(at::RENT_PAYER).signed(),
        Grant::write(at::ESCROW),
        Grant::read(at::CHANNEL),
        Grant::read(at::MINT),
        Grant::read(at::SYSTEM_PROGRAM),
        Grant::read(at::TOKEN_PROGRAM),
    ];
    frame.invoke(ATA_PROGRAM, &grants, &[1], &[])
}

fn settle(frame: &mut Frame<'_, '_>) -> Outcome {
    const CHANNEL: usize = 0;
    const INSTRUCTIONS: usize = 1;
    expect(frame, 2, NOT_ENOUGH_ACCOUNTS)?;
    let mut channel = load(frame, CHANNEL)?;
    require(channel.status == ChannelStatus::Open, code::INVALID_CHANNEL_STATUS)?;
    channel.settled = voucher::verify(frame, CHANNEL, INSTRUCTIONS, &channel)?;
    store(frame, CHANNEL, &channel)
}

fn top_up(frame: &mut Frame<'_, '_>, amount: u64) -> Outcome {
    const PAYER: usize = 0;
    const CHANNEL: usize = 1;
    const PAYER_TOKENS: usize = 2;
    const ESCROW: usize = 3;
    const MINT: usize = 4;
    const TOKEN_PROGRAM: usize = 5;
    expect(frame, 6, custom(code::NOT_ENOUGH_ACCOUNT_KEYS))?;
    require(frame.is_signer(PAYER)?, code::MISSING_REQUIRED_SIGNATURE)?;
    require(amount != 0, code::DEPOSIT_MUST_BE_NON_ZERO)?;
    let mut channel = load(frame, CHANNEL)?;
    require(channel.status == ChannelStatus::Open, code::INVALID_CHANNEL_STATUS)?;
    require(frame.key(PAYER)? == channel.payer, code::INVALID_CHANNEL_PAYER)?;
    require(frame.key(MINT)? == channel.mint, code::INVALID_CHANNEL_MINT)?;
    let tokens = Tokens::check(frame, MINT, TOKEN_PROGRAM)?;
    tokens.check_escrow(frame, ESCROW, CHANNEL)?;
    tokens.check_payer(frame, PAYER_TOKENS, &channel.payer)?;
    channel.deposit = channel.deposit.checked_add(amount).ok_or(custom(code::TOP_UP_DEPOSIT_OVERFLOW))?;
    store(frame, CHANNEL, &channel)?;
    tokens.transfer(frame, PAYER_TOKENS, ESCROW, PAYER, amount, &[])
}

fn settle_and_seal(frame: &mut Frame<'_, '_>, has_voucher: bool) -> Outcome {
    const PAYEE: usize = 0;
    const CHANNEL: usize = 1;
    const INSTRUCTIONS: usize = 2;
    expect(frame, 3, custom(code::NOT_ENOUGH_ACCOUNT_KEYS))?;
    require(frame.is_signer(PAYEE)?, code::MISSING_REQUIRED_SIGNATURE)?;
    let mut channel = load(frame, CHANNEL)?;
    match channel.status {
        ChannelStatus::Open => {}
        ChannelStatus::Closing => {
            let deadline = deadline(&channel).ok_or(InstructionError::ArithmeticOverflow)?;
            require(frame.now() < deadline, code::INVALID_CHANNEL_STATUS)?;
        }
        ChannelStatus::Sealed | ChannelStatus::Distributed => return Err(custom(code::INVALID_CHANNEL_STATUS)),
    }
    require(frame.key(PAYEE)? == channel.payee, code::INVALID_CHANNEL_PAYEE)?;
    if has_voucher {
        channel.settled = voucher::verify(frame, CHANNEL, INSTRUCTIONS, &channel)?;
    }
    channel.status = ChannelStatus::Sealed;
    channel.closure_started_at = 0;
    store(frame, CHANNEL, &channel)
}

fn deadline(channel: &ChannelAccount) -> Option<i64> {
    channel.closure_started_at.checked_add(i64::from(channel.grace_period))
}

fn request_close(frame: &mut Frame<'_, '_>) -> Outcome {
    const PAYER: usize = 0;
    const CHANNEL: usize = 1;
    expect(frame, 2, custom(code::NOT_ENOUGH_ACCOUNT_KEYS))?;
    require(frame.is_signer(PAYER)?, code::MISSING_REQUIRED_SIGNATURE)?;
    let mut channel = load(frame, CHANNEL)?;
    require(channel.status == ChannelStatus::Open, code::INVALID_CHANNEL_STATUS)?;
    require(frame.key(PAYER)? == channel.payer, code::INVALID_CHANNEL_PAYER)?;
    channel.closure_started_at = frame.now();
    channel.status = ChannelStatus::Closing;
    store(frame, CHANNEL, &channel)
}

fn seal(frame: &mut Frame<'_, '_>) -> Outcome {
    const CHANNEL: usize = 0;
    expect(frame, 1, NOT_ENOUGH_ACCOUNTS)?;
    let mut channel = load(frame, CHANNEL)?;
    require(channel.status == ChannelStatus::Closing, code::INVALID_CHANNEL_STATUS)?;
    let deadline = deadline(&channel).ok_or(custom(code::SEAL_DEADLINE_OVERFLOW))?;
    require(frame.now() >= deadline, code::SEAL_GRACE_PERIOD_NOT_ELAPSED)?;
    channel.status = ChannelStatus::Sealed;
    channel.closure_started_at = 0;
    store(frame, CHANNEL, &channel)
}

fn withdraw_payer(frame: &mut Frame<'_, '_>) -> Outcome {
    const PAYER: usize = 0;
    const CHANNEL: usize = 1;
    const ESCROW: usize = 2;
    const PAYER_TOKENS: usize = 3;
    const MINT: usize = 4;
    const TOKEN_PROGRAM: usize = 5;
    expect(frame, 6, custom(code::NOT_ENOUGH_ACCOUNT_KEYS))?;
    require(frame.is_signer(PAYER)?, code::MISSING_REQUIRED_SIGNATURE)?;
    let mut channel = load(frame, CHANNEL)?;
    require(channel.status == ChannelStatus::Sealed, code::INVALID_CHANNEL_STATUS)?;
    require(frame.key(PAYER)? == channel.payer, code::INVALID_CHANNEL_PAYER)?;
    require(channel.payer_withdrawn_at == 0, code::PAYER_ALREADY_WITHDRAWN)?;
    require(frame.key(MINT)? == channel.mint, code::INVALID_CHANNEL_MINT)?;
    let tokens = Tokens::check(frame, MINT, TOKEN_PROGRAM)?;
    tokens.check_escrow(frame, ESCROW, CHANNEL)?;
    tokens.check_payer(frame, PAYER_TOKENS, &channel.payer)?;
    channel.payer_withdrawn_at = frame.now();
    store(frame, CHANNEL, &channel)?;
    let refund = channel.deposit.checked_sub(channel.settled);
    let refund = refund.ok_or(custom(code::REFUND_CALCULATION_OVERFLOW))?;
    tokens.transfer(frame, ESCROW, PAYER_TOKENS, CHANNEL, refund, &[CHANNEL])
}

fn reclaim(frame: &mut Frame<'_, '_>) -> Outcome {
    const CHANNEL: usize = 0;
    const RENT_PAYER: usize = 1;
    expect(frame, 2, NOT_ENOUGH_ACCOUNTS)?;
    let channel = load(frame, CHANNEL)?;
    require(channel.status == ChannelStatus::Distributed, code::INVALID_CHANNEL_STATUS)?;
    require(frame.key(RENT_PAYER)? == channel.rent_payer, code::INVALID_CHANNEL_RENT_PAYER)?;
    let unlocked = may_be_freed(frame, &channel)?;
    require(unlocked, code::CHANNEL_CLOSE_TOO_EARLY)?;
    deallocate(frame, CHANNEL, RENT_PAYER)
}

/// Whether the channel's address can never be opened again.
fn may_be_freed(frame: &Frame<'_, '_>, channel: &ChannelAccount) -> Result<bool, InstructionError> {
    let window = channel.open_slot.checked_add(OPEN_SLOT_WINDOW).ok_or(InstructionError::ArithmeticOverflow)?;
    Ok(frame.slot() > window)
}

/// Gives every lamport of the channel account back and deletes it.
fn deallocate(frame: &mut Frame<'_, '_>, channel: usize, rent_payer: usize) -> Outcome {
    let lamports = frame.account(channel)?.lamports;
    let sum = frame.account(rent_payer)?.lamports.checked_add(lamports);
    let sum = sum.ok_or(custom(code::RENT_PAYER_BALANCE_OVERFLOW))?;
    frame.set_lamports(rent_payer, sum)?;
    frame.set_lamports(channel, 0)?;
    frame.delete(channel)
}

fn emit_event(frame: &mut Frame<'_, '_>) -> Outcome {
    expect(frame, 1, custom(code::NOT_ENOUGH_ACCOUNT_KEYS))?;
    require(frame.is_signer(0)?, code::MISSING_REQUIRED_SIGNATURE)?;
    require(frame.key(0)? == event_authority(), code::INVALID_EVENT_AUTHORITY)
}
