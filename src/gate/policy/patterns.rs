//! What a request or its payer must not look like.
//!
//! A pattern has one to four parts, and blocks what all of them match. Paths are matched in the form that routes are
//! matched in (`gate/route/path.rs`), so that no other spelling of a path goes past a pattern, and with a slash at their
//! end as well as without: `/v1/*` is `/v1` too, as in routes. Hosts, header values and the addresses of EVM networks are
//! matched in lower case; the addresses of Solana's as they are.

use http::{HeaderMap, HeaderName};

use super::RequestFacts;
use super::glob::Glob;
use crate::gate::route::path::{Scratch, canonical};
use crate::gate::route::pattern::host_of;
use crate::x402::Account;

/// The most patterns of one policy.
pub const PATTERNS_MAX: usize = 64;

/// What is blocked: what every part that is there matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockPattern {
    /// The payer's address.
    pub payer: Option<Glob>,
    /// The path, without query.
    pub path: Option<Glob>,
    /// The host, without port.
    pub host: Option<Glob>,
    /// A header, and any of its values.
    pub header: Option<(HeaderName, Glob)>,
}

/// Patterns of which all but the payer matched, one bit for each: who pays decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed(u64);

impl BlockPattern {
    /// In the form in which it is matched.
    #[must_use]
    pub fn prepared(self) -> Self {
        let is_hex = |glob: &Glob| glob.to_string().starts_with("0x") || glob.to_string().starts_with("0X");
        Self {
            payer: self.payer.map(|glob| if is_hex(&glob) { glob.lowered() } else { glob }),
            path: self.path.map(|glob| glob.lowered()),
            host: self.host.map(|glob| glob.lowered()),
            header: self.header.map(|(name, glob)| (name, glob.lowered())),
        }
    }

    fn matches_request(&self, text: &Texts<'_>, headers: &HeaderMap) -> bool {
        let header = |(name, glob): &(HeaderName, Glob)| {
            let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            values.map(|value| value.to_lowercase()).any(|value| glob.matches(&value))
        };
        self.path.as_ref().is_none_or(|glob| glob.matches(text.path) || glob.matches(text.folder))
            && self.host.as_ref().is_none_or(|glob| glob.matches(text.host))
            && self.header.as_ref().is_none_or(header)
    }

    fn matches_payer(&self, payer: &str) -> bool {
        self.payer.as_ref().is_some_and(|glob| glob.matches(payer))
    }
}

/// What patterns are matched with.
struct Texts<'a> {
    path: &'a str,
    /// The path with a slash at its end.
    folder: &'a str,
    host: &'a str,
}

/// The first pattern that blocks a request whoever pays, by its place; else those that may block its payer.
pub(super) fn block_request(patterns: &[BlockPattern], request: &RequestFacts<'_>) -> Result<Armed, usize> {
    if patterns.is_empty() {
        return Ok(Armed::default());
    }
    let mut scratch = Scratch::new();
    // What is no path was refused by the table of routes.
    let path = canonical(request.path, &mut scratch).unwrap_or(request.path.into());
    let folder = if path == "/" { path.to_string() } else { format!("{path}/") };
    let host = request.host.map(|host| host_of(host).to_ascii_lowercase()).unwrap_or_default();
    let texts = Texts { path: &path, folder: &folder, host: &host };
    let mut armed = Armed::default();
    for (at, pattern) in patterns.iter().enumerate().take(PATTERNS_MAX) {
        if pattern.matches_request(&texts, request.headers) {
            if pattern.payer.is_none() {
                return Err(at);
            }
            armed.0 |= 1 << at;
        }
    }
    Ok(armed)
}

/// The first pattern that blocks a payer, by its place.
pub(super) fn block_payer(patterns: &[BlockPattern], armed: Armed, payer: &Account) -> Option<usize> {
    if armed.0 == 0 {
        return None;
    }
    let text = match payer {
        Account::Svm(key) => key.to_string(),
        Account::Evm(address) => address.to_string().to_ascii_lowercase(),
    };
    let mut armed_ones = patterns.iter().enumerate().take(PATTERNS_MAX).filter(|(at, _)| armed.0 & (1 << at) != 0);
    armed_ones.find(|(_, pattern)| pattern.matches_payer(&text)).map(|(at, _)| at)
}
