//! The signer: where the key's shares lie, how they are opened, and what they refuse to sign.

use super::money::Assets;
use super::network::Families;
use super::reader::{Map, Value};
use super::{ShareConfig, SignerConfig, secret};
use crate::amount::Amount;

/// Defaults in cents.
const DEPOSIT_MAX_CENTS: u64 = 100_000;
const CLAIM_MAX_CENTS: u64 = 1_000_000;
const SHARES_REMEDY: &str = "Write two or three, each with file and passphrase_file; turnpike keygen makes them.";
const EVM_SHARES_REMEDY: &str =
    "Write two or three, each with file and passphrase_file; turnpike keygen --curve secp256k1 makes them.";

/// Reads `signer`, which a network needs and the sandbox has not. `families` is `None` where the networks are not known.
pub(super) fn read(
    root: &mut Map<'_, '_>,
    assets: &Assets<'_>,
    families: Option<Families>,
) -> Option<Option<SignerConfig>> {
    if families.is_some_and(|families| families.sandbox) {
        root.inert("signer", "on the sandbox, which makes a key of its own", "Leave it out.");
        return Some(None);
    }
    let value = match families {
        Some(Families { svm: false, .. }) => {
            root.require("signer", &format!("Write signer: {{evm_shares: [...]}}. {EVM_SHARES_REMEDY}"))
        }
        Some(_) => root.require("signer", &format!("Write signer: {{shares: [...]}}. {SHARES_REMEDY}")),
        None => root.take("signer"),
    }?;
    value.map("a mapping with shares", |map| section(map, assets, families)).flatten().map(Some)
}

fn section(map: &mut Map<'_, '_>, assets: &Assets<'_>, families: Option<Families>) -> Option<SignerConfig> {
    let svm = families.map(|families| families.svm);
    let of_svm = key(map, "shares", svm, "without a Solana network", SHARES_REMEDY);
    let evm = families.map(|families| families.evm);
    let of_evm = key(map, "evm_shares", evm, "without an EVM network", EVM_SHARES_REMEDY);
    let deposit_max = assets.limit_or(map, "deposit_max", assets.cents(DEPOSIT_MAX_CENTS));
    let claim_max = assets.limit_or(map, "claim_max", assets.cents(CLAIM_MAX_CENTS));
    Some(SignerConfig { shares: of_svm?, evm_shares: of_evm?, deposit_max: deposit_max?, claim_max: claim_max? })
}

/// The shares of the key of one curve: needed where networks of its family are there, nothing where none is. Whether a
/// file is of that curve, the keystore says when it is opened.
fn key(
    map: &mut Map<'_, '_>,
    name: &'static str,
    needed: Option<bool>,
    why_not: &str,
    remedy: &str,
) -> Option<Vec<ShareConfig>> {
    let value = match needed {
        Some(true) => map.require(name, remedy),
        Some(false) => {
            map.inert(name, why_not, "Leave it out.");
            return Some(Vec::new());
        }
        None => map.take(name),
    };
    shares(&value?, remedy)
}

/// Refuses a limit on claims that full channels would run into: they could be charged and never claimed. `channels` is
/// how many one claim has to be able to name.
pub(super) fn check_claim(root: &Map<'_, '_>, assets: &Assets<'_>, signer: &SignerConfig, channels: usize) {
    let count = u128::try_from(channels).unwrap_or(u128::MAX);
    let least = Amount::new(signer.deposit_max.get().saturating_mul(count));
    if signer.claim_max < least {
        let (max, least) = (assets.show(signer.claim_max), assets.show(least));
        let full = if channels == 1 { "a full channel".to_owned() } else { format!("{channels} full channels") };
        let what = format!("({max}) is below what {full} can owe ({least}).");
        let line = root.line_of("signer");
        let or_batch = if channels == 1 { "" } else { " or settlement.batch_channels" };
        let remedy = format!("Write at least {least}, or lower signer.deposit_max{or_batch}.");
        root.whole.cx.problem(line, "signer.claim_max".to_owned(), what, remedy);
    }
}

fn shares(value: &Value<'_, '_>, remedy: &str) -> Option<Vec<ShareConfig>> {
    let items = value.items("a list of two or three shares")?;
    if !(2..=3).contains(&items.len()) {
        value.problem(format!("holds {} shares.", items.len()), remedy);
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
    let passphrase = secret::read(map, "passphrase", "passphrase_file");
    if !map.has("passphrase") && !map.has("passphrase_file") {
        map.whole.problem("has no passphrase.", "Write passphrase_file: path, or passphrase: ${NAME}.");
    }
    Some(ShareConfig { file: file?, passphrase: passphrase?? })
}
