//! The signer: where the key's shares lie, how they are opened, and what they refuse to sign.
//!
//! Without `cosigners` two or three shares of each key are here. With them one is, or none, and then `address` or
//! `evm_address` says which key it is that the others are asked for.

use std::time::Duration;

use super::money::Assets;
use super::network::Families;
use super::reader::{Complaint, Map, Value};
use super::server::or;
use super::{CosignersConfig, ShareConfig, SignerConfig, secret};
use crate::amount::Amount;
use crate::signer::tls::{TlsFiles, is_name};
use crate::x402::Key;
use crate::x402::evm::Address;

/// Defaults in cents.
const DEPOSIT_MAX_CENTS: u64 = 100_000;
const CLAIM_MAX_CENTS: u64 = 1_000_000;
const SHARES_REMEDY: &str = "Write two or three, each with file and passphrase_file; turnpike keygen makes them.";
const EVM_SHARES_REMEDY: &str =
    "Write two or three, each with file and passphrase_file; turnpike keygen --curve secp256k1 makes them.";

const ONE_SHARE_REMEDY: &str =
    "Write one share at most, as two here would be the whole key; or none and the key's address.";
/// The most cosigners: a key has so many shares.
const COSIGNERS_MAX: usize = 3;
const COSIGNERS_REMEDY: &str = "Write one to three, each with name and address.";
/// How long one call of a cosigner may take.
const TIMEOUT: Duration = Duration::from_secs(2);

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
    let elsewhere = map.has("cosigners");
    let cosigners = if elsewhere { Some(map.take("cosigners").and_then(|value| cosigners(&value))) } else { None };
    let svm =
        KeyPlace { shares: "shares", address: "address", remedy: SHARES_REMEDY, why_not: "without a Solana network" };
    let evm = KeyPlace {
        shares: "evm_shares",
        address: "evm_address",
        remedy: EVM_SHARES_REMEDY,
        why_not: "without an EVM network",
    };
    let count = cosigners.as_ref().map(|found| found.as_ref().map_or(COSIGNERS_MAX, Vec::len));
    let of_svm = svm.read(map, families.map(|families| families.svm), count, |value| {
        value.parse("a Solana address", |text| {
            text.parse::<Key>()
                .map_err(|_| Complaint::new("is not a Solana address", "Write what turnpike keygen said."))
        })
    });
    let of_evm = evm.read(map, families.map(|families| families.evm), count, |value| {
        value.parse("an EVM address", |text| {
            Address::parse_checked(text)
                .map_err(|_| Complaint::new("is not an EVM address", "Write what turnpike keygen said."))
        })
    });
    let tls = if elsewhere {
        let remedy = "Write cert_file, key_file and ca_file; turnpike keygen --certificates makes them.";
        map.require("tls", remedy)
            .and_then(|value| value.map("a mapping with cert_file, key_file and ca_file", tls).flatten())
    } else {
        map.inert("tls", "without cosigners", "Leave it out.");
        None
    };
    let timeout = if elsewhere {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(10));
        or(map.take("cosigner_timeout"), TIMEOUT, |value| value.duration(min, max))
    } else {
        map.inert("cosigner_timeout", "without cosigners", "Leave it out.");
        Some(TIMEOUT)
    };
    let deposit_max = assets.limit_or(map, "deposit_max", assets.cents(DEPOSIT_MAX_CENTS));
    let claim_max = assets.limit_or(map, "claim_max", assets.cents(CLAIM_MAX_CENTS));
    let ((shares, address), (evm_shares, evm_address)) = (of_svm?, of_evm?);
    let cosigners = match cosigners {
        Some(cosigners) => {
            Some(CosignersConfig { cosigners: cosigners?, tls: tls?, timeout: timeout?, address, evm_address })
        }
        None => None,
    };
    Some(SignerConfig { shares, evm_shares, cosigners, deposit_max: deposit_max?, claim_max: claim_max? })
}

/// Where the key of one curve is written. Whether a file is of that curve, the keystore says when it is opened.
struct KeyPlace {
    shares: &'static str,
    address: &'static str,
    remedy: &'static str,
    why_not: &'static str,
}

impl KeyPlace {
    /// The shares that are here, and the key's address where none is. Needed where networks of its family are there,
    /// nothing where none is; `cosigners` is how many shares are elsewhere, where any are.
    fn read<A>(
        &self,
        map: &mut Map<'_, '_>,
        needed: Option<bool>,
        cosigners: Option<usize>,
        address: impl FnOnce(&Value<'_, '_>) -> Option<A>,
    ) -> Option<(Vec<ShareConfig>, Option<A>)> {
        if needed == Some(false) {
            map.inert(self.shares, self.why_not, "Leave it out.");
            map.inert(self.address, self.why_not, "Leave it out.");
            return Some((Vec::new(), None));
        }
        let Some(cosigners) = cosigners else {
            map.inert(self.address, "without cosigners: the shares say it", "Leave it out.");
            let value =
                if needed == Some(true) { map.require(self.shares, self.remedy) } else { map.take(self.shares) };
            return Some((shares(&value?, 2..=3, self.remedy)?, None));
        };
        if map.has(self.shares) {
            map.inert(self.address, "beside a share, which says it", "Leave it out.");
            let own = map.take(self.shares).and_then(|value| shares(&value, 1..=1, ONE_SHARE_REMEDY));
            return Some((own?, None));
        }
        let remedy = format!("Write the key's address, or one share of it in {}.", self.shares);
        let value = if needed == Some(true) { map.require(self.address, &remedy) } else { map.take(self.address) };
        let address = address(&value?)?;
        if cosigners < 2 {
            let what = "needs two cosigners, as no share of the key is here.".to_owned();
            let place = super::yaml::join(&map.whole.key, self.address);
            map.whole.cx.problem(map.line_of(self.address), place, what, COSIGNERS_REMEDY.to_owned());
            return None;
        }
        Some((Vec::new(), Some(address)))
    }
}

/// Who holds the other shares.
fn cosigners(value: &Value<'_, '_>) -> Option<Vec<(String, String)>> {
    let items = value.items("a list of cosigners, each with name and address")?;
    if !(1..=COSIGNERS_MAX).contains(&items.len()) {
        value.problem(format!("holds {} cosigners.", items.len()), COSIGNERS_REMEDY);
        return None;
    }
    let read = items.iter().map(|item| item.map("a mapping with name and address", cosigner).flatten());
    let read = read.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?;
    let mut whole = true;
    for (place, ((name, address), item)) in read.iter().zip(&items).enumerate() {
        if read.iter().take(place).any(|(other, elsewhere)| other == name || elsewhere == address) {
            item.problem("has the name or the address of another cosigner.", "Write a different cosigner.");
            whole = false;
        }
    }
    whole.then_some(read)
}

fn cosigner(map: &mut Map<'_, '_>) -> Option<(String, String)> {
    let named = map.require("name", "Write the name that is in its certificate.").and_then(|value| name(&value));
    let address = map.require("address", "Write host and port, such as 10.0.0.2:8443.").and_then(|value| {
        value.parse("host and port such as 10.0.0.2:8443", |text| {
            let fits = text.parse::<http::uri::Authority>().ok().filter(|authority| {
                !authority.host().is_empty()
                    && authority.port_u16().is_some_and(|port| port != 0)
                    && !text.contains('@')
            });
            let complaint = || Complaint::new("is not host and port", "Write them such as 10.0.0.2:8443.");
            fits.map(|_| text.to_owned()).ok_or_else(complaint)
        })
    });
    Some((named?, address?))
}

/// A name that stands in a certificate.
pub(super) fn name(value: &Value<'_, '_>) -> Option<String> {
    value.parse("a name such as cosigner-2", |text| {
        let complaint = || Complaint::new("cannot stand in a certificate", "Write letters, digits and hyphens.");
        if is_name(text) { Ok(text.to_owned()) } else { Err(complaint()) }
    })
}

/// The files of one side of mutual TLS.
pub(super) fn tls(map: &mut Map<'_, '_>) -> Option<TlsFiles> {
    let mut file = |key, what| map.require(key, what).and_then(|value| value.existing_file());
    let cert_file = file("cert_file", "Write the path of a PEM file with this machine's certificate.");
    let key_file = file("key_file", "Write the path of a PEM file with its private key.");
    let ca_file = file("ca_file", "Write the path of a PEM file with the authority of all machines.");
    Some(TlsFiles { cert_file: cert_file?, key_file: key_file?, ca_file: ca_file? })
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

fn shares(value: &Value<'_, '_>, count: std::ops::RangeInclusive<usize>, remedy: &str) -> Option<Vec<ShareConfig>> {
    let items = value.items("a list of shares, each with file and passphrase_file")?;
    if !count.contains(&items.len()) {
        value.problem(format!("holds {} shares.", items.len()), remedy);
    }
    let shares: Vec<_> = items.iter().map(|item| item.map("a mapping with file and passphrase_file", share)).collect();
    let shares = shares.into_iter().map(Option::flatten).collect::<Option<Vec<_>>>()?;
    for (i, (share, item)) in shares.iter().zip(&items).enumerate() {
        if shares.iter().take(i).any(|other| other.file == share.file) {
            item.problem("is the file of another share.", "Write the file of a different share.");
        }
    }
    count.contains(&shares.len()).then_some(shares)
}

pub(super) fn share(map: &mut Map<'_, '_>) -> Option<ShareConfig> {
    let file = map.require("file", "Write the path of the share's file.").and_then(|value| value.existing_file());
    let passphrase = secret::read(map, "passphrase", "passphrase_file");
    if !map.has("passphrase") && !map.has("passphrase_file") {
        map.whole.problem("has no passphrase.", "Write passphrase_file: path, or passphrase: ${NAME}.");
    }
    Some(ShareConfig { file: file?, passphrase: passphrase?? })
}
