//! What must be true: the world's own books, kept from what clients were told and what the upstream answered, and their
//! comparison with the ledger and the chain.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use turnpike::amount::Amount;
use turnpike::chain::sandbox::SandboxChain;
use turnpike::ledger::Ledger;
use turnpike::scheme::svm::ED25519_PROGRAM;
use turnpike::scheme::svm::program::{ChannelStatus, VOUCHER_MESSAGE_BYTES};
use turnpike::scheme::svm::transaction::Transaction;
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

use crate::PRICE;

/// A channel that pays many calls.
#[derive(Default)]
struct Prepaid {
    /// The totals whose upstream answered with success: nothing else may ever be charged.
    earned: BTreeSet<u64>,
    /// The totals that were charged and answered.
    delivered: BTreeSet<u64>,
    /// The greatest total seen in the ledger.
    charged: u64,
    /// The greatest watermark seen on chain.
    claimed: u64,
}

/// A channel that pays one metered call.
struct Metered {
    expires_at: i64,
    /// What the call costs, once its upstream has answered with success.
    earned: Option<u64>,
    /// What its client was told that it was charged.
    told: Option<u64>,
    /// Whether the chain has had it, and since when it is seen to have ended.
    seen: bool,
    ended_at: Option<i64>,
}

/// How often what this simulation is about has happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Calls at a fixed price that were charged and delivered.
    pub delivered: u64,
    /// Metered calls that were charged more than nothing and delivered.
    pub metered: u64,
    /// Calls whose upstream failed.
    pub failed: u64,
    /// Vouchers that were refused.
    pub refused: u64,
    /// Answers that were withheld: served and not charged.
    pub withheld: u64,
    /// Requests, and rounds of settlement, that were dropped halfway.
    pub dropped: u64,
    /// Crashes, and those of them that came while something was going on.
    pub crashes: u64,
    pub crashes_halfway: u64,
    /// Metered calls that a life found open when it began.
    pub recovered: u64,
    /// Metered calls that were delivered and could not be charged after all.
    pub forgone: u64,
    /// Channels whose payer began to close them.
    pub forced: u64,
    /// Refunds that were made.
    pub refunds: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.metered += other.metered;
        self.failed += other.failed;
        self.refused += other.refused;
        self.withheld += other.withheld;
        self.dropped += other.dropped;
        self.crashes += other.crashes;
        self.crashes_halfway += other.crashes_halfway;
        self.recovered += other.recovered;
        self.forgone += other.forgone;
        self.forced += other.forced;
        self.refunds += other.refunds;
    }
}

#[derive(Default)]
pub struct Books {
    prepaid: BTreeMap<Key, Prepaid>,
    metered: BTreeMap<Key, Metered>,
    pub counts: Counts,
}

impl Books {
    /// A client is about to open a channel that pays many calls.
    pub fn open(&mut self, channel: Key) {
        self.prepaid.entry(channel).or_default();
    }

    /// A client is about to open a channel for one metered call.
    pub fn open_metered(&mut self, channel: Key, expires_at: i64) {
        let fresh = Metered { expires_at, earned: None, told: None, seen: false, ended_at: None };
        self.metered.insert(channel, fresh);
    }

    /// The upstream has answered a call that `total` pays, and `finish` is called next.
    pub fn earned(&mut self, channel: &Key, total: u64) {
        self.prepaid.get_mut(channel).unwrap().earned.insert(total);
    }

    pub fn earned_metered(&mut self, channel: &Key, cost: u64) {
        let metered = self.metered.get_mut(channel).unwrap();
        assert_eq!(metered.earned.replace(cost), None, "one metered payment was admitted twice");
    }

    /// The answer has left.
    pub fn delivered(&mut self, channel: &Key, voucher: u64, told: u64) {
        let prepaid = self.prepaid.get_mut(channel).unwrap();
        assert_eq!(told, voucher, "a client was told of another total than it signed");
        assert!(prepaid.delivered.insert(voucher), "voucher {voucher} of {channel} was delivered twice");
        self.counts.delivered += 1;
    }

    pub fn delivered_metered(&mut self, channel: &Key, told: u64) {
        let metered = self.metered.get_mut(channel).unwrap();
        assert_eq!(metered.earned, Some(told), "a metered call was charged otherwise than the upstream said");
        assert_eq!(metered.told.replace(told), None, "one metered payment was delivered twice");
        self.counts.metered += u64::from(told > 0);
    }

    /// The invariants L1, L2, L3 and L5 of every channel that there ever was, and that only what was earned is charged.
    pub fn check(&mut self, ledger: &Ledger, chain: &SandboxChain, now: i64) {
        ledger.health().expect("the ledger stands by its promises");
        for (id, prepaid) in &mut self.prepaid {
            if let Some(record) = ledger.channel(id) {
                let (charged, claimed) = (record.charged, record.on_chain.claimed);
                assert!(claimed <= charged, "L1: {claimed} claimed of {charged} on {id}");
                let signed = record.voucher.map(|voucher| voucher.cumulative);
                assert!(signed.is_none_or(|signed| signed == charged), "L2: {charged} charged, {signed:?} signed");
                assert!(charged <= record.on_chain.deposit, "L2: {charged} charged of {}", record.on_chain.deposit);
                let told = prepaid.delivered.last().copied().unwrap_or(0);
                assert!(charged >= Amount::from(told), "L5: told of {told}, kept {charged} on {id}");
                let charged = charged.to_u64().unwrap();
                assert!(charged >= prepaid.claimed, "L3: {} redeemed of {charged} on {id}", prepaid.claimed);
                for total in (PRICE..=charged).step_by(usize::try_from(PRICE).unwrap()) {
                    assert!(prepaid.earned.contains(&total), "{total} of {id} was charged and not earned");
                }
                prepaid.charged = prepaid.charged.max(charged);
            }
            if let Some(account) = chain.channel(id) {
                assert!(account.settled <= prepaid.charged, "L3: {} redeemed of {}", account.settled, prepaid.charged);
                prepaid.claimed = account.settled;
            }
        }
        for (id, metered) in &mut self.metered {
            match chain.channel(id) {
                Some(account) => {
                    metered.seen = true;
                    let (claimed, earned) = (account.settled, metered.earned.unwrap_or(0));
                    assert!(claimed == 0 || claimed == earned, "{claimed} was claimed on {id}, {earned} was earned");
                    if account.status == ChannelStatus::Open {
                        continue;
                    }
                }
                None if !metered.seen => continue,
                None => {}
            }
            metered.ended_at.get_or_insert(now);
        }
    }

    /// Nothing is left to do: every unit is where it belongs. `claims` is what our transactions claimed of each
    /// channel.
    pub fn close(
        &mut self,
        chain: &SandboxChain,
        claims: &HashMap<Key, u64>,
        payers: u64,
        merchant: u64,
        treasury: u64,
        supply: u64,
    ) {
        let escrow = |ids: &mut dyn Iterator<Item = &Key>| ids.map(|id| chain.token_balance(id)).sum::<u64>();
        let (prepaid, metered) = (escrow(&mut self.prepaid.keys()), escrow(&mut self.metered.keys()));
        assert_eq!(metered, 0, "a metered channel was left open");
        assert_eq!(treasury, 0, "nothing was left to the treasury");
        assert_eq!(payers + merchant + prepaid + treasury, supply, "money was made or lost");
        let claimed = |id| claims.get(id).copied().unwrap_or(0);
        for (id, prepaid) in &self.prepaid {
            assert_eq!(claimed(id), prepaid.charged, "what was charged on {id} was claimed, and no more");
        }
        for (id, metered) in &self.metered {
            let (claimed, earned) = (claimed(id), metered.earned.unwrap_or(0));
            assert!(claimed == 0 || claimed == earned, "{claimed} was claimed on {id}, where {earned} was earned");
            let told = metered.told.unwrap_or(0);
            let late = metered.ended_at.is_some_and(|ended| ended >= metered.expires_at);
            assert!(told == claimed || told == 0 || late, "{told} was told of and {claimed} claimed on {id}");
            self.counts.forgone += u64::from(told > claimed);
        }
        assert_eq!(merchant, claims.values().sum::<u64>(), "the merchant was paid what was claimed");
    }
}

/// What these transactions claimed of each channel. Each voucher was claimed once at most.
pub fn claims(effective: &HashMap<Signature, Vec<u8>>) -> HashMap<Key, u64> {
    let (mut claims, mut seen) = (HashMap::new(), HashSet::new());
    for bytes in effective.values() {
        let instructions = Transaction::decode(bytes).unwrap().instructions();
        for voucher in instructions.iter().filter(|instruction| instruction.program == ED25519_PROGRAM) {
            // The voucher's message ends the instruction: two bytes that name it, channel, total, expiry.
            let message = &voucher.data[voucher.data.len() - VOUCHER_MESSAGE_BYTES..];
            let channel = Key(message[2..34].try_into().unwrap());
            let total = u64::from_le_bytes(message[34..42].try_into().unwrap());
            assert!(seen.insert((channel, total)), "the voucher over {total} of {channel} was claimed twice");
            let claim = claims.entry(channel).or_insert(total);
            *claim = total.max(*claim);
        }
    }
    claims
}
