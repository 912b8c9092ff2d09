//! The end of a ceremony: the new share takes the place of the old one.
//!
//! Promises: only the share that the ceremony has renewed is replaced; its file holds the old share or the new one at every
//! moment, and the old one lies beside it, under the name with `.old`, until it is destroyed; what was written has been opened
//! again. Doing it twice does it once.

use std::path::{Path, PathBuf};

use super::DeskError;
use crate::signer::ceremony::{PublicShares, Setup};
use crate::signer::keystore::{
    self, Curve, FILE_BYTES_MAX, Kdf, KeyShare, KeystoreError, Passphrase, read_text, write_over,
};

/// Writes a new share to its file, in place of the one that it renews, which is kept.
pub(super) fn install<C: Curve>(
    path: &Path,
    setup: &Setup<C>,
    share: &KeyShare<C>,
    passphrase: &Passphrase,
    kdf: Kdf,
) -> Result<(), DeskError> {
    let there = path.symlink_metadata().is_ok();
    if there && is(path, share, passphrase) {
        return Ok(());
    }
    if there {
        let Some(old) = &setup.old else { return Err(KeystoreError::Exists(path.to_owned()).into()) };
        if !is_old(path, setup, old, passphrase) {
            return Err(DeskError::AnotherShare(path.to_owned()));
        }
        keep(path)?;
    }
    keystore::replace(path, share, passphrase, kdf)?;
    if is(path, share, passphrase) { Ok(()) } else { Err(DeskError::NotReadBack(path.to_owned())) }
}

/// Removes the old share that was kept: all the new ones are in their places.
pub(super) fn destroy_old(path: &Path) -> Result<(), DeskError> {
    let old = beside(path);
    match std::fs::remove_file(&old) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(DeskError::OldShare { path: old, source }),
        _ => Ok(()),
    }
}

fn keep(path: &Path) -> Result<(), DeskError> {
    let (old, text) = (beside(path), read_text(path, FILE_BYTES_MAX)?);
    if old.symlink_metadata().is_ok() && read_text(&old, FILE_BYTES_MAX)? != text {
        return Err(DeskError::InTheWay(old));
    }
    Ok(write_over(&old, &text)?)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    PathBuf::from(name)
}

/// Whether the file holds this very share.
fn is<C: Curve>(path: &Path, share: &KeyShare<C>, passphrase: &Passphrase) -> bool {
    let read = keystore::open_of::<C>(path, passphrase, share.rehearsal);
    read.is_ok_and(|read| {
        PublicShares::of(&read) == PublicShares::of(share)
            && read.identifier == share.identifier
            && read.secret == share.secret
    })
}

/// Whether the file holds the share that the ceremony renews. The participant that is replaced may have lost its passphrase, and
/// is believed what the file says in the clear.
fn is_old<C: Curve>(path: &Path, setup: &Setup<C>, old: &PublicShares<C>, passphrase: &Passphrase) -> bool {
    if !setup.kind.needs_share(setup.me) {
        return keystore::public_part::<C>(path).is_ok_and(|file| {
            file.group == old.group && file.identifier == setup.me && file.rehearsal == setup.rehearsal
        });
    }
    let read = keystore::open_of::<C>(path, passphrase, setup.rehearsal);
    read.is_ok_and(|read| PublicShares::of(&read) == *old && read.identifier == setup.me)
}
