//! Building: from what is due to transactions that fit, and from a failed transaction back to the channel at fault.
//!
//! Promises invariant L3: a line claims exactly what was charged and exactly what was signed, or it is not built. The
//! voucher's signature is checked once more by the chain's rules, so that a damaged record cannot sink a batch.
//! Source: `scheme_batch_settlement_svm.md`, section 5, phase 4.

use crate::amount::Amount;
use crate::ledger::store::{BatchKind, ChannelRecord};
use crate::scheme::svm::program::{self, BPS_ALL, Share, VOUCHER_MESSAGE_BYTES};
use crate::scheme::svm::transaction::{Instruction, Transaction, TransactionError};
use crate::scheme::svm::verify_strict;
use crate::signer::{ClaimLine, SigningRequest};
use crate::x402::Key;
use crate::x402::key::Signature;

use super::plan::Action;

/// The most channels that one transaction may name (specification, section 5, phase 4).
pub const BATCH_CHANNELS_MAX: usize = 4;

/// Compute units that one `settle` may use.
const SETTLE_UNITS: u32 = 15_000;
/// Compute units that one `distribute` may use: five token addresses to derive, three transfers and a close.
const DISTRIBUTE_UNITS: u32 = 90_000;
/// Compute units that a `seal`, a `settle_and_seal` or a `reclaim` may use.
const SEAL_UNITS: u32 = 15_000;
/// Compute units that the compute budget's own instructions use.
const BASE_UNITS: u32 = 1_000;
/// How many transactions that do the same are told apart by their compute unit limit alone.
const SPARE_UNITS: u64 = 4096;

/// Why a channel cannot be put into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Charged without a voucher: a broken promise of the ledger.
    #[error("charged {charged}, but no voucher is kept; nothing is claimed. Restore the ledger from its backup")]
    NoVoucher {
        /// What was charged.
        charged: Amount,
    },
    /// The voucher is not over what was charged (invariant L3).
    #[error("charged {charged}, but the voucher is over {voucher}; nothing is claimed. Run `turnpike audit reconcile`")]
    Mismatch {
        /// What was charged.
        charged: Amount,
        /// What was signed.
        voucher: Amount,
    },
    /// More than the program can count.
    #[error("the amount {0} does not fit the program's 64 bits")]
    TooLarge(Amount),
    /// The chain would not accept the voucher.
    #[error("the voucher's signature does not verify; nothing is claimed. Restore the ledger from its backup")]
    BadVoucher,
    /// Not even this channel alone fits a transaction.
    #[error("the instructions do not fit a transaction")]
    TooLong,
}

/// One channel's part of a batch.
#[derive(Clone, Debug)]
pub struct Line {
    /// What is done.
    pub action: Action,
    /// The channel as it was when the line was made.
    pub record: ChannelRecord,
    /// The cumulative amount that the channel is brought to.
    pub amount: u64,
    /// The voucher that is applied.
    voucher: Option<Signature>,
    /// Whether a seal pays out in the same transaction.
    pays_out: bool,
    /// What it adds to a transaction: made once, as it takes the derivation of half a dozen addresses.
    instructions: Vec<Instruction>,
}

impl Line {
    /// A line for `action`; `pays_out` says whether the money's destination can take it now.
    ///
    /// # Errors
    /// [`LineError`] where the record does not support what it would claim.
    pub fn new(action: Action, record: ChannelRecord, pays_out: bool) -> Result<Self, LineError> {
        let claims = match action {
            Action::Claim => true,
            Action::Seal => record.charged > record.on_chain.claimed,
            Action::Distribute | Action::CloseOut | Action::Reclaim => false,
        };
        let (amount, voucher) = if claims {
            let (amount, signature) = claimable(&record)?;
            (amount, Some(signature))
        } else {
            let claimed = record.on_chain.claimed;
            (claimed.to_u64().ok_or(LineError::TooLarge(claimed))?, None)
        };
        let line = Self { action, record, amount, voucher, pays_out, instructions: Vec::new() };
        Ok(Self { instructions: line.make_instructions(), ..line })
    }

    /// The same line for the channel as it is now.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn with(&self, record: ChannelRecord) -> Result<Self, LineError> {
        Self::new(self.action, record, self.pays_out)
    }

    /// The channel.
    #[must_use]
    pub fn channel(&self) -> Key {
        self.record.terms.id
    }

    /// What the line newly moves by the books: for a payout what it pays out, else what it claims above the chain's
    /// watermark.
    fn moving(&self) -> Amount {
        let chain = &self.record.on_chain;
        match self.action {
            Action::Claim | Action::Seal => Amount::from(self.amount).saturating_sub(chain.claimed),
            Action::Distribute | Action::CloseOut => chain.claimed.saturating_sub(chain.distributed),
            Action::Reclaim => Amount::ZERO,
        }
    }

    fn message(&self) -> [u8; VOUCHER_MESSAGE_BYTES] {
        program::voucher_message(&self.channel(), self.amount, 0)
    }

    fn make_instructions(&self) -> Vec<Instruction> {
        let terms = &self.record.terms;
        let shares = program::all_to(terms.seller.pay_to);
        let voucher = self.voucher.map(|signature| program::ed25519(&terms.authorizer, &signature, &self.message()));
        let distribute = |shares: &[Share; 1]| {
            debug_assert_eq!(shares[0].bps, BPS_ALL);
            program::distribute(&terms.accounts(), &terms.seller.treasury_owner, shares)
        };
        match self.action {
            Action::Claim => voucher.into_iter().chain([program::settle(terms.id)]).collect(),
            Action::Distribute => vec![distribute(&shares)],
            Action::Seal => {
                let seal = program::settle_and_seal(terms.seller.fee_payer, terms.id, voucher.is_some());
                let payout = self.pays_out.then(|| distribute(&shares));
                voucher.into_iter().chain([seal]).chain(payout).collect()
            }
            Action::CloseOut => vec![program::seal(terms.id), distribute(&shares)],
            Action::Reclaim => vec![program::reclaim(terms.id, terms.seller.fee_payer)],
        }
    }

    const fn units(&self) -> u32 {
        match self.action {
            Action::Claim => SETTLE_UNITS,
            Action::Distribute => DISTRIBUTE_UNITS,
            Action::Seal => SETTLE_UNITS.saturating_add(SEAL_UNITS).saturating_add(DISTRIBUTE_UNITS),
            Action::CloseOut => SEAL_UNITS.saturating_add(DISTRIBUTE_UNITS),
            Action::Reclaim => SEAL_UNITS,
        }
    }
}

/// What can be claimed of a channel now, and the signature for it (invariant L3).
fn claimable(record: &ChannelRecord) -> Result<(u64, Signature), LineError> {
    let charged = record.charged;
    let voucher = record.voucher.ok_or(LineError::NoVoucher { charged })?;
    if voucher.cumulative != charged {
        return Err(LineError::Mismatch { charged, voucher: voucher.cumulative });
    }
    let amount = charged.to_u64().ok_or(LineError::TooLarge(charged))?;
    let message = program::voucher_message(&record.terms.id, amount, 0);
    if !verify_strict(&record.terms.authorizer, &message, &voucher.signature) {
        return Err(LineError::BadVoucher);
    }
    Ok((amount, voucher.signature))
}

/// A batch before it has a blockhash.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What it does.
    pub kind: BatchKind,
    lines: Vec<Line>,
}

impl Draft {
    /// A batch of one.
    #[must_use]
    pub fn of(line: Line) -> Self {
        Self { kind: line.action.kind(), lines: vec![line] }
    }

    /// Its lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Channels and amounts as they are journalled.
    #[must_use]
    pub fn journal(&self) -> Vec<(Key, Amount)> {
        self.lines.iter().map(|line| (line.channel(), line.amount.into())).collect()
    }

    /// What it newly moves by the books, for the policy.
    #[must_use]
    pub fn moving(&self) -> Amount {
        self.lines.iter().fold(Amount::ZERO, |sum, line| sum.saturating_add(line.moving()))
    }

    /// The unsigned transaction. `number` makes it differ from others that do the same with the same blockhash: the
    /// chain takes equal messages once, and a threshold signature names the same message anew each time.
    ///
    /// # Errors
    /// [`TransactionError::TooLong`] where it would not fit a packet.
    pub fn transaction(
        &self,
        fee_payer: Key,
        price: u64,
        hash: [u8; 32],
        number: u64,
    ) -> Result<Transaction, TransactionError> {
        let units = self.lines.iter().fold(BASE_UNITS, |sum, line| sum.saturating_add(line.units()));
        let units = units.saturating_add(u32::try_from(number % SPARE_UNITS).unwrap_or(0));
        let mut instructions = vec![program::compute_unit_limit(units)];
        if price > 0 {
            instructions.push(program::compute_unit_price(price));
        }
        instructions.extend(self.lines.iter().flat_map(|line| line.instructions.iter().cloned()));
        Transaction::build(fee_payer, &instructions, hash)
    }

    /// What the signer is asked, so that it can compare the transaction with what it is meant to do.
    #[must_use]
    pub fn request(&self, transaction: Transaction) -> Option<SigningRequest> {
        let first = self.lines.first()?;
        Some(match first.action {
            Action::Claim => {
                let line = |line: &Line| ClaimLine { channel: line.channel(), cumulative: line.amount };
                SigningRequest::Claim { lines: self.lines.iter().map(line).collect(), transaction }
            }
            Action::Distribute => {
                SigningRequest::Distribute { channels: self.lines.iter().map(Line::channel).collect(), transaction }
            }
            Action::Seal | Action::CloseOut | Action::Reclaim => {
                let cumulative = first.voucher.map(|_| first.amount);
                SigningRequest::Close { channel: first.channel(), cumulative, transaction }
            }
        })
    }
}

/// Packs lines into as few transactions as fit, at most `max` channels each, in the given order. What closes a channel
/// stands alone, and so does every channel that `alone` names. Lines that fit no transaction come back second.
#[must_use]
pub fn pack(
    lines: Vec<Line>,
    max: usize,
    fee_payer: Key,
    price: u64,
    alone: &dyn Fn(&Key) -> bool,
) -> (Vec<Draft>, Vec<Line>) {
    let max = max.clamp(1, BATCH_CHANNELS_MAX);
    let (mut drafts, mut misfits): (Vec<Draft>, Vec<Line>) = (Vec::new(), Vec::new());
    // The one batch of each shared kind that may still take a channel.
    let (mut claims, mut payouts): (Option<usize>, Option<usize>) = (None, None);
    for line in lines {
        let shared = match line.action {
            _ if alone(&line.channel()) => None,
            Action::Claim => Some(&mut claims),
            Action::Distribute => Some(&mut payouts),
            Action::Seal | Action::CloseOut | Action::Reclaim => None,
        };
        if let Some(draft) = shared.as_ref().and_then(|slot| **slot).and_then(|index| drafts.get_mut(index))
            && draft.lines.len() < max
        {
            draft.lines.push(line.clone());
            if draft.transaction(fee_payer, price, [0; 32], 0).is_ok() {
                continue;
            }
            draft.lines.pop();
        }
        let draft = Draft::of(line);
        if draft.transaction(fee_payer, price, [0; 32], 0).is_err() {
            misfits.extend(draft.lines);
            continue;
        }
        if let Some(slot) = shared {
            *slot = Some(drafts.len());
        }
        drafts.push(draft);
    }
    (drafts, misfits)
}

/// The channel that the instruction at `index` of a batch's transaction is about.
#[must_use]
pub fn channel_at(transaction: &Transaction, lines: &[(Key, Amount)], index: usize) -> Option<Key> {
    let instruction = transaction.instructions().into_iter().nth(index)?;
    let named = |key: &Key| lines.iter().any(|(channel, _)| channel == key);
    if let Some(meta) = instruction.accounts.iter().find(|meta| named(&meta.key)) {
        return Some(meta.key);
    }
    // An Ed25519 instruction names no account; its voucher names the channel, after the two bytes of magic.
    let message = instruction.data.get(program::ED25519_DATA_BYTES.checked_sub(VOUCHER_MESSAGE_BYTES)?..)?;
    let channel = Key(message.get(2..34)?.try_into().ok()?);
    named(&channel).then_some(channel)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::testing::{public, record, seller};
    use super::*;
    use crate::ledger::channel::Voucher;
    use crate::scheme::svm::program::Call;
    use crate::scheme::svm::transaction::TRANSACTION_BYTES_MAX;
    use crate::scheme::svm::{ED25519_PROGRAM, PAYMENT_CHANNELS};

    fn line(action: Action, n: u8) -> Line {
        let claimed = if action == Action::Claim || action == Action::Seal { 0 } else { 500 };
        Line::new(action, record(&seller(), n, 500, claimed, 0), true).unwrap()
    }

    #[test]
    fn only_what_was_charged_and_signed_is_claimed() {
        let good = record(&seller(), 1, 500, 0, 0);
        let voucher = good.voucher.unwrap();
        assert_eq!(Line::new(Action::Claim, good.clone(), true).unwrap().amount, 500);
        let with = |charged: u64, voucher| ChannelRecord { charged: charged.into(), voucher, ..good.clone() };
        let over = |cumulative: u64| Some(Voucher { cumulative: cumulative.into(), ..voucher });
        let other = record(&seller(), 2, 500, 0, 0).voucher;
        let charged = Amount::from(500_u64);
        let table = [
            (with(500, None), LineError::NoVoucher { charged }),
            (with(500, over(501)), LineError::Mismatch { charged, voucher: 501_u64.into() }),
            (with(500, over(499)), LineError::Mismatch { charged, voucher: 499_u64.into() }),
            (with(499, over(500)), LineError::Mismatch { charged: 499_u64.into(), voucher: charged }),
            (with(499, over(499)), LineError::BadVoucher),
            (with(500, other), LineError::BadVoucher),
        ];
        for (record, expected) in table {
            for action in [Action::Claim, Action::Seal] {
                assert_eq!(Line::new(action, record.clone(), true).err(), Some(expected));
            }
        }
    }

    #[test]
    fn a_seal_without_anything_to_claim_applies_no_voucher() {
        let line = Line::new(Action::Seal, record(&seller(), 1, 500, 500, 0), true).unwrap();
        let (drafts, _) = pack(vec![line], 4, public(201), 0, &|_| false);
        let transaction = drafts[0].transaction(public(201), 0, [7; 32], 0).unwrap();
        let calls: Vec<_> = transaction
            .instructions()
            .iter()
            .filter(|instruction| instruction.program == PAYMENT_CHANNELS)
            .map(|instruction| Call::decode(&instruction.data).unwrap())
            .collect();
        assert!(matches!(calls[..], [Call::SettleAndSeal { has_voucher: false }, Call::Distribute { .. }]));
        let request = drafts[0].request(transaction).unwrap();
        assert!(matches!(request, SigningRequest::Close { cumulative: None, .. }));
    }

    #[test]
    fn four_channels_fit_one_transaction() {
        for action in [Action::Claim, Action::Distribute] {
            let lines: Vec<_> = (1..=9).map(|n| line(action, n)).collect();
            let (drafts, misfits) = pack(lines, 4, public(201), 5_000, &|_| false);
            assert!(misfits.is_empty());
            let sizes: Vec<_> = drafts.iter().map(|draft| draft.lines.len()).collect();
            assert_eq!(sizes, [4, 4, 1], "{action:?}");
        }
    }

    #[test]
    fn a_claim_is_pairs_of_voucher_and_settle() {
        let lines: Vec<_> = (1..=4).map(|n| line(Action::Claim, n)).collect();
        let (drafts, _) = pack(lines, 4, public(201), 0, &|_| false);
        let draft = &drafts[0];
        let transaction = draft.transaction(public(201), 0, [7; 32], 0).unwrap();
        let journal = draft.journal();
        let instructions = transaction.instructions();
        assert_eq!(instructions.len(), 9);
        for (n, pair) in instructions[1..].chunks(2).enumerate() {
            assert_eq!(pair[0].program, ED25519_PROGRAM);
            assert_eq!(Call::decode(&pair[1].data), Ok(Call::Settle));
            let (channel, amount) = journal[n];
            let cumulative = amount.to_u64().unwrap();
            assert_eq!(pair[0].data[112..], program::voucher_message(&channel, cumulative, 0));
            assert_eq!(pair[1].accounts[0].key, channel);
            assert_eq!(channel_at(&transaction, &journal, 1 + 2 * n), Some(channel));
            assert_eq!(channel_at(&transaction, &journal, 2 + 2 * n), Some(channel));
        }
        assert_eq!(channel_at(&transaction, &journal, 0), None);
        assert_eq!(channel_at(&transaction, &journal, 9), None);
    }

    fn any_action() -> impl Strategy<Value = Action> {
        prop_oneof![
            Just(Action::Seal),
            Just(Action::Claim),
            Just(Action::Distribute),
            Just(Action::CloseOut),
            Just(Action::Reclaim)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_line_is_packed_once_and_every_batch_fits(
            actions in prop::collection::vec(any_action(), 0..12),
            max in 0_usize..7,
            price in 0_u64..2,
            lonely in any::<u16>(),
        ) {
            let fee_payer = public(201);
            let lines: Vec<_> = (1_u8..).zip(&actions).map(|(n, action)| line(*action, n)).collect();
            let alone: HashSet<Key> = lines
                .iter()
                .enumerate()
                .filter(|(n, _)| lonely >> n & 1 == 1)
                .map(|(_, line)| line.channel())
                .collect();
            let expected: HashSet<_> = lines.iter().map(Line::channel).collect();
            let (drafts, misfits) = pack(lines, max, fee_payer, price, &|key| alone.contains(key));
            prop_assert!(misfits.is_empty());
            let mut packed = HashSet::new();
            for draft in &drafts {
                prop_assert!(draft.lines.len() <= max.clamp(1, 4));
                let shared = draft.lines.len() > 1;
                for line in &draft.lines {
                    prop_assert!(packed.insert(line.channel()));
                    prop_assert_eq!(line.action.kind(), draft.kind);
                    prop_assert!(!shared || !alone.contains(&line.channel()));
                    prop_assert!(!shared || matches!(line.action, Action::Claim | Action::Distribute));
                }
                let transaction = draft.transaction(fee_payer, price, [7; 32], 0).unwrap();
                prop_assert!(transaction.encode().len() <= TRANSACTION_BYTES_MAX);
                prop_assert_eq!(transaction.required_signers(), &[fee_payer]);
                prop_assert!(draft.request(transaction).is_some());
            }
            prop_assert_eq!(packed, expected);
        }
    }
}
