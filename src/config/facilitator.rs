//! `facilitator`: who checks and sends what clients sign for the chain, this process or services elsewhere.
//!
//! ```yaml
//! facilitator: local                                   # this process, the default
//! facilitator: https://facilitator.example.com         # one elsewhere
//! facilitator:                                         # several, in order of preference
//!   - https://one.example.com/x402
//!   - url: https://two.example.com
//!     bearer_token_file: secrets/two.token             # or bearer_token: ${TWO_TOKEN}
//!     headers: { X-Api-Key: "${TWO_KEY}" }
//!     verify_timeout: 10s
//!     settle_timeout: 60s
//! ```
//!
//! Only EVM networks have facilitators elsewhere. Refuses secrets that stand in the file, and never shows a URL, a
//! token or a header's value.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use super::reader::{Complaint, Map, Value};
use super::secret::{self, RpcUrl};
use super::server::or;
use super::value::{self, UrlTail};
use super::{FACILITATORS_MAX, RemoteFacilitatorConfig};
use crate::x402::Network;

/// The most headers of one facilitator, and the longest value of one.
const HEADERS_MAX: usize = 16;
const HEADER_BYTES_MAX: usize = 4096;
/// Headers that belong to the exchange itself.
const TAKEN: [&str; 8] =
    ["host", "accept", "connection", "content-length", "content-type", "te", "transfer-encoding", "upgrade"];
const WANT: &str = "local, a URL, or a mapping such as {url: https://facilitator.example.com, bearer_token: ${TOKEN}}";

/// Who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// This process.
    Local,
    /// Facilitators elsewhere, in order of preference.
    Elsewhere(Vec<RemoteFacilitatorConfig>),
}

/// Reads the value. `network` is what it stands with, where that could be read.
pub(super) fn read(value: &Value<'_, '_>, network: Option<&Network>) -> Option<Who> {
    let elsewhere = value.is_map() || value.is_list() || value.text(WANT)?.contains("://");
    if !elsewhere {
        return value.choice(&[("local", ())]).map(|()| Who::Local);
    }
    if network.is_some_and(Network::is_solana) {
        let what =
            "names a facilitator elsewhere, which can only serve EVM networks: on Solana this process is its own.";
        value.problem(what, "Write local, or leave it out.");
        return None;
    }
    let items = value.clone().hide().one_or_many();
    if items.is_empty() || items.len() > FACILITATORS_MAX {
        value.problem(format!("holds {} facilitators.", items.len()), format!("Write 1 to {FACILITATORS_MAX}."));
        return None;
    }
    let remotes: Vec<_> = items.iter().map(remote).collect();
    let remotes = remotes.into_iter().collect::<Option<Vec<_>>>()?;
    for (i, (remote, item)) in remotes.iter().zip(&items).enumerate() {
        if remotes.iter().take(i).any(|other| other.url == remote.url) {
            item.problem("is the same facilitator again.", "Keep one of the two.");
            return None;
        }
    }
    Some(Who::Elsewhere(remotes))
}

fn remote(value: &Value<'_, '_>) -> Option<RemoteFacilitatorConfig> {
    if value.is_map() {
        return value.map(WANT, mapping).flatten();
    }
    let url = url(value)?;
    let headers = Vec::new();
    Some(RemoteFacilitatorConfig { url, headers, verify_timeout: VERIFY_TIMEOUT, settle_timeout: SETTLE_TIMEOUT })
}

const VERIFY_TIMEOUT: Duration = Duration::from_secs(10);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

fn mapping(map: &mut Map<'_, '_>) -> Option<RemoteFacilitatorConfig> {
    let url_value = map.require("url", "Write the facilitator's URL, such as https://facilitator.example.com.");
    let address = url_value.as_ref().and_then(url);
    let headers = credentials(map);
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let verify_timeout =
        or(map.take("verify_timeout"), VERIFY_TIMEOUT, |value| value.duration(Duration::from_millis(100), minute));
    let settle_timeout =
        or(map.take("settle_timeout"), SETTLE_TIMEOUT, |value| value.duration(second, minute.saturating_mul(10)));
    let (address, headers) = (address?, headers?);
    if let Some(value) = &url_value {
        warn_in_the_clear(value, &address, &headers);
    }
    Some(RemoteFacilitatorConfig {
        url: address,
        headers,
        verify_timeout: verify_timeout?,
        settle_timeout: settle_timeout?,
    })
}

/// `headers`, and `bearer_token` or `bearer_token_file` as one more: what goes with each request to a service.
pub(super) fn credentials(map: &mut Map<'_, '_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let headers = or(map.take("headers"), Vec::new(), headers);
    let by = if map.has("bearer_token") { "bearer_token" } else { "bearer_token_file" };
    let token = secret::read(map, "bearer_token", "bearer_token_file");
    let (mut headers, token) = (headers?, token?);
    let Some(token) = token else { return Some(headers) };
    if headers.iter().any(|(name, _)| name == AUTHORIZATION) {
        map.whole.problem(format!("has both {by} and a header Authorization."), "Keep one of the two.");
        return None;
    }
    let Some(value) = sensitive(&format!("Bearer {}", token.expose())) else {
        map.whole.problem(format!("has a {by} that no header can carry."), "Write one line of plain characters.");
        return None;
    };
    headers.push((AUTHORIZATION, value));
    Some(headers)
}

/// Warns of what authorizes us going over plain HTTP.
pub(super) fn warn_in_the_clear(value: &Value<'_, '_>, url: &RpcUrl, headers: &[(HeaderName, HeaderValue)]) {
    if !headers.is_empty() && is_in_the_clear(url) {
        value.warn("is not encrypted, and what authorizes us would go over it.", "Write an https URL.");
    }
}

fn url(value: &Value<'_, '_>) -> Option<RpcUrl> {
    value.parse("a URL", |text| {
        if text == "local" {
            return Err(Complaint::new("local stands alone", "Write facilitator: local, or only URLs."));
        }
        value::url(text, UrlTail::Path).map(RpcUrl::new)
    })
}

/// Plain HTTP to another machine.
fn is_in_the_clear(url: &RpcUrl) -> bool {
    let host = url.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    url.uri().scheme_str() == Some("http") && !loopback
}

fn headers(value: &Value<'_, '_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let read = |map: &mut Map<'_, '_>| {
        let entries = map.take_all();
        let read: Vec<_> = entries.iter().map(|(name, value)| header(name, value)).collect();
        read.into_iter().collect::<Option<Vec<_>>>()
    };
    let headers = value.map("a mapping such as {X-Api-Key: \"${API_KEY}\"}", read).flatten()?;
    if headers.len() > HEADERS_MAX {
        value.problem(format!("holds {} headers.", headers.len()), format!("Write up to {HEADERS_MAX}."));
        return None;
    }
    for (i, (name, _)) in headers.iter().enumerate() {
        if headers.iter().take(i).any(|(other, _)| other == name) {
            value.problem(format!("holds {name} twice."), "Keep one of the two.");
            return None;
        }
    }
    Some(headers)
}

fn header(name: &str, value: &Value<'_, '_>) -> Option<(HeaderName, HeaderValue)> {
    let Ok(name) = HeaderName::try_from(name) else {
        value.problem("is not a header's name.", "Write one such as X-Api-Key.");
        return None;
    };
    if TAKEN.contains(&name.as_str()) {
        value.problem("belongs to the exchange itself.", "Leave it out.");
        return None;
    }
    if !value.holds_a_variable() {
        let what = "holds no environment variable, and a secret may not stand in this file.";
        value.problem(what, "Write \"${NAME}\", perhaps with something around it, and set that variable.");
        return None;
    }
    let value = value.parse("\"${NAME}\"", |text| {
        let fits = text.len() <= HEADER_BYTES_MAX;
        fits.then(|| sensitive(text)).flatten().ok_or_else(|| {
            let remedy = format!("Write one line of up to {HEADER_BYTES_MAX} plain characters.");
            Complaint::new("cannot be sent in a header", remedy)
        })
    })?;
    Some((name, value))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;

    use super::super::reader::Context;
    use super::super::yaml;
    use super::*;

    const CANARY: &str = "hunter2canary";

    /// What is made of `facilitator: ...` on a network, with every problem and warning.
    fn parse(text: &str, network: &str, base: &Path) -> (Option<Who>, Vec<String>) {
        let env = |name: &str| (name != "UNSET").then(|| CANARY.to_owned());
        let (tree, problems) = yaml::parse(text);
        let (problems, warnings) = (RefCell::new(problems), RefCell::default());
        let cx = Context { env: &env, base, problems, warnings };
        let network: Network = network.parse().unwrap();
        let tree = tree.unwrap();
        let read = |root: &mut Map<'_, '_>| read(&root.take("facilitator").unwrap(), Some(&network));
        let config = Value::root(&cx, &tree).map("a mapping", read).flatten();
        let shown = cx.problems.into_inner().iter().map(ToString::to_string).collect::<Vec<_>>();
        let warned = cx.warnings.into_inner().into_iter().map(|warning| format!("warning{}", warning.0));
        (config, shown.into_iter().chain(warned).collect())
    }

    fn on_base(text: &str) -> (Option<Who>, Vec<String>) {
        parse(text, "eip155:8453", Path::new(""))
    }

    fn remotes(text: &str) -> Vec<RemoteFacilitatorConfig> {
        match on_base(text) {
            (Some(Who::Elsewhere(remotes)), problems) if problems.is_empty() => remotes,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_way_of_writing_it_is_read() {
        assert_eq!(on_base("facilitator: local"), (Some(Who::Local), Vec::new()));
        let [one] = &remotes("facilitator: https://one.example.com/x402")[..] else { panic!("one") };
        assert_eq!(one.url.uri(), "https://one.example.com/x402");
        assert_eq!((one.verify_timeout, one.settle_timeout), (VERIFY_TIMEOUT, SETTLE_TIMEOUT));
        let several = "facilitator:\n- https://one.example.com\n- url: https://two.example.com\n  bearer_token: ${T}\n  \
                       headers: { X-Api-Key: \"k-${K}\" }\n  verify_timeout: 500ms\n  settle_timeout: 2m\n";
        let [_, two] = &remotes(several)[..] else { panic!("two") };
        let said: Vec<_> = two.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(said, [("x-api-key", "k-hunter2canary"), ("authorization", "Bearer hunter2canary")]);
        assert_eq!((two.verify_timeout.as_millis(), two.settle_timeout.as_secs()), (500, 120));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "from-a-file\n").unwrap();
        let text = "facilitator: { url: https://x.example.com, bearer_token_file: token }";
        let (Some(Who::Elsewhere(remotes)), _) = parse(text, "eip155:1", directory.path()) else { panic!("not read") };
        assert_eq!(remotes[0].headers[0].1, "Bearer from-a-file");
        assert!(!format!("{remotes:?}").contains("from-a-file"));
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_remedy_and_without_secrets() {
        let map = |rest: &str| format!("facilitator:\n  url: https://x.example.com\n  {rest}");
        for (text, said) in [
            ("facilitator: remote".to_owned(), ":1 facilitator: \"remote\" is not known here. Write local."),
            ("facilitator: []".to_owned(), "holds 0 facilitators. Write 1 to 8."),
            ("facilitator: [local]".to_owned(), "local stands alone"),
            ("facilitator: ftp://hunter2canary/".to_owned(), "is neither an http nor an https URL"),
            ("facilitator: https://u:hunter2canary@x".to_owned(), "has a user name or password"),
            ("facilitator: https://x/?key=hunter2canary".to_owned(), "has a query"),
            ("facilitator: [https://x/a, https://x/a]".to_owned(), "facilitator[1]: is the same facilitator again."),
            ("facilitator: {}".to_owned(), "facilitator.url: is missing. Write the facilitator's URL"),
            (map("tiemout: 1s"), ":3 facilitator.tiemout: is not a key."),
            (map("verify_timeout: 2h"), "is longer than 1m. Write 100ms to 1m."),
            (map("settle_timeout: 0s"), "is shorter than 1s. Write 1s to 10m."),
            (map("bearer_token: hunter2canary"), ":3 facilitator.bearer_token: is not a single environment variable"),
            (map("bearer_token: ${UNSET}"), "needs the environment variable UNSET"),
            (map("bearer_token: ${T}\n  bearer_token_file: x"), "stands beside bearer_token."),
            (map("bearer_token_file: nowhere"), "cannot be read"),
            (map("bearer_token: ${T}\n  headers: { Authorization: \"${T}\" }"), "both bearer_token and a header"),
            (map("headers: { X-Key: hunter2canary }"), "facilitator.headers.X-Key: holds no environment variable"),
            (map("headers: { X-Key: \"$${hunter2canary}\" }"), "holds no environment variable"),
            (map("headers: { \"X Key\": \"${T}\" }"), "is not a header's name."),
            (map("headers: { Host: \"${T}\" }"), "belongs to the exchange itself."),
            (map("headers: { X-K: \"${T}\", x-k: \"${T}\" }"), "holds x-k twice."),
            (map("headers: [x]"), "is a list. Write a mapping such as"),
        ] {
            let (config, problems) = on_base(&text);
            assert!(config.is_none() || !problems.is_empty(), "{text}");
            assert!(problems.iter().any(|problem| problem.contains(said)), "{text}: {problems:?}");
            assert!(!problems.concat().contains(CANARY), "{problems:?}");
        }
        let (config, warnings) = on_base("facilitator: { url: http://x.example.com, bearer_token: \"${T}\" }");
        assert!(config.is_some() && warnings.concat().contains("is not encrypted"), "{warnings:?}");
        assert_eq!(on_base("facilitator: { url: http://127.0.0.1:4021, bearer_token: \"${T}\" }").1.len(), 0);
    }

    #[test]
    fn on_solana_this_process_is_its_own() {
        let solana = crate::x402::network::SOLANA;
        assert_eq!(parse("facilitator: local", solana, Path::new("")).0, Some(Who::Local));
        for text in ["https://x.example.com", "[https://x.example.com]", "{ url: https://x.example.com }"] {
            let (config, problems) = parse(&format!("facilitator: {text}"), solana, Path::new(""));
            assert!(config.is_none() && problems.concat().contains("can only serve EVM networks"), "{problems:?}");
        }
    }
}
