//! `policy.screening`: the compliance lists that payers are looked up in.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::facilitator::{credentials, warn_in_the_clear};
use super::reader::{Complaint, Map, Value};
use super::secret::RpcUrl;
use super::server::or;
use super::value::{self, UrlTail};
use crate::screening::PAYER;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Compliance lists; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreeningConfig {
    /// A file of addresses.
    pub file: Option<PathBuf>,
    /// A service that is asked.
    pub service: Option<ScreeningServiceConfig>,
}

/// A service that is asked about each payer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreeningServiceConfig {
    /// Where, with `{payer}` in it.
    pub url: RpcUrl,
    /// What goes with each request. The values are marked as sensitive and never shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The place in the answer that says whether the payer is listed, as a JSON pointer.
    pub listed_at: String,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long an answer holds.
    pub cache: Duration,
    /// Whether payers are refused while the service cannot be asked.
    pub refuse_unknown: bool,
}

/// Reads the section.
pub(super) fn read(map: &mut Map<'_, '_>) -> Option<ScreeningConfig> {
    let file = or(map.take("file"), None, |value| value.existing_file().map(Some));
    let want = "a mapping such as {url: https://screening.example.com/{payer}}";
    let service = or(map.take("service"), None, |value| value.map(want, service).flatten().map(Some));
    let config = ScreeningConfig { file: file?, service: service? };
    if config.file.is_none() && config.service.is_none() {
        map.whole.problem("has neither file nor service.", "Write one of them, or leave screening out.");
        return None;
    }
    Some(config)
}

fn service(map: &mut Map<'_, '_>) -> Option<ScreeningServiceConfig> {
    let example = "Write a URL such as https://screening.example.com/v1/address/{payer}.";
    let url_value = map.require("url", example).map(Value::hide);
    let url = url_value.as_ref().and_then(|value| {
        value.parse("a URL with {payer} in it", |text| {
            if text.matches(PAYER).count() != 1 {
                return Err(Complaint::new("does not have {payer} in it once, for the payer's address", example));
            }
            let (before, _) = text.split_once(PAYER).unwrap_or_default();
            if before.trim_start_matches("https://").trim_start_matches("http://").find(['/', '?']).is_none() {
                return Err(Complaint::new("has {payer} in its host", example));
            }
            value::url(text, UrlTail::Query).map(RpcUrl::new)
        })
    });
    let headers = credentials(map);
    if let (Some(value), Some(url), Some(headers)) = (&url_value, &url, &headers) {
        warn_in_the_clear(value, url, headers);
    }
    let listed_at = or(map.take("listed_at"), "/listed".to_owned(), |value| {
        value.parse("a JSON pointer such as /listed", |text| {
            let fine = text.starts_with('/') && text.len() <= 256;
            let complaint =
                || Complaint::new("is not a JSON pointer", "Write one such as /listed or /result/identifications.");
            if fine { Ok(text.to_owned()) } else { Err(complaint()) }
        })
    });
    let timeout = or(map.take("timeout"), Duration::from_secs(2), |value| {
        value.duration(Duration::from_millis(50), Duration::from_secs(10))
    });
    let cache = or(map.take("cache"), Duration::from_secs(3600), |value| value.duration(SECOND, DAY));
    let remedy = "Write what happens while the service cannot be asked: refuse or allow.";
    let unavailable =
        map.require("unavailable", remedy).and_then(|value| value.choice(&[("refuse", true), ("allow", false)]));
    Some(ScreeningServiceConfig {
        url: url?,
        headers: headers?,
        listed_at: listed_at?,
        timeout: timeout?,
        cache: cache?,
        refuse_unknown: unavailable?,
    })
}
