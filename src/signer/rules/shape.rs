//! Reading a transaction instruction by instruction against what it ought to be.
//!
//! Owns [`Script`]: each instruction is taken once, in order, and compared with the one that its kind's builder makes
//! from the judged values; at the end nothing may be left over, and the message's account table may hold no privilege
//! but those that the accepted instructions need (section 5: equal keys unite their privileges, and nothing else may be
//! writable).

use std::collections::BTreeSet;

use super::{ComputeCaps, Verdict, ensure, refuse, rule};
use crate::scheme::svm::program::{self, Call};
use crate::scheme::svm::transaction::{AccountMeta, Instruction, Transaction};
use crate::scheme::svm::{
    COMPUTE_BUDGET_PROGRAM, ED25519_PROGRAM, LIGHTHOUSE_PROGRAM, MEMO_PROGRAM, PAYMENT_CHANNELS, verify_strict,
};
use crate::x402::Key;
use crate::x402::key::Signature;

/// The most memos after a setup instruction, as `scheme_upto_svm.md` allows them.
const MEMOS_MAX: usize = 4;
/// The most Lighthouse assertions after a setup instruction, as wallets inject them.
const LIGHTHOUSE_MAX: usize = 3;
/// What a cluster reckons for each instruction, and for all of them, where a transaction sets no limit.
const UNITS_PER_INSTRUCTION: u64 = 200_000;
const UNITS_PER_TRANSACTION: u64 = 1_400_000;

/// What an account position is called, and the rule that a wrong account there breaks.
pub(super) type Role = (&'static str, &'static str);

/// A transaction that is being read.
pub(super) struct Script<'a> {
    transaction: &'a Transaction,
    group: Key,
    rest: std::iter::Peekable<std::vec::IntoIter<Instruction>>,
    accepted: Vec<Instruction>,
}

/// A voucher's Ed25519 instruction, taken apart. Its signature has been verified.
pub(super) struct SignedVoucher {
    pub(super) channel: Key,
    pub(super) cumulative: u64,
    pub(super) expires_at: i64,
}

impl<'a> Script<'a> {
    /// Starts reading a transaction whose fee `group` pays and which exactly `others` must sign besides.
    pub(super) fn begin(transaction: &'a Transaction, group: Key, others: usize) -> Verdict<Self> {
        let signers = transaction.required_signers();
        ensure(transaction.fee_payer() == group, rule::FEE_PAYER, || {
            format!("the fee payer is {}, not the key {group}", transaction.fee_payer())
        })?;
        ensure(signers.len() == others.saturating_add(1), rule::SIGNERS, || {
            format!("{} signatures are required, the key's and {others} more may be", signers.len())
        })?;
        let rest = transaction.instructions().into_iter().peekable();
        Ok(Self { transaction, group, rest, accepted: Vec::new() })
    }

    /// The next instruction, left in place.
    pub(super) fn peek(&mut self) -> Option<&Instruction> {
        self.rest.peek()
    }

    /// Takes the next instruction where `program` runs it.
    pub(super) fn take_of(&mut self, program: &Key) -> Option<Instruction> {
        self.rest.next_if(|instruction| instruction.program == *program)
    }

    /// Takes the next instruction, which must be a call of the channel program with `accounts` accounts.
    pub(super) fn take_call(&mut self, name: &str, accounts: usize) -> Verdict<(Call, Instruction)> {
        let Some(instruction) = self.rest.next() else {
            return refuse(rule::INSTRUCTION, format!("the transaction ends where {name} must stand"));
        };
        ensure(instruction.program == PAYMENT_CHANNELS, rule::INSTRUCTION, || {
            format!("{name} must stand where {} is called", instruction.program)
        })?;
        let Ok(call) = Call::decode(&instruction.data) else {
            return refuse(rule::INSTRUCTION, format!("{name} must stand where the channel program gets unknown data"));
        };
        ensure(instruction.accounts.len() == accounts, rule::INSTRUCTION, || {
            format!("{name} takes {accounts} accounts, not {}", instruction.accounts.len())
        })?;
        Ok((call, instruction))
    }

    /// Accepts `actual` where it is `expected`, byte for byte and account for account.
    pub(super) fn accept(&mut self, actual: &Instruction, expected: Instruction, roles: &[Role]) -> Verdict<()> {
        ensure(actual.program == expected.program && actual.data == expected.data, rule::INSTRUCTION, || {
            format!("the data of a call to {} is not canonical", actual.program)
        })?;
        ensure(actual.accounts.len() == expected.accounts.len(), rule::INSTRUCTION, || {
            format!("{} accounts where {} belong", actual.accounts.len(), expected.accounts.len())
        })?;
        for (position, (actual, expected)) in actual.accounts.iter().zip(&expected.accounts).enumerate() {
            let (name, rule) = roles.get(position).copied().unwrap_or(("account", rule::INSTRUCTION));
            ensure(actual.key == expected.key, rule, || {
                format!("{name} at position {position} is {}, it must be {}", actual.key, expected.key)
            })?;
        }
        self.accepted.push(expected);
        Ok(())
    }

    /// Takes the optional compute budget prefix: at most a limit and then a price, both bounded. Where the limit is
    /// left out, the fee may not be above what the two bounds allow together.
    pub(super) fn compute_budget(&mut self, caps: ComputeCaps) -> Verdict<()> {
        let (mut limit, mut price) = (None, None);
        while let Some(instruction) = self.take_of(&COMPUTE_BUDGET_PROGRAM) {
            match instruction.data.split_first() {
                Some((2, units)) if limit.is_none() && price.is_none() && units.len() == 4 => {
                    limit = units.first_chunk().map(|units| u32::from_le_bytes(*units));
                }
                Some((3, micro)) if price.is_none() && micro.len() == 8 => {
                    price = micro.first_chunk().map(|micro| u64::from_le_bytes(*micro));
                }
                _ => {
                    let detail = "only one unit limit and then one unit price may stand in the compute budget prefix";
                    return refuse(rule::COMPUTE_BUDGET, detail);
                }
            }
            self.accept_reader(instruction)?;
        }
        let price = price.unwrap_or(0);
        ensure(limit.is_none_or(|units| units <= caps.units_max), rule::COMPUTE_BUDGET, || {
            format!("the compute unit limit {limit:?} is above {}", caps.units_max)
        })?;
        ensure(price <= caps.micro_lamports_max, rule::COMPUTE_BUDGET, || {
            format!("{price} micro-lamports per compute unit are above {}", caps.micro_lamports_max)
        })?;
        let instructions = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let default = instructions.saturating_mul(UNITS_PER_INSTRUCTION).min(UNITS_PER_TRANSACTION);
        let units = limit.map_or(default, u64::from);
        let fee = u128::from(units).saturating_mul(price.into());
        let most = u128::from(caps.units_max).saturating_mul(caps.micro_lamports_max.into());
        ensure(fee <= most, rule::COMPUTE_BUDGET, || {
            format!("without a limit, {price} micro-lamports per compute unit could cost more than any limit allows")
        })
    }

    /// Accepts an instruction that needs no privilege for what it names, and may not name the key.
    fn accept_reader(&mut self, mut instruction: Instruction) -> Verdict<()> {
        ensure(instruction.accounts.iter().all(|account| account.key != self.group), rule::GROUP_KEY, || {
            format!("a call to {} names the key", instruction.program)
        })?;
        for account in &mut instruction.accounts {
            *account = AccountMeta::readonly(account.key);
        }
        self.accepted.push(instruction);
        Ok(())
    }

    /// Takes the memos and Lighthouse assertions at the end of a client's transaction. They may not name the key.
    pub(super) fn suffix(&mut self) -> Verdict<()> {
        let (mut memos, mut assertions) = (0_usize, 0_usize);
        while let Some(instruction) = self.rest.next() {
            if instruction.program == MEMO_PROGRAM {
                memos = memos.saturating_add(1);
            } else if instruction.program == LIGHTHOUSE_PROGRAM {
                assertions = assertions.saturating_add(1);
            } else {
                return refuse(rule::INSTRUCTION, format!("a call to {} is not allowed here", instruction.program));
            }
            self.accept_reader(instruction)?;
        }
        ensure(memos <= MEMOS_MAX && assertions <= LIGHTHOUSE_MAX, rule::INSTRUCTION, || {
            format!("{memos} memos and {assertions} assertions; at most {MEMOS_MAX} and {LIGHTHOUSE_MAX} may stand")
        })
    }

    /// Takes a voucher's Ed25519 instruction in the only layout that the program reads, and verifies its signature.
    pub(super) fn take_voucher(&mut self) -> Verdict<SignedVoucher> {
        let Some(instruction) = self.take_of(&ED25519_PROGRAM) else {
            return refuse(rule::INSTRUCTION, "a voucher's Ed25519 instruction must stand before its settlement");
        };
        let parts = voucher_parts(&instruction.data);
        let Some((signer, signature, message)) = parts else {
            return refuse(rule::VOUCHER, "the Ed25519 instruction is not as long as one voucher's");
        };
        ensure(instruction == program::ed25519(&signer, &signature, &message), rule::VOUCHER, || {
            "the Ed25519 instruction has not the canonical layout".to_owned()
        })?;
        let Some(voucher) = read_voucher(&message) else {
            return refuse(rule::VOUCHER, "the signed message is no voucher");
        };
        ensure(verify_strict(&signer, &message, &signature), rule::VOUCHER, || {
            format!("the voucher's signature by {signer} does not verify")
        })?;
        self.accepted.push(instruction);
        Ok(voucher)
    }

    /// Ends the reading: nothing is left, and every account that may change is there for a reason.
    pub(super) fn end(mut self) -> Verdict<()> {
        if let Some(instruction) = self.rest.next() {
            return refuse(rule::INSTRUCTION, format!("a call to {} is not allowed here", instruction.program));
        }
        let mut may_change = BTreeSet::from([self.group]);
        let accounts = self.accepted.iter().flat_map(|instruction| &instruction.accounts);
        may_change.extend(accounts.filter(|account| account.is_writable).map(|account| account.key));
        let mut named = BTreeSet::new();
        for (index, key) in self.transaction.keys().iter().enumerate() {
            ensure(named.insert(*key), rule::ACCOUNTS, || format!("the account {key} is named twice"))?;
            let expected = may_change.contains(key);
            ensure(self.transaction.is_writable(index) == expected, rule::ACCOUNTS, || {
                format!("whether the account {key} may change must be {expected}")
            })?;
        }
        Ok(())
    }
}

fn voucher_parts(data: &[u8]) -> Option<(Key, Signature, [u8; program::VOUCHER_MESSAGE_BYTES])> {
    let (_, rest) = data.split_first_chunk::<16>()?;
    let (signer, rest) = rest.split_first_chunk()?;
    let (signature, message) = rest.split_first_chunk()?;
    Some((Key(*signer), Signature(*signature), message.try_into().ok()?))
}

fn read_voucher(message: &[u8; program::VOUCHER_MESSAGE_BYTES]) -> Option<SignedVoucher> {
    let (_, rest) = message.split_first_chunk::<2>()?;
    let (channel, rest) = rest.split_first_chunk()?;
    let (cumulative, rest) = rest.split_first_chunk()?;
    let voucher = SignedVoucher {
        channel: Key(*channel),
        cumulative: u64::from_le_bytes(*cumulative),
        expires_at: i64::from_le_bytes(rest.try_into().ok()?),
    };
    let SignedVoucher { channel, cumulative, expires_at } = &voucher;
    (program::voucher_message(channel, *cumulative, *expires_at) == *message).then_some(voucher)
}
