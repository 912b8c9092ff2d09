//! Values that must not be shown: passphrases, and endpoint addresses with a key in them.

use std::fmt;

use http::Uri;
use zeroize::Zeroizing;

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

/// A JSON-RPC endpoint. Providers put access keys into its path or query, so only scheme and host are ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcUrl(Uri);

impl RpcUrl {
    /// An endpoint.
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
