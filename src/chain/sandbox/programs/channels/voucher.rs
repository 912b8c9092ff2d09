//! How the payment-channels program reads a voucher: from the Ed25519 instruction right before its own.
//!
//! Order of checks (`docs/001`, "Verification"): magic, channel, freshness, deposit, watermark, signer.

use solana_instruction_error::InstructionError;

use super::{Bytes, code, custom, require};
use crate::chain::sandbox::runtime::Frame;
use crate::scheme::svm::program::{ChannelAccount, ED25519_DATA_BYTES};
use crate::scheme::svm::{ED25519_PROGRAM, INSTRUCTIONS_SYSVAR};
use crate::x402::Key;

/// The only header that is read: one signature, inline, over 50 bytes.
const HEADER: [u8; 16] = {
    let [s0, s1] = 48u16.to_le_bytes();
    let [k0, k1] = 16u16.to_le_bytes();
    let [m0, m1] = 112u16.to_le_bytes();
    let [l0, l1] = 50u16.to_le_bytes();
    [1, 0, s0, s1, 0xff, 0xff, k0, k1, 0xff, 0xff, m0, m1, l0, l1, 0xff, 0xff]
};

/// Checks the voucher and answers the new watermark.
pub(super) fn verify(
    frame: &Frame<'_, '_>,
    channel_at: usize,
    instructions_at: usize,
    channel: &ChannelAccount,
) -> Result<u64, InstructionError> {
    if frame.key(instructions_at)? != INSTRUCTIONS_SYSVAR {
        return Err(InstructionError::UnsupportedSysvar);
    }
    let previous = frame.previous_instruction().filter(|previous| previous.program == ED25519_PROGRAM);
    let data = &previous.ok_or(custom(code::MISSING_ED25519_VERIFICATION))?.data;
    let malformed = custom(code::MALFORMED_ED25519_INSTRUCTION);
    if data.len() != ED25519_DATA_BYTES || !data.starts_with(&HEADER) {
        return Err(malformed);
    }
    let mut data = Bytes(data);
    let mut parts = || {
        let (_header, signer, _signature) = (data.take::<16>()?, data.key()?, data.take::<64>()?);
        Some((signer, data.take::<2>()?, data.key()?, data.u64()?, i64::from_le_bytes(data.take()?)))
    };
    let (signer, magic, named, cumulative, expires_at): (Key, _, Key, _, _) = parts().ok_or(malformed)?;
    require(magic == [0x56, 0x01], code::VOUCHER_BAD_MAGIC)?;
    require(named == frame.key(channel_at)?, code::VOUCHER_CHANNEL_MISMATCH)?;
    require(expires_at == 0 || frame.now() < expires_at, code::VOUCHER_EXPIRED)?;
    require(cumulative <= channel.deposit, code::VOUCHER_OVER_DEPOSIT)?;
    require(cumulative > channel.settled, code::VOUCHER_WATERMARK_NOT_MONOTONIC)?;
    require(signer == channel.authorized_signer, code::VOUCHER_SIGNER_MISMATCH)?;
    Ok(cumulative)
}
