//! The signer: where the key's shares lie, how they are opened, and what they refuse to sign.

use std::io::Read;

use super::money::Assets;
use super::reader::{Complaint, Map, Value};
use super::{Secret, ShareConfig, SignerConfig};
use crate::amount::Amount;

/// The largest passphrase.
const PASSPHRASE_BYTES_MAX: u64 = 1024;
/// Defaults in cents.
const DEPOSIT_MAX_CENTS: u64 = 100_000;
const CLAIM_MAX_CENTS: u64 = 1_000_000;
const SHARES_REMEDY: &str = "Write two or three, each with file and passphrase_file; turnpike keygen makes them.";

/// Reads `signer`, which a network needs and the sandbox has not. `sandbox` is `None` where that is not known.
pub(super) fn read(root: &mut Map<'_, '_>, assets: &Assets, sandbox: Option<bool>) -> Option<Option<SignerConfig>> {
    if sandbox == Some(true) {
        root.inert("signer", "on the sandbox, which makes a key of its own", "Leave it out.");
        return Some(None);
    }
    let value = match sandbox {
        Some(_) => root.require("signer", &format!("Write signer: {{shares: [...]}}. {SHARES_REMEDY}")),
        None => root.take("signer"),
    }?;
    value.map("a mapping with shares", |map| section(map, assets)).flatten().map(Some)
}

fn section(map: &mut Map<'_, '_>, assets: &Assets) -> Option<SignerConfig> {
    let shares = map.require("shares", SHARES_REMEDY).and_then(|value| shares(&value));
    let deposit_max = assets.limit_or(map, "deposit_max", assets.cents(DEPOSIT_MAX_CENTS));
    let claim_max = assets.limit_or(map, "claim_max", assets.cents(CLAIM_MAX_CENTS));
    Some(SignerConfig { shares: shares?, deposit_max: deposit_max?, claim_max: claim_max? })
}

/// Refuses a limit on claims that full channels would run into: they could be charged and never claimed.
pub(super) fn check_claim(root: &Map<'_, '_>, assets: &Assets, signer: &SignerConfig, batch_channels: usize) {
    let channels = u128::try_from(batch_channels).unwrap_or(u128::MAX);
    let least = Amount::new(signer.deposit_max.get().saturating_mul(channels));
    if signer.claim_max < least {
        let (max, least) = (assets.show(signer.claim_max), assets.show(least));
        let what = format!("({max}) is below what {batch_channels} full channels can owe ({least}).");
        let line = root.line_of("signer");
        let remedy = format!("Write at least {least}, or lower signer.deposit_max or settlement.batch_channels.");
        root.whole.cx.problem(line, "signer.claim_max".to_owned(), what, remedy);
    }
}

fn shares(value: &Value<'_, '_>) -> Option<Vec<ShareConfig>> {
    let items = value.items("a list of two or three shares")?;
    if !(2..=3).contains(&items.len()) {
        value.problem(format!("holds {} shares.", items.len()), SHARES_REMEDY);
    }
    let shares: Vec<_> = items.iter().map(|item| item.map("a mapping with file and passphrase_file", share)).collect();
    let shares = shares.into_iter().map(Option::flatten).collect::<Option<Vec<_>>>()?;
    for (i, (share, item)) in shares.iter().zip(&items).enumerate() {
        if shares.iter().take(i).any(|other| other.file == share.file) {
            item.problem("is the file of another share.", "Write the file of a different share.");
        }
    }
    (2..=3).contains(&shares.len()).then_some(shares)
}

fn share(map: &mut Map<'_, '_>) -> Option<ShareConfig> {
    let file = map.require("file", "Write the path of the share's file.").and_then(|value| value.existing_file());
    let (direct, by_file) = (map.take("passphrase"), map.take("passphrase_file"));
    let passphrase = match (direct, by_file) {
        (Some(value), None) => passphrase(&value.hide()),
        (None, Some(value)) => passphrase_file(&value),
        (Some(_), Some(value)) => {
            value.problem("stands beside passphrase.", "Keep one of the two.");
            None
        }
        (None, None) => {
            if !map.has("passphrase") && !map.has("passphrase_file") {
                map.whole.problem("has no passphrase.", "Write passphrase_file: path, or passphrase: ${NAME}.");
            }
            None
        }
    };
    Some(ShareConfig { file: file?, passphrase: passphrase? })
}

/// A passphrase from the environment. One that stands in the file is refused: the file is not a secret.
fn passphrase(value: &Value<'_, '_>) -> Option<Secret> {
    if !value.is_one_variable() {
        value.problem(
            "is not a single environment variable, and a secret may not stand in this file.",
            "Write ${NAME} and set that variable, or write passphrase_file: path.",
        );
        return None;
    }
    value.text("${NAME}").map(Secret::new)
}

/// A passphrase from a file of its own; a line break at its end is not part of it.
fn passphrase_file(value: &Value<'_, '_>) -> Option<Secret> {
    let path = value.existing_file()?;
    let mut text = String::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(PASSPHRASE_BYTES_MAX.saturating_add(1)).read_to_string(&mut text));
    let complaint = match read {
        Err(error) => {
            Complaint::new(format!("cannot be read ({})", error.kind()), "Write the path of a readable text file.")
        }
        Ok(size) if u64::try_from(size).is_ok_and(|size| size > PASSPHRASE_BYTES_MAX) => {
            Complaint::new(format!("holds more than {PASSPHRASE_BYTES_MAX} bytes"), "Keep only the passphrase in it.")
        }
        Ok(_) if text.trim_end_matches(['\r', '\n']).is_empty() => {
            Complaint::new("holds no passphrase", "Write the passphrase into it.")
        }
        Ok(_) => {
            warn_of_permissions(value, &path);
            let length = text.trim_end_matches(['\r', '\n']).len();
            text.truncate(length);
            return Some(Secret::new(text));
        }
    };
    drop(Secret::new(text));
    value.reject(complaint);
    None
}

#[cfg(unix)]
fn warn_of_permissions(value: &Value<'_, '_>, path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    if open {
        value.warn("can be read by other users of this machine.", "Give it the permissions 600.");
    }
}

#[cfg(not(unix))]
fn warn_of_permissions(_value: &Value<'_, '_>, _path: &std::path::Path) {}
