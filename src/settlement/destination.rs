//! Whether a token account can take a payout now.
//!
//! The program does not fail where a recipient's account is unusable: it sends the money to the treasury, for good
//! (`docs/001`, "Splits Preimage Canonicalization"). So nothing is paid out before the destination has been looked at.
//! The rules are the program's own: base layout, initialized, owner and mint as they should be, and of Token-2022's
//! extensions none but the immutable owner.

use crate::chain::Account;
use crate::scheme::svm::TOKEN_2022_PROGRAM;
use crate::x402::Key;

/// The size of a token account without extensions.
const TOKEN_ACCOUNT_BYTES: usize = 165;
/// Where a token account says whether it is initialized (1) or frozen (2).
const STATE_OFFSET: usize = 108;
/// What Token-2022 writes after the base layout of a token account that has extensions.
const ACCOUNT_TYPE: u8 = 2;
/// The one extension that the program allows on a token account.
const IMMUTABLE_OWNER: u16 = 7;

/// Checks that `account` can take tokens of `mint` for `owner`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn usable(account: Option<&Account>, owner: &Key, mint: &Key, token_program: &Key) -> Result<(), &'static str> {
    let account = account.ok_or("does not exist; create it")?;
    if account.owner != *token_program {
        return Err("does not belong to the token program");
    }
    let data = account.data.as_slice();
    if data.get(..32) != Some(&mint.0) || data.get(32..64) != Some(&owner.0) {
        return Err("is of another mint or owner; its authority was given away");
    }
    match data.get(STATE_OFFSET) {
        Some(1) => {}
        Some(2) => return Err("is frozen by the mint's issuer"),
        _ => return Err("is not initialized"),
    }
    let Some(rest) = data.get(TOKEN_ACCOUNT_BYTES..) else {
        return Err("is not a token account");
    };
    match rest.split_first() {
        None => Ok(()),
        Some((&ACCOUNT_TYPE, extensions)) if *token_program == TOKEN_2022_PROGRAM => allowed(extensions),
        Some(_) => Err("is not a token account"),
    }
}

/// Walks the extensions: type and length of two bytes each, then the value; a type of 0 ends them.
fn allowed(mut extensions: &[u8]) -> Result<(), &'static str> {
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        match u16::from_le_bytes(*kind) {
            0 => return Ok(()),
            IMMUTABLE_OWNER => {}
            _ => return Err("has an extension that the program does not pay to"),
        }
        let (length, rest) = rest.split_first_chunk::<2>().ok_or("has malformed extensions")?;
        extensions = rest.get(usize::from(u16::from_le_bytes(*length))..).ok_or("has malformed extensions")?;
    }
    if extensions.is_empty() { Ok(()) } else { Err("has malformed extensions") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheme::svm::TOKEN_PROGRAM;

    const OWNER: Key = Key([1; 32]);
    const MINT: Key = Key([2; 32]);

    fn account(program: Key, state: u8, extra: &[u8]) -> Account {
        let mut data = vec![0; TOKEN_ACCOUNT_BYTES];
        data[..32].copy_from_slice(&MINT.0);
        data[32..64].copy_from_slice(&OWNER.0);
        data[STATE_OFFSET] = state;
        data.extend(extra);
        Account { lamports: 1, owner: program, data }
    }

    #[test]
    fn usable_and_unusable_destinations() {
        let check = |account: &Account, program| usable(Some(account), &OWNER, &MINT, &program);
        let spl = |state, extra: &[u8]| check(&account(TOKEN_PROGRAM, state, extra), TOKEN_PROGRAM);
        let new = |extra: &[u8]| check(&account(TOKEN_2022_PROGRAM, 1, extra), TOKEN_2022_PROGRAM);
        assert_eq!(spl(1, &[]), Ok(()));
        assert_eq!(new(&[]), Ok(()));
        assert_eq!(new(&[2, 7, 0, 0, 0]), Ok(()));
        assert_eq!(new(&[2, 7, 0, 0, 0, 0, 0]), Ok(()));
        assert!(usable(None, &OWNER, &MINT, &TOKEN_PROGRAM).is_err());
        assert!(spl(0, &[]).is_err());
        assert!(spl(2, &[]).is_err());
        assert!(spl(1, &[2, 7, 0, 0, 0]).is_err());
        assert!(new(&[1]).is_err());
        assert!(new(&[2, 8, 0, 1, 0, 1]).is_err());
        assert!(new(&[2, 7, 0, 1, 0]).is_err());
        assert!(new(&[2, 7]).is_err());
        assert!(check(&account(TOKEN_PROGRAM, 1, &[]), TOKEN_2022_PROGRAM).is_err());
        assert!(usable(Some(&account(TOKEN_PROGRAM, 1, &[])), &MINT, &MINT, &TOKEN_PROGRAM).is_err());
        assert!(usable(Some(&account(TOKEN_PROGRAM, 1, &[])), &OWNER, &OWNER, &TOKEN_PROGRAM).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(data in prop::collection::vec(any::<u8>(), 0..200), extra: Vec<u8>) {
            let _ = usable(Some(&Account { lamports: 0, owner: TOKEN_2022_PROGRAM, data }), &OWNER, &MINT, &TOKEN_2022_PROGRAM);
            let _ = allowed(&extra);
        }
    }
}
