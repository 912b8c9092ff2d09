//! How accounts and token amounts look in answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value, json};

use super::RpcError;
use super::params::Config;
use crate::chain::Account;
use crate::chain::sandbox::accounts::{NATIVE_LOADER, PROGRAM_LOADER};
use crate::chain::sandbox::control::is_token_program;
use crate::chain::sandbox::programs::token::{Mint, TokenAccount};
use crate::scheme::svm::TOKEN_PROGRAM;
use crate::x402::Key;

/// The most bytes that are written in base58, which takes time quadratic in them.
const BASE58_BYTES_MAX: usize = 128;

/// An account with what is needed to show it parsed.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) account: Account,
    pub(super) decimals: Option<u8>,
}

/// How an account's data is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Encoding {
    Plain,
    Base58,
    Base64,
    Parsed,
}

/// What a caller wants to see of accounts.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    encoding: Encoding,
    slice: Option<(usize, usize)>,
}

impl View {
    /// Reads `encoding` and `dataSlice`.
    pub(super) fn read(config: &Config<'_>) -> Result<Self, RpcError> {
        let encoding = match config.text("encoding") {
            None | Some("binary") => Encoding::Plain,
            Some("base58") => Encoding::Base58,
            Some("base64") => Encoding::Base64,
            Some("jsonParsed") => Encoding::Parsed,
            Some(other) => {
                let message = format_args!("encoding {other:?} is not supported here; use base64 or jsonParsed");
                return Err(RpcError::invalid_params(message));
            }
        };
        let slice = config.get("dataSlice");
        let number = |name| slice.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let slice = match (slice, number("offset"), number("length")) {
            (Value::Null, ..) => None,
            (_, Some(offset), Some(length)) => Some((offset, length)),
            _ => return Err(RpcError::invalid_params("dataSlice needs offset and length")),
        };
        Ok(Self { encoding, slice })
    }

    /// Writes an account.
    pub(super) fn write(&self, found: &Found) -> Result<Value, RpcError> {
        let account = &found.account;
        let data = self.slice.map_or(&account.data[..], |(offset, length)| {
            let rest = account.data.get(offset..).unwrap_or_default();
            rest.get(..length).unwrap_or(rest)
        });
        let parsed = matches!(self.encoding, Encoding::Parsed).then(|| parsed(found)).flatten();
        let shown = match (self.encoding, parsed) {
            (_, Some(parsed)) => parsed,
            (Encoding::Base64 | Encoding::Parsed, None) => json!([STANDARD.encode(data), "base64"]),
            (Encoding::Plain | Encoding::Base58, None) if data.len() > BASE58_BYTES_MAX => {
                let message =
                    "Encoded binary (base 58) data should be less than 128 bytes, please use Base64 encoding.";
                return Err(RpcError::new(-32600, message));
            }
            (Encoding::Base58, None) => json!([bs58::encode(data).into_string(), "base58"]),
            (Encoding::Plain, None) => json!(bs58::encode(data).into_string()),
        };
        Ok(json!({
            "data": shown,
            "executable": account.owner == NATIVE_LOADER || account.owner == PROGRAM_LOADER,
            "lamports": account.lamports,
            "owner": account.owner,
            "rentEpoch": u64::MAX,
            "space": account.data.len(),
        }))
    }

    /// Writes an account with its address.
    pub(super) fn write_keyed(&self, found: &Found) -> Result<Value, RpcError> {
        Ok(json!({ "pubkey": found.key, "account": self.write(found)? }))
    }
}

fn parsed(found: &Found) -> Option<Value> {
    let account = &found.account;
    if !is_token_program(&account.owner) {
        return None;
    }
    let (kind, info) = match TokenAccount::read(&account.data) {
        Ok(tokens) => ("account", account_info(&tokens, found.decimals?)),
        Err(_) => ("mint", mint_info(&Mint::read(&account.data).ok()?)),
    };
    let program = if account.owner == TOKEN_PROGRAM { "spl-token" } else { "spl-token-2022" };
    let space = account.data.len();
    Some(json!({ "program": program, "parsed": { "type": kind, "info": info }, "space": space }))
}

fn account_info(tokens: &TokenAccount, decimals: u8) -> Value {
    let mut info = json!({
        "isNative": false,
        "mint": tokens.mint,
        "owner": tokens.owner,
        "state": if tokens.frozen { "frozen" } else { "initialized" },
        "tokenAmount": token_amount(tokens.amount, decimals),
    });
    if let Some(delegate) = tokens.delegate {
        info["delegate"] = json!(delegate);
        info["delegatedAmount"] = token_amount(tokens.delegated_amount, decimals);
    }
    if let Some(authority) = tokens.close_authority {
        info["closeAuthority"] = json!(authority);
    }
    info
}

fn mint_info(mint: &Mint) -> Value {
    json!({
        "decimals": mint.decimals,
        "freezeAuthority": mint.freeze_authority,
        "isInitialized": true,
        "mintAuthority": mint.authority,
        "supply": mint.supply.to_string(),
    })
}

/// An amount of tokens in atomic units and, for people, in whole ones.
pub(super) fn token_amount(amount: u64, decimals: u8) -> Value {
    let text = decimal(amount, decimals);
    let number: Option<Number> = serde_json::from_str(&text).ok();
    json!({ "amount": amount.to_string(), "decimals": decimals, "uiAmount": number, "uiAmountString": text })
}

/// The amount in whole tokens, without trailing zeros.
fn decimal(amount: u64, decimals: u8) -> String {
    let places = usize::from(decimals);
    let digits = format!("{amount:0>width$}", width = places.saturating_add(1));
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(places));
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_in_whole_tokens() {
        let cases = [
            (0, 6, "0"),
            (1, 6, "0.000001"),
            (1_500_000, 6, "1.5"),
            (42, 0, "42"),
            (u64::MAX, 19, "1.8446744073709551615"),
        ];
        for (amount, decimals, text) in cases {
            assert_eq!(decimal(amount, decimals), text);
        }
    }
}
