//! The only place where a challenge or a refusal becomes a status and headers.
//!
//! | whose move | status | headers |
//! |---|---|---|
//! | unpaid, or the payment does not pass | 402 | `PAYMENT-REQUIRED`, `Cache-Control: no-store` |
//! | a settlement failed by the payment's fault | 402 | the same, and `PAYMENT-RESPONSE` with `success: false` |
//! | the payment cannot be read | 400 | `Cache-Control: no-store` |
//! | its id is taken | 409 | `Cache-Control: no-store` |
//! | busy, the exposure limit, the chain out of reach | 503 | `Retry-After`, `Cache-Control: no-store` |
//! | forbidden by policy | 403 | `Retry-After` where time helps, `Cache-Control: no-store` |
//! | more than a payer may, by policy | 429 | `Retry-After`, `Cache-Control: no-store` |
//! | ours | 500 | `Cache-Control: no-store` |
//! | a call on a pass that is spent, expired, revoked, unknown or another route's | 402 | `PAYMENT-REQUIRED`, `Cache-Control: no-store` |
//! | a call on a pass | the upstream's | `Payment-Pass-Calls-Left`, `Cache-Control: private` |
//! | a refund | 200 | `PAYMENT-RESPONSE`, `Cache-Control: private` |
//! | an answer that was sent before | as it was | as they were, and `Turnpike-Replay: true` |
//! | the upstream's answer broke off while it was collected | 502 | `Cache-Control: no-store` |
//! | the upstream's answer does not say its charge, where the route's rule is to refuse then | 502 | `Cache-Control: no-store` |
//! | no route | 404 | `Cache-Control: no-store` |
//!
//! A 402's body says what its `PAYMENT-REQUIRED` does, for people; where a client of version 1 could pay, it is the
//! body that such clients read, and the header alone is version 2's. A payment by `X-PAYMENT` is answered for in
//! `X-PAYMENT-RESPONSE` wherever `PAYMENT-RESPONSE` is named here.
//!
//! A corrective 402 carries no `PAYMENT-RESPONSE`: clients look for its state only where there is none. A settlement
//! that failed says so in `PAYMENT-RESPONSE` whatever the status. Source: `transports-v2/http.md`,
//! `transports-v1/http.md`.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::challenge::{Challenge, Demand};
use super::charged::{Charged, Told};
use super::refusal::{Fault, Refusal};
use crate::ledger::store::Answer;
use crate::scheme::exact_evm::Version;
use crate::x402::call_pack::PAYMENT_PASS_CALLS_LEFT;
use crate::x402::header::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use crate::x402::v1::{SettlementResponseV1, X_PAYMENT_RESPONSE};
use crate::x402::wire::SettlementResponse;

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const PRIVATE: HeaderValue = HeaderValue::from_static("private");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The answer to a request that came without payment.
#[must_use]
pub fn challenge(challenge: &Challenge) -> Response<Bytes> {
    let mut response = with_json(StatusCode::PAYMENT_REQUIRED, NO_STORE, challenge.body.clone());
    response.headers_mut().insert(HeaderName::from_static(PAYMENT_REQUIRED), challenge.header.clone());
    response
}

/// The answer to a payment that did not pass.
#[must_use]
pub fn refusal(refusal: &Refusal) -> Response<Bytes> {
    let status = match refusal.fault {
        Fault::Malformed => StatusCode::BAD_REQUEST,
        Fault::Conflict => StatusCode::CONFLICT,
        Fault::Payment => StatusCode::PAYMENT_REQUIRED,
        Fault::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Fault::Forbidden { .. } => StatusCode::FORBIDDEN,
        Fault::TooMuch { .. } => StatusCode::TOO_MANY_REQUESTS,
        Fault::Ours => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let written = |demand: &Demand| match &demand.v1 {
        Some(v1) => serde_json::to_value(v1).ok(),
        None => serde_json::to_value(&demand.v2).ok(),
    };
    let mut body = refusal.required.as_deref().and_then(written);
    let body = match &mut body {
        Some(Value::Object(required)) => {
            required.insert("detail".to_owned(), refusal.detail.clone().into());
            body.unwrap_or_default()
        }
        Some(_) | None => json!({ "error": refusal.reason.as_str(), "detail": refusal.detail }),
    };
    let mut response = answer(status, NO_STORE, &body);
    let headers = response.headers_mut();
    if let Some(required) = &refusal.required {
        insert(headers, PAYMENT_REQUIRED, &required.v2);
    }
    if let Some(settlement) = &refusal.settlement {
        tell(headers, settlement, refusal.version);
    }
    if let Some(after) = refusal.fault.retry_after() {
        // In whole seconds, and never before it can help.
        let seconds = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0));
        headers.insert(RETRY_AFTER, seconds.max(1).into());
    }
    response
}

/// The answer to a refund, which the upstream does not see.
#[must_use]
pub fn refunded(settlement: &SettlementResponse) -> Response<Bytes> {
    let mut response =
        answer(StatusCode::OK, PRIVATE, &json!({ "message": "refund settled", "settlement": settlement }));
    insert(response.headers_mut(), PAYMENT_RESPONSE, settlement);
    response
}

/// Says that an answer is not fresh.
const REPLAY: HeaderName = HeaderName::from_static("turnpike-replay");

/// An answer that was sent before, sent again.
#[must_use]
pub fn replayed(kept: &Answer) -> Response<Bytes> {
    let mut response = Response::new(kept.body.clone());
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    for line in kept.head.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(at);
        let value = value.strip_prefix(b": ").unwrap_or(value);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers.insert(REPLAY, HeaderValue::from_static("true"));
    response
}

/// An answer's header lines, as they are kept. What belongs to one connection is left out.
pub(super) fn head(headers: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in headers {
        if HOP_BY_HOP.contains(&name.as_str()) {
            continue;
        }
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    lines.into()
}

/// Headers of one connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// The answer where the upstream's own broke off while it was collected. Nothing was charged.
#[must_use]
pub fn broke_off(settlement: Option<&SettlementResponse>) -> Response<Bytes> {
    bad_gateway("upstream_broke_off", "the upstream's answer broke off; nothing was charged", settlement)
}

/// The answer where the upstream's own does not say what it costs, and the route's rule is to refuse then. Nothing was
/// charged.
#[must_use]
pub fn unmetered(settlement: Option<&SettlementResponse>) -> Response<Bytes> {
    bad_gateway(
        "upstream_unmetered",
        "the upstream did not say what this answer costs; nothing was charged",
        settlement,
    )
}

fn bad_gateway(error: &str, detail: &str, settlement: Option<&SettlementResponse>) -> Response<Bytes> {
    let mut response = answer(StatusCode::BAD_GATEWAY, NO_STORE, &json!({ "error": error, "detail": detail }));
    if let Some(settlement) = settlement {
        insert(response.headers_mut(), PAYMENT_RESPONSE, settlement);
    }
    response
}

/// The answer where no route matches.
#[must_use]
pub fn unlisted() -> Response<Bytes> {
    answer(
        StatusCode::NOT_FOUND,
        NO_STORE,
        &json!({ "error": "not_found", "detail": "nothing is offered at this address" }),
    )
}

/// The answer where a route matches by its path and is for other methods.
#[must_use]
pub fn method_not_allowed(allow: HeaderValue) -> Response<Bytes> {
    let detail = "this address is not offered with this method";
    let mut response =
        answer(StatusCode::METHOD_NOT_ALLOWED, NO_STORE, &json!({ "error": "method_not_allowed", "detail": detail }));
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// The answer to a path that can be read in more than one way: it could name a priced route or not.
#[must_use]
pub fn bad_path(why: &str) -> Response<Bytes> {
    answer(StatusCode::BAD_REQUEST, NO_STORE, &json!({ "error": "bad_path", "detail": why }))
}

/// Adds to the upstream's own answer what became of its payment, and keeps shared caches from storing it.
pub fn paid(headers: &mut HeaderMap, charged: &Charged, version: Version) {
    match charged.told() {
        Told::Written(json) => insert_text(headers, PAYMENT_RESPONSE, Some(header::encode_bytes(json))),
        Told::Settled(settlement) => tell(headers, settlement, version),
    }
    keep_private(headers);
}

/// Adds to the upstream's own answer how many calls are left on its pass, and keeps shared caches from storing it.
pub fn counted(headers: &mut HeaderMap, left: u32) {
    headers.insert(HeaderName::from_static(PAYMENT_PASS_CALLS_LEFT), left.into());
    keep_private(headers);
}

/// Adds to the upstream's own answer that its payment went back, and keeps shared caches from storing it.
pub fn released(headers: &mut HeaderMap, settlement: &SettlementResponse, version: Version) {
    tell(headers, settlement, version);
    keep_private(headers);
}

/// Says what became of a payment, in its own protocol version.
fn tell(headers: &mut HeaderMap, settlement: &SettlementResponse, version: Version) {
    match version {
        Version::V1 => insert(headers, X_PAYMENT_RESPONSE, &SettlementResponseV1::from(settlement)),
        Version::V2 => insert(headers, PAYMENT_RESPONSE, settlement),
    }
}

/// `Cache-Control: private`, unless the upstream is as strict or stricter. What it says of shared caches goes.
fn keep_private(headers: &mut HeaderMap) {
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, PRIVATE);
        return;
    }
    let values: Vec<_> = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()).collect();
    let directives = values.iter().flat_map(|value| value.split(',')).map(str::trim);
    let named = |directive: &str, name: &str| {
        directive.split_once('=').map_or(directive, |(name, _)| name).trim().eq_ignore_ascii_case(name)
    };
    let mut kept: Vec<&str> = directives
        .filter(|directive| !directive.is_empty())
        .filter(|directive| !named(directive, "public") && !named(directive, "s-maxage"))
        .collect();
    // `private="field"` keeps only that field private, so it does not count.
    if !kept
        .iter()
        .any(|directive| directive.eq_ignore_ascii_case("private") || directive.eq_ignore_ascii_case("no-store"))
    {
        kept.push("private");
    }
    let value = HeaderValue::from_str(&kept.join(", ")).unwrap_or(PRIVATE);
    headers.insert(CACHE_CONTROL, value);
}

fn answer(status: StatusCode, cache: HeaderValue, body: &impl Serialize) -> Response<Bytes> {
    with_json(status, cache, serde_json::to_vec(body).unwrap_or_default().into())
}

fn with_json(status: StatusCode, cache: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response.headers_mut().insert(CACHE_CONTROL, cache);
    response
}

/// Our wire types always can be written, and base64 is always a header's value.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &impl Serialize) {
    insert_text(headers, name, header::encode(value).ok());
}

fn insert_text(headers: &mut HeaderMap, name: &'static str, text: Option<String>) {
    match text.and_then(|text| HeaderValue::try_from(text).ok()) {
        Some(encoded) => {
            headers.insert(HeaderName::from_static(name), encoded);
        }
        None => tracing::error!(name, "a payment header could not be written"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::facilitator::FacilitatorError;
    use crate::gate::policy::{Finding, Rule};
    use crate::gate::refusal::Denial;
    use crate::ledger;
    use crate::ledger::channel::{Evm, Svm};
    use crate::scheme;
    use crate::x402::Reason;
    use crate::x402::key::Signature;
    use crate::x402::wire::PaymentRequired;

    fn answered(denial: impl Into<Denial>) -> Response<Bytes> {
        let denial = denial.into();
        let required = denial.fault.is_payments().then(|| {
            let v2 = PaymentRequired {
                x402_version: 2,
                error: Some(denial.reason.as_str().to_owned()),
                resource: crate::x402::wire::ResourceInfo::default(),
                accepts: Vec::new(),
                extensions: serde_json::Map::new(),
            };
            Box::new(Demand { v2, v1: None })
        });
        let Denial { fault, reason, detail, settlement, .. } = denial;
        refusal(&Refusal { fault, reason, detail, required, settlement, version: Version::V2 })
    }

    #[test]
    fn every_refusal_has_its_status_and_code_and_keeps_our_secrets() {
        let secret = || "https://key@endpoint".to_owned();
        let deposit = crate::amount::Amount::new(1);
        type Refused = ledger::Refused<Svm>;
        type EvmRefused = ledger::Refused<Evm>;
        let table: Vec<(Denial, u16, Reason)> = vec![
            (scheme::Refused::new(Reason::InvalidPayload, "x").into(), 400, Reason::InvalidPayload),
            (scheme::Refused::new(Reason::BatchVoucherExpiry, "x").into(), 402, Reason::BatchVoucherExpiry),
            (Denial::conflict(), 409, Reason::PaymentIdentifierConflict),
            (Denial::in_process("x"), 503, Reason::PaymentInProcess),
            (Refused::Unknown.into(), 503, Reason::ChannelBusy),
            (Refused::Busy.into(), 503, Reason::ChannelBusy),
            (Refused::Exposure.into(), 503, Reason::ExposureLimit),
            (Refused::Closing.into(), 402, Reason::BatchChannelClosing),
            (EvmRefused::Closing.into(), 402, Reason::EvmBatchChannelBusy),
            (EvmRefused::ExceedsDeposit { deposit }.into(), 402, Reason::EvmBatchCumulativeExceedsBalance),
            (EvmRefused::Exposure.into(), 503, Reason::ExposureLimit),
            (Refused::ExceedsDeposit { deposit }.into(), 402, Reason::BatchCumulativeExceedsDeposit),
            (Refused::Stopped(secret()).into(), 500, Reason::UnexpectedSettleError),
            (FacilitatorError::Unavailable(secret()).into(), 503, Reason::ChainUnavailable),
            (FacilitatorError::Pending { transaction: Signature([1; 64]) }.into(), 500, Reason::SettlementPending),
            (
                FacilitatorError::Refused { reason: Reason::InsufficientFunds, detail: "x".to_owned() }.into(),
                402,
                Reason::InsufficientFunds,
            ),
        ];
        for (denial, status, reason) in table {
            let response = answered(denial);
            assert_eq!(response.status().as_u16(), status, "{reason}");
            assert_eq!(response.headers()[CACHE_CONTROL], NO_STORE);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), status == 503);
            assert_eq!(response.headers().contains_key(PAYMENT_REQUIRED), status == 402);
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["error"], reason.as_str());
            assert!(!body["detail"].as_str().unwrap().is_empty());
            assert!(!String::from_utf8_lossy(response.body()).contains("endpoint"));
        }
        let hurry = Fault::Busy { retry_after: Duration::from_millis(1) };
        let Denial { reason, detail, .. } = Denial::busy("x");
        let version = Version::V1;
        let response = refusal(&Refusal { fault: hurry, reason, detail, required: None, settlement: None, version });
        assert_eq!(response.headers()[RETRY_AFTER], "1", "never at once");
    }

    /// What a client of the protocol makes of them: 402 alone invites it to pay again, which no refusal by policy does.
    #[test]
    fn a_refusal_by_policy_says_when_it_may_help_to_come_again() {
        let wait = Duration::from_millis(1001);
        for (rule, after, status, retry) in [
            (Rule::BlockPatterns, None, 403, None),
            (Rule::TimeWindow, Some(wait), 403, Some("2")),
            (Rule::Blocklist, None, 403, None),
            (Rule::Allowlist, None, 403, None),
            (Rule::PerRequestCap, None, 403, None),
            (Rule::Screening, None, 403, None),
            (Rule::ScreeningUnavailable, Some(wait), 503, Some("2")),
            (Rule::RateLimit, Some(Duration::from_millis(1)), 429, Some("1")),
            (Rule::DailyLimit, Some(Duration::from_secs(86_400)), 429, Some("86400")),
            (Rule::PayerExposure, Some(wait), 503, Some("2")),
        ] {
            let finding = Finding { rule, retry_after: after, detail: "why", note: Some("not for clients".to_owned()) };
            let response = answered(Denial::policy(&finding));
            assert_eq!(response.status().as_u16(), status, "{rule}");
            assert_eq!(response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap()), retry, "{rule}");
            assert!(!response.headers().contains_key(PAYMENT_REQUIRED), "{rule}");
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body, json!({ "error": format!("policy_{rule}"), "detail": "why" }));
        }
    }

    #[test]
    fn a_kept_answer_comes_back_as_it_was() {
        let mut sent = HeaderMap::new();
        for value in [&b"plain"[..], b"", b"a: b: c", b"\xC3\xA9\xFF and\ttab", b"second"] {
            sent.append("x-value", HeaderValue::from_bytes(value).unwrap());
        }
        sent.append("set-cookie", HeaderValue::from_static("a=b"));
        let mut with_hops = sent.clone();
        for name in HOP_BY_HOP {
            with_hops.append(name, HeaderValue::from_static("x"));
        }
        let kept = Answer { status: 203, head: head(&with_hops), body: Bytes::from_static(b"\0body") };
        let mut again = replayed(&kept);
        assert_eq!((again.status().as_u16(), &**again.body()), (203, &b"\0body"[..]));
        assert_eq!(again.headers_mut().remove(REPLAY).unwrap(), "true");
        assert_eq!(*again.headers(), sent);
    }

    #[test]
    fn a_paid_answer_stays_out_of_shared_caches() {
        for (before, after) in [
            (None, "private"),
            (Some("max-age=60"), "max-age=60, private"),
            (Some("public, max-age=60"), "max-age=60, private"),
            (Some("Public,S-MaxAge=10 , max-age=60"), "max-age=60, private"),
            (Some("private, max-age=60"), "private, max-age=60"),
            (Some("no-store"), "no-store"),
            (Some("no-cache"), "no-cache, private"),
            (Some("private=\"x\""), "private=\"x\", private"),
            (Some(""), "private"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(before) = before {
                headers.insert(CACHE_CONTROL, before.parse().unwrap());
            }
            keep_private(&mut headers);
            assert_eq!(headers.get(CACHE_CONTROL).unwrap(), after, "{before:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(CACHE_CONTROL, "public".parse().unwrap());
        headers.append(CACHE_CONTROL, "no-store".parse().unwrap());
        keep_private(&mut headers);
        assert_eq!(headers.get_all(CACHE_CONTROL).iter().collect::<Vec<_>>(), ["no-store"]);
    }
}
