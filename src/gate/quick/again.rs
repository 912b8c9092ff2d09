//! Payments as a thread has read them lately, so that one which differs from the last only in what it must differ in need
//! not be read anew.
//!
//! A client that pays for every request sends the same text each time but for the voucher's total and signature, and the
//! URL where that has a query or parts that vary. Owns [`Again`], which keeps the last text of some channels on some
//! routes and knows where these stand in it. Promises to answer what reading would: all other bytes are the same, and
//! these are JSON texts that are read by the same rules. Bounded: it has room for [`TEXTS`] texts of [`TEXT_BYTES_MAX`]
//! bytes, and keeps none before its channel has come to its route twice.

use std::ops::Range;
use std::sync::Arc;

use memchr::{memchr2, memmem};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Quick, QuickVoucher};
use crate::gate::challenge::Prepared;
use crate::scheme::batch_settlement_evm::payload::EvmVoucher;
use crate::x402::wire::BatchVoucher;

/// How many texts have room. One may take another's.
const TEXTS: usize = 1024;
/// The longest text that is kept.
const TEXT_BYTES_MAX: usize = 4096;
/// What stands before a channel's name, as all clients write it.
const CHANNEL: &[u8] = b"\"channelId\":\"";
/// How many payments of a channel whose texts differ elsewhere too are not kept, at most, before one is again.
const RESTS_MAX: u32 = 64;
/// What of a channel's name tells it from others.
const NAME_BYTES: usize = 16;

/// What may differ.
#[derive(Clone, Copy)]
enum Part {
    /// What is paid for, of which nothing is read.
    Url,
    Total,
    Signature,
}

/// The texts of a thread.
pub(super) struct Again {
    seen: Vec<Seen>,
}

/// A channel that has come to a route.
#[derive(Default)]
struct Seen {
    of: Of,
    text: Option<Box<Text>>,
    /// How many are not kept before the next that is, and how many it was the last time: keeping one that is of no use
    /// takes half as long again as reading it.
    rests: u32,
    rested: u32,
}

/// Which payments are compared with each other: the beginning of their channel's name, and the address of what their
/// route offers. Either may be somebody else's; the comparison tells.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Of {
    name: [u8; NAME_BYTES],
    route: usize,
}

/// A text that was read, and what it says.
struct Text {
    bytes: Box<[u8]>,
    /// Where what may differ stands, with its quotes, in the text's order.
    spots: Vec<(Range<usize>, Part)>,
    /// Whose offers were looked through.
    prepared: Arc<Prepared>,
    quick: Quick,
}

impl Again {
    pub(super) const fn new() -> Self {
        Self { seen: Vec::new() }
    }

    /// The payment in a header's JSON, as `anew` reads it.
    pub(super) fn read(
        &mut self,
        prepared: &Arc<Prepared>,
        json: &[u8],
        anew: impl FnOnce(&Prepared, &[u8]) -> Option<Quick>,
    ) -> Option<Quick> {
        let Some(of) = Of::read(prepared, json) else { return anew(prepared, json) };
        if self.seen.is_empty() {
            self.seen.resize_with(TEXTS, Seen::default);
        }
        let Some(seen) = self.seen.get_mut(of.place()) else { return anew(prepared, json) };
        if seen.of != of {
            *seen = Seen { of, ..Seen::default() };
            return anew(prepared, json);
        }
        let known = seen.text.as_ref().filter(|text| Arc::ptr_eq(&text.prepared, prepared));
        if let Some(quick) = known.and_then(|text| text.with(json)) {
            (seen.rests, seen.rested) = (0, 0);
            return Some(quick);
        }
        let quick = anew(prepared, json)?;
        if seen.rests > 0 {
            seen.rests = seen.rests.saturating_sub(1);
            return Some(quick);
        }
        seen.text = Text::of(prepared, json, &quick).map(Box::new);
        seen.rests = seen.rested;
        seen.rested = seen.rested.saturating_mul(2).clamp(1, RESTS_MAX);
        Some(quick)
    }
}

impl Of {
    /// Of a payment whose channel's name stands where clients write it.
    fn read(prepared: &Arc<Prepared>, json: &[u8]) -> Option<Self> {
        let start = memmem::find(json, CHANNEL)?.checked_add(CHANNEL.len())?;
        let name = json.get(start..)?.first_chunk().copied()?;
        Some(Self { name, route: Arc::as_ptr(prepared).addr() })
    }

    fn place(&self) -> usize {
        // Names are digests, written out: any of their bytes are as good as a hash. Addresses end in zeros.
        let digits = self.name.iter().map(|byte| usize::from(*byte));
        digits.fold(self.route >> 4, |number, digit| number.wrapping_mul(31).wrapping_add(digit)) % TEXTS
    }
}

impl Text {
    fn of(prepared: &Arc<Prepared>, json: &[u8], quick: &Quick) -> Option<Self> {
        if json.len() > TEXT_BYTES_MAX {
            return None;
        }
        let Payment { resource, payload: Payload { voucher } } = serde_json::from_slice(json).ok()?;
        let spot = |value: &RawValue, part| {
            let start = value.get().as_ptr().addr().checked_sub(json.as_ptr().addr())?;
            let spot = start..start.checked_add(value.get().len())?;
            text(json.get(spot.clone())?)?.1.is_empty().then_some((spot, part))
        };
        let mut spots =
            vec![spot(voucher.max_claimable_amount, Part::Total)?, spot(voucher.signature, Part::Signature)?];
        spots.extend(resource.and_then(|resource| spot(resource.url, Part::Url)));
        spots.sort_by_key(|(spot, _)| spot.start);
        let (bytes, prepared) = (json.into(), Arc::clone(prepared));
        Some(Self { bytes, spots, prepared, quick: quick.clone() })
    }

    /// What a text says that differs from this one in the spots at most; `None` where it differs elsewhere.
    fn with(&self, json: &[u8]) -> Option<Quick> {
        let (mut total, mut signature) = (&[][..], &[][..]);
        let (mut rest, mut same) = (json, 0);
        for (spot, part) in &self.spots {
            let (found, after) = text(rest.strip_prefix(self.bytes.get(same..spot.start)?)?)?;
            match part {
                Part::Total => total = found,
                Part::Signature => signature = found,
                Part::Url if self.bytes.get(spot.clone()) == Some(found) => {}
                Part::Url => drop(serde_json::from_slice::<&str>(found).ok()?),
            }
            (rest, same) = (after, spot.end);
        }
        if rest != self.bytes.get(same..)? {
            return None;
        }
        let max_claimable_amount = serde_json::from_slice(total).ok()?;
        let voucher = match &self.quick.voucher {
            QuickVoucher::Svm(paid) => {
                let (config, BatchVoucher { channel_id, expires_at, .. }) = &**paid;
                let (channel_id, expires_at) = (*channel_id, *expires_at);
                let signature = serde_json::from_slice(signature).ok()?;
                let voucher = BatchVoucher { channel_id, max_claimable_amount, expires_at, signature };
                QuickVoucher::Svm(Box::new((config.clone(), voucher)))
            }
            QuickVoucher::Evm(paid) => {
                let (config, EvmVoucher { channel_id, .. }) = &**paid;
                let signature = serde_json::from_slice(signature).ok()?;
                let voucher = EvmVoucher { channel_id: *channel_id, max_claimable_amount, signature };
                QuickVoucher::Evm(Box::new((*config, voucher)))
            }
        };
        Some(Quick { offer: Arc::clone(&self.quick.offer), voucher })
    }
}

/// Splits off the JSON text that the bytes begin with, quotes included, where nothing in it is escaped.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = bytes.strip_prefix(b"\"")?;
    let end = memchr2(b'"', b'\\', inner).filter(|end| inner.get(*end) == Some(&b'"'))?;
    bytes.split_at_checked(end.checked_add(2)?)
}

/// Where in a payment these stand.
#[derive(Deserialize)]
struct Payment<'a> {
    #[serde(borrow, default)]
    resource: Option<Resource<'a>>,
    #[serde(borrow)]
    payload: Payload<'a>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow)]
    url: &'a RawValue,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    voucher: Voucher<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Voucher<'a> {
    #[serde(borrow)]
    max_claimable_amount: &'a RawValue,
    #[serde(borrow)]
    signature: &'a RawValue,
}
