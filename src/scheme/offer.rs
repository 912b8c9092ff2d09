//! Whether what a client accepted is what we offered (x402 version 2, section 5.1; `transports-v2/http.md`).
//!
//! Equal outside `extra`, and our `extra` a part of the client's. What a scheme calls a hint changes from challenge to
//! challenge and binds nobody, so it is left out on both sides.

use super::Refused;
use crate::x402::Reason;
use crate::x402::wire::PaymentRequirements;

/// Fields of `extra` that help to build a transaction and are no terms (section 4.1 of both Solana schemes).
pub const HINTS: [&str; 3] = ["recentBlockhash", "recentSlot", "lastValidBlockHeight"];

/// The first of `offered` that the client accepted.
///
/// # Errors
/// [`Reason::UnsupportedScheme`] where no offer has the scheme, [`Reason::InvalidNetwork`] where none of these has the
/// network, [`Reason::InvalidRequirements`] where other terms differ.
pub fn select<'a, T>(
    offered: impl Iterator<Item = &'a T> + Clone,
    requirements: impl Fn(&'a T) -> &'a PaymentRequirements,
    accepted: &PaymentRequirements,
) -> Result<&'a T, Refused> {
    let of_scheme = offered.filter(|offer| requirements(offer).scheme == accepted.scheme);
    if of_scheme.clone().next().is_none() {
        return Err(Refused::new(Reason::UnsupportedScheme, "accepted.scheme is not offered for this resource"));
    }
    let mut of_network = of_scheme.filter(|offer| requirements(offer).network == accepted.network).peekable();
    if of_network.peek().is_none() {
        return Err(Refused::new(Reason::InvalidNetwork, "accepted.network is not offered for this resource"));
    }
    let mut difference = "accepted";
    for offer in of_network {
        match differs(requirements(offer), accepted) {
            None => return Ok(offer),
            Some(field) => difference = field,
        }
    }
    Err(Refused::new(
        Reason::InvalidRequirements,
        format!("accepted.{difference} is not what was offered; take the terms from a fresh PAYMENT-REQUIRED"),
    ))
}

/// The first field in which the terms differ.
fn differs<'a>(offered: &'a PaymentRequirements, accepted: &PaymentRequirements) -> Option<&'a str> {
    if offered.amount != accepted.amount {
        return Some("amount");
    }
    if offered.asset != accepted.asset {
        return Some("asset");
    }
    if offered.pay_to != accepted.pay_to {
        return Some("payTo");
    }
    if offered.max_timeout_seconds != accepted.max_timeout_seconds {
        return Some("maxTimeoutSeconds");
    }
    let mut terms = offered.extra.iter().filter(|(name, _)| !HINTS.contains(&name.as_str()));
    terms.find(|(name, value)| accepted.extra.get(*name) != Some(*value)).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn requirements(change: impl FnOnce(&mut Value)) -> PaymentRequirements {
        let mut value = json!({
            "scheme": "batch-settlement",
            "network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
            "amount": "1000",
            "asset": "mint",
            "payTo": "merchant",
            "maxTimeoutSeconds": 300,
            "extra": { "feePayer": "sponsor", "withdrawDelay": 3600, "recentSlot": 7 },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn selected(change: impl FnOnce(&mut Value)) -> Result<usize, Reason> {
        let offers = [
            (0, requirements(|offer| offer["network"] = json!("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"))),
            (1, requirements(|_| {})),
            (2, requirements(|offer| offer["amount"] = json!("2000"))),
        ];
        select(offers.iter(), |(_, offer)| offer, &requirements(change)).map(|(n, _)| *n).map_err(|error| error.reason)
    }

    #[test]
    fn what_was_offered_is_found_whatever_the_hints() {
        assert_eq!(selected(|_| {}), Ok(1));
        assert_eq!(selected(|accepted| accepted["amount"] = json!("2000")), Ok(2));
        assert_eq!(selected(|accepted| accepted["extra"]["recentSlot"] = json!(8)), Ok(1));
        assert_eq!(selected(|accepted| accepted["extra"]["recentBlockhash"] = json!("x")), Ok(1));
        assert_eq!(selected(|accepted| accepted["extra"]["channelState"] = json!({})), Ok(1), "a client may add");
        assert_eq!(selected(|accepted| _ = accepted["extra"].as_object_mut().unwrap().remove("recentSlot")), Ok(1));
    }

    #[test]
    fn anything_else_is_refused_with_its_code() {
        type Change = fn(&mut Value);
        let table: &[(Change, Reason)] = &[
            (|a| a["scheme"] = json!("exact"), Reason::UnsupportedScheme),
            (|a| a["network"] = json!("solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z"), Reason::InvalidNetwork),
            (|a| a["amount"] = json!("999"), Reason::InvalidRequirements),
            (|a| a["asset"] = json!("other"), Reason::InvalidRequirements),
            (|a| a["payTo"] = json!("other"), Reason::InvalidRequirements),
            (|a| a["maxTimeoutSeconds"] = json!(301), Reason::InvalidRequirements),
            (|a| a["extra"]["feePayer"] = json!("other"), Reason::InvalidRequirements),
            (|a| a["extra"]["withdrawDelay"] = json!("3600"), Reason::InvalidRequirements),
            (|a| a["extra"] = json!({}), Reason::InvalidRequirements),
        ];
        for (n, (change, reason)) in table.iter().enumerate() {
            assert_eq!(selected(change), Err(*reason), "row {n}");
        }
    }
}
