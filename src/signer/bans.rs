//! Which shares never sign together again, on disk.
//!
//! The file holds one JSON object a line, each a ban: `shares` (which shares of which key, by a hash over their public
//! parts), `peer`, `why`, `at` (Unix milliseconds). It is only added to. Promises: a ban is on the disk before it is
//! acted upon; one that cannot be written holds for the life of the process, and is told as an error. A ban ends with the
//! shares: renewed ones have other public parts.
//!
//! Why a ban: `docs/decisions/0011-cosigners.md`; what it protects from, the paper on DKLs23 says under "selective
//! failure": who goes on signing with a party that cheats in the oblivious transfers gives its share away bit by bit.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ecdsa::pair::Bans;
use super::keystore::{Curve, KeyShare};
use crate::clock::{Clock, SystemClock};

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The bans of one share.
pub struct BanFile {
    path: Option<PathBuf>,
    shares: String,
    banned: Mutex<BTreeMap<u16, String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    shares: String,
    peer: u16,
    why: String,
    at: i64,
}

/// The file cannot be read, so nobody knows who is banned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}; restore it from its backup, or renew the shares and remove it", path = .path.display())]
pub struct BansError {
    path: PathBuf,
    what: String,
}

impl BanFile {
    /// The bans of a share, kept in a file that need not be there yet; without a path they end with the process.
    ///
    /// # Errors
    /// [`BansError`] where the file is there and cannot be read whole.
    pub fn open<C: Curve>(path: Option<PathBuf>, share: &KeyShare<C>) -> Result<Self, BansError> {
        let mut hash = Sha256::new().chain_update(share.group());
        for verifying in &share.verifying_shares {
            hash.update(verifying);
        }
        let shares = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut banned = BTreeMap::new();
        if let Some(path) = &path {
            let lines = read(path).map_err(|what| BansError { path: path.clone(), what })?;
            let ours = lines.into_iter().filter(|line| line.shares == shares);
            banned.extend(ours.map(|line| (line.peer, line.why)));
        }
        Ok(Self { path, shares, banned: Mutex::new(banned) })
    }

    fn write(&self, path: &Path, peer: u16, why: &str) -> Result<(), String> {
        let line = Line { shares: self.shares.clone(), peer, why: why.to_owned(), at: SystemClock.now().0 };
        let text = serde_json::to_string(&line).map_err(|error| error.to_string())? + "\n";
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| error.to_string())?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| error.to_string())?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
        Ok(())
    }
}

impl Bans for BanFile {
    fn banned(&self, peer: u16) -> Option<String> {
        self.banned.lock().get(&peer).cloned()
    }

    fn ban(&self, peer: u16, why: &str) {
        // Held while it is written: nobody begins with the banned share in between.
        let mut banned = self.banned.lock();
        banned.insert(peer, why.to_owned());
        tracing::error!(
            peer,
            why,
            "a share has cheated in the oblivious transfers: this share signs with it no more. Find out who had that \
             machine, then renew the shares"
        );
        let Some(path) = &self.path else { return };
        if let Err(error) = self.write(path, peer, why) {
            tracing::error!(path = %path.display(), error, "the ban cannot be written down: do not restart before it can");
        }
    }
}

fn read(path: &Path) -> Result<Vec<Line>, String> {
    let mut text = String::new();
    match std::fs::File::open(path) {
        Ok(file) => {
            file.take(FILE_BYTES_MAX.saturating_add(1)).read_to_string(&mut text).map_err(|error| error.to_string())?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    if u64::try_from(text.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(format!("it is longer than {FILE_BYTES_MAX} bytes"));
    }
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number.saturating_add(1)))
    };
    text.lines().enumerate().map(line).collect()
}
