//! A cosigner's own file: its share, who may ask it, and what it allows. Read as the proxy's is, every problem at once;
//! `config/cosigner.yaml` explains it key by key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::audit;
use super::money;
use super::network::{self, Cosigned, CosignedFamily};
use super::problem::{Problems, Warning};
use super::reader::{Complaint, Map, Value, document};
use super::server::{self, or};
use super::{Env, LogConfig, ShareConfig, signer};
use crate::amount::{Amount, Asset};
use crate::scheme::svm::treasury_owner;
use crate::signer::cosigner::policy::{Hours, Limits};
use crate::signer::cosigner::{Entry, EntryRules};
use crate::signer::rules::evm::{EVM_KINDS, EvmRules};
use crate::signer::rules::{ComputeCaps, KINDS, Rules};
use crate::signer::tls::TlsFiles;

/// The most entries of a policy.
const ENTRIES_MAX: usize = 16;
/// The most coordinators.
const COORDINATORS_MAX: usize = 8;
/// The most that `signatures_per_minute` may be.
const SIGNATURES_MAX: u32 = 1_000_000;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// A cosigner's checked configuration.
#[derive(Debug)]
pub struct CosignerConfig {
    /// The file that it came from.
    pub source: PathBuf,
    /// What it is called: the name in its certificate.
    pub name: String,
    /// Where coordinators connect.
    pub listen: SocketAddr,
    /// What it shows them, and who may have signed what they show.
    pub tls: TlsFiles,
    /// The names that their certificates may have.
    pub coordinators: Vec<String>,
    /// Its share of the key for Solana networks.
    pub share: Option<ShareConfig>,
    /// Its share of the key for EVM networks.
    pub evm_share: Option<ShareConfig>,
    /// Its record.
    pub store: PathBuf,
    /// The directory of its audit record; `None` for none.
    pub audit: Option<PathBuf>,
    /// What it allows.
    pub policy: Vec<Entry>,
    /// The log.
    pub log: LogConfig,
}

impl CosignerConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Every problem of the file at once; or one, with [`Problems::unreadable`], where it cannot be read.
    pub fn load(path: &Path, env: &Env<'_>) -> Result<(Self, Vec<Warning>), Problems> {
        let text = super::read(path).map_err(|why| Problems::cannot_read(path, why))?;
        Self::parse(path, &text, env)
    }

    /// Checks a file's text. `path` is named in messages, and its directory is what paths in the text are relative to.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn parse(path: &Path, text: &str, env: &Env<'_>) -> Result<(Self, Vec<Warning>), Problems> {
        let want = "a mapping that begins with name, listen and tls";
        document(path, text, env, want, |root| whole(root, path))
    }

    /// Whether a file is meant to be a cosigner's: it has a key that a proxy's never has.
    #[must_use]
    pub fn is_meant(path: &Path) -> bool {
        super::read(path).is_ok_and(|text| text.lines().any(|line| line.starts_with("coordinators:")))
    }
}

fn whole(root: &mut Map<'_, '_>, path: &Path) -> Option<CosignerConfig> {
    let name =
        root.require("name", "Write the name that is in its certificate.").and_then(|value| signer::name(&value));
    let listen = root.require("listen", "Write an address and port such as 0.0.0.0:8443.").and_then(|v| v.socket());
    let remedy = "Write cert_file, key_file and ca_file; turnpike keygen --certificates makes them.";
    let tls = root.require("tls", remedy);
    let tls = tls.and_then(|value| value.map("a mapping with cert_file, key_file and ca_file", signer::tls).flatten());
    let coordinators = root.require("coordinators", "Write the names in the certificates of those who may ask.");
    let coordinators = coordinators.and_then(|value| coordinators_of(&value));
    let ed_share = share(root, "share");
    let evm_share = share(root, "evm_share");
    let store = root.require("store", "Write store: {path: cosigner.db}, on a disk that is kept.");
    let store = store.and_then(|value| value.map("a mapping such as {path: cosigner.db}", path_of).flatten());
    let audit = audit::of_cosigner(root, store.as_deref());
    let policy = root.require("policy", "Write what may be signed: a list with network, pay_to and per_day.");
    let policy = policy.and_then(|value| policy_of(&value));
    let log = server::log_of(root);
    let (share, evm_share) = (ed_share?, evm_share?);
    if share.is_none() && evm_share.is_none() {
        root.whole.problem("holds no share.", "Write share, evm_share or both, each with file and passphrase_file.");
    }
    let policy = policy?;
    needed(root, "share", share.is_some(), policy.iter().any(|entry| matches!(entry.rules, EntryRules::Svm(_))));
    needed(
        root,
        "evm_share",
        evm_share.is_some(),
        policy.iter().any(|entry| matches!(entry.rules, EntryRules::Evm(_))),
    );
    Some(CosignerConfig {
        source: path.to_owned(),
        name: name?,
        listen: listen?,
        tls: tls?,
        coordinators: coordinators?,
        share,
        evm_share,
        store: store?,
        audit: audit?,
        policy,
        log: log?,
    })
}

/// A share and what may be signed with it need each other.
fn needed(root: &Map<'_, '_>, key: &str, there: bool, used: bool) {
    let (what, remedy) = match (there, used) {
        (true, false) => {
            ("does nothing: no entry of policy is for its networks.", "Write one, or leave the share out.")
        }
        (false, true) => ("is missing: an entry of policy is for its networks.", "Write it, or leave the entry out."),
        (true, true) | (false, false) => return,
    };
    root.whole.cx.problem(root.line_of(key), key.to_owned(), what.to_owned(), remedy.to_owned());
}

fn share(root: &mut Map<'_, '_>, key: &'static str) -> Option<Option<ShareConfig>> {
    or(root.take(key), None, |value| {
        value.map("a mapping with file and passphrase_file", signer::share).flatten().map(Some)
    })
}

fn path_of(map: &mut Map<'_, '_>) -> Option<PathBuf> {
    map.require("path", "Write the path of the file.").and_then(|value| value.path())
}

fn coordinators_of(value: &Value<'_, '_>) -> Option<Vec<String>> {
    let values = value.one_or_many();
    if values.is_empty() || values.len() > COORDINATORS_MAX {
        value.problem(format!("holds {} names.", values.len()), format!("Write 1 to {COORDINATORS_MAX}."));
        return None;
    }
    values.iter().map(signer::name).collect::<Vec<_>>().into_iter().collect()
}

fn policy_of(value: &Value<'_, '_>) -> Option<Vec<Entry>> {
    let items = value.items("a list of mappings, each with network, pay_to and per_day")?;
    if items.is_empty() || items.len() > ENTRIES_MAX {
        value.problem(format!("holds {} entries.", items.len()), format!("Write 1 to {ENTRIES_MAX}."));
        return None;
    }
    let entries = items.iter().map(|item| item.map("a mapping with network, pay_to and per_day", entry).flatten());
    let entries = entries.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?;
    let mut whole = true;
    for (place, (entry, item)) in entries.iter().zip(&items).enumerate() {
        if entries.iter().take(place).any(|other| other.name == entry.name) {
            item.problem("is the network and asset of another entry.", "Keep one of the two.");
            whole = false;
        }
    }
    whole.then_some(entries)
}

fn entry(map: &mut Map<'_, '_>) -> Option<Entry> {
    let cosigned = network::cosigned(map);
    // Where the network is wrong, amounts are checked as if they were in USDC.
    let stand_in = Arc::new(Asset { address: "".into(), symbol: "USDC".into(), decimals: 6 });
    let asset = cosigned.as_ref().map_or(&stand_in, |cosigned| &cosigned.asset);
    let limits = limits(map, asset);
    let svm = !matches!(&cosigned, Some(Cosigned { family: CosignedFamily::Evm { .. }, .. }));
    let kinds = if svm { kinds(map, &KINDS) } else { kinds(map, &EVM_KINDS) };
    let deposit_max = if svm {
        let value = map.require("deposit_max", "Write the most that a client may put into a channel at once.");
        value.and_then(|value| money::in_asset(&value, asset))
    } else {
        map.inert("deposit_max", "on an EVM network, where this key signs no deposits", "Leave it out.");
        Some(Amount::ZERO)
    };
    let (Cosigned { network, asset, family }, limits, kinds, deposit_max) = (cosigned?, limits?, kinds?, deposit_max?);
    let name = format!("{} {}", network::shown(&network), asset.address);
    let rules = match family {
        CosignedFamily::Svm { mint, token_program, pay_to } => EntryRules::Svm(Rules {
            network: network.clone(),
            pay_to,
            mints: vec![(mint, token_program)],
            treasury_owner: treasury_owner(&network),
            deposit_max: deposit_max.to_u64().unwrap_or(u64::MAX),
            // How much is for the limits to say, which count what is new.
            claim_max: u64::MAX,
            compute: ComputeCaps::default(),
            kinds,
        }),
        CosignedFamily::Evm { chain_id, token, pay_to } => EntryRules::Evm(EvmRules {
            chain_id,
            pay_to,
            tokens: vec![token],
            channel_max: Amount::new(u128::MAX),
            claim_max: Amount::new(u128::MAX),
            kinds,
        }),
    };
    Some(Entry { name, network, rules, limits })
}

fn limits(map: &mut Map<'_, '_>, asset: &Asset) -> Option<Limits> {
    let amount = |map: &mut Map<'_, '_>, key| or(map.take(key), None, |value| money::in_asset(value, asset).map(Some));
    let per_day = map.require("per_day", "Write the most that may newly move in any 24 hours.");
    let per_day = per_day.and_then(|value| money::in_asset(&value, asset));
    let per_signature = amount(map, "per_signature");
    let per_hour = amount(map, "per_hour");
    let approval_above = amount(map, "approval_above");
    let signatures_per_minute =
        or(map.take("signatures_per_minute"), None, |value| value.number(1, SIGNATURES_MAX).map(Some));
    let hours =
        or(map.take("hours"), None, |value| value.map("a mapping with days, from and to", hours).flatten().map(Some));
    Some(Limits {
        per_signature: per_signature?,
        per_hour: per_hour?,
        per_day: Some(per_day?),
        signatures_per_minute: signatures_per_minute?,
        hours: hours?,
        approval_above: approval_above?,
    })
}

fn kinds(map: &mut Map<'_, '_>, all: &[&'static str]) -> Option<Vec<&'static str>> {
    or(map.take("kinds"), all.to_vec(), |value| {
        let choices: Vec<_> = all.iter().map(|kind| (*kind, *kind)).collect();
        let kinds = value.one_or_many();
        if kinds.is_empty() {
            value.problem("allows nothing.", "Write the kinds that may be signed, or leave it out for all.");
            return None;
        }
        kinds.iter().map(|kind| kind.choice(&choices)).collect::<Vec<_>>().into_iter().collect()
    })
}

fn hours(map: &mut Map<'_, '_>) -> Option<Hours> {
    let days = or(map.take("days"), [true; 7], |value| {
        let choices: Vec<_> = DAYS.into_iter().zip(0_usize..).collect();
        let mut days = [false; 7];
        for day in value.one_or_many() {
            if let Some(open) = day.choice(&choices).and_then(|place| days.get_mut(place)) {
                *open = true;
            }
        }
        Some(days)
    });
    let from =
        map.require("from", "Write a time of the day in UTC such as \"08:00\".").and_then(|value| minute(&value));
    let to = map.require("to", "Write a time of the day in UTC such as \"18:00\".");
    let to = to.and_then(|value| Some((minute(&value)?, value)));
    let (days, from_minute, (to_minute, value)) = (days?, from?, to?);
    if to_minute <= from_minute {
        value.problem("is not after from.", "Write a later time, up to \"24:00\".");
        return None;
    }
    Some(Hours { days, from_minute, to_minute })
}

/// `HH:MM`.
fn minute(value: &Value<'_, '_>) -> Option<u16> {
    value.parse("a time of the day such as \"08:00\"", |text| {
        let complaint = || Complaint::new("is no time of the day", "Write hours and minutes such as \"08:00\".");
        let (hours, minutes) =
            text.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2).ok_or_else(complaint)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
        let (hours, minutes): (u16, u16) =
            hours.parse().ok().zip(minutes.parse().ok()).filter(|_| digits).ok_or_else(complaint)?;
        let minute = hours.checked_mul(60).and_then(|hours| hours.checked_add(minutes)).ok_or_else(complaint)?;
        if minutes < 60 && minute <= DAY_MINUTES { Ok(minute) } else { Err(complaint()) }
    })
}
