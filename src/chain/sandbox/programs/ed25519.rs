//! The Ed25519 precompile: signatures over bytes of the transaction's own instructions.
//!
//! A function of the instructions alone, so it runs before the chain's lock is taken. It answers the codes that a
//! cluster puts into `Custom`. Fourteen bytes of offsets for each signature.

use super::Bytes;
use crate::scheme::svm::{ED25519_PROGRAM, transaction::Instruction, verify_strict};
use crate::x402::Key;
use crate::x402::key::Signature;

/// Where the offsets start: a count and a byte of padding come first.
const OFFSETS_START: usize = 2;
/// One signature's offsets.
const OFFSETS_BYTES: usize = 14;

const INVALID_PUBLIC_KEY: u32 = 0;
const INVALID_SIGNATURE: u32 = 2;
const INVALID_DATA_OFFSETS: u32 = 3;
const INVALID_INSTRUCTION_DATA_SIZE: u32 = 4;

/// What the precompile says to each instruction: its error code, where it is called and fails.
pub(in crate::chain::sandbox) fn verify_all(instructions: &[Instruction]) -> Vec<Option<u32>> {
    let check = |instruction: &Instruction| {
        (instruction.program == ED25519_PROGRAM).then(|| verify(&instruction.data, instructions).err()).flatten()
    };
    instructions.iter().map(check).collect()
}

/// How many signatures the precompile is asked to verify; each costs as much as one of the transaction's own.
pub(in crate::chain::sandbox) fn signatures(instructions: &[Instruction]) -> u64 {
    let asked = |instruction: &Instruction| match instruction.data.first() {
        Some(count) if instruction.program == ED25519_PROGRAM => u64::from(*count),
        _ => 0,
    };
    instructions.iter().map(asked).sum()
}

fn verify(data: &[u8], instructions: &[Instruction]) -> Result<(), u32> {
    let count = usize::from(*data.first().ok_or(INVALID_INSTRUCTION_DATA_SIZE)?);
    let offsets = data.get(OFFSETS_START..).ok_or(INVALID_INSTRUCTION_DATA_SIZE)?;
    if (count == 0 && !offsets.is_empty()) || offsets.len() < count.saturating_mul(OFFSETS_BYTES) {
        return Err(INVALID_INSTRUCTION_DATA_SIZE);
    }
    let mut offsets = Bytes(offsets);
    for _ in 0..count {
        let mut next = || offsets.u16().ok_or(INVALID_INSTRUCTION_DATA_SIZE);
        let (signature_at, signature_in) = (next()?, next()?);
        let (key_at, key_in) = (next()?, next()?);
        let (message_at, message_size, message_in) = (next()?, next()?, next()?);
        let slice = |index: u16, start: u16, size: usize| {
            let source = if index == u16::MAX { data } else { &instructions.get(usize::from(index))?.data };
            source.get(usize::from(start)..usize::from(start).checked_add(size)?)
        };
        let signature = slice(signature_in, signature_at, 64).and_then(|bytes| bytes.try_into().ok());
        let signature = Signature(signature.ok_or(INVALID_DATA_OFFSETS)?);
        let key = slice(key_in, key_at, 32).and_then(|bytes| bytes.try_into().ok());
        let key = Key(key.ok_or(INVALID_DATA_OFFSETS)?);
        if ed25519_dalek::VerifyingKey::from_bytes(&key.0).is_err() {
            return Err(INVALID_PUBLIC_KEY);
        }
        let message = slice(message_in, message_at, usize::from(message_size)).ok_or(INVALID_DATA_OFFSETS)?;
        if !verify_strict(&key, message, &signature) {
            return Err(INVALID_SIGNATURE);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::svm::program;
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;

    fn signed() -> (Instruction, [u8; 50]) {
        let signer = SigningKey::from_bytes(&[7; 32]);
        let message = program::voucher_message(&Key([9; 32]), 5, 0);
        let signature = Signature(signer.sign(&message).to_bytes());
        (program::ed25519(&Key(signer.verifying_key().to_bytes()), &signature, &message), message)
    }

    #[test]
    fn a_good_signature_passes_and_each_defect_has_its_code() {
        let (good, _) = signed();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut instruction = good.clone();
            change(&mut instruction.data);
            verify_all(&[instruction]).pop().flatten()
        };
        assert_eq!(with(&|_| {}), None);
        assert_eq!(with(&|data| data.clear()), Some(INVALID_INSTRUCTION_DATA_SIZE));
        assert_eq!(with(&|data| data[0] = 0), Some(INVALID_INSTRUCTION_DATA_SIZE), "a count of none with offsets");
        assert_eq!(with(&|data| data.truncate(15)), Some(INVALID_INSTRUCTION_DATA_SIZE));
        assert_eq!(with(&|data| data.truncate(161)), Some(INVALID_DATA_OFFSETS), "the message is cut");
        assert_eq!(with(&|data| data[4] = 9), Some(INVALID_DATA_OFFSETS), "an instruction that is not there");
        assert_eq!(with(&|data| data[112] ^= 1), Some(INVALID_SIGNATURE));
        assert_eq!(with(&|data| data[48] ^= 1), Some(INVALID_SIGNATURE));
        // The neutral element is a point of small order: strict verification refuses it whatever the signature.
        let small_order = |data: &mut Vec<u8>| {
            data[16..48].fill(0);
            data[16] = 1;
        };
        assert_eq!(with(&small_order), Some(INVALID_SIGNATURE));
        let off_curve = |data: &mut Vec<u8>| {
            data[16..48].fill(0);
            data[16] = 2;
        };
        assert_eq!(with(&off_curve), Some(INVALID_PUBLIC_KEY));
        assert_eq!(with(&|data| *data = vec![0, 0]), None, "nothing to verify, nothing to fail");
    }

    #[test]
    fn offsets_may_reach_into_other_instructions() {
        let (mut carrier, _) = signed();
        let mut reader = carrier.clone();
        carrier.program = crate::scheme::svm::MEMO_PROGRAM;
        for index in [4, 8, 14] {
            reader.data[index..index + 2].copy_from_slice(&0u16.to_le_bytes());
        }
        reader.data.truncate(16);
        assert_eq!(verify_all(&[carrier, reader.clone()]), vec![None, None]);
        assert_eq!(verify_all(&[reader])[0], Some(INVALID_DATA_OFFSETS), "its own data holds no signature");
    }

    proptest! {
        #[test]
        fn arbitrary_data_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            verify_all(&[Instruction { program: ED25519_PROGRAM, accounts: Vec::new(), data }]);
        }
    }
}
