//! A compliance list in a file: an address a line, read again when the file changes.
//!
//! A line holds an address of either family, perhaps with something behind it after a space, a comma or `#`; empty lines
//! and those that begin with `#` are passed over. Lists name accounts on other chains as well, so lines with no address
//! that can pay here are told of and passed over too, but a file without a single one that can is refused, and so is one
//! of no bytes, which is a download that failed: a list of nobody has a line that says so. While a changed file is refused
//! or cannot be read, what was read last holds; so is it while the file is gone. Replace it by renaming another over it,
//! so that nobody reads half a list.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::RwLock;

use super::{Screen, Verdict};
use crate::telemetry::Telemetry;
use crate::x402::Account;

/// The largest file.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The most addresses.
pub const ADDRESSES_MAX: usize = 1_000_000;
/// How often it is looked whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a file is no list. The text names the file and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}", path = path.display())]
pub struct ListError {
    path: PathBuf,
    why: String,
}

/// A list in a file.
pub struct FileScreen {
    path: PathBuf,
    list: RwLock<Arc<HashSet<Account>>>,
    telemetry: Arc<Telemetry>,
}

/// What tells that a file is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    file: u64,
}

impl FileScreen {
    /// Reads a list, and reads it again when it changes, on the runtime that it is called on and for as long as it is
    /// held.
    ///
    /// # Errors
    /// [`ListError`].
    pub fn open(path: &Path, telemetry: Arc<Telemetry>) -> Result<Arc<Self>, ListError> {
        let stamp = stamp(path)?;
        let list = RwLock::new(Arc::new(read(path)?));
        let screen = Arc::new(Self { path: path.to_owned(), list, telemetry });
        drop(tokio::spawn(watch(Arc::downgrade(&screen), stamp)));
        Ok(screen)
    }

    /// How many addresses are listed.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.list.read().len()
    }

    fn count(&self, outcome: &str) {
        self.telemetry.screenings.with_label_values(&["file", outcome]).inc();
    }

    /// Takes up a file that is not the one of `before`.
    fn look(&self, before: Result<Stamp, ListError>) -> Result<Stamp, ListError> {
        // From before the reading, so that what changes meanwhile is seen at the next look.
        let now = stamp(&self.path);
        if now == before {
            return now;
        }
        match now.clone().and_then(|_| read(&self.path)) {
            Ok(list) => {
                tracing::info!(file = %self.path.display(), addresses = list.len(), "a changed compliance list holds now");
                *self.list.write() = Arc::new(list);
                self.count("read");
            }
            Err(error) => {
                tracing::error!(%error, "a changed compliance list cannot be read; the one before it still holds");
                self.count("unreadable");
            }
        }
        now
    }
}

#[async_trait]
impl Screen for FileScreen {
    async fn screen(&self, payer: &Account) -> Verdict {
        let listed = self.list.read().contains(payer);
        self.count(if listed { "listed" } else { "clear" });
        if listed { Verdict::Listed } else { Verdict::Clear }
    }
}

async fn watch(screen: Weak<FileScreen>, stamp: Stamp) {
    let mut stamp = Ok(stamp);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(screen) = screen.upgrade() else { return };
        let Ok(now) = tokio::task::spawn_blocking(move || screen.look(stamp)).await else { return };
        stamp = now;
    }
}

fn stamp(path: &Path) -> Result<Stamp, ListError> {
    let found = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    #[cfg(unix)]
    let file = std::os::unix::fs::MetadataExt::ino(&found);
    #[cfg(not(unix))]
    let file = 0;
    Ok(Stamp { modified: found.modified().ok(), bytes: found.len(), file })
}

/// Reads a file's addresses.
///
/// # Errors
/// [`ListError`].
pub fn read(path: &Path) -> Result<HashSet<Account>, ListError> {
    let wrong = |why: String| ListError { path: path.to_owned(), why };
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut limited = BufReader::new(file.take(FILE_BYTES_MAX.saturating_add(1)));
    let (mut list, mut others, mut first_other) = (HashSet::new(), 0_usize, 0_usize);
    let (mut bytes, mut text) = (0_u64, String::new());
    for number in 1_usize.. {
        text.clear();
        let read = limited.read_line(&mut text).map_err(|error| unreadable(path, &error))?;
        if read == 0 {
            break;
        }
        bytes = bytes.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if bytes > FILE_BYTES_MAX || list.len() >= ADDRESSES_MAX {
            return Err(wrong(format!("holds more than {FILE_BYTES_MAX} bytes or {ADDRESSES_MAX} addresses")));
        }
        let word = text.split([' ', '\t', ',', ';', '#', '\r', '\n']).next().unwrap_or_default();
        match (word, Account::parse(word)) {
            ("", _) => {}
            (_, Some(account)) => drop(list.insert(account)),
            (_, None) => {
                others = others.saturating_add(1);
                first_other = if others == 1 { number } else { first_other };
            }
        }
    }
    if bytes == 0 {
        return Err(wrong("is empty; write a line such as \"# nobody\" where nobody is listed".to_owned()));
    }
    if others > 0 && list.is_empty() {
        return Err(wrong(format!(
            "line {first_other} begins with no address, and no other line does; write one a line"
        )));
    }
    if others > 0 {
        tracing::warn!(
            file = %path.display(),
            lines = others,
            first = first_other,
            "lines of a compliance list begin with no Solana or EVM address and are passed over"
        );
    }
    Ok(list)
}

fn unreadable(path: &Path, error: &std::io::Error) -> ListError {
    let why = format!("cannot be read ({error}); write the path of a readable list of addresses");
    ListError { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOLANA: &str = "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV";
    const EVM: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";

    fn account(text: &str) -> Account {
        Account::parse(text).unwrap()
    }

    fn listed(text: &str) -> Result<HashSet<Account>, ListError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_line_is_an_address_and_what_stands_behind_it() {
        let both = HashSet::from([account(SOLANA), account(EVM)]);
        let lower = EVM.to_lowercase();
        for text in [
            format!("{SOLANA}\n{EVM}\n"),
            format!("# a list\n\n{SOLANA} of somebody\r\n{lower},OFAC,2026\n{EVM}#twice"),
            format!("bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq\n{SOLANA}\n{EVM}\n"),
        ] {
            assert_eq!(listed(&text), Ok(both.clone()), "{text}");
        }
        assert!(listed("").unwrap_err().to_string().contains("is empty"));
        assert_eq!(listed("# nobody yet\n"), Ok(HashSet::new()));
        assert!(listed("{\"addresses\": []}").unwrap_err().to_string().contains("line 1 begins with no address"));
        assert!(read(Path::new("/nowhere/list")).unwrap_err().to_string().contains("cannot be read"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_holds_and_a_broken_or_missing_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        fs::write(&path, format!("{SOLANA}\n")).unwrap();
        let telemetry = Telemetry::new().unwrap();
        let screen = FileScreen::open(&path, Arc::clone(&telemetry)).unwrap();
        let count = |outcome| telemetry.screenings.with_label_values(&["file", outcome]).get();
        let counted = async |outcome, times| {
            while count(outcome) < times {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        assert_eq!(screen.screen(&account(SOLANA)).await, Verdict::Listed);
        assert_eq!(screen.screen(&account(EVM)).await, Verdict::Clear);
        fs::write(&path, "no list at all\n").unwrap();
        counted("unreadable", 1).await;
        assert_eq!(screen.screen(&account(SOLANA)).await, Verdict::Listed);
        let other = folder.path().join("other");
        fs::write(&other, format!("{EVM}\n")).unwrap();
        fs::rename(&other, &path).unwrap();
        counted("read", 1).await;
        assert_eq!(screen.screen(&account(SOLANA)).await, Verdict::Clear);
        assert_eq!(screen.screen(&account(EVM)).await, Verdict::Listed);
        fs::remove_file(&path).unwrap();
        counted("unreadable", 2).await;
        assert_eq!((screen.screen(&account(EVM)).await, screen.addresses()), (Verdict::Listed, 1));
        fs::write(&path, "# nobody\n").unwrap();
        counted("read", 2).await;
        assert_eq!(screen.screen(&account(EVM)).await, Verdict::Clear);
    }
}
