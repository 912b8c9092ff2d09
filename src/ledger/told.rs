//! What of the ledger's writes stands in the audit record: writes in, entries out.
//!
//! Pure. The store that keeps a record asks for the entries of each group of writes, has them made durable, and only then
//! commits the group ([`Recorder::reconcile`](crate::audit::Recorder::reconcile) clears up what a crash left between the
//! two). What a charge is worth stands in the entry with the payer's own signature over the total, so that the record
//! proves by itself what was owed.

use std::fmt;

use super::channel::svm::Svm;
use super::channel::{ChainState, Evm, Family};
use super::passes::PassRecord;
use super::store::{About, BatchState, RecordOf, Write};
use crate::amount::Amount;
use crate::audit::{Entry, Kind};
use crate::x402::Network;

/// A family whose records can be told of.
pub trait Told: Family {
    /// Begins an entry about a channel: network, asset, channel, payer.
    fn channel(kind: Kind, terms: &Self::Terms) -> Entry;
    /// A voucher's signature, as clients write it.
    fn signature(entry: Entry, signature: &Self::Signature) -> Entry;
    /// The entry about a step of a batch.
    fn batch(batch: &Self::Batch) -> Entry;
    /// The entry about a step of a metered request's channel.
    fn metered(metered: &Self::Metered) -> Entry;
}

/// Adds the entries of writes that become durable together, each with the place in the record that the store stood on.
pub fn tell<F: Told>(writes: &[Write<F>], stands_on: u64, entries: &mut Vec<Entry>) {
    let mut channel: Option<&RecordOf<F>> = None;
    let mut add = |entry: Entry| entries.push(entry.number("after", stands_on));
    for write in writes {
        match write {
            Write::Channel(record) => channel = Some(record),
            Write::About(about) => {
                if let Some(record) = channel {
                    change::<F>(record, about, &mut add);
                }
            }
            Write::ForgetChannel(id) => add(Entry::new(Kind::Channel).text("channel", id).text("step", "forgotten")),
            Write::Batch(batch) => add(F::batch(batch)),
            Write::Metered(metered) => add(F::metered(metered)),
            Write::ForgetMetered(id) => add(Entry::new(Kind::Metered).text("channel", id).text("step", "over")),
            // Copies of what was sent to clients; the charges that they are of have entries of their own.
            Write::Answer(_) | Write::ForgetAnswers(_) => {}
            // Sums of charges that have entries of their own.
            Write::Spend(_) | Write::ForgetSpent(_) => {}
            Write::Pass(pass) => {
                let entry = channel.map_or_else(
                    || Entry::new(Kind::PassSold).text("network", &pass.network).text("payer", pass.payer),
                    |record| F::channel(Kind::PassSold, &record.terms),
                );
                let calls = entry.text("pass", pass.id).text("amount", pass.price).number("calls", pass.calls);
                add(calls.number("expires", pass.expires_at.0).text("route", &pass.scope));
            }
            Write::PassUsed(call) => add(Entry::new(Kind::PassUsed)
                .text("pass", call.id)
                .text("payer", call.payer)
                .number("call", call.number)
                .text("route", &call.scope)),
            Write::RevokePass(pass) => add(ended(Kind::PassRevoked, pass)),
            // That they are over is to be seen from what was sold and used.
            Write::ForgetPasses(_) => {}
        }
    }
}

/// The entries about one change of a channel.
fn change<F: Told>(record: &RecordOf<F>, about: &About, add: &mut impl FnMut(Entry)) {
    let About { charge, charged, deposit, claimed, closed } = about;
    let of = |kind| F::channel(kind, &record.terms);
    let step = |entry: Entry, from: Amount, to: Amount| entry.text("from", from).text("to", to);
    let now = record.on_chain.deposit();
    if now > *deposit {
        let amount = now.saturating_sub(*deposit);
        add(step(of(Kind::Deposit).text("amount", amount), *deposit, now));
    } else if now < *deposit {
        add(step(of(Kind::Withdrawal).text("amount", deposit.saturating_sub(now)), *deposit, now));
    }
    let base = record.charged.saturating_sub(charge.as_ref().map_or(Amount::ZERO, |charge| charge.amount));
    if base > *charged {
        add(step(of(Kind::Raised).text("amount", base.saturating_sub(*charged)), *charged, base));
    }
    if let Some(charge) = charge {
        let entry = of(Kind::Charge).text("amount", charge.amount).text("total", record.charged);
        let entry = match &record.voucher {
            Some(voucher) => F::signature(entry.text("voucher", voucher.cumulative), &voucher.signature),
            None => entry,
        };
        add(entry.text_if("route", charge.route.as_deref()));
    }
    let after = record.on_chain.claimed();
    if after > *claimed {
        add(step(of(Kind::Claimed).text("amount", after.saturating_sub(*claimed)), *claimed, after));
    }
    if record.closed != *closed {
        add(of(Kind::Channel).text("step", if record.closed { "shut" } else { "reopened" }));
    }
}

/// An entry about the end of a pass, with what it was good for still.
fn ended(kind: Kind, pass: &PassRecord) -> Entry {
    Entry::new(kind)
        .text("pass", pass.id)
        .text("payer", pass.payer)
        .number("left", pass.left())
        .text("route", &pass.scope)
}

/// How an entry about a channel begins.
fn about(
    kind: Kind,
    network: &Network,
    asset: impl fmt::Display,
    channel: impl fmt::Display,
    payer: impl fmt::Display,
) -> Entry {
    Entry::new(kind).text("network", network).text("asset", asset).text("channel", channel).text("payer", payer)
}

fn state(entry: Entry, state: &BatchState) -> Entry {
    match state {
        BatchState::Signed => entry.text("step", "signed"),
        BatchState::Confirmed => entry.text("step", "confirmed"),
        BatchState::Dropped { why } => entry.text("step", "dropped").text("why", why),
    }
}

fn lines<Id: ToString>(entry: Entry, lines: &[(Id, Amount)]) -> Entry {
    let lines: Vec<_> = lines.iter().map(|(id, amount)| (id.to_string(), amount.to_string())).collect();
    entry.json("channels", &lines)
}

impl Told for Svm {
    fn channel(kind: Kind, terms: &Self::Terms) -> Entry {
        about(kind, &terms.seller.network, &terms.seller.asset.address, terms.id, terms.payer)
    }

    fn signature(entry: Entry, signature: &Self::Signature) -> Entry {
        entry.text("signature", signature)
    }

    fn batch(batch: &Self::Batch) -> Entry {
        let what = format!("{:?}", batch.kind).to_lowercase();
        let entry = Entry::new(Kind::Settlement).text("family", "svm").number("batch", batch.id).text("what", what);
        lines(state(entry, &batch.state).text("transaction", batch.signature), &batch.lines)
    }

    fn metered(metered: &Self::Metered) -> Entry {
        let step = match (metered.charge, metered.close) {
            (_, Some(_)) => "closing",
            (Some(_), None) => "charged",
            (None, None) => "opened",
        };
        Self::channel(Kind::Metered, &metered.terms)
            .text("step", step)
            .text("deposit", metered.deposit)
            .text_if("amount", metered.charge)
            .text_if("transaction", metered.close.map(|(transaction, _)| transaction))
    }
}

impl Told for Evm {
    fn channel(kind: Kind, terms: &Self::Terms) -> Entry {
        about(kind, &terms.seller.network, terms.seller.token, terms.id, terms.payer)
    }

    fn signature(entry: Entry, signature: &Self::Signature) -> Entry {
        entry.text("signature", signature)
    }

    fn batch(batch: &Self::Batch) -> Entry {
        let what = format!("{:?}", batch.kind).to_lowercase();
        let entry = Entry::new(Kind::Settlement)
            .text("family", "evm")
            .number("batch", batch.id)
            .text("what", what)
            .text("network", &batch.network)
            .text("asset", batch.token);
        lines(state(entry, &batch.state).text_if("transaction", batch.transaction), &batch.lines)
    }

    fn metered(metered: &Self::Metered) -> Entry {
        match *metered {}
    }
}
