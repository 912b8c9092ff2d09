//! Seeded worlds: charges, deposits, refunds, withdrawals, crashes and faults in an order of chance, and what must be true
//! whenever something has ended.
//!
//! One number makes a world. The world settles undisturbed now and then, so that whatever is charged can be claimed before
//! its payer can have taken it out; at the end nothing goes wrong any more, and every unit is where it belongs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use turnpike::amount::Amount;
use turnpike::clock::Clock;
use turnpike::facilitator::channels::{ByFacilitator, EvmChannels};
use turnpike::facilitator::interface::X402Facilitator;
use turnpike::ledger::channel::Voucher;
use turnpike::ledger::memory::Fault as StoreFault;
use turnpike::ledger::{Entry, Limits};
use turnpike::scheme::evm::EvmTerms;
use turnpike::settlement::Trigger;
use turnpike::settlement::evm::{EvmOptions, EvmSettlement};
use turnpike::x402::evm::AnySignature;

use crate::books::{Books, Counts};
use crate::chance::{Going, Random, SimulatedClock, carry};
use crate::crashes::sign_refund;
use crate::ports::{Facilitator, Fault, Reader, reading};
use crate::world::{DELAY, DOLLAR, EURO, PAY_TO, World, voucher};
use crate::worlds::{enough_happened, no_task_panicked, run_world, run_worlds};

const STEPS: u64 = 30;
/// Two payers in dollars, a contract that may take its vouchers back, one payer in euros.
const PAYERS: u32 = 4;
const WALLET: u32 = 3;
const DEPOSITS: u128 = 3_000;
/// How long settlement may be disturbed, in seconds; with the longest step it is less than the margin before a
/// withdrawal's end in which no credit is given.
const RESTS_MAX: i64 = 120;
/// How old a reading may be to give credit by, as the gate has it.
const FRESH_SECONDS: u64 = 60;

struct Simulation {
    world: World,
    random: Random,
    by_facilitator: bool,
    settlement: Arc<EvmSettlement>,
    books: Rc<RefCell<Books>>,
    terms: BTreeMap<u32, EvmTerms>,
    settled_at: i64,
}

impl Simulation {
    async fn new(seed: u64, books: Rc<RefCell<Books>>) -> Self {
        let random = Random::new(seed);
        let world = World::of_chance(random.clone(), Limits::default()).await;
        let by_facilitator = random.one_in(4);
        world.reader.no_unsettled.store(random.one_in(3), Ordering::Relaxed);
        let terms: BTreeMap<_, _> = (1..=PAYERS)
            .map(|n| match n {
                WALLET => (n, world.wallet_terms(n)),
                PAYERS => (n, world.terms_in(1, n)),
                _ => (n, world.terms(n)),
            })
            .collect();
        world.contract.wallet(terms[&WALLET].payer, true);
        for terms in terms.values() {
            books.borrow_mut().lines.entry(terms.id).or_default();
        }
        let settlement = Arc::new(settlement(&world, by_facilitator));
        let settled_at = world.now();
        Self { world, random, by_facilitator, settlement, books, terms, settled_at }
    }

    fn tell(&self, line: String) {
        self.books.borrow_mut().tell(format!("{} {line}", self.world.now()));
    }

    fn check(&self) {
        self.books.borrow().check(&self.world.life.ledger, &self.world.contract);
        no_task_panicked();
    }

    /// Several things that begin together, a crash in the middle of them or after them.
    async fn step(&mut self) {
        let mut going = Vec::new();
        for _ in 0..=self.random.below(3) {
            self.begin(&mut going);
        }
        match self.random.below(12) {
            0 => self.world.life.power.fails_after(1 + self.random.below(60)),
            1 => self.world.store.fault_at(1 + self.random.below(6), StoreFault::CrashBefore),
            2 => self.world.store.fault_at(1 + self.random.below(6), StoreFault::CrashAfter),
            _ => {}
        }
        self.carry(going).await;
        if !self.world.life.power.is_on() || self.random.one_in(20) {
            self.crash().await;
        }
        if self.random.one_in(3) {
            self.world.contract.mine();
        }
        self.nothing_left_behind().await;
        if self.random.one_in(10) {
            self.quiet().await;
        }
        self.take_out();
        while self.world.now() - self.settled_at > RESTS_MAX {
            self.settle_undisturbed().await;
        }
    }

    /// A quarter of an hour in which nobody pays and settlement goes on.
    async fn quiet(&mut self) {
        self.tell("a quiet time".into());
        for _ in 0..9 {
            tokio::time::sleep(Duration::from_secs(100)).await;
            self.settle_undisturbed().await;
        }
    }

    async fn carry(&self, going: Vec<Going>) {
        let life = &self.world.life;
        carry(going, &self.random, &life.power, |line| {
            self.tell(format!("  {line}"));
            self.books.borrow_mut().counts.dropped += u64::from(line.ends_with("dropped"));
            self.books.borrow().check(&life.ledger, &self.world.contract);
        })
        .await;
    }

    async fn crash(&mut self) {
        let halfway = !self.world.life.power.is_on();
        self.world.restart().await;
        self.settlement = Arc::new(settlement(&self.world, self.by_facilitator));
        let open = self.world.life.ledger.open_batches().len();
        self.tell(format!("crash{}, {open} batches open", if halfway { " halfway" } else { "" }));
        let mut books = self.books.borrow_mut();
        books.counts.crashes += 1;
        books.counts.halfway += u64::from(halfway);
        drop(books);
        self.check();
    }

    /// Nothing is under way, so no reservation is held once what was dropped halfway through its write is written.
    async fn nothing_left_behind(&self) {
        let held = || self.world.life.power.is_on() && self.world.life.ledger.counts().1 > 0;
        if held() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(!held(), "a reservation outlives its request");
    }

    fn going(&self, name: String, work: impl Future<Output = ()> + 'static) -> Going {
        self.tell(name.clone());
        let leaves = self.random.one_in(5);
        Going { name, work: Box::pin(work), polls_left: leaves.then(|| 1 + self.random.below(40)) }
    }

    fn begin(&mut self, going: &mut Vec<Going>) {
        let n = 1 + u32::try_from(self.random.below(u64::from(PAYERS))).unwrap();
        let terms = self.terms[&n].clone();
        match self.random.below(28) {
            0..=10 => going.push(self.request(n, terms)),
            11 | 12 => going.push(self.refund(n, terms)),
            13 | 14 => self.withdraw(n, &terms),
            15 | 16 => {
                let trigger =
                    [Trigger::Clock, Trigger::Pressed, Trigger::Demand(self.world.clock.now())][self.random.index(3)];
                let settlement = Arc::clone(&self.settlement);
                let work = async move { drop(settlement.step(trigger).await) };
                going.push(self.going(format!("settlement by {trigger:?}"), work));
            }
            17 => {
                let settlement = Arc::clone(&self.settlement);
                going.push(self.going("watch".into(), async move { drop(settlement.watch().await) }));
            }
            18..=20 => self.go_wrong(),
            _ => {
                let seconds = 1 + self.random.below(if self.random.one_in(2) { 90 } else { 15 });
                let pass = async move { tokio::time::sleep(Duration::from_secs(seconds)).await };
                self.tell(format!("{seconds} seconds"));
                going.push(Going { name: "time".into(), work: Box::pin(pass), polls_left: None });
            }
        }
    }

    /// A request as the gate has it: reads what is not fresh, brings a deposit where the balance is short, reserves, is
    /// served, and is charged in whole, in part, not at all, or is released.
    fn request(&self, n: u32, terms: EvmTerms) -> Going {
        let price = 100 + u128::from(self.random.below(5)) * 100;
        let part = [price, price, price / 2, 7, 0][self.random.index(5)];
        let fails = self.random.one_in(5);
        let seconds = self.random.below(20);
        let name = format!("payer {n}: {part} of {price}{}", if fails { ", released" } else { "" });
        let (ledger, contract) = (Arc::clone(&self.world.life.ledger), Arc::clone(&self.world.contract));
        let (clock, power) = (Arc::clone(&self.world.clock), Arc::clone(&self.world.life.power));
        let books = Rc::clone(&self.books);
        let read = {
            let (contract, clock, terms) = (Arc::clone(&contract), Arc::clone(&clock), terms.clone());
            move || reading(&contract, &crate::world::record_of(&terms), false, clock.as_ref())
        };
        let work = async move {
            power.point().await;
            match ledger.channel(&terms.id) {
                Some(record) if clock.now().since(record.on_chain.read_at) > Duration::from_secs(FRESH_SECONDS) => {
                    if ledger.observe(&terms.id, read()).await.is_err() {
                        return;
                    }
                }
                None if read().balance > Amount::ZERO => ledger.adopt(terms.clone(), read()),
                Some(_) | None => {}
            }
            let base = ledger.channel(&terms.id).map_or(0, |record| record.charged.get());
            let total = base + price;
            let voucher: Voucher<AnySignature> = voucher(&terms, n, total);
            {
                let mut books = books.borrow_mut();
                let line = books.lines.entry(terms.id).or_default();
                line.signed = line.signed.max(total);
            }
            let balance = ledger.channel(&terms.id).map_or(0, |record| record.on_chain.balance.get());
            let short = total > balance;
            let deposit_after = short.then(|| Amount::new(balance.max(total) + DEPOSITS));
            let entry = Entry { terms: terms.clone(), voucher, amount: Amount::new(price), deposit_after };
            let Ok(reservation) = ledger.reserve(entry).await else {
                books.borrow_mut().counts.refused += 1;
                return;
            };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            power.point().await;
            if fails {
                books.borrow_mut().counts.released += 1;
                return;
            }
            books.borrow_mut().lines.entry(terms.id).or_default().earned.insert(base + part);
            let on_chain = short.then(|| {
                contract.deposit(&terms.config(), total.saturating_sub(balance) + DEPOSITS);
                books.borrow_mut().counts.deposits += 1;
                read()
            });
            if short {
                power.point().await;
            }
            if let Ok(receipt) = reservation.charging(Amount::new(part)).commit(on_chain).await {
                assert_eq!(receipt.charged, Amount::new(part));
                let mut books = books.borrow_mut();
                let line = books.lines.entry(terms.id).or_default();
                line.told = line.told.max(base + part);
                books.counts.charged += 1;
                books.counts.in_part += u64::from(part < price);
            }
        };
        self.going(name, work)
    }

    /// A refund as the gate has it, whose answer may be lost with it done or not.
    fn refund(&self, n: u32, terms: EvmTerms) -> Going {
        let (ledger, contract) = (Arc::clone(&self.world.life.ledger), Arc::clone(&self.world.contract));
        let (clock, power) = (Arc::clone(&self.world.clock), Arc::clone(&self.world.life.power));
        let whole = self.random.one_in(2);
        let fate = self.random.below(5);
        let books = Rc::clone(&self.books);
        let work = async move {
            let Ok(guard) = ledger.begin_close(&terms.id).await else { return };
            let now = reading(&contract, &crate::world::record_of(&terms), false, clock.as_ref());
            if ledger.observe(&terms.id, now).await.is_err() {
                return;
            }
            let record = guard.channel();
            let left = record.on_chain.balance.get().saturating_sub(record.charged.get());
            let amount = if whole { left } else { left / 3 };
            if amount == 0 || guard.shut().await.is_err() {
                return;
            }
            power.point().await;
            // 0: lost before it was sent. 1: done, and the answer is lost. Else: done or refused, and told.
            let done = if fate == 0 { None } else { Some(sign_refund(&contract, &record, amount)) };
            power.point().await;
            match done {
                Some(Ok(_)) if fate > 1 => {
                    let after = reading(&contract, &record, false, clock.as_ref());
                    books.borrow_mut().counts.refunds += 1;
                    drop(guard.finish(after).await);
                }
                Some(Err(_)) => drop(guard.reopen().await),
                Some(Ok(_)) | None => {}
            }
        };
        self.going(format!("payer {n} wants {} back, fate {fate}", if whole { "all" } else { "a third" }), work)
    }

    /// A payer begins to withdraw all that is not claimed, or the half of it.
    fn withdraw(&self, n: u32, terms: &EvmTerms) {
        let (account, _) = self.world.contract.account(&terms.id, false);
        let free = account.balance - account.claimed;
        let amount = if self.random.one_in(2) { free } else { free / 2 };
        let begun = self.world.contract.initiate_withdraw(&terms.config(), amount);
        self.tell(format!("payer {n} begins to withdraw {amount}: {begun:?}"));
    }

    /// Payers end their withdrawals, most of them as soon as they can.
    fn take_out(&self) {
        for (n, terms) in &self.terms {
            let (account, _) = self.world.contract.account(&terms.id, false);
            let ends = account.withdraw_since + i64::try_from(DELAY).unwrap();
            if account.withdraw_since == 0 || self.world.now() < ends || self.random.one_in(4) {
                continue;
            }
            let taken = self.world.contract.finalize_withdraw(&terms.config()).unwrap();
            self.tell(format!("payer {n} takes {taken} out"));
            self.books.borrow_mut().counts.withdrawals += 1;
            // Who takes vouchers back, and what a facilitator cannot tell, may cost something; nothing else does.
            let charged = self.world.charged(terms);
            let left = self.world.contract.account(&terms.id, false).0.balance;
            if *n != WALLET && !self.by_facilitator {
                assert!(charged <= left, "{charged} was charged of payer {n}, and {left} is left");
            }
        }
    }

    fn go_wrong(&mut self) {
        let (facilitator, reader) = (&self.world.facilitator, &self.world.reader);
        let what = self.random.below(12);
        match what {
            0..=4 => {
                let kinds = ["claim", "settle"];
                let faults = [Fault::Refuse, Fault::Unavailable, Fault::BreakBefore, Fault::BreakAfter, Fault::Late];
                let fault = faults[self.random.index(faults.len())];
                facilitator.fault(kinds[self.random.index(2)], [fault; 2].into_iter().take(1 + self.random.index(2)));
            }
            5 => facilitator.always("claim", Some([Fault::BreakBefore, Fault::BreakAfter][self.random.index(2)])),
            6 => reader.down.store(true, Ordering::Relaxed),
            7 => reader.lags.store(true, Ordering::Relaxed),
            8 => drop(reader.untold.lock().insert(self.terms[&1].id)),
            9 => facilitator.lags.store(true, Ordering::Relaxed),
            10 => self.world.contract.wallet(self.terms[&WALLET].payer, self.random.one_in(3)),
            _ => {
                facilitator.release(&self.world.contract);
                self.mend();
            }
        }
        self.tell(format!("faults: {what}"));
    }

    fn mend(&self) {
        self.world.facilitator.mend();
        self.world.reader.mend();
    }

    /// A settlement that nothing disturbs but a crash of its own life.
    async fn settle_undisturbed(&mut self) {
        self.mend();
        self.world.contract.mine();
        for _ in 0..6 {
            let settlement = Arc::clone(&self.settlement);
            let work = async move {
                drop(settlement.watch().await);
                drop(settlement.settle_now(&None).await);
            };
            let going = Going { name: "settlement undisturbed".into(), work: Box::pin(work), polls_left: None };
            self.carry(vec![going]).await;
            if !self.world.life.power.is_on() {
                return self.crash().await;
            }
            if self.world.life.ledger.open_batches().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        self.settled_at = self.world.now();
        self.check();
    }

    /// Nothing goes wrong any more, and time goes on until everything has come to rest: then the money ties out.
    async fn finish(&mut self) {
        self.mend();
        self.world.facilitator.release(&self.world.contract);
        self.world.contract.wallet(self.terms[&WALLET].payer, true);
        if self.random.one_in(2) {
            self.crash().await;
        } else {
            self.world.life.power.fails_after(0);
            self.world.store.fault_at(u64::MAX, StoreFault::Fail);
        }
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            self.world.contract.mine();
            self.settlement.watch().await.unwrap();
            self.settlement.settle_now(&None).await;
            self.check();
        }
        assert!(self.world.life.power.is_on(), "the last life lives on");
        self.nothing_left_behind().await;
        let ledger = &self.world.life.ledger;
        assert_eq!(ledger.open_batches(), [], "no batch is left open");
        let mut claimed = 0;
        for terms in self.terms.values() {
            let (account, _) = self.world.contract.account(&terms.id, false);
            claimed += account.claimed;
            let Some(record) = ledger.channel(&terms.id) else { continue };
            // Where a voucher is above what its payer left, a facilitator can tell neither.
            let tells = !self.by_facilitator
                || record.voucher.as_ref().is_some_and(|voucher| voucher.cumulative.get() <= account.balance);
            if tells {
                assert_eq!(account.claimed, record.charged.get().min(account.balance), "all that is there is claimed");
                assert_eq!(record.on_chain.claimed.get(), account.claimed, "and known to be");
            }
        }
        let paid = [DOLLAR, EURO].map(|token| {
            assert_eq!(self.world.contract.unsettled(PAY_TO, token, false), 0, "all that is claimed is paid out");
            self.world.contract.tokens(token, PAY_TO)
        });
        assert_eq!(paid.iter().sum::<u128>(), claimed, "the merchant was paid what was claimed");
        let mut books = self.books.borrow_mut();
        books.counts.claims += u64::from(self.world.contract.claim_transactions());
        books.counts.payouts += u64::try_from(self.world.contract.payouts().len()).unwrap();
    }
}

fn settlement(world: &World, by_facilitator: bool) -> EvmSettlement {
    let channels: Arc<dyn EvmChannels> = if by_facilitator {
        let facilitator: Arc<dyn X402Facilitator> = Arc::<Facilitator>::clone(&world.life.facilitator);
        Arc::new(ByFacilitator::new(facilitator, Arc::<SimulatedClock>::clone(&world.clock)))
    } else {
        Arc::<Reader>::clone(&world.life.reader)
    };
    let mut options = EvmOptions { batch_claims: 3, interval: Duration::from_secs(60), ..world.options() };
    options.rules.min_amount = Amount::new(50);
    options.rules.max_age = Duration::from_secs(120);
    EvmSettlement::new(world.parts(channels, None), options)
}

/// Runs one world; answers what happened in it, and a digest of all its steps.
fn world(seed: u64) -> Result<(Counts, u64), String> {
    let books: Rc<RefCell<Books>> = Rc::default();
    let run = async {
        let mut simulation = Simulation::new(seed, Rc::clone(&books)).await;
        for _ in 0..STEPS {
            simulation.step().await;
            simulation.check();
        }
        simulation.finish().await;
        let books = books.borrow();
        (books.counts, books.digest.finish())
    };
    run_world(seed, run, || Vec::from(std::mem::take(&mut books.borrow_mut().last)).join("\n"))
}

#[test]
fn money_ties_out_in_every_world() {
    let (worlds, counts) = run_worlds(500, |seed| world(seed).map(|(counts, _)| counts));
    println!("{worlds} worlds: {counts:?}");
    enough_happened(
        worlds,
        &[
            ("charges", counts.charged, 500),
            ("charges of a part", counts.in_part, 200),
            ("releases", counts.released, 100),
            ("refusals", counts.refused, 50),
            ("deposits", counts.deposits, 100),
            ("refunds", counts.refunds, 50),
            ("withdrawals", counts.withdrawals, 5),
            ("crashes", counts.crashes, 150),
            ("crashes halfway", counts.halfway, 100),
            ("things dropped halfway", counts.dropped, 100),
            ("claims", counts.claims, 200),
            ("payouts", counts.payouts, 200),
        ],
    );
}

#[test]
fn one_seed_makes_one_world() {
    for seed in 0..8 {
        let digests = [(); 2].map(|()| world(seed).unwrap().1);
        assert_eq!(digests[0], digests[1], "seed {seed} made two worlds: its failures could not be repeated");
    }
}
