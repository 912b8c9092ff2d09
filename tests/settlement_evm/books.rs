//! A simulation's own books, kept from what upstreams answered and clients were told, and what must be true of the ledger
//! and the contract at any time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash};

use turnpike::ledger::Ledger;
use turnpike::ledger::channel::Evm;
use turnpike::x402::evm::B256;

use crate::contract::Contract;
use crate::world::{DOLLAR, EURO, PAY_TO};

/// How often what this is about has happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub charged: u64,
    pub in_part: u64,
    pub released: u64,
    pub refused: u64,
    pub deposits: u64,
    pub refunds: u64,
    pub withdrawals: u64,
    pub crashes: u64,
    pub halfway: u64,
    pub dropped: u64,
    pub claims: u64,
    pub payouts: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.charged += other.charged;
        self.in_part += other.in_part;
        self.released += other.released;
        self.refused += other.refused;
        self.deposits += other.deposits;
        self.refunds += other.refunds;
        self.withdrawals += other.withdrawals;
        self.crashes += other.crashes;
        self.halfway += other.halfway;
        self.dropped += other.dropped;
        self.claims += other.claims;
        self.payouts += other.payouts;
    }
}

/// A channel's own books, kept from what its upstream answered and what its client was told.
#[derive(Default)]
pub struct Line {
    /// The totals that may have been charged: the upstream has answered for them.
    pub earned: BTreeSet<u128>,
    /// What the client was told of.
    pub told: u128,
    /// The greatest total that was signed.
    pub signed: u128,
}

#[derive(Default)]
pub struct Books {
    pub lines: BTreeMap<B256, Line>,
    pub counts: Counts,
    pub last: VecDeque<String>,
    pub digest: DefaultHasher,
}

impl Books {
    pub fn tell(&mut self, line: String) {
        line.hash(&mut self.digest);
        if self.last.len() >= 40 {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub fn check(&self, ledger: &Ledger<Evm>, contract: &Contract) {
        ledger.health().expect("the ledger stands by its promises");
        contract.check();
        let mut earned = 0;
        for (id, line) in &self.lines {
            let claimed = contract.claimed(id);
            assert!(claimed <= line.signed, "L3: {id} claimed above what was signed");
            // Not always what was charged at some time: of a channel that its payer has emptied, what is left is claimed.
            let earned_here = line.earned.last().copied().unwrap_or(0);
            assert!(claimed <= earned_here, "{claimed} of {id} was claimed, where {earned_here} was earned at most");
            earned += earned_here;
            let Some(record) = ledger.channel(id) else {
                assert_eq!((line.told, claimed), (0, 0), "L5: {id} was forgotten");
                continue;
            };
            let charged = record.charged.get();
            assert!(charged == 0 || line.earned.contains(&charged), "{charged} of {id} was charged and not earned");
            assert!(charged >= line.told, "L5: {} was told of, {charged} kept on {id}", line.told);
            assert!(claimed <= charged, "L3: {claimed} of {id} is claimed, {charged} charged");
            assert!(record.on_chain.claimed.get() <= claimed, "the ledger is ahead of the chain on {id}");
            let signed = record.voucher.map_or(0, |voucher| voucher.cumulative.get());
            assert!(charged <= signed, "L2: {charged} charged, {signed} signed on {id}");
        }
        let paid = contract.tokens(DOLLAR, PAY_TO) + contract.tokens(EURO, PAY_TO);
        assert!(paid <= earned, "the merchant was paid {paid} of {earned}");
    }
}
