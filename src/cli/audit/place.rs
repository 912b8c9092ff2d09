//! Where a record is, and what is known beside it: the keys that sign it and the place that the ledger stands on.
//!
//! A directory is taken as it is. A configuration names the directory, its share files hold the public keys in the
//! clear, and its ledger's file says where it stands; a cosigner's names the directory alone, as nobody signs its head.
//! Nothing here needs a passphrase or writes anything.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::audit::Position;
use crate::audit::checkpoint::Keys;
use crate::audit::log::folder::LOCK;
use crate::config::Config;
use crate::config::cosigner::CosignerConfig;
use crate::ledger::sqlite;
use crate::signer::ecdsa;
use crate::signer::keystore::{self, AnyPublicPart};

/// A record and what is known of it.
pub(super) struct Place {
    /// Its directory.
    pub directory: PathBuf,
    /// Whose checkpoints count.
    pub keys: Keys,
    /// What it must hold.
    pub holds: Option<Position>,
}

impl Place {
    /// Takes a directory, or reads a configuration.
    pub(super) fn of(place: &Path) -> Result<Self, Failure> {
        if place.is_dir() {
            return Ok(Self { directory: place.to_owned(), keys: Keys::default(), holds: None });
        }
        let nowhere =
            || Failure::unusable(format_args!("{} names no audit record that stays (audit.dir)", place.display()));
        if CosignerConfig::is_meant(place) {
            let (config, _) = CosignerConfig::load(place, &super::super::environment).map_err(Failure::unusable)?;
            let directory = config.audit.ok_or_else(nowhere)?;
            return Ok(Self { directory, keys: Keys::default(), holds: None });
        }
        let (config, _) = Config::load(place, &super::super::environment).map_err(Failure::unusable)?;
        let directory = config.audit.as_ref().and_then(|audit| audit.dir.clone()).ok_or_else(nowhere)?;
        let holds = match config.store.as_deref().filter(|store| store.exists()) {
            Some(store) => sqlite::stands_on(store).map_err(Failure::unusable)?,
            None => None,
        };
        Ok(Self { directory, keys: keys(&config), holds })
    }

    /// Whether a process has the record open.
    pub(super) fn is_written(&self) -> bool {
        File::open(self.directory.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
    }
}

/// The public keys of a configuration's shares. One that cannot be read is passed over: its checkpoints are then by a key
/// that is not known, which is said.
fn keys(config: &Config) -> Keys {
    let mut keys = Keys::default();
    let Some(signer) = &config.signer else { return keys };
    for share in signer.shares.iter().chain(&signer.evm_shares) {
        match keystore::peek(&share.file) {
            Ok(AnyPublicPart::Ed25519(part)) => keys.ed25519.push(part.group),
            Ok(AnyPublicPart::Secp256k1(part)) => keys.secp256k1.extend(ecdsa::address_of(&part.group)),
            Err(_) => {}
        }
    }
    keys.ed25519.dedup();
    keys.secp256k1.dedup();
    keys
}
