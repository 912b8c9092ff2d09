//! Payments as a thread has read them lately, so that one which differs from the last only in what it must differ in need
//! not be read anew.
//!
//! A client that pays for every request sends the same text each time but for the voucher's total and signature. Owns
//! [`Again`], which keeps the last text of some channels and knows where these two stand in it. Promises to answer what
//! reading would: all other bytes are the same, and the two are JSON texts that are read by the same rules. Bounded: it
//! has room for [`CHANNELS`] texts of [`TEXT_BYTES_MAX`] bytes, and keeps none before its channel has come twice.

use std::ops::Range;
use std::sync::Arc;

use memchr::{memchr2, memmem};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Quick, QuickVoucher};
use crate::gate::challenge::Prepared;
use crate::scheme::batch_settlement_evm::payload::EvmVoucher;
use crate::x402::wire::BatchVoucher;

/// How many channels have room. One may take another's.
const CHANNELS: usize = 1024;
/// The longest text that is kept.
const TEXT_BYTES_MAX: usize = 4096;
/// What stands before a channel's name, as all clients write it.
const CHANNEL: &[u8] = b"\"channelId\":\"";
/// How many payments of a channel whose texts differ elsewhere too are not kept, at most, before one is again.
const RESTS_MAX: u32 = 64;
/// What of a channel's name tells it from others.
const NAME_BYTES: usize = 16;

/// The texts of a thread.
pub(super) struct Again {
    seen: Vec<Seen>,
}

/// A channel that has come.
#[derive(Default)]
struct Seen {
    name: [u8; NAME_BYTES],
    text: Option<Box<Text>>,
    /// How many are not kept before the next that is, and how many it was the last time: keeping one that is of no use
    /// takes half as long again as reading it.
    rests: u32,
    rested: u32,
}

/// A text that was read, and what it says.
struct Text {
    bytes: Box<[u8]>,
    /// Where the total and the signature stand, with their quotes; the one that comes first is first.
    spots: [Range<usize>; 2],
    is_total_first: bool,
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
        let Some(name) = name(json) else { return anew(prepared, json) };
        if self.seen.is_empty() {
            self.seen.resize_with(CHANNELS, Seen::default);
        }
        let Some(seen) = self.seen.get_mut(place(&name)) else { return anew(prepared, json) };
        if seen.name != name {
            *seen = Seen { name, ..Seen::default() };
            return anew(prepared, json);
        }
        let known = seen.text.as_ref().filter(|text| Arc::ptr_eq(&text.prepared, prepared));
        if let Some(quick) = known.and_then(|text| text.with(json)) {
            seen.rested = 0;
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

/// The beginning of the channel's name, where it stands as clients write it. It may be anything: nothing is believed of
/// it.
fn name(json: &[u8]) -> Option<[u8; NAME_BYTES]> {
    let start = memmem::find(json, CHANNEL)?.checked_add(CHANNEL.len())?;
    json.get(start..)?.first_chunk().copied()
}

fn place(name: &[u8; NAME_BYTES]) -> usize {
    // Names are digests, written out: any of their bytes are as good as a hash.
    let number = name.iter().fold(0_usize, |number, byte| number.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    number % CHANNELS
}

impl Text {
    fn of(prepared: &Arc<Prepared>, json: &[u8], quick: &Quick) -> Option<Self> {
        if json.len() > TEXT_BYTES_MAX {
            return None;
        }
        let Payment { payload: Payload { voucher } } = serde_json::from_slice(json).ok()?;
        let spot = |value: &RawValue| {
            let start = value.get().as_ptr().addr().checked_sub(json.as_ptr().addr())?;
            let spot = start..start.checked_add(value.get().len())?;
            (text(json.get(spot.clone())?)?.1.is_empty()).then_some(spot)
        };
        let (total, signature) = (spot(voucher.max_claimable_amount)?, spot(voucher.signature)?);
        let is_total_first = total.start < signature.start;
        let spots = if is_total_first { [total, signature] } else { [signature, total] };
        let (bytes, prepared) = (json.into(), Arc::clone(prepared));
        Some(Self { bytes, spots, is_total_first, prepared, quick: quick.clone() })
    }

    /// What a text says that differs from this one in the two spots at most; `None` where it differs elsewhere.
    fn with(&self, json: &[u8]) -> Option<Quick> {
        let [first, second] = &self.spots;
        let rest = json.strip_prefix(self.bytes.get(..first.start)?)?;
        let (one, rest) = text(rest)?;
        let rest = rest.strip_prefix(self.bytes.get(first.end..second.start)?)?;
        let (other, rest) = text(rest)?;
        if rest != self.bytes.get(second.end..)? {
            return None;
        }
        let (total, signature) = if self.is_total_first { (one, other) } else { (other, one) };
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

/// Where in a payment the two stand.
#[derive(Deserialize)]
struct Payment<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
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
