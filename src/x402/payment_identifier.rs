//! The words of extension `payment-identifier`: a client names its request, so that it can ask for a lost answer.
//!
//! A challenge offers the extension; a client that wants it sends it back with an id of its own making. Nothing here
//! knows what becomes of the id. Source: `extensions/payment_identifier.md`; the schema is that of the reference
//! implementation (npm's `@x402/extensions`), which refuses an echo that does not fit it.

use serde_json::{Map, Value, json};

/// The extension's name in `extensions`.
pub const NAME: &str = "payment-identifier";
/// The shortest id.
pub const ID_CHARS_MIN: usize = 16;
/// The longest id.
pub const ID_CHARS_MAX: usize = 128;

/// A payment's extension that cannot be read: the sender's to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "extensions.payment-identifier.info.id must be {ID_CHARS_MIN} to {ID_CHARS_MAX} letters, digits, - or _; leave the \
     extension out to send none"
)]
pub struct Malformed;

/// What a challenge says of it: ids are welcome and not required.
#[must_use]
pub fn declaration() -> Value {
    json!({
        "info": { "required": false },
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "required": { "type": "boolean" },
                "id": {
                    "type": "string",
                    "minLength": ID_CHARS_MIN,
                    "maxLength": ID_CHARS_MAX,
                    "pattern": "^[a-zA-Z0-9_-]+$",
                },
            },
            "required": ["required"],
        },
    })
}

/// The id that came with a payment. An echo without one is as good as no extension.
///
/// # Errors
/// [`Malformed`].
pub fn id(extensions: &Map<String, Value>) -> Result<Option<&str>, Malformed> {
    let Some(extension) = extensions.get(NAME) else { return Ok(None) };
    let info = extension.get("info").and_then(Value::as_object).ok_or(Malformed)?;
    match info.get("id") {
        None => Ok(None),
        Some(Value::String(id)) if is_id(id) => Ok(Some(id)),
        Some(_) => Err(Malformed),
    }
}

/// Adds a client's id to the extensions that it sends back, where the server has offered the extension.
///
/// Returns whether it has.
pub fn identify(extensions: &mut Map<String, Value>, id: &str) -> bool {
    let info = extensions.get_mut(NAME).and_then(|extension| extension.get_mut("info")).and_then(Value::as_object_mut);
    info.map(|info| info.insert("id".to_owned(), id.into())).is_some()
}

fn is_id(text: &str) -> bool {
    (ID_CHARS_MIN..=ID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(extension: Value) -> Map<String, Value> {
        Map::from_iter([(NAME.to_owned(), extension)])
    }

    #[test]
    fn an_id_is_read_exactly_or_refused() {
        let longest = "x".repeat(128);
        for good in ["pay_7d5d747be160", "0123456789-_ABcd", &longest] {
            assert_eq!(id(&with(json!({ "info": { "required": false, "id": good } }))), Ok(Some(good)));
        }
        let too_long = "x".repeat(129);
        let bad = [json!("0123456789abcde"), json!(too_long), json!("0123456789abcde."), json!("0123456789abcdeé")];
        for bad in bad.into_iter().chain([json!(1_234_567_890_123_456_u64), json!(null), json!("")]) {
            assert_eq!(id(&with(json!({ "info": { "id": bad } }))), Err(Malformed), "{bad}");
        }
        for bad in [json!({}), json!("pay_7d5d747be160"), json!({ "info": "pay_7d5d747be160" }), json!(null)] {
            assert_eq!(id(&with(bad.clone())), Err(Malformed), "{bad}");
        }
        assert_eq!(id(&Map::new()), Ok(None));
        assert_eq!(id(&with(declaration())), Ok(None), "a client that only echoes");
    }

    #[test]
    fn an_id_is_added_only_to_what_was_offered() {
        let mut offered = with(declaration());
        assert!(identify(&mut offered, "pay_7d5d747be160"));
        assert_eq!(id(&offered), Ok(Some("pay_7d5d747be160")));
        assert_eq!(offered[NAME]["schema"], declaration()["schema"], "the rest is echoed");
        let mut none = Map::new();
        assert!(!identify(&mut none, "pay_7d5d747be160"));
        assert!(none.is_empty());
    }
}
