//! Values that must not be shown: passphrases, tokens, and endpoint addresses with a key in them.
//!
//! A secret comes from the environment or from a file of its own; one that stands in the configuration is refused.

use std::fmt;
use std::io::Read;

use http::Uri;
use zeroize::Zeroizing;

use super::reader::{Complaint, Map, Value};

/// The largest secret that is read from a file.
const SECRET_BYTES_MAX: u64 = 4096;

/// A text that cannot be printed, cloned or compared, and whose memory is wiped when it is dropped.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes charge of a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret, for the one who needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A service's address. Providers put access keys into its path or query, so only scheme and host are ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcUrl(Uri);

impl RpcUrl {
    /// An address.
    #[must_use]
    pub const fn new(uri: Uri) -> Self {
        Self(uri)
    }

    /// The whole address, with its key.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.0
    }
}

impl fmt::Display for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme_str().unwrap_or("?"), self.0.host().unwrap_or("?"))?;
        self.0.port_u16().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret under `direct` or, in a file, under `by_file`; `Some(None)` where neither is written.
pub(super) fn read(map: &mut Map<'_, '_>, direct: &'static str, by_file: &'static str) -> Option<Option<Secret>> {
    let secret = match (map.take(direct), map.take(by_file)) {
        (Some(value), None) => from_variable(&value.hide())?,
        (None, Some(value)) => from_file(&value)?,
        (Some(_), Some(value)) => {
            value.problem(format!("stands beside {direct}."), "Keep one of the two.");
            return None;
        }
        (None, None) => return (!map.has(direct) && !map.has(by_file)).then_some(None),
    };
    Some(Some(secret))
}

/// A secret from the environment. One that stands in the file is refused: the file is not a secret.
fn from_variable(value: &Value<'_, '_>) -> Option<Secret> {
    if !value.is_one_variable() {
        let name = value.key.rsplit('.').next().unwrap_or_default();
        value.problem(
            "is not a single environment variable, and a secret may not stand in this file.",
            format!("Write ${{NAME}} and set that variable, or write {name}_file: path."),
        );
        return None;
    }
    value.text("${NAME}").map(Secret::new)
}

/// A secret from a file of its own; a line break at its end is not part of it.
fn from_file(value: &Value<'_, '_>) -> Option<Secret> {
    let path = value.existing_file()?;
    let mut text = String::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(SECRET_BYTES_MAX.saturating_add(1)).read_to_string(&mut text));
    let complaint = match read {
        Err(error) => {
            Complaint::new(format!("cannot be read ({})", error.kind()), "Write the path of a readable text file.")
        }
        Ok(size) if u64::try_from(size).is_ok_and(|size| size > SECRET_BYTES_MAX) => {
            Complaint::new(format!("holds more than {SECRET_BYTES_MAX} bytes"), "Keep only the secret in it.")
        }
        Ok(_) if text.trim_end_matches(['\r', '\n']).is_empty() => {
            Complaint::new("is empty", "Write the secret into it.")
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
