//! Passphrases of share files: read, made, written, never shown.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use super::file::{read_text, write_new};
use super::{KeystoreError, fill};

/// The fewest characters of a passphrase that a new share is encrypted under.
pub const PASSPHRASE_CHARS_MIN: usize = 12;
/// The largest passphrase file that is read.
pub const PASSPHRASE_BYTES_MAX: u64 = 16 * 1024;

/// A passphrase. It cannot be printed or cloned, and is wiped when dropped.
#[derive(PartialEq, Eq)]
pub struct Passphrase(pub(super) Zeroizing<String>);

impl Passphrase {
    /// A passphrase as an operator wrote it; one line break at its end does not count.
    #[must_use]
    pub fn new(text: String) -> Self {
        let mut text = Zeroizing::new(text);
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Self(text)
    }

    /// Reads a passphrase from a file.
    ///
    /// # Errors
    /// [`KeystoreError::Read`] where the file cannot be read or is no text.
    pub fn read(path: &Path) -> Result<Self, KeystoreError> {
        read_text(path, PASSPHRASE_BYTES_MAX).map(Self::new)
    }

    /// A new passphrase of 192 random bits in base58: at least 24 characters, nearly always 33.
    ///
    /// # Errors
    /// [`KeystoreError::Random`] where the system gives no random bytes.
    pub fn generate() -> Result<Self, KeystoreError> {
        let mut bytes = Zeroizing::new([0; 24]);
        fill(bytes.as_mut())?;
        Ok(Self(Zeroizing::new(bs58::encode(bytes.as_ref()).into_string())))
    }

    /// Whether a new share may be encrypted under it.
    #[must_use]
    pub fn is_long_enough(&self) -> bool {
        self.0.chars().count() >= PASSPHRASE_CHARS_MIN
    }

    /// Writes it to a new file of mode 0600.
    ///
    /// # Errors
    /// [`KeystoreError::Exists`] or [`KeystoreError::Write`].
    pub fn write_new(&self, path: &Path) -> Result<(), KeystoreError> {
        write_new(path, &Zeroizing::new(format!("{}\n", self.0.as_str())))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_of_a_passphrase_does_not_count() {
        for text in ["secret words", "secret words\n", "secret words\r\n"] {
            assert!(Passphrase::new(text.to_owned()) == Passphrase::new("secret words".to_owned()), "{text:?}");
        }
        assert!(Passphrase::new("secret words\n\n".to_owned()) != Passphrase::new("secret words".to_owned()));
    }
}
