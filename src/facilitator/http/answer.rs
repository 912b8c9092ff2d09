//! What a facilitator's answer means. Pure: a status, perhaps a wait, and a body that was read or was not.
//!
//! A JSON object with `isValid: false` or `success: false` is a refusal at any status; success counts only with a 2xx.
//! Everything else by this table, in which "turned away" means that the request was not carried out, and "doubtful"
//! that it may have been:
//!
//! | answer | is | because |
//! |---|---|---|
//! | 401, 403, 404, 405, 413, 415 | turned away | the request is refused before it is looked at |
//! | 429 | turned away, and the facilitator rests | the same |
//! | 307, 308 | turned away | the request is to be made elsewhere; redirects are not followed |
//! | 503 with `Retry-After` | doubtful, and the facilitator rests | gateways say so of a backend that broke off, too |
//! | any other status, no JSON, fields missing, too long, broken off | doubtful | |
//! | `success: false`, and the reason does not say that nothing happened ([`happened`]) | doubtful, with the transaction | |
//!
//! Source: `x402-specification-v2.md`, sections 5.3, 5.4, 7 and 9; what the reference facilitator (npm `@x402/evm`) says
//! after it has sent a transaction: `settlement_pending` with its hash where no receipt came, `..._transaction_failed`
//! with the hash where it reverted, and the same without a hash where anything at all was thrown.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Outcome;
use crate::facilitator::interface::{Kind, Settled, Supported, Verified};
use crate::http_client::RETRY_AFTER_DEFAULT;

/// The longest code of a refusal that is passed on.
const REASON_BYTES_MAX: usize = 100;
/// The longest transaction's name and payer that are taken.
const NAME_BYTES_MAX: usize = 128;
/// The most kinds that are kept of one facilitator.
const KINDS_MAX: usize = 1_000;

/// An answer.
pub(super) struct Answered {
    pub status: StatusCode,
    /// What `Retry-After` says.
    pub retry_after: Option<Duration>,
    /// The body, or why there is none.
    pub body: Result<Bytes, String>,
}

/// Why there is no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The facilitator's word on the payment.
    Refused {
        reason: String,
        detail: Option<String>,
        /// It could not tell, which is no word on the payment: another one may know better.
        undecided: bool,
    },
    /// Anything else.
    Failed {
        reached: Reached,
        detail: String,
        /// How long it wants to be left alone.
        rest: Option<Duration>,
        transaction: Option<String>,
        outcome: Outcome,
    },
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// The facilitator never got it.
    No,
    /// It got it, and did not carry it out.
    TurnedAway,
    /// It may have carried it out.
    Perhaps,
}

impl Failure {
    pub(super) fn of(reached: Reached, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self::Failed { reached, detail: detail.into(), rest: None, transaction: None, outcome }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerifyAnswer {
    is_valid: bool,
    invalid_reason: Option<String>,
    invalid_message: Option<String>,
    payer: Option<String>,
    extra: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SettleAnswer {
    success: bool,
    error_reason: Option<String>,
    error_message: Option<String>,
    payer: Option<String>,
    transaction: Option<String>,
    amount: Option<String>,
    extra: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct SupportedAnswer {
    kinds: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KindAnswer {
    x402_version: u32,
    scheme: String,
    network: String,
    extra: Option<Map<String, Value>>,
}

/// The answer to `POST /verify`.
pub(super) fn verified(answered: &Answered) -> Result<Verified, Failure> {
    let answer: VerifyAnswer = object(answered, "isValid")?;
    if !answer.is_valid {
        let reason = code(answer.invalid_reason.as_deref(), "unexpected_verify_error");
        let undecided = reason == "unexpected_verify_error" || reason.ends_with("rpc_read_failed");
        return Err(Failure::Refused { reason, detail: answer.invalid_message, undecided });
    }
    expect_success(answered, "isValid", None)?;
    Ok(Verified { payer: name(answer.payer), extra: answer.extra.unwrap_or_default() })
}

/// The answer to `POST /settle`.
pub(super) fn settled(answered: &Answered) -> Result<Settled, Failure> {
    let answer: SettleAnswer = object(answered, "success")?;
    let named = answer.transaction.is_some();
    let transaction = name(answer.transaction).filter(|transaction| !transaction.is_empty());
    if !answer.success {
        let reason = code(answer.error_reason.as_deref(), "unexpected_settle_error");
        if happened(&reason, transaction.is_some()) {
            let detail = answer.error_message.map_or(reason.clone(), |message| format!("{reason}: {message}"));
            return Err(doubtful(transaction, detail));
        }
        return Err(Failure::Refused { reason, detail: answer.error_message, undecided: false });
    }
    expect_success(answered, "success", transaction.clone())?;
    if !named {
        return Err(doubtful(None, "it says success and names no transaction"));
    }
    Ok(Settled {
        transaction: transaction.unwrap_or_default(),
        payer: name(answer.payer),
        amount: answer.amount,
        extra: answer.extra.unwrap_or_default(),
    })
}

/// The answer to `GET /supported`. Kinds that cannot be read are left out: they are for those who can.
pub(super) fn supported(answered: &Answered) -> Result<Supported, Failure> {
    let answer: SupportedAnswer = object(answered, "kinds")?;
    expect_success(answered, "kinds", None)?;
    let kinds = answer.kinds.into_iter().filter_map(|kind| serde_json::from_value::<KindAnswer>(kind).ok());
    let kind = |kind: KindAnswer| Kind {
        x402_version: kind.x402_version,
        scheme: kind.scheme,
        network: kind.network,
        extra: kind.extra.unwrap_or_default(),
    };
    Ok(Supported { kinds: kinds.take(KINDS_MAX).map(kind).collect() })
}

/// Whether something may be on chain after a settlement that is said to have failed: only where the reason says that
/// nothing was sent, or that what was sent reverted, it is certain that nothing came of it.
fn happened(reason: &str, names_transaction: bool) -> bool {
    let unawaited = ["unexpected_settle_error", "wait_for_receipt_failed", "settlement_pending"];
    if unawaited.iter().any(|words| reason.ends_with(words)) {
        return true;
    }
    // With its name a transaction that reverted; without, a mishap at any time around the sending.
    let of_chain = ["transaction_failed", "transaction_state", "reverted"].iter().any(|words| reason.ends_with(words));
    of_chain != names_transaction
}

/// The body as an object that has a field.
fn object<T: DeserializeOwned>(answered: &Answered, field: &str) -> Result<T, Failure> {
    let what = match &answered.body {
        Ok(body) => match serde_json::from_slice(body) {
            Ok(object) => return Ok(object),
            Err(error) => format!("the answer is no JSON object with a usable {field} ({error})"),
        },
        Err(why) => why.clone(),
    };
    Err(without_word(answered, &what))
}

/// Refuses a word of success under another status: who wrote which is not known.
fn expect_success(answered: &Answered, field: &str, transaction: Option<String>) -> Result<(), Failure> {
    if answered.status.is_success() {
        return Ok(());
    }
    Err(doubtful(transaction, format!("it answers {field} with HTTP {}", answered.status)))
}

/// What an answer means that does not say the protocol's words.
fn without_word(answered: &Answered, what: &str) -> Failure {
    let status = answered.status;
    let turned_away =
        |hint: &str| Failure::of(Reached::TurnedAway, Outcome::TurnedAway, format!("HTTP {status}: {hint}"));
    match status.as_u16() {
        401 | 403 => turned_away("it does not know us; check this facilitator's bearer_token or headers"),
        404 | 405 => turned_away(
            "nothing is served there; check this facilitator's url, to which /supported, /verify and /settle are added",
        ),
        413 | 415 => turned_away("it does not take this request"),
        307 | 308 => turned_away("it is elsewhere, and redirects are not followed; write the url that it redirects to"),
        429 => Failure::Failed {
            reached: Reached::TurnedAway,
            detail: format!("HTTP {status}: it limits our rate"),
            rest: Some(answered.retry_after.unwrap_or(RETRY_AFTER_DEFAULT)),
            transaction: None,
            outcome: Outcome::Limited,
        },
        503 => Failure::Failed {
            reached: Reached::Perhaps,
            detail: format!("HTTP {status}"),
            rest: answered.retry_after,
            transaction: None,
            outcome: if answered.retry_after.is_some() { Outcome::Limited } else { Outcome::Failed },
        },
        200..=299 => Failure::of(Reached::Perhaps, Outcome::Failed, what),
        _ => Failure::of(Reached::Perhaps, Outcome::Failed, format!("HTTP {status}")),
    }
}

fn doubtful(transaction: Option<String>, detail: impl Into<String>) -> Failure {
    let (reached, outcome) = (Reached::Perhaps, Outcome::Failed);
    Failure::Failed { reached, detail: detail.into(), rest: None, transaction, outcome }
}

/// A code of the protocol: what is no part of one is left out, for it goes to clients.
fn code(reason: Option<&str>, otherwise: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "_-.:".contains(*c);
    let code: String = reason.unwrap_or_default().chars().filter(plain).take(REASON_BYTES_MAX).collect();
    if code.is_empty() { otherwise.to_owned() } else { code }
}

/// A transaction's name or an address; none where it cannot be one.
fn name(text: Option<String>) -> Option<String> {
    text.filter(|text| text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answered(status: u16, body: &str) -> Answered {
        let status = StatusCode::from_u16(status).unwrap();
        Answered { status, retry_after: None, body: Ok(Bytes::copy_from_slice(body.as_bytes())) }
    }

    fn reached(failure: Failure) -> (Reached, Option<String>) {
        match failure {
            Failure::Failed { reached, transaction, .. } => (reached, transaction),
            refused @ Failure::Refused { .. } => panic!("{refused:?}"),
        }
    }

    #[test]
    fn a_settlement_that_may_have_happened_is_never_called_refused() {
        let refused = |reason: &str, transaction: &str| {
            let body = serde_json::json!({
                "success": false, "errorReason": reason, "transaction": transaction, "network": "eip155:84532",
            });
            match settled(&answered(200, &body.to_string())) {
                Err(Failure::Refused { reason: said, .. }) => {
                    assert_eq!(said, reason);
                    true
                }
                Err(Failure::Failed { reached, transaction: said, .. }) => {
                    assert_eq!(reached, Reached::Perhaps);
                    assert_eq!(said.unwrap_or_default(), transaction);
                    false
                }
                Ok(settled) => panic!("{settled:?}"),
            }
        };
        for (reason, without, with) in [
            // The reason, and whether it is a refusal without and with a transaction's name.
            ("insufficient_funds", true, false),
            ("invalid_batch_settlement_evm_voucher_signature", true, false),
            ("invalid_batch_settlement_evm_deposit_simulation_failed", true, false),
            ("invalid_batch_settlement_evm_nothing_to_settle", true, false),
            ("invalid_batch_settlement_evm_deposit_transaction_failed", false, true),
            ("invalid_batch_settlement_evm_claim_transaction_failed", false, true),
            ("invalid_transaction_state", false, true),
            ("transaction_failed", false, true),
            ("settlement_pending", false, false),
            ("exact_settlement_pending", false, false),
            ("invalid_batch_settlement_evm_wait_for_receipt_failed", false, false),
            ("unexpected_settle_error", false, false),
        ] {
            assert_eq!(refused(reason, ""), without, "{reason}");
            assert_eq!(refused(reason, "0x12"), with, "{reason} with a transaction");
        }
    }

    #[test]
    fn success_needs_its_fields_and_its_status() {
        let yes = r#"{"success":true,"transaction":"0x1","network":"x","payer":"0x2","unknown":[1],"extra":{"a":1}}"#;
        let ok = settled(&answered(200, yes)).unwrap();
        assert_eq!(
            (ok.transaction.as_str(), ok.payer.as_deref(), ok.extra["a"].as_u64()),
            ("0x1", Some("0x2"), Some(1))
        );
        assert_eq!(settled(&answered(201, r#"{"success":true,"transaction":""}"#)).unwrap().transaction, "");
        assert_eq!(reached(settled(&answered(500, yes)).unwrap_err()), (Reached::Perhaps, Some("0x1".to_owned())));
        for body in [
            "",
            "null",
            "[]",
            "true",
            "{}",
            r#"{"success":"true","transaction":"0x1"}"#,
            r#"{"success":true}"#,
            r#"{"success":true,"transaction":null}"#,
            r#"{"success":true,"transaction":7}"#,
            r#"{"success":true,"success":true,"transaction":"0x1"}"#,
            r#"{"isValid":true}"#,
            "<html>",
        ] {
            assert_eq!(reached(settled(&answered(200, body)).unwrap_err()).0, Reached::Perhaps, "{body}");
        }
        assert!(verified(&answered(200, r#"{"isValid":true}"#)).is_ok());
        assert!(verified(&answered(400, r#"{"isValid":true}"#)).is_err());
    }

    #[test]
    fn a_refusal_counts_at_any_status_and_its_words_are_bounded() {
        for status in [200, 400, 401, 402, 429, 500, 503] {
            let body = r#"{"isValid":false,"invalidReason":"insufficient_funds","invalidMessage":"m","payer":null}"#;
            let refusal = verified(&answered(status, body)).unwrap_err();
            let reason = "insufficient_funds".to_owned();
            assert_eq!(refusal, Failure::Refused { reason, detail: Some("m".into()), undecided: false }, "{status}");
        }
        for (said, reason, undecided) in [
            (r#""a b\r\nSet-Cookie: <x>""#.to_owned(), "abSet-Cookie:x".to_owned(), false),
            (format!("\"{}\"", "x".repeat(5_000)), "x".repeat(REASON_BYTES_MAX), false),
            ("null".to_owned(), "unexpected_verify_error".to_owned(), true),
            (
                r#""invalid_batch_settlement_evm_rpc_read_failed""#.to_owned(),
                "invalid_batch_settlement_evm_rpc_read_failed".to_owned(),
                true,
            ),
        ] {
            let failure = verified(&answered(200, &format!(r#"{{"isValid":false,"invalidReason":{said}}}"#)));
            assert_eq!(failure, Err(Failure::Refused { reason, detail: None, undecided }), "{said}");
        }
    }

    #[test]
    fn a_status_alone_says_how_far_a_request_came() {
        for (status, expected) in [
            (401, Reached::TurnedAway),
            (403, Reached::TurnedAway),
            (404, Reached::TurnedAway),
            (429, Reached::TurnedAway),
            (308, Reached::TurnedAway),
            (302, Reached::Perhaps),
            (400, Reached::Perhaps),
            (402, Reached::Perhaps),
            (409, Reached::Perhaps),
            (500, Reached::Perhaps),
            (502, Reached::Perhaps),
            (503, Reached::Perhaps),
        ] {
            for body in ["", "{}", "<html>", r#"{"error":"x"}"#] {
                assert_eq!(reached(settled(&answered(status, body)).unwrap_err()).0, expected, "{status} {body}");
            }
        }
    }

    #[test]
    fn kinds_that_cannot_be_read_are_left_out() {
        let body =
            r#"{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:1"},{"x402Version":"3"},7],"signers":{}}"#;
        assert_eq!(supported(&answered(200, body)).unwrap().kinds.len(), 1);
        assert!(supported(&answered(200, r#"{"kinds":{}}"#)).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_panics(status in 100_u16..1000, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let status = StatusCode::from_u16(status).unwrap();
            let answered = Answered { status, retry_after: None, body: Ok(body.into()) };
            let _ = verified(&answered);
            let _ = settled(&answered);
            let _ = supported(&answered);
        }
    }
}
