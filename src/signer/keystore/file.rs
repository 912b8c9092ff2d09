//! Files of secrets: read whole and within a limit, written once, readable by their owner only.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;

use zeroize::Zeroize;

use super::KeystoreError;

/// Reads a text of at most `bytes_max` bytes.
pub(in crate::signer) fn read_text(path: &Path, bytes_max: u64) -> Result<String, KeystoreError> {
    let read = || {
        // All at once: a buffer that grows would leave parts of a passphrase behind.
        let mut text = String::with_capacity(usize::try_from(bytes_max).unwrap_or(0).saturating_add(1));
        std::fs::File::open(path)?.take(bytes_max.saturating_add(1)).read_to_string(&mut text)?;
        if u64::try_from(text.len()).is_ok_and(|length| length <= bytes_max) {
            return Ok(text);
        }
        text.zeroize();
        Err(io::Error::other(format!("it is longer than {bytes_max} bytes")))
    };
    read().map_err(|source| KeystoreError::Read { path: path.to_owned(), source })
}

/// Writes a file that did not exist, readable by its owner only, and waits until the disk has it.
pub(crate) fn write_new(path: &Path, text: &str) -> Result<(), KeystoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeystoreError::Exists(path.to_owned()),
        _ => KeystoreError::Write { path: path.to_owned(), source },
    })?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|source| {
        // What was written in part is of no use, and would stand in the way of the next try.
        let _ = std::fs::remove_file(path);
        KeystoreError::Write { path: path.to_owned(), source }
    })?;
    synchronize_directory_of(path);
    Ok(())
}

/// Writes a file in place of the one that may be there: at every moment, and after a crash, one of both is there whole.
/// Readable by its owner only.
pub(in crate::signer) fn write_over(path: &Path, text: &str) -> Result<(), KeystoreError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    // What a crash has left of an earlier attempt.
    let _ = std::fs::remove_file(beside);
    write_new(beside, text)?;
    std::fs::rename(beside, path).map_err(|source| KeystoreError::Write { path: path.to_owned(), source })?;
    synchronize_directory_of(path);
    Ok(())
}

/// A name is safe once its directory is; not every system lets a directory be synchronized.
fn synchronize_directory_of(path: &Path) {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
}
