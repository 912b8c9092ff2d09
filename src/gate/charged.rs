//! What the client of a charged request is told.
//!
//! The answer to a voucher is written straight from what it says, since it is written for every paid request; one that
//! moved money on chain is a [`SettlementResponse`] like any other. Source: `scheme_batch_settlement_svm.md`,
//! section 4.4; `scheme_batch_settlement_evm.md`, "Payment Response Contract".

use std::fmt;

use serde::{Serialize, Serializer};

use super::Paid;
use crate::amount::Amount;
use crate::x402::Network;
use crate::x402::call_pack::{self, PackSold};
use crate::x402::wire::SettlementResponse;

/// A charge, and what its client is told of it.
#[derive(Clone, Debug)]
pub struct Charged {
    /// How much.
    pub amount: Amount,
    told: Told,
}

/// What a client is told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// In version 2 of the protocol, the only one that knows channels: JSON, written already.
    Written(Vec<u8>),
    /// In whichever version the client speaks.
    Settled(Box<SettlementResponse>),
}

impl Charged {
    /// A charge that was settled on chain for this request alone.
    pub(super) fn settled(settlement: Box<SettlementResponse>) -> Self {
        let amount = settlement.amount.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default();
        Self { amount, told: Told::Settled(settlement) }
    }

    /// A charge on a channel, whose state is now `channel_state`. `deposit` is the transaction that filled the channel,
    /// with what it put in, where one came along; `commitment` names the charge where the scheme has it named; `sold` is the
    /// pass that was bought.
    pub(super) fn on_channel(
        paid: &Paid,
        amount: Amount,
        deposit: Option<(&dyn fmt::Display, Amount)>,
        commitment: Option<fmt::Arguments<'_>>,
        channel_state: &impl Serialize,
        sold: Option<&PackSold>,
    ) -> Self {
        let (transaction, moved) = deposit.unzip();
        let written = Written {
            success: true,
            payer: Text(Some(&paid.payer)),
            transaction: Text(transaction),
            network: &paid.network,
            amount: Text(moved.as_ref().map(|moved| -> &dyn fmt::Display { moved })),
            extra: Extra { commitment_id: commitment, charged_amount: amount, channel_state },
            extensions: sold.map(|sold| Extensions { call_pack: call_pack::sold(sold) }),
        };
        // Longer than any of them, so that it is allocated once.
        let mut json = Vec::with_capacity(768);
        // Our own words always can be written as JSON.
        if let Err(error) = serde_json::to_writer(&mut json, &written) {
            tracing::error!(%error, "a payment's answer could not be written");
        }
        Self { amount, told: Told::Written(json) }
    }

    /// The same as a client reads it.
    #[must_use]
    pub fn settlement(&self) -> Option<SettlementResponse> {
        match &self.told {
            Told::Written(json) => serde_json::from_slice(json).ok(),
            Told::Settled(settlement) => Some((**settlement).clone()),
        }
    }

    pub(super) const fn told(&self) -> &Told {
        &self.told
    }
}

/// [`SettlementResponse`], from references.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a, S> {
    success: bool,
    payer: Text<'a>,
    transaction: Text<'a>,
    network: &'a Network,
    amount: Text<'a>,
    extra: Extra<'a, S>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extensions: Option<Extensions>,
}

#[derive(Serialize)]
struct Extensions {
    #[serde(rename = "call-pack")]
    call_pack: serde_json::Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Extra<'a, S> {
    #[serde(skip_serializing_if = "Option::is_none")]
    commitment_id: Option<fmt::Arguments<'a>>,
    charged_amount: Amount,
    channel_state: &'a S,
}

/// A text; empty where there is nothing to say.
struct Text<'a>(Option<&'a dyn fmt::Display>);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(text) => serializer.collect_str(text),
            None => serializer.serialize_str(""),
        }
    }
}
