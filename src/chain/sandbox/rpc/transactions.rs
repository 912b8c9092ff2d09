//! Methods about transactions: sending, simulating, and what became of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use solana_transaction_error::TransactionError;

use super::encode::{Found, View};
use super::params::{Config, Params, parse};
use super::{Answer, RpcError, with_context};
use crate::chain::sandbox::SandboxChain;
use crate::chain::sandbox::bank::{Bank, FINALITY_SLOTS, Incoming, Run, Sent};
use crate::chain::sandbox::history::{Details, Entry, TokenBalance};
use crate::chain::sandbox::programs::token;
use crate::chain::sandbox::runtime::Inner;
use crate::scheme::svm::transaction::{TRANSACTION_BYTES_MAX, Transaction};
use crate::x402::Key;
use crate::x402::key::Signature;

/// Signatures in one call.
const SIGNATURES_MAX: usize = 256;
/// Transactions in one answer.
const HISTORY_MAX: usize = 1_000;
/// The longest text of a transaction: base58 is the longer of the two encodings.
const TEXT_BYTES_MAX: usize = TRANSACTION_BYTES_MAX * 2;

fn decode_bytes(text: &str, encoding: Option<&str>) -> Result<Vec<u8>, RpcError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(RpcError::invalid_params(format_args!("transaction too large: max {TRANSACTION_BYTES_MAX} bytes")));
    }
    let bytes = match encoding {
        None | Some("base58") => bs58::decode(text).into_vec().ok(),
        Some("base64") => STANDARD.decode(text).ok(),
        Some(other) => {
            return Err(RpcError::invalid_params(format_args!(
                "unsupported encoding: {other}. Supported: base58, base64"
            )));
        }
    };
    bytes.ok_or_else(|| RpcError::invalid_params("the transaction is not of its encoding"))
}

fn decode(text: &str, encoding: Option<&str>) -> Result<Incoming, RpcError> {
    let bytes = decode_bytes(text, encoding)?;
    let transaction = Transaction::decode(&bytes);
    let transaction =
        transaction.map_err(|error| RpcError::invalid_params(format_args!("failed to decode: {error}")))?;
    Ok(Incoming::new(transaction))
}

pub(super) fn send(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let config = params.config(1)?;
    let incoming = decode(params.text(0)?, config.text("encoding"))?;
    chain.send_incoming(incoming, config.flag("skipPreflight")).map(|id| json!(id))
}

impl SandboxChain {
    /// Sends a decoded transaction; its signatures were verified while it was decoded.
    pub(in crate::chain::sandbox) fn send_incoming(
        &self,
        incoming: Incoming,
        skip_preflight: bool,
    ) -> Result<Signature, RpcError> {
        match self.with(|bank| bank.send(incoming, skip_preflight)) {
            Sent::Taken(id) => Ok(id),
            Sent::Lost => Err(RpcError::new(-32603, "Internal error: the sandbox was told to lose this answer")),
            Sent::Full => Err(RpcError::new(-32005, "Node is unhealthy: too many transactions are held")),
            Sent::Preflight(run) => Err(preflight_failure(&run)),
        }
    }
}

fn preflight_failure(run: &Run) -> RpcError {
    let error = run.result.as_ref().err();
    if matches!(error, Some(TransactionError::SignatureFailure)) {
        return RpcError::new(-32003, "Transaction signature verification failure");
    }
    let message = error.map(ToString::to_string).unwrap_or_default();
    RpcError {
        data: Some(run_result(run)),
        ..RpcError::new(-32002, format!("Transaction simulation failed: {message}"))
    }
}

fn error_json(error: Option<&TransactionError>) -> Value {
    serde_json::to_value(error).unwrap_or_default()
}

fn run_result(run: &Run) -> Value {
    let logs: Vec<_> = run.logs.iter().map(ToString::to_string).collect();
    let loaded: usize = run.after.iter().map(|loaded| loaded.account.data.len()).sum();
    json!({
        "accounts": null,
        "err": error_json(run.result.as_ref().err()),
        "innerInstructions": null,
        "loadedAccountsDataSize": loaded,
        "logs": logs,
        "replacementBlockhash": null,
        "returnData": null,
        "unitsConsumed": run.units,
    })
}

pub(super) fn simulate(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let config = params.config(1)?;
    let (verify, replace) = (config.flag("sigVerify"), config.flag("replaceRecentBlockhash"));
    if verify && replace {
        return Err(RpcError::invalid_params("sigVerify may not be used with replaceRecentBlockhash"));
    }
    let incoming = decode(params.text(0)?, config.text("encoding"))?;
    let wanted = Wanted::read(&config)?;
    let (slot, run, replacement) = chain.with(|bank| {
        let slot = bank.slot();
        let run = if verify && !incoming.signed {
            Run::refused(TransactionError::SignatureFailure)
        } else {
            bank.run(&incoming, !replace).unwrap_or_else(Run::refused)
        };
        (slot, run, replace.then(|| bank.blockhash(slot)))
    });
    config.check_context(slot)?;
    let mut result = run_result(&run);
    if let Some(blockhash) = replacement {
        let (hash, height) = (Key(blockhash.hash), blockhash.last_valid_block_height);
        result["replacementBlockhash"] = json!({ "blockhash": hash, "lastValidBlockHeight": height });
    }
    if config.flag("innerInstructions") {
        result["innerInstructions"] = inner_json(&run.inner);
    }
    if let Some(wanted) = wanted {
        result["accounts"] = wanted.write(&run)?;
    }
    Ok(with_context(slot, result))
}

/// Accounts that the caller wants to see as they would be.
struct Wanted {
    view: View,
    keys: Vec<Key>,
}

impl Wanted {
    fn read(config: &Config<'_>) -> Result<Option<Self>, RpcError> {
        let Some(addresses) = config.get("accounts").get("addresses").and_then(Value::as_array) else {
            return Ok(None);
        };
        if addresses.len() > SIGNATURES_MAX {
            return Err(RpcError::invalid_params("too many accounts are asked for"));
        }
        let keys = addresses.iter().map(|text| parse(text.as_str().unwrap_or_default())).collect::<Result<_, _>>()?;
        let view = View::read(&Params::new(&json!([config.get("accounts")]))?.config(0)?)?;
        Ok(Some(Self { view, keys }))
    }

    fn write(&self, run: &Run) -> Answer {
        let write = |key: &Key| {
            let loaded = run.after.iter().find(|loaded| loaded.key == *key && loaded.account.lamports > 0);
            loaded.map_or(Ok(Value::Null), |loaded| {
                let decimals = token::Mint::read(&loaded.account.data).ok().map(|mint| mint.decimals);
                self.view.write(&Found { key: *key, account: loaded.account.clone(), decimals })
            })
        };
        self.keys.iter().map(write).collect()
    }
}

fn inner_json(inner: &[Inner]) -> Value {
    let mut groups: Vec<(usize, Vec<Value>)> = Vec::new();
    for call in inner {
        let shown = json!({
            "programIdIndex": call.program,
            "accounts": call.accounts,
            "data": bs58::encode(&call.data).into_string(),
            "stackHeight": call.depth,
        });
        match groups.last_mut() {
            Some((top, calls)) if *top == call.top => calls.push(shown),
            _ => groups.push((call.top, vec![shown])),
        }
    }
    groups.into_iter().map(|(index, calls)| json!({ "index": index, "instructions": calls })).collect()
}

pub(super) fn fee_for_message(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let message = decode_bytes(params.text(0)?, Some("base64"))?;
    // A message is a transaction without its signatures; the header says how many there would be.
    let header = if message.first().is_some_and(|byte| byte & 0x80 != 0) { message.get(1) } else { message.first() };
    let signers = *header.ok_or_else(|| RpcError::invalid_params("the message is empty"))?;
    let mut wire = vec![signers & 0x7f];
    wire.extend(std::iter::repeat_n(0, usize::from(signers & 0x7f).saturating_mul(64)));
    wire.extend(message);
    let transaction = Transaction::decode(&wire);
    let transaction =
        transaction.map_err(|error| RpcError::invalid_params(format_args!("failed to decode: {error}")))?;
    let blockhash = transaction.blockhash();
    let fee = Incoming::new(transaction).fee();
    let (slot, valid) = chain.with(|bank| (bank.slot(), bank.is_blockhash_valid(&blockhash)));
    params.config(1)?.check_context(slot)?;
    Ok(with_context(slot, valid.then_some(fee).map_or(Value::Null, |fee| json!(fee))))
}

fn confirmation(entry: &Entry, slot: u64) -> &'static str {
    if slot.saturating_sub(entry.slot) >= FINALITY_SLOTS { "finalized" } else { "confirmed" }
}

fn status_json(entry: &Entry, slot: u64) -> Value {
    let confirmation = confirmation(entry, slot);
    let error = error_json(entry.error.as_ref());
    json!({
        "slot": entry.slot,
        "confirmations": (confirmation != "finalized").then(|| slot.saturating_sub(entry.slot)),
        "err": error,
        "status": if entry.error.is_some() { json!({ "Err": error }) } else { json!({ "Ok": null }) },
        "confirmationStatus": confirmation,
    })
}

pub(super) fn signature_statuses(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let texts = params.at(0).as_array().ok_or_else(|| RpcError::invalid_params("params[0] must be an array"))?;
    if texts.len() > SIGNATURES_MAX {
        return Err(RpcError::invalid_params(format_args!("Too many inputs provided; max {SIGNATURES_MAX}")));
    }
    let ids =
        texts.iter().map(|text| parse(text.as_str().unwrap_or_default())).collect::<Result<Vec<Signature>, _>>()?;
    let (slot, statuses) = chain.with(|bank| {
        let slot = bank.slot();
        let status = |id| bank.history.get(id).map_or(Value::Null, |entry| status_json(entry, slot));
        (slot, ids.iter().map(status).collect())
    });
    Ok(with_context(slot, statuses))
}

pub(super) fn signatures_for_address(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let (key, config) = (params.key(0)?, params.config(1)?);
    let signature = |name| config.text(name).map(parse::<Signature>).transpose();
    let (before, until) = (signature("before")?, signature("until")?);
    let limit = config.get("limit").as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(HISTORY_MAX);
    if !(1..=HISTORY_MAX).contains(&limit) {
        return Err(RpcError::invalid_params(format_args!("Invalid limit; max {HISTORY_MAX}")));
    }
    chain.with(|bank| {
        let slot = bank.slot();
        let entries = bank.history.newest_first();
        let entries = entries.skip_while(|(id, _)| before.is_some_and(|before| **id != before));
        let entries = entries.skip(usize::from(before.is_some()));
        let entries = entries.take_while(|(id, _)| until.is_none_or(|until| **id != until));
        let names = |entry: &Entry| entry.details.as_ref().is_some_and(|details| details.keys.contains(&key));
        let shown = entries.filter(|(_, entry)| names(entry)).take(limit).map(|(id, entry)| {
            json!({
                "signature": id,
                "slot": entry.slot,
                "err": error_json(entry.error.as_ref()),
                "memo": null,
                "blockTime": entry.time,
                "confirmationStatus": confirmation(entry, slot),
            })
        });
        Ok(shown.collect())
    })
}

pub(super) fn transaction(chain: &SandboxChain, params: &Params<'_>) -> Answer {
    let id: Signature = parse(params.text(0)?)?;
    // The options may be an encoding alone.
    let config = if params.at(1).is_string() { params.config(2)? } else { params.config(1)? };
    let encoding = params.at(1).as_str().or(config.text("encoding")).unwrap_or("json");
    let entry = chain.with(|bank: &mut Bank| bank.history.get(&id).cloned());
    let Some((entry, details)) = entry.as_ref().and_then(|entry| Some((entry, entry.details.as_ref()?))) else {
        return Ok(Value::Null);
    };
    let Ok(transaction) = Transaction::decode(&details.wire) else {
        return Ok(Value::Null);
    };
    let versioned = transaction.message().first().is_some_and(|byte| byte & 0x80 != 0);
    let accepted = config.get("maxSupportedTransactionVersion").as_u64();
    if versioned && accepted.is_none() {
        let message = "Transaction version (0) is not supported by the requesting client. Please try the request again \
                       with the following configuration parameter: \"maxSupportedTransactionVersion\": 0";
        return Err(RpcError::new(-32015, message));
    }
    let shown = match encoding {
        "base64" => json!([STANDARD.encode(&details.wire), "base64"]),
        "base58" => json!([bs58::encode(&details.wire).into_string(), "base58"]),
        "json" | "jsonParsed" => message_json(&transaction, versioned, encoding == "jsonParsed"),
        other => return Err(RpcError::invalid_params(format_args!("unsupported encoding: {other}"))),
    };
    let mut answer = json!({
        "slot": entry.slot,
        "blockTime": entry.time,
        "meta": meta_json(entry, details),
        "transaction": shown,
    });
    if accepted.is_some() {
        answer["version"] = if versioned { json!(0) } else { json!("legacy") };
    }
    Ok(answer)
}

fn message_json(transaction: &Transaction, versioned: bool, parsed: bool) -> Value {
    let header = transaction.message().get(usize::from(versioned)..).unwrap_or_default();
    let byte = |index: usize| header.get(index).copied().unwrap_or_default();
    let keys = transaction.keys();
    let place = |key: &Key| keys.iter().position(|other| other == key).unwrap_or_default();
    let signers = transaction.required_signers().len();
    let shown_keys: Value = if parsed {
        let show = |(index, key): (usize, &Key)| {
            let (signer, writable) = (index < signers, transaction.is_writable(index));
            json!({ "pubkey": key, "signer": signer, "writable": writable, "source": "transaction" })
        };
        keys.iter().enumerate().map(show).collect()
    } else {
        json!(keys)
    };
    let instructions = transaction.instructions().into_iter().map(|instruction| {
        let data = bs58::encode(&instruction.data).into_string();
        let accounts = instruction.accounts.iter();
        if parsed {
            let accounts: Vec<_> = accounts.map(|meta| meta.key).collect();
            json!({ "programId": instruction.program, "accounts": accounts, "data": data, "stackHeight": 1 })
        } else {
            let accounts: Vec<_> = accounts.map(|meta| place(&meta.key)).collect();
            let program = place(&instruction.program);
            json!({ "programIdIndex": program, "accounts": accounts, "data": data, "stackHeight": 1 })
        }
    });
    let mut message = json!({
        "accountKeys": shown_keys,
        "recentBlockhash": Key(transaction.blockhash()),
        "instructions": instructions.collect::<Value>(),
    });
    if !parsed {
        message["header"] = json!({
            "numRequiredSignatures": byte(0),
            "numReadonlySignedAccounts": byte(1),
            "numReadonlyUnsignedAccounts": byte(2),
        });
    }
    if versioned {
        message["addressTableLookups"] = json!([]);
    }
    json!({ "signatures": transaction.signatures().collect::<Vec<_>>(), "message": message })
}

fn meta_json(entry: &Entry, details: &Details) -> Value {
    let error = error_json(entry.error.as_ref());
    let (before, after): (Vec<u64>, Vec<u64>) = details.lamports.iter().copied().unzip();
    let logs: Vec<_> = details.logs.iter().map(ToString::to_string).collect();
    json!({
        "err": error,
        "status": if entry.error.is_some() { json!({ "Err": error }) } else { json!({ "Ok": null }) },
        "fee": details.fee,
        "preBalances": before,
        "postBalances": after,
        "preTokenBalances": details.tokens_before.iter().map(token_balance).collect::<Value>(),
        "postTokenBalances": details.tokens_after.iter().map(token_balance).collect::<Value>(),
        "innerInstructions": inner_json(&details.inner),
        "logMessages": logs,
        "loadedAddresses": { "readonly": [], "writable": [] },
        "rewards": [],
        "computeUnitsConsumed": details.units,
    })
}

fn token_balance(balance: &TokenBalance) -> Value {
    json!({
        "accountIndex": balance.index,
        "mint": balance.mint,
        "owner": balance.owner,
        "programId": balance.program,
        "uiTokenAmount": super::encode::token_amount(balance.amount, balance.decimals),
    })
}
