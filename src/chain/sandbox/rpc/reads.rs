//! Methods that only read: the chain's numbers, accounts, tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::encode::{Found, View, token_amount};
use super::params::{Config, Params, parse};
use super::{Answer, RpcError, with_context};
use crate::chain::sandbox::SandboxChain;
use crate::chain::sandbox::bank::{Bank, SLOTS_PER_EPOCH};
use crate::chain::sandbox::control::is_token_program;
use crate::chain::sandbox::programs::{self, token};
use crate::scheme::svm::{TOKEN_2022_PROGRAM, TOKEN_PROGRAM};
use crate::x402::Key;

/// Addresses in one call.
const ACCOUNTS_MAX: usize = 100;
/// Filters in one call.
const FILTERS_MAX: usize = 4;
/// Bytes that one filter compares.
const FILTER_BYTES_MAX: usize = 128;
/// The largest account that rent is asked for.
const ACCOUNT_BYTES_MAX: u64 = 10 * 1024 * 1024;

pub(super) fn genesis_hash(chain: &SandboxChain) -> Answer {
    Ok(json!(Key(chain.with(|bank| bank.genesis_hash))))
}

pub(super) fn identity(chain: &SandboxChain) -> Answer {
    Ok(json!({ "identity": Key(chain.with(|bank| bank.genesis_hash)) }))
}

pub(super) fn slot(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let config = params.config(0)?;
    let commitment = config.commitment()?;
    let slot = chain.with(|bank| commitment.slot(bank));
    config.check_context(slot)?;
    Ok(json!(slot))
}

pub(super) fn block_height(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let commitment = params.config(0)?.commitment()?;
    Ok(json!(Bank::height(chain.with(|bank| commitment.slot(bank)))))
}

pub(super) fn block_time(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let asked = params.number(0)?;
    let (slot, now) = chain.with(|bank| (bank.slot(), bank.now()));
    let Some(ago) = slot.checked_sub(asked) else {
        return Err(RpcError::new(-32004, format!("Block not available for slot {asked}")));
    };
    let seconds = i64::try_from(ago.saturating_mul(2).div_euclid(5)).unwrap_or(i64::MAX);
    Ok(json!(now.saturating_sub(seconds)))
}

pub(super) fn epoch_info(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let commitment = params.config(0)?.commitment()?;
    let (slot, transactions) = chain.with(|bank| (commitment.slot(bank), bank.history.len()));
    Ok(json!({
        "absoluteSlot": slot,
        "blockHeight": Bank::height(slot),
        "epoch": slot.div_euclid(SLOTS_PER_EPOCH),
        "slotIndex": slot.rem_euclid(SLOTS_PER_EPOCH),
        "slotsInEpoch": SLOTS_PER_EPOCH,
        "transactionCount": transactions,
    }))
}

pub(super) fn latest_blockhash(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let config = params.config(0)?;
    let commitment = config.commitment()?;
    let blockhash = chain.with(|bank| {
        let slot = commitment.slot(bank);
        bank.blockhash(slot)
    });
    config.check_context(blockhash.slot)?;
    let (hash, height) = (Key(blockhash.hash), blockhash.last_valid_block_height);
    Ok(with_context(blockhash.slot, json!({ "blockhash": hash, "lastValidBlockHeight": height })))
}

pub(super) fn is_blockhash_valid(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let hash = params.key(0)?;
    let (slot, valid) = chain.with(|bank| (bank.slot(), bank.is_blockhash_valid(&hash.0)));
    params.config(1)?.check_context(slot)?;
    Ok(with_context(slot, json!(valid)))
}

pub(super) fn rent(params: &Params<'_>) -> Answer {
    let bytes = params.number(0)?;
    if bytes > ACCOUNT_BYTES_MAX {
        return Err(RpcError::invalid_params(format_args!("an account holds at most {ACCOUNT_BYTES_MAX} bytes")));
    }
    Ok(json!(programs::rent(usize::try_from(bytes).unwrap_or(usize::MAX))))
}

fn find(bank: &mut Bank, key: &Key) -> Option<Found> {
    let account = bank.account(key)?;
    let decimals = if is_token_program(&account.owner) { bank.decimals(&account) } else { None };
    Some(Found { key: *key, account, decimals })
}

pub(super) fn account_info(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let (key, config) = (params.key(0)?, params.config(1)?);
    let view = View::read(&config)?;
    let (slot, found) = chain.with(|bank| (bank.slot(), find(bank, &key)));
    config.check_context(slot)?;
    Ok(with_context(slot, found.map(|found| view.write(&found)).transpose()?.unwrap_or_default()))
}

pub(super) fn multiple_accounts(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let texts = params.at(0).as_array().ok_or_else(|| RpcError::invalid_params("params[0] must be an array"))?;
    if texts.len() > ACCOUNTS_MAX {
        return Err(RpcError::invalid_params(format_args!("Too many inputs provided; max {ACCOUNTS_MAX}")));
    }
    let keys = texts.iter().map(|text| parse(text.as_str().unwrap_or_default())).collect::<Result<Vec<Key>, _>>()?;
    let config = params.config(1)?;
    let view = View::read(&config)?;
    let (slot, found) = chain.with(|bank| {
        let found: Vec<_> = keys.iter().map(|key| find(bank, key)).collect();
        (bank.slot(), found)
    });
    config.check_context(slot)?;
    let write = |found: &Option<Found>| found.as_ref().map_or(Ok(Value::Null), |found| view.write(found));
    Ok(with_context(slot, found.iter().map(write).collect::<Result<_, _>>()?))
}

/// What `getProgramAccounts` leaves out.
enum Filter {
    DataSize(usize),
    Holds(usize, Vec<u8>),
}

impl Filter {
    fn read(value: &Value) -> Result<Self, RpcError> {
        let invalid = |what: &str| RpcError::invalid_params(format_args!("filter: {what}"));
        let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        if let Some(value) = value.get("dataSize") {
            return size(value).map(Self::DataSize).ok_or_else(|| invalid("dataSize must be an integer"));
        }
        let memcmp = value.get("memcmp").ok_or_else(|| invalid("only dataSize and memcmp are known"))?;
        let text = memcmp.get("bytes").and_then(Value::as_str).ok_or_else(|| invalid("memcmp needs bytes"))?;
        if text.len() > FILTER_BYTES_MAX.saturating_mul(2) {
            return Err(invalid("memcmp compares at most 128 bytes"));
        }
        let bytes = match memcmp.get("encoding").and_then(Value::as_str) {
            None | Some("base58") => bs58::decode(text).into_vec().ok(),
            Some("base64") => STANDARD.decode(text).ok(),
            Some(_) => None,
        };
        let bytes = bytes.ok_or_else(|| invalid("bytes are not of their encoding, base58 or base64"))?;
        if bytes.len() > FILTER_BYTES_MAX {
            return Err(invalid("memcmp compares at most 128 bytes"));
        }
        let offset = memcmp.get("offset").and_then(size).ok_or_else(|| invalid("memcmp needs an offset"))?;
        Ok(Self::Holds(offset, bytes))
    }

    fn passes(&self, data: &[u8]) -> bool {
        match self {
            Self::DataSize(size) => data.len() == *size,
            Self::Holds(offset, bytes) => data.get(*offset..).is_some_and(|rest| rest.starts_with(bytes)),
        }
    }
}

pub(super) fn program_accounts(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let (program, config) = (params.key(0)?, params.config(1)?);
    let view = View::read(&config)?;
    let filters = config.get("filters").as_array().map_or(&[][..], Vec::as_slice);
    if filters.len() > FILTERS_MAX {
        return Err(RpcError::invalid_params(format_args!("Too many filters provided; max {FILTERS_MAX}")));
    }
    let filters = filters.iter().map(Filter::read).collect::<Result<Vec<_>, _>>()?;
    let (slot, found) = chain.with(|bank| {
        let passes = |data: &[u8]| filters.iter().all(|filter| filter.passes(data));
        (bank.slot(), owned_by(bank, &program, passes))
    });
    config.check_context(slot)?;
    let found: Value = found.iter().map(|found| view.write_keyed(found)).collect::<Result<_, _>>()?;
    Ok(if config.flag("withContext") { with_context(slot, found) } else { found })
}

fn owned_by(bank: &Bank, program: &Key, passes: impl Fn(&[u8]) -> bool) -> Vec<Found> {
    let accounts = bank.accounts.owned_by(program).filter(|(_, account)| passes(&account.data));
    let found = accounts.map(|(key, account)| {
        let decimals = if is_token_program(program) { bank.decimals(account) } else { None };
        Found { key: *key, account: account.clone(), decimals }
    });
    found.collect()
}

pub(super) fn balance(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let key = params.key(0)?;
    let (slot, account) = chain.with(|bank| (bank.slot(), bank.account(&key)));
    params.config(1)?.check_context(slot)?;
    Ok(with_context(slot, json!(account.map_or(0, |account| account.lamports))))
}

fn find_token(chain: &SandboxChain, params: &Params<'_>) -> Result<(u64, Found), RpcError> {
    let key = params.key(0)?;
    let (slot, found) = chain.with(|bank| (bank.slot(), find(bank, &key)));
    params.config(1)?.check_context(slot)?;
    let found = found.ok_or_else(|| RpcError::new(-32602, "Invalid param: could not find account"))?;
    Ok((slot, found))
}

pub(super) fn token_account_balance(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let (slot, found) = find_token(chain, params)?;
    let wrong = || RpcError::new(-32602, "Invalid param: not a Token account");
    let decimals = found.decimals.ok_or_else(wrong)?;
    let tokens = token::TokenAccount::read(&found.account.data).map_err(|_| wrong())?;
    Ok(with_context(slot, token_amount(tokens.amount, decimals)))
}

pub(super) fn token_supply(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let (slot, found) = find_token(chain, params)?;
    let wrong = || RpcError::new(-32602, "Invalid param: not a Token mint");
    let decimals = found.decimals.ok_or_else(wrong)?;
    let mint = token::Mint::read(&found.account.data).map_err(|_| wrong())?;
    Ok(with_context(slot, token_amount(mint.supply, decimals)))
}

pub(super) fn token_accounts_by_owner(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let (owner, filter, config) = (params.key(0)?, params.config(1)?, params.config(2)?);
    let view = View::read(&config)?;
    let key = |config: &Config<'_>, name| config.text(name).map(parse::<Key>).transpose();
    let (mint, program) = (key(&filter, "mint")?, key(&filter, "programId")?);
    let programs = match (mint, program) {
        (Some(_), None) => vec![TOKEN_PROGRAM, TOKEN_2022_PROGRAM],
        (None, Some(program)) => vec![program],
        _ => return Err(RpcError::invalid_params("params[1] needs either mint or programId")),
    };
    let passes = |data: &[u8]| {
        token::TokenAccount::read(data)
            .is_ok_and(|tokens| tokens.owner == owner && mint.is_none_or(|mint| tokens.mint == mint))
    };
    let (slot, found) = chain.with(|bank| {
        let found: Vec<_> = programs.iter().flat_map(|program| owned_by(bank, program, passes)).collect();
        (bank.slot(), found)
    });
    config.check_context(slot)?;
    let found = found.iter().map(|found| view.write_keyed(found)).collect::<Result<_, _>>()?;
    Ok(with_context(slot, found))
}
