//! Whether the program can pay into a token account, judged as the program itself will (`docs/001`, "Token Program
//! Support").
//!
//! The program does not fail on a beneficiary's unusable account: it sends the money to the treasury, for good. So this
//! is looked at before money is escrowed, and again before it is paid out.

use crate::chain::Account;
use crate::scheme::svm::{TOKEN_2022_PROGRAM, TOKEN_PROGRAM};
use crate::x402::Key;

/// The size of a token account without extensions.
pub(super) const TOKEN_ACCOUNT_BYTES: usize = 165;
/// The size of an associated token account of Token-2022, which carries one extension.
pub(super) const TOKEN_2022_ACCOUNT_BYTES: usize = 170;
/// Token-2022's mark of an account, after its base part.
const ACCOUNT_TYPE: u8 = 2;
/// The one extension of an account that the program pays to.
const IMMUTABLE_OWNER: u16 = 7;

/// What a token account must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) owner: Key,
    pub(super) mint: Key,
    pub(super) token_program: Key,
}

/// The balance of a usable token account, or what is wrong with it.
pub(super) fn balance(account: Option<&Account>, expected: &Expected) -> Result<u64, &'static str> {
    let account = account.ok_or("does not exist")?;
    if account.owner != expected.token_program {
        return Err("does not belong to the token program");
    }
    let data = Layout::read(&account.data).ok_or("is no token account")?;
    if data.mint != expected.mint.0 {
        return Err("is of another mint");
    }
    if data.owner != expected.owner.0 {
        return Err("has another owner");
    }
    match data.state {
        1 => {}
        2 => return Err("is frozen"),
        _ => return Err("is not initialized"),
    }
    if !extensions_allowed(expected.token_program, data.rest) {
        return Err("has an extension that the payment-channels program does not pay to");
    }
    Ok(data.amount)
}

struct Layout<'a> {
    mint: [u8; 32],
    owner: [u8; 32],
    amount: u64,
    state: u8,
    /// What follows the base part.
    rest: &'a [u8],
}

impl<'a> Layout<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let (base, rest) = data.split_at_checked(TOKEN_ACCOUNT_BYTES)?;
        let (mint, base) = base.split_first_chunk::<32>()?;
        let (owner, base) = base.split_first_chunk::<32>()?;
        let (amount, base) = base.split_first_chunk::<8>()?;
        // A delegate with its tag stands between the amount and the state.
        let state = *base.get(36)?;
        Some(Self { mint: *mint, owner: *owner, amount: u64::from_le_bytes(*amount), state, rest })
    }
}

/// Nothing after the base part, or with Token-2022 a well-formed list that names only an immutable owner.
fn extensions_allowed(token_program: Key, rest: &[u8]) -> bool {
    if token_program == TOKEN_PROGRAM || rest.is_empty() {
        return rest.is_empty();
    }
    let Some((ACCOUNT_TYPE, mut list)) = rest.split_first().map(|(kind, list)| (*kind, list)) else { return false };
    debug_assert_eq!(token_program, TOKEN_2022_PROGRAM);
    loop {
        let Some((kind, after)) = list.split_first_chunk::<2>() else { return list.iter().all(|byte| *byte == 0) };
        if *kind == [0, 0] {
            return true;
        }
        let Some((length, after)) = after.split_first_chunk::<2>() else { return false };
        let Some((_, after)) = after.split_at_checked(usize::from(u16::from_le_bytes(*length))) else { return false };
        if u16::from_le_bytes(*kind) != IMMUTABLE_OWNER {
            return false;
        }
        list = after;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expected(token_program: Key) -> Expected {
        Expected { owner: Key([1; 32]), mint: Key([2; 32]), token_program }
    }

    fn account(expected: &Expected, rest: &[u8]) -> Account {
        let mut data = vec![0; TOKEN_ACCOUNT_BYTES];
        data[..32].copy_from_slice(&expected.mint.0);
        data[32..64].copy_from_slice(&expected.owner.0);
        data[64..72].copy_from_slice(&77_u64.to_le_bytes());
        data[108] = 1;
        data.extend(rest);
        Account { lamports: 1, owner: expected.token_program, data }
    }

    #[test]
    fn usable_accounts_tell_their_balance() {
        let plain = expected(TOKEN_PROGRAM);
        assert_eq!(balance(Some(&account(&plain, &[])), &plain), Ok(77));
        let new = expected(TOKEN_2022_PROGRAM);
        for rest in [&[][..], &[2, 7, 0, 0, 0], &[2], &[2, 0, 0], &[2, 7, 0, 0, 0, 0, 0, 9], &[2, 7, 0, 1, 0, 5, 0]] {
            assert_eq!(balance(Some(&account(&new, rest)), &new), Ok(77), "{rest:?}");
        }
    }

    #[test]
    fn unusable_accounts_say_why() {
        let plain = expected(TOKEN_PROGRAM);
        let changed = |change: fn(&mut Account)| {
            let mut changed = account(&plain, &[]);
            change(&mut changed);
            balance(Some(&changed), &plain).unwrap_err()
        };
        assert_eq!(balance(None, &plain), Err("does not exist"));
        assert_eq!(changed(|a| a.owner = TOKEN_2022_PROGRAM), "does not belong to the token program");
        assert_eq!(changed(|a| a.data.truncate(164)), "is no token account");
        assert_eq!(changed(|a| a.data[0] = 9), "is of another mint");
        assert_eq!(changed(|a| a.data[32] = 9), "has another owner");
        assert_eq!(changed(|a| a.data[108] = 0), "is not initialized");
        assert_eq!(changed(|a| a.data[108] = 2), "is frozen");
        assert!(changed(|a| a.data.push(0)).contains("extension"));
        let new = expected(TOKEN_2022_PROGRAM);
        for rest in [&[1][..], &[2, 8, 0, 0, 0], &[2, 7, 0, 0, 0, 8, 0, 0, 0], &[2, 7, 0, 9, 0], &[2, 7, 0], &[2, 7]] {
            assert!(balance(Some(&account(&new, rest)), &new).unwrap_err().contains("extension"), "{rest:?}");
        }
    }

    proptest! {
        #[test]
        fn no_data_panics(data in prop::collection::vec(any::<u8>(), 0..400), new in any::<bool>()) {
            let token_program = if new { TOKEN_2022_PROGRAM } else { TOKEN_PROGRAM };
            let account = Account { lamports: 0, owner: token_program, data };
            let _ = balance(Some(&account), &expected(token_program));
        }
    }
}
