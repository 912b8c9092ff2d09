//! The payment-channels program's byte formats: the channel account, the instructions, the voucher.
//!
//! Everything is written and read whole: short data and trailing bytes are refused. Source: `docs/001` (account,
//! voucher, distribution preimage) and `docs/003` (instructions), and for the memo and the close message
//! `scheme_batch_settlement_svm.md` sections 3 and 4.2.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use super::transaction::{AccountMeta, Instruction};
use super::{
    ATA_PROGRAM, COMPUTE_BUDGET_PROGRAM, ED25519_PROGRAM, INSTRUCTIONS_SYSVAR, MEMO_PROGRAM, PAYMENT_CHANNELS,
    RENT_SYSVAR, SYSTEM_PROGRAM, associated_token_account, derive,
};
use crate::x402::Key;
use crate::x402::key::Signature;

/// Slots for which an `open_slot` may be opened, and after which a drained channel may be reclaimed.
pub const OPEN_SLOT_WINDOW: u64 = 1_500;
/// The size of a channel account.
pub const CHANNEL_ACCOUNT_BYTES: usize = 256;
/// Where a channel account holds its payer, for `getProgramAccounts` filters.
pub const PAYER_OFFSET: usize = 88;
/// Where a channel account holds its rent payer, for `getProgramAccounts` filters.
pub const RENT_PAYER_OFFSET: usize = 216;
/// The size of a voucher's signed message.
pub const VOUCHER_MESSAGE_BYTES: usize = 50;
/// All of a distribution, in basis points.
pub const BPS_ALL: u16 = 10_000;
/// The text that binds a receiver authorizer at open, before its base58 key.
pub const RECEIVER_AUTHORIZER_MEMO: &str = "x402:batch-settlement:svm:rcvauth:v1:";

/// First bytes of instruction data.
pub mod discriminator {
    #![allow(missing_docs, reason = "each is the instruction's own name")]
    pub const OPEN: u8 = 1;
    pub const SETTLE: u8 = 2;
    pub const TOP_UP: u8 = 3;
    pub const SETTLE_AND_SEAL: u8 = 4;
    pub const REQUEST_CLOSE: u8 = 5;
    pub const SEAL: u8 = 6;
    pub const DISTRIBUTE: u8 = 7;
    pub const WITHDRAW_PAYER: u8 = 8;
    pub const RECLAIM: u8 = 9;
}

/// Where a channel stands on chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelStatus {
    /// Takes vouchers.
    Open,
    /// Its watermark is final; what it holds waits to be distributed.
    Sealed,
    /// The payer has asked to close; only the payee can still apply a voucher.
    Closing,
    /// Drained; only its rent is left.
    Distributed,
}

/// A channel account, decoded (`docs/001`, "Channel PDA").
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the program's own field names")]
pub struct ChannelAccount {
    pub bump: u8,
    pub status: ChannelStatus,
    pub salt: u64,
    pub deposit: u64,
    pub settled: u64,
    pub payout_watermark: u64,
    pub closure_started_at: i64,
    pub payer_withdrawn_at: i64,
    pub grace_period: u32,
    pub distribution_hash: [u8; 32],
    pub payer: Key,
    pub payee: Key,
    pub authorized_signer: Key,
    pub mint: Key,
    pub rent_payer: Key,
    pub open_slot: u64,
}

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed {0}")]
pub struct FormatError(pub &'static str);

/// Takes bytes from the front, refusing short data.
struct Reader<'a>(&'a [u8], &'static str);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(FormatError(self.1))?;
        self.0 = tail;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.take()?))
    }
    fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    fn i64(&mut self) -> Result<i64, FormatError> {
        Ok(i64::from_le_bytes(self.take()?))
    }
    fn key(&mut self) -> Result<Key, FormatError> {
        Ok(Key(self.take()?))
    }
    fn end(self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError(self.1)) }
    }
}

impl ChannelAccount {
    /// Reads a channel account's data.
    ///
    /// # Errors
    /// Another length, discriminator, version or status than the supported ones.
    pub fn decode(data: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader(data, "channel account of version 1");
        if data.len() != CHANNEL_ACCOUNT_BYTES || r.u8()? != 1 || r.u8()? != 1 {
            return Err(FormatError(r.1));
        }
        let bump = r.u8()?;
        let status = match r.u8()? {
            0 => ChannelStatus::Open,
            1 => ChannelStatus::Sealed,
            2 => ChannelStatus::Closing,
            3 => ChannelStatus::Distributed,
            _ => return Err(FormatError(r.1)),
        };
        let account = Self {
            bump,
            status,
            salt: r.u64()?,
            deposit: r.u64()?,
            settled: r.u64()?,
            payout_watermark: r.u64()?,
            closure_started_at: r.i64()?,
            payer_withdrawn_at: r.i64()?,
            grace_period: r.u32()?,
            distribution_hash: r.take()?,
            payer: r.key()?,
            payee: r.key()?,
            authorized_signer: r.key()?,
            mint: r.key()?,
            rent_payer: r.key()?,
            open_slot: r.u64()?,
        };
        r.end()?;
        Ok(account)
    }

    /// Writes a channel account's data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let status = match self.status {
            ChannelStatus::Open => 0,
            ChannelStatus::Sealed => 1,
            ChannelStatus::Closing => 2,
            ChannelStatus::Distributed => 3,
        };
        let mut data = vec![1, 1, self.bump, status];
        data.extend(self.salt.to_le_bytes());
        data.extend(self.deposit.to_le_bytes());
        data.extend(self.settled.to_le_bytes());
        data.extend(self.payout_watermark.to_le_bytes());
        data.extend(self.closure_started_at.to_le_bytes());
        data.extend(self.payer_withdrawn_at.to_le_bytes());
        data.extend(self.grace_period.to_le_bytes());
        data.extend(self.distribution_hash);
        for key in [&self.payer, &self.payee, &self.authorized_signer, &self.mint, &self.rent_payer] {
            data.extend(key.0);
        }
        data.extend(self.open_slot.to_le_bytes());
        data
    }

    /// The address that this account's own fields derive.
    #[must_use]
    pub fn address(&self) -> Key {
        channel_address(&self.payer, &self.payee, &self.mint, &self.authorized_signer, self.salt, self.open_slot).0
    }
}

/// A channel's address and bump (`docs/001`, "PDA derivation").
#[must_use]
pub fn channel_address(
    payer: &Key,
    payee: &Key,
    mint: &Key,
    authorized_signer: &Key,
    salt: u64,
    open_slot: u64,
) -> (Key, u8) {
    derive(
        &[b"channel", &payer.0, &payee.0, &mint.0, &authorized_signer.0, &salt.to_le_bytes(), &open_slot.to_le_bytes()],
        &PAYMENT_CHANNELS,
    )
}

/// The address that the program signs its events with. The same in every instruction, so derived once.
#[must_use]
pub fn event_authority() -> Key {
    static ADDRESS: LazyLock<Key> = LazyLock::new(|| derive(&[b"event_authority"], &PAYMENT_CHANNELS).0);
    *ADDRESS
}

/// The message that a voucher's signer signs: `0x56 0x01`, channel, cumulative amount, expiry.
#[must_use]
pub fn voucher_message(channel: &Key, cumulative: u64, expires_at: i64) -> [u8; VOUCHER_MESSAGE_BYTES] {
    let mut message = [0; VOUCHER_MESSAGE_BYTES];
    message[..2].copy_from_slice(&[0x56, 0x01]);
    message[2..34].copy_from_slice(&channel.0);
    message[34..42].copy_from_slice(&cumulative.to_le_bytes());
    message[42..].copy_from_slice(&expires_at.to_le_bytes());
    message
}

/// The SHA-256 digest that a receiver authorizer signs to close a channel cooperatively (section 4.2).
#[must_use]
pub fn close_digest(
    network: &str,
    fee_payer: &Key,
    channel: &Key,
    cumulative: u64,
    voucher_expires_at: i64,
    valid_before: i64,
) -> [u8; 32] {
    let length = u16::try_from(network.len()).unwrap_or(u16::MAX);
    Sha256::new()
        .chain_update(b"x402:batch-settlement:svm:close:v1\0")
        .chain_update(length.to_le_bytes())
        .chain_update(network)
        .chain_update(PAYMENT_CHANNELS.0)
        .chain_update(fee_payer.0)
        .chain_update(channel.0)
        .chain_update(cumulative.to_le_bytes())
        .chain_update(voucher_expires_at.to_le_bytes())
        .chain_update(valid_before.to_le_bytes())
        .finalize()
        .into()
}

/// One share of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who receives.
    pub recipient: Key,
    /// Of ten thousand.
    pub bps: u16,
}

/// The distribution that our schemes insist on: everything to `pay_to`.
#[must_use]
pub fn all_to(pay_to: Key) -> [Share; 1] {
    [Share { recipient: pay_to, bps: BPS_ALL }]
}

/// The bytes that a distribution's hash is made of: a count, then recipients with their shares.
#[must_use]
pub fn distribution_preimage(shares: &[Share]) -> Vec<u8> {
    let mut bytes = u32::try_from(shares.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    for share in shares {
        bytes.extend(share.recipient.0);
        bytes.extend(share.bps.to_le_bytes());
    }
    bytes
}

/// The hash that a channel commits to at open.
#[must_use]
pub fn distribution_hash(shares: &[Share]) -> [u8; 32] {
    Sha256::digest(distribution_preimage(shares)).into()
}

/// The most shares that the program takes.
pub const SHARES_MAX: usize = 32;

fn read_shares(r: &mut Reader<'_>) -> Result<Vec<Share>, FormatError> {
    let count = usize::try_from(r.u32()?).map_err(|_| FormatError(r.1))?;
    if count > SHARES_MAX {
        return Err(FormatError(r.1));
    }
    (0..count).map(|_| Ok(Share { recipient: r.key()?, bps: r.u16()? })).collect()
}

/// A payment-channels instruction's data, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the program's own names, docs/003")]
pub enum Call {
    Open { salt: u64, deposit: u64, grace_period: u32, open_slot: u64, recipients: Vec<Share> },
    Settle,
    TopUp { amount: u64 },
    SettleAndSeal { has_voucher: bool },
    RequestClose,
    Seal,
    Distribute { recipients: Vec<Share> },
    WithdrawPayer,
    Reclaim,
}

impl Call {
    /// Reads instruction data whole.
    ///
    /// # Errors
    /// An unknown discriminator, short data, or trailing bytes.
    pub fn decode(data: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader(data, "payment-channels instruction");
        let call = match r.u8()? {
            discriminator::OPEN => Self::Open {
                salt: r.u64()?,
                deposit: r.u64()?,
                grace_period: r.u32()?,
                open_slot: r.u64()?,
                recipients: read_shares(&mut r)?,
            },
            discriminator::SETTLE => Self::Settle,
            discriminator::TOP_UP => Self::TopUp { amount: r.u64()? },
            discriminator::SETTLE_AND_SEAL => Self::SettleAndSeal { has_voucher: r.u8()? != 0 },
            discriminator::REQUEST_CLOSE => Self::RequestClose,
            discriminator::SEAL => Self::Seal,
            discriminator::DISTRIBUTE => Self::Distribute { recipients: read_shares(&mut r)? },
            discriminator::WITHDRAW_PAYER => Self::WithdrawPayer,
            discriminator::RECLAIM => Self::Reclaim,
            _ => return Err(FormatError(r.1)),
        };
        r.end()?;
        Ok(call)
    }

    /// Writes instruction data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Open { salt, deposit, grace_period, open_slot, recipients } => {
                let mut data = vec![discriminator::OPEN];
                data.extend(salt.to_le_bytes());
                data.extend(deposit.to_le_bytes());
                data.extend(grace_period.to_le_bytes());
                data.extend(open_slot.to_le_bytes());
                data.extend(distribution_preimage(recipients));
                data
            }
            Self::Settle => vec![discriminator::SETTLE],
            Self::TopUp { amount } => [&[discriminator::TOP_UP][..], &amount.to_le_bytes()].concat(),
            Self::SettleAndSeal { has_voucher } => vec![discriminator::SETTLE_AND_SEAL, u8::from(*has_voucher)],
            Self::RequestClose => vec![discriminator::REQUEST_CLOSE],
            Self::Seal => vec![discriminator::SEAL],
            Self::Distribute { recipients } => {
                [&[discriminator::DISTRIBUTE][..], &distribution_preimage(recipients)].concat()
            }
            Self::WithdrawPayer => vec![discriminator::WITHDRAW_PAYER],
            Self::Reclaim => vec![discriminator::RECLAIM],
        }
    }
}

/// What is needed to name every account of a channel's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the program's own names")]
pub struct ChannelAccounts {
    pub channel: Key,
    pub payer: Key,
    pub payee: Key,
    pub rent_payer: Key,
    pub mint: Key,
    pub token_program: Key,
}

impl ChannelAccounts {
    fn ata(&self, owner: &Key) -> Key {
        associated_token_account(owner, &self.mint, &self.token_program)
    }
}

fn channels_instruction(accounts: Vec<AccountMeta>, call: &Call) -> Instruction {
    Instruction { program: PAYMENT_CHANNELS, accounts, data: call.encode() }
}

/// `open` with its 14 accounts.
#[must_use]
pub fn open(accounts: &ChannelAccounts, authorized_signer: Key, call: &Call) -> Instruction {
    channels_instruction(
        vec![
            AccountMeta::writable(accounts.payer).signer(),
            AccountMeta::writable(accounts.rent_payer).signer(),
            AccountMeta::readonly(accounts.payee),
            AccountMeta::readonly(accounts.mint),
            AccountMeta::readonly(authorized_signer),
            AccountMeta::writable(accounts.channel),
            AccountMeta::writable(accounts.ata(&accounts.payer)),
            AccountMeta::writable(accounts.ata(&accounts.channel)),
            AccountMeta::readonly(accounts.token_program),
            AccountMeta::readonly(SYSTEM_PROGRAM),
            AccountMeta::readonly(RENT_SYSVAR),
            AccountMeta::readonly(ATA_PROGRAM),
            AccountMeta::readonly(event_authority()),
            AccountMeta::readonly(PAYMENT_CHANNELS),
        ],
        call,
    )
}

/// `top_up` with its 6 accounts.
#[must_use]
pub fn top_up(accounts: &ChannelAccounts, amount: u64) -> Instruction {
    channels_instruction(
        vec![
            AccountMeta::writable(accounts.payer).signer(),
            AccountMeta::writable(accounts.channel),
            AccountMeta::writable(accounts.ata(&accounts.payer)),
            AccountMeta::writable(accounts.ata(&accounts.channel)),
            AccountMeta::readonly(accounts.mint),
            AccountMeta::readonly(accounts.token_program),
        ],
        &Call::TopUp { amount },
    )
}

/// `settle`; the voucher's Ed25519 instruction must stand right before it.
#[must_use]
pub fn settle(channel: Key) -> Instruction {
    channels_instruction(
        vec![AccountMeta::writable(channel), AccountMeta::readonly(INSTRUCTIONS_SYSVAR)],
        &Call::Settle,
    )
}

/// `settle_and_seal`; with a voucher, its Ed25519 instruction must stand right before it.
#[must_use]
pub fn settle_and_seal(payee: Key, channel: Key, has_voucher: bool) -> Instruction {
    channels_instruction(
        vec![
            AccountMeta::readonly(payee).signer(),
            AccountMeta::writable(channel),
            AccountMeta::readonly(INSTRUCTIONS_SYSVAR),
        ],
        &Call::SettleAndSeal { has_voucher },
    )
}

/// `request_close`, the payer's way out.
#[must_use]
pub fn request_close(payer: Key, channel: Key) -> Instruction {
    channels_instruction(
        vec![AccountMeta::readonly(payer).signer(), AccountMeta::writable(channel)],
        &Call::RequestClose,
    )
}

/// `seal`, anyone's after the grace period.
#[must_use]
pub fn seal(channel: Key) -> Instruction {
    channels_instruction(vec![AccountMeta::writable(channel)], &Call::Seal)
}

/// `distribute` with its 11 accounts and one token account per recipient.
#[must_use]
pub fn distribute(accounts: &ChannelAccounts, treasury_owner: &Key, recipients: &[Share]) -> Instruction {
    let mut metas = vec![
        AccountMeta::writable(accounts.channel),
        AccountMeta::writable(accounts.payer),
        AccountMeta::writable(accounts.rent_payer),
        AccountMeta::writable(accounts.ata(&accounts.channel)),
        AccountMeta::writable(accounts.ata(&accounts.payer)),
        AccountMeta::writable(accounts.ata(&accounts.payee)),
        AccountMeta::writable(accounts.ata(treasury_owner)),
        AccountMeta::readonly(accounts.mint),
        AccountMeta::readonly(accounts.token_program),
        AccountMeta::readonly(event_authority()),
        AccountMeta::readonly(PAYMENT_CHANNELS),
    ];
    metas.extend(recipients.iter().map(|share| AccountMeta::writable(accounts.ata(&share.recipient))));
    channels_instruction(metas, &Call::Distribute { recipients: recipients.to_vec() })
}

/// `reclaim`, which returns a drained channel's rent.
#[must_use]
pub fn reclaim(channel: Key, rent_payer: Key) -> Instruction {
    channels_instruction(vec![AccountMeta::writable(channel), AccountMeta::writable(rent_payer)], &Call::Reclaim)
}

/// The Ed25519 precompile instruction over one voucher, in the only layout that the program reads (`docs/001`).
#[must_use]
pub fn ed25519(signer: &Key, signature: &Signature, message: &[u8; VOUCHER_MESSAGE_BYTES]) -> Instruction {
    let mut data = vec![1, 0];
    for field in [48, u16::MAX, 16, u16::MAX, 112, 50, u16::MAX] {
        data.extend(field.to_le_bytes());
    }
    data.extend(signer.0);
    data.extend(signature.0);
    data.extend(message);
    Instruction { program: ED25519_PROGRAM, accounts: Vec::new(), data }
}

/// The size of [`ed25519`]'s data.
pub const ED25519_DATA_BYTES: usize = 162;

/// A memo.
#[must_use]
pub fn memo(text: &str) -> Instruction {
    Instruction { program: MEMO_PROGRAM, accounts: Vec::new(), data: text.as_bytes().to_vec() }
}

/// The memo that binds a receiver authorizer at open (`scheme_batch_settlement_svm.md`, section 3).
#[must_use]
pub fn receiver_authorizer_memo(key: &Key) -> String {
    format!("{RECEIVER_AUTHORIZER_MEMO}{key}")
}

/// `SetComputeUnitLimit`.
#[must_use]
pub fn compute_unit_limit(units: u32) -> Instruction {
    let data = [&[2][..], &units.to_le_bytes()].concat();
    Instruction { program: COMPUTE_BUDGET_PROGRAM, accounts: Vec::new(), data }
}

/// `SetComputeUnitPrice`.
#[must_use]
pub fn compute_unit_price(micro_lamports: u64) -> Instruction {
    let data = [&[3][..], &micro_lamports.to_le_bytes()].concat();
    Instruction { program: COMPUTE_BUDGET_PROGRAM, accounts: Vec::new(), data }
}

/// Creates an associated token account unless it exists.
#[must_use]
pub fn create_ata_idempotent(funder: Key, owner: Key, mint: Key, token_program: Key) -> Instruction {
    Instruction {
        program: ATA_PROGRAM,
        accounts: vec![
            AccountMeta::writable(funder).signer(),
            AccountMeta::writable(associated_token_account(&owner, &mint, &token_program)),
            AccountMeta::readonly(owner),
            AccountMeta::readonly(mint),
            AccountMeta::readonly(SYSTEM_PROGRAM),
            AccountMeta::readonly(token_program),
        ],
        data: vec![1],
    }
}
